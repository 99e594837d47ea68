"""A sweep of 24 trainings that loses a machine in the middle, against the same sweep undisturbed, bit for bit.

    python -m benchmarks.faults ray       two worker nodes of one CPU each; one is killed, all its processes at once
    python -m benchmarks.faults slurm     one node of two CPUs; a job of higher priority takes it (tests/slurm/start_slurm.sh)
    python -m benchmarks.faults local     two processes; one is killed, then the launcher, which is started again

Compared are every run's rows but for their seconds, and the bytes of its policies. What is told: how many attempts it took, and where
the runs that were interrupted went on. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SWEEP = """from launch import Sweep, grid

FIELDS = {
    "policy.hidden": (32,), "algorithm.critic_hidden": (32,), "demonstrations.episodes": 16, "video": False,
    "pretrain.updates": 200, "pretrain.evaluate_every": 100, "evaluation.episodes": 32, "evaluation.every": 2048,
    "finetune.envs": 16, "finetune.unroll_chunks": 4, "finetune.env_steps": 8192, "finetune.learning_starts": 1024,
    "finetune.batch_size": 64, "checkpoint.every": 512,
}


def get_sweep():
    rates = grid("algorithm.critic_lr", (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3))
    return Sweep("experiments/configs/reach.py", (rates,), fields=FIELDS, seeds=4, spread_seeds=True)
"""
RUNS = 24


def main() -> int:
    """Do it and tell; 1 where anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("on", choices=DISTURBED)
    chosen = parser.parse_args()
    os.environ["PYTHONPATH"] = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "faults.py"
        file.write_text(SWEEP)
        calm, hit = Path(folder) / "calm", Path(folder) / "hit"
        spent = {}
        for where, disturbed in ((calm, False), (hit, True)):
            began = time.monotonic()
            DISTURBED[chosen.on](file, where, disturbed)
            spent[where.name] = round(time.monotonic() - began, 1)
        found = compared(calm, hit)
    print(json.dumps({"on": chosen.on, "seconds": spent, **found}, indent=1))
    return 0 if found["equal"] == found["runs"] == RUNS else 1


def compared(calm: Path, hit: Path) -> dict[str, Any]:
    """Runs that are there, that are equal, that took more than one attempt, and what they said when they went on."""
    names = sorted(path.name for path in (calm / "runs").iterdir())
    attempts = {
        name: (hit / "runs" / name / "attempts.jsonl").read_text().count("began") for name in names
    }
    logs = {name: (hit / "runs" / name / "log.txt").read_text().splitlines() for name in names}
    return {
        "runs": len(names),
        "equal": sum(
            content(calm / "runs" / name) == content(hit / "runs" / name) for name in names
        ),
        "attempts": {name: count for name, count in attempts.items() if count > 1},
        "went_on": {
            name: [line for line in logs[name] if line.startswith("resuming")]
            for name in names
            if attempts[name] > 1
        },
    }


def content(run: Path) -> dict[str, Any]:
    """What must be the same: rows without times, and the policies' bytes."""
    found: dict[str, Any] = {}
    for name in ("metrics.jsonl", "eval.jsonl"):
        found[name] = untimed(run / name)
    for path in sorted((run / "policy").rglob("*")):
        if path.is_file() and path.suffix != ".json":
            found[str(path.relative_to(run))] = path.read_bytes()
    return found


def untimed(path: Path) -> list[dict[str, Any]]:
    """Rows without what differs between two runs of the same: their seconds."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {
            k: v
            for k, v in row.items()
            if k not in ("seconds", "train_seconds") and not k.startswith("time/")
        }
        for row in rows
    ]


def _launched(file: Path, folder: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gcp_jax.launch.cli.main",
            "sweep",
            str(file),
            f"--run_dir={folder}",
            *words,
        ]
    )


def _ended(launcher: subprocess.Popen[bytes]) -> None:
    if launcher.wait():
        raise RuntimeError(f"the launcher ended with {launcher.returncode}")


def _in_the_middle(folder: Path) -> int:
    """Wait until a quarter of the runs is finished and another is past a checkpoint of its finetuning; the process that is at it."""
    while True:
        finished = {path.parent for path in folder.glob("runs/*/summary.json")}
        going = {
            path.parents[2] for path in folder.glob("runs/*/checkpoints/finetune/*")
        } - finished
        pids = [row["pid"] for run in going if "pid" in (row := last_attempt(run))]
        if len(finished) >= RUNS // 4 and pids:
            return int(pids[0])
        time.sleep(0.1)


def last_attempt(run: Path) -> dict[str, Any]:
    """The newest row of a run's attempts: with the process, while it is at work; {} before the first."""
    rows = (run / "attempts.jsonl").read_text().splitlines()
    return dict(json.loads(rows[-1])) if rows else {}


def kill_machine(nodes: Iterable[Any], pid: int) -> None:
    """Every process of the node of a Ray cluster that process ``pid`` belongs to, at once, as when its power goes."""
    import psutil

    raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes]
    trees = [[*raylet.children(recursive=True), raylet] for raylet in raylets]
    for process in next(tree for tree in trees if any(process.pid == pid for process in tree)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def ray(file: Path, folder: Path, disturbed: bool) -> None:
    """On a head without CPUs and two nodes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        launcher = _launched(file, folder, "--on=ray", f"--address={cluster.address}")
        if disturbed:
            kill_machine(nodes, _in_the_middle(folder))
        _ended(launcher)
    finally:
        cluster.shutdown()


def local(file: Path, folder: Path, disturbed: bool) -> None:
    """In processes of this machine."""
    launcher = _launched(file, folder, "--slots=2")
    if disturbed:
        os.kill(_in_the_middle(folder), signal.SIGKILL)
        time.sleep(20)
        launcher.kill()
        launcher.wait()
        launcher = _launched(file, folder, "--slots=2")
    _ended(launcher)


def slurm(file: Path, folder: Path, disturbed: bool) -> None:
    """On a SLURM of this machine."""
    with _slurm() as environment:
        os.environ.update(environment)
        launcher = _launched(
            file, folder, "--on=slurm", "--slurm=partition=low", "--slurm=cpus_per_task=1"
        )
        if disturbed:
            _in_the_middle(folder)
            subprocess.run(
                [
                    "sbatch",
                    "--partition=high",
                    "--cpus-per-task=1",
                    "--output=/dev/null",
                    "--wrap=sleep 5",
                ],
                check=True,
            )
        _ended(launcher)


@contextlib.contextmanager
def _slurm() -> Iterator[dict[str, str]]:
    script = ["bash", "tests/slurm/start_slurm.sh"]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "SLURM_TEST_CPUS": "2"}
        started = subprocess.run(
            [*script, folder], stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
        try:
            yield {"SLURM_CONF": started.stdout.rpartition("=")[2].strip()}
        finally:
            subprocess.run([*script, "stop", folder], check=True)


DISTURBED = {"ray": ray, "slurm": slurm, "local": local}

if __name__ == "__main__":
    sys.exit(main())

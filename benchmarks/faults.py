"""A sweep of 24 trainings that loses a machine, against an undisturbed one, bit for bit.

    python -m benchmarks.faults ray     two worker nodes of one CPU each; one of them is killed
    python -m benchmarks.faults slurm   one node of two CPUs; a job of higher priority takes it
                                        (tests/slurm/start_slurm.sh)
    python -m benchmarks.faults local   two processes; one is killed, then the launcher, which is
                                        started again

Compared are the rows of every run except for their seconds, and the bytes of its policies. Printed
are also how many attempts the interrupted runs took, and where they resumed. Takes about ten
minutes on two cores.
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

from benchmarks.equality import run_content

SWEEP = """from gcp_jax.launch import Sweep, grid

FIELDS = {
    "policy.hidden": (32,),
    "algorithm.critic_hidden": (32,),
    "demonstrations.episodes": 16,
    "video": False,
    "pretrain.updates": 200,
    "pretrain.evaluate_every": 100,
    "evaluation.episodes": 32,
    "evaluation.every": 2048,
    "finetune.envs": 16,
    "finetune.unroll_chunks": 4,
    "finetune.env_steps": 8192,
    "finetune.learning_starts": 1024,
    "finetune.batch_size": 64,
    "checkpoint.every": 512,
}
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)


def get_sweep():
    return Sweep(
        "experiments/configs/reach.py",
        (grid("algorithm.critic_lr", RATES),),
        fields=FIELDS,
        seeds=4,
        spread_seeds=True,
    )
"""
RUNS = 24
PATIENCE = 20.0  # seconds between the loss of a process and that of the launcher


def main() -> int:
    """Run both sweeps and print what differs; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backend", choices=SWEEPS)
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.getcwd()
    run_sweep = SWEEPS[arguments.backend]
    with tempfile.TemporaryDirectory() as root:
        file = Path(root) / "faults.py"
        file.write_text(SWEEP)
        undisturbed = Path(root) / "undisturbed"
        disturbed = Path(root) / "disturbed"
        seconds = {}
        for folder in (undisturbed, disturbed):
            began = time.monotonic()
            run_sweep(file, folder, disturb=folder is disturbed)
            seconds[folder.name] = round(time.monotonic() - began, 1)
        comparison = compare(undisturbed, disturbed)
    print(json.dumps({"backend": arguments.backend, "seconds": seconds, **comparison}, indent=1))
    return 0 if comparison["equal"] == comparison["runs"] == RUNS else 1


def compare(undisturbed: Path, disturbed: Path) -> dict[str, Any]:
    """Numbers of runs and of equal runs; attempts and resumptions of the interrupted ones."""
    names = sorted(path.name for path in (undisturbed / "runs").iterdir())
    equal = 0
    attempts: dict[str, int] = {}
    resumed: dict[str, list[str]] = {}
    for name in names:
        run = disturbed / "runs" / name
        equal += run_content(undisturbed / "runs" / name) == run_content(run)
        count = (run / "attempts.jsonl").read_text().count("began")
        if count > 1:
            attempts[name] = count
            lines = (run / "log.txt").read_text().splitlines()
            resumed[name] = [line for line in lines if line.startswith("resuming")]
    return {"runs": len(names), "equal": equal, "attempts": attempts, "resumed": resumed}


def sweep_on_ray(file: Path, folder: Path, *, disturb: bool) -> None:
    """On a head without CPUs and two nodes; all processes of one node are killed."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        launcher = _start_launcher(file, folder, "--backend=ray", f"--address={cluster.address}")
        if disturb:
            kill_machine(nodes, _wait_for_the_middle(folder))
        _wait_for_end(launcher)
    finally:
        cluster.shutdown()


def sweep_on_local(file: Path, folder: Path, *, disturb: bool) -> None:
    """In two processes of this machine; one is killed, then the launcher."""
    launcher = _start_launcher(file, folder, "--max_parallel=2")
    if disturb:
        os.kill(_wait_for_the_middle(folder), signal.SIGKILL)
        time.sleep(PATIENCE)
        launcher.kill()
        launcher.wait()
        launcher = _start_launcher(file, folder, "--max_parallel=2")
    _wait_for_end(launcher)


def sweep_on_slurm(file: Path, folder: Path, *, disturb: bool) -> None:
    """On a SLURM of this machine; a job of higher priority takes its node."""
    with _slurm() as environment:
        os.environ.update(environment)
        options = ("--slurm=partition=low", "--slurm=cpus_per_task=1")
        launcher = _start_launcher(file, folder, "--backend=slurm", *options)
        if disturb:
            _wait_for_the_middle(folder)
            job = ["--partition=high", "--cpus-per-task=1", "--output=/dev/null", "--wrap=sleep 5"]
            subprocess.run(["sbatch", *job], check=True)
        _wait_for_end(launcher)


SWEEPS = {"ray": sweep_on_ray, "slurm": sweep_on_slurm, "local": sweep_on_local}


@contextlib.contextmanager
def _slurm() -> Iterator[dict[str, str]]:
    """A SLURM of one node with two CPUs; its environment variables."""
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


def _start_launcher(file: Path, folder: Path, *flags: str) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "gcp_jax.launch.cli.main", "sweep"]
    return subprocess.Popen([*program, str(file), f"--run_dir={folder}", *flags])


def _wait_for_end(launcher: subprocess.Popen[bytes]) -> None:
    if launcher.wait():
        raise RuntimeError(f"the launcher ended with {launcher.returncode}")


def _wait_for_the_middle(folder: Path) -> int:
    """Wait for the middle of a sweep.

    That is when a quarter of its runs is finished, and another has a checkpoint of finetuning.

    Returns:
      The process that trains the other run.
    """
    while True:
        finished = {path.parent for path in folder.glob("runs/*/summary.json")}
        saved = {path.parents[2] for path in folder.glob("runs/*/checkpoints/finetune/*")}
        attempts = [last_attempt(run) for run in saved - finished]
        pids = [attempt["pid"] for attempt in attempts if "pid" in attempt]
        if len(finished) >= RUNS // 4 and pids:
            return int(pids[0])
        time.sleep(0.1)


def last_attempt(run: Path) -> dict[str, Any]:
    """The newest row of a run's attempts, with its process while it works; {} before the first."""
    rows = (run / "attempts.jsonl").read_text().splitlines()
    return dict(json.loads(rows[-1])) if rows else {}


def kill_machine(nodes: Iterable[Any], pid: int) -> None:
    """Kill all processes of the Ray node of process ``pid`` at once, as if its power failed."""
    import psutil  # comes with Ray

    for node in nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        processes = [*raylet.children(recursive=True), raylet]
        if any(process.pid == pid for process in processes):
            break
    else:
        raise ValueError(f"no node has process {pid}")
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    sys.exit(main())

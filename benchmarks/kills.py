"""A training that is killed (SIGKILL) at random moments and started again each time, against one that is left in peace, bit for bit.

    python -m benchmarks.kills [--kills=20] [--seed=0]

Moments: seconds after the start; a while after a row was written; in the middle of writing a checkpoint. Compared are all rows but for
their seconds, the bytes of the policies, the table of the report, and every array of the last checkpoint: parameters, optimizers, replay,
environments, keys. Ends with 1 where anything differs. A kill costs a start: about ten minutes for twenty on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks.faults import content

SETTINGS = {
    "policy.hidden": "(32,)", "algorithm.critic_hidden": "(32,)", "demonstrations.episodes": 16, "video": False, "seeds": 2,
    "pretrain.updates": 400, "pretrain.evaluate_every": 50, "evaluation.episodes": 32, "evaluation.every": 1024,
    "finetune.envs": 16, "finetune.unroll_chunks": 4, "finetune.env_steps": 16384, "finetune.learning_starts": 1024,
    "finetune.batch_size": 64, "checkpoint.every": 512,
}  # fmt: skip


class Moment(NamedTuple):
    """When to kill. kind: "start", seconds after the command; "row", so many new rows and seconds; "save", in a checkpoint."""

    kind: str
    rows: int = 0
    seconds: float = 0.0


def main() -> int:
    """Do it and tell; 1 where anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    source = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as folder:
        calm, hit = Path(folder) / "calm" / "run", Path(folder) / "hit" / "run"
        began = time.monotonic()
        undisturbed = subprocess.run(command(calm), check=True, capture_output=True, text=True)
        calm_seconds, began = time.monotonic() - began, time.monotonic()
        killed = Counter(_killed(hit, _drawn(source)) for _ in range(chosen.kills))
        ended = subprocess.run(command(hit), check=True, capture_output=True, text=True)
        found = differences(calm, hit)
        told = {
            "kills": dict(killed),
            "equal": not found,
            "differences": found,
            "same_summary": _summary(undisturbed) == _summary(ended),
            "seconds": {
                "undisturbed": round(calm_seconds, 1),
                "killed": round(time.monotonic() - began, 1),
            },
        }
    print(json.dumps(told, indent=1))
    return 0 if told["equal"] and told["same_summary"] else 1


def command(folder: Path) -> list[str]:
    """The training, in this folder."""
    fields = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    program = [
        sys.executable,
        "-m",
        "gcp_jax.launch.cli.main",
        "train",
        "--config=experiments/configs/reach.py",
    ]
    return [*program, f"--config.run_dir={folder}", *fields, "--json"]


def differences(calm: Path, hit: Path) -> list[str]:
    """Names of what is not the same in two finished runs."""
    tables = [(run / "report" / "table.csv").read_text() for run in (calm, hit)]
    return [*unequal(calm, hit), *(["table"] if tables[0] != tables[1] else [])]


def unequal(calm: Path, hit: Path) -> list[str]:
    """Names of the rows, policies and arrays of the last checkpoint that are not the same in two runs."""
    parts = [{**content(run), **arrays(run)} for run in (calm, hit)]
    names = sorted(parts[0].keys() | parts[1].keys())
    return [name for name in names if not _same(parts[0].get(name), parts[1].get(name))]


def _same(a: Any, b: Any) -> bool:
    return np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray) else a == b


def arrays(run: Path) -> dict[str, np.ndarray]:
    """Everything in the last checkpoint of a run's finetuning, however many devices wrote it."""
    folder = (run / "checkpoints" / "finetune").resolve()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.CheckpointManager(folder) as manager:
        found = manager.restore(
            max(ocp.utils.checkpoint_steps(folder)),
            args=ocp.args.Composite(train=ocp.args.StandardRestore(fallback_sharding=here)),
        )
    tree = ocp.utils.to_flat_dict(found["train"])
    return {"/".join(map(str, name)): np.asarray(value) for name, value in tree.items()}


def _summary(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The run's own last line, without times and folders."""
    summary = json.loads(ended.stdout.splitlines()[-1])
    return {
        name: value
        for name, value in summary.items()
        if "seconds" not in name and name != "run_dir"
    }


def _drawn(source: random.Random) -> Moment:
    """Most moments are in the work."""
    kind = source.choice(("start", "row", "row", "row", "save", "save"))
    return Moment(
        kind, source.randrange(1, 12), source.uniform(0.0, 10.0 if kind == "start" else 0.3)
    )


def _killed(folder: Path, moment: Moment) -> str:
    """Start the training, and kill it at that moment; the kind, or "late" where it was finished before."""
    before = _rows(folder)
    process = subprocess.Popen(
        command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    began = time.monotonic()
    while process.poll() is None:
        saving = any(folder.glob("checkpoints/*/*.orbax-checkpoint-tmp*"))
        if moment.kind == "save" and saving:
            break
        if moment.kind == "start" and time.monotonic() - began > moment.seconds:
            break
        if moment.kind == "row" and _rows(folder) >= before + moment.rows:
            time.sleep(moment.seconds)
            break
        time.sleep(0.001)
    process.kill()
    return moment.kind if process.wait() < 0 else "late"


def _rows(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    sys.exit(main())

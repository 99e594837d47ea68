"""A training that is killed again and again, against one that is not, bit for bit.

    python -m benchmarks.kills [--kills=20] [--seed=0]

The training is killed (SIGKILL) at random moments and started again each time. Moments: seconds
after the start; a while after a row was written; while a checkpoint is written. Compared are all
rows except for their seconds, the bytes of the policies, the table of the report, and every array
of the last checkpoint: parameters, optimizers, replay, environments, keys. The exit code is 1 if
anything differs. A kill costs a start: about ten minutes for twenty on two cores.
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

from benchmarks.equality import unequal_parts

SETTINGS = {
    "policy.hidden": "(32,)",
    "algorithm.critic_hidden": "(32,)",
    "demonstrations.episodes": 16,
    "video": False,
    "seeds": 2,
    "pretrain.updates": 400,
    "pretrain.evaluate_every": 50,
    "evaluation.episodes": 32,
    "evaluation.every": 1024,
    "finetune.envs": 16,
    "finetune.unroll_chunks": 4,
    "finetune.env_steps": 16384,
    "finetune.learning_starts": 1024,
    "finetune.batch_size": 64,
    "checkpoint.every": 512,
}
KINDS = ("start", "row", "row", "row", "save", "save")  # most moments are while it trains


class Moment(NamedTuple):
    """When to kill."""

    kind: str  # "start": seconds after it; "row": after rows and seconds; "save": while it saves
    rows: int = 0
    seconds: float = 0.0


def main() -> int:
    """Run both trainings and print what differs; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = compare(Path(folder), kills=arguments.kills, seed=arguments.seed)
    print(json.dumps(report, indent=1))
    return 0 if report["equal"] and report["same_summary"] else 1


def compare(folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Run an undisturbed and a killed training, and compare them."""
    undisturbed = folder / "undisturbed" / "run"
    killed = folder / "killed" / "run"
    source = random.Random(seed)
    start = time.monotonic()
    undisturbed_summary = _train(undisturbed)
    undisturbed_seconds = time.monotonic() - start
    start = time.monotonic()
    kinds = Counter(_train_until(killed, _random_moment(source)) for _ in range(kills))
    killed_summary = _train(killed)
    killed_seconds = time.monotonic() - start
    differences = unequal_parts(undisturbed, killed)
    if _table(undisturbed) != _table(killed):
        differences.append("table")
    return {
        "kills": dict(kinds),
        "equal": not differences,
        "differences": differences,
        "same_summary": undisturbed_summary == killed_summary,
        "seconds": {
            "undisturbed": round(undisturbed_seconds, 1),
            "killed": round(killed_seconds, 1),
        },
    }


def _command(folder: Path) -> list[str]:
    """The training, in this folder."""
    program = [sys.executable, "-m", "gcp_jax.launch.cli.main", "train"]
    fields = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    return [
        *program,
        "--config=experiments/configs/reach.py",
        f"--run_dir={folder}",
        *fields,
        "--json",
    ]


def _train(folder: Path) -> dict[str, Any]:
    """Train to the end; the summary without times and folders."""
    done = subprocess.run(_command(folder), check=True, capture_output=True, text=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    return {
        name: value
        for name, value in summary.items()
        if "seconds" not in name and name != "run_dir"
    }


def _table(run: Path) -> str:
    return (run / "report" / "table.csv").read_text()


def _random_moment(source: random.Random) -> Moment:
    kind = source.choice(KINDS)
    rows = source.randrange(1, 12)
    longest = 10.0 if kind == "start" else 0.3
    return Moment(kind=kind, rows=rows, seconds=source.uniform(0.0, longest))


def _train_until(folder: Path, moment: Moment) -> str:
    """Start the training and kill it; the kind of the moment, or "late" if it ended before."""
    rows_before = _count_rows(folder)
    process = subprocess.Popen(
        _command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    began = time.monotonic()
    while process.poll() is None:
        if moment.kind == "save" and any(folder.glob("checkpoints/*/*.orbax-checkpoint-tmp*")):
            break
        if moment.kind == "start" and time.monotonic() - began > moment.seconds:
            break
        if moment.kind == "row" and _count_rows(folder) >= rows_before + moment.rows:
            time.sleep(moment.seconds)
            break
        time.sleep(0.001)
    process.kill()
    return moment.kind if process.wait() < 0 else "late"


def _count_rows(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    sys.exit(main())

"""A long OGPO training with kills: memory growth, recompilation, and lost rows.

    python -m benchmarks.soak [--minutes=45] [--kills=4] [--seed=0] [--task=peg_insert]
                              [FIELD=VALUE …]

The training has the task's defaults, except for its length, which is endless, and the given fields.
It is killed (SIGKILL) at random moments. A life is the time from a start to its end. It is steady
after its second evaluation and its first checkpoint: from there on a slope is fitted to its
resident memory, and its compilations are counted (``jax_log_compiles``). The exit code is 1 if
something was compiled again or the rows have a gap.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import psutil

from gcp_jax.run import checkpoint, metrics

MIB = 2**20
INTERVAL = 2.0  # seconds between samples
MIN_STEADY = 120.0  # seconds of steady samples for a slope


class Compilation(NamedTuple):
    """A line of ``jax_log_compiles``."""

    seconds: float  # since the start
    what: str


class Life(NamedTuple):
    """One process of the training."""

    samples: np.ndarray  # [N, 2]: seconds since the start, bytes of resident memory
    compilations: list[Compilation]
    steady_from: float  # seconds; infinite if it was killed before
    rows: int  # of finetuning that it wrote

    def figures(self) -> dict[str, Any]:
        """Its figures; the slopes are None with fewer than ``MIN_STEADY`` seconds of samples."""
        seconds, memory = self.samples[self.samples[:, 0] > self.steady_from].T
        steady_seconds = len(seconds) * INTERVAL
        mib = slope = late_slope = None
        if steady_seconds > MIN_STEADY:
            mib = [round(float(x) / MIB) for x in (memory[0], memory[-1], memory.max())]
            half = len(seconds) // 2
            slope = _mib_per_hour(seconds, memory)
            late_slope = _mib_per_hour(seconds[half:], memory[half:])
        again = [each.what for each in self.compilations if each.seconds > self.steady_from]
        return {
            "minutes": round(self.samples[-1, 0] / 60, 1),
            "steady_minutes": round(steady_seconds / 60, 1),
            "rows": self.rows,
            "mib": mib,
            "mib_per_hour": slope,
            "mib_per_hour_of_the_second_half": late_slope,
            "compiled": len(self.compilations),
            "compiled_again": again,
        }


def _mib_per_hour(seconds: np.ndarray, memory: np.ndarray) -> float:
    """The slope of memory, by least squares."""
    slope, _ = np.polyfit(seconds, memory, 1)
    return round(float(slope) * 3600 / MIB, 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and print the figures; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", default="peg_insert")
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE")
    arguments = parser.parse_args(argv)
    source = random.Random(arguments.seed)
    duration = 60 * arguments.minutes
    ends = [*sorted(source.uniform(0, duration) for _ in range(arguments.kills)), duration]
    lives: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = make_command(arguments.task, run, arguments.fields)
        began = time.monotonic()
        for end in ends:
            lives.append(live(command, run, began + end).figures())
            print(json.dumps(lives[-1]), file=sys.stderr)
        gaps = find_gaps(run)
    print(json.dumps({"kills": arguments.kills, "lives": lives, "gaps": gaps}, indent=1))
    return 1 if gaps or any(life["compiled_again"] for life in lives) else 0


def make_command(task: str, run: Path, fields: Sequence[str]) -> list[str]:
    """The endless training, in this folder."""
    program = [sys.executable, "-m", "gcp_jax.launch.cli.main", "train"]
    flags = [
        f"--config=experiments/configs/{task}.py",
        f"--run_dir={run}",
        "--config.finetune.env_steps=1000000000",
        "--config.video=False",
    ]
    return [*program, *flags, *(f"--config.{field}" for field in fields)]


def live(command: Sequence[str], run: Path, until: float) -> Life:
    """Start the training, watch it, and kill it at ``until`` (``time.monotonic``).

    Raises:
      RuntimeError: it ends by itself.
    """
    began = time.monotonic()
    samples: list[tuple[float, int]] = []
    compilations: list[Compilation] = []
    steady_from = float("inf")
    rows = _count_rows(run, "metrics.jsonl")
    evaluations = _count_rows(run, "eval.jsonl")
    saved = _saved_clock(run)
    with subprocess.Popen(
        command,
        env={**os.environ, "JAX_LOG_COMPILES": "1"},
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        listener = threading.Thread(target=_listen, args=(process.stderr, began, compilations))
        listener.start()
        while time.monotonic() < until:
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}.")
            seconds = time.monotonic() - began
            samples.append((seconds, psutil.Process(process.pid).memory_info().rss))
            if (
                np.isinf(steady_from)
                and _count_rows(run, "eval.jsonl") >= evaluations + 2
                and _saved_clock(run) > saved
            ):
                steady_from = seconds + INTERVAL
            time.sleep(INTERVAL)
        process.kill()
        listener.join()
    return Life(
        samples=np.asarray(samples),
        compilations=compilations,
        steady_from=steady_from,
        rows=_count_rows(run, "metrics.jsonl") - rows,
    )


def _listen(stream: IO[str], began: float, compilations: list[Compilation]) -> None:
    for line in stream:
        if "Compiling " in line:
            compilations.append(Compilation(time.monotonic() - began, line.strip()[:200]))


def _count_rows(run: Path, name: str) -> int:
    return len(metrics.rows(run / name))


def _saved_clock(run: Path) -> int:
    """The clock of the newest checkpoint of finetuning; 0 if there is none."""
    return checkpoint.latest(run / "checkpoints" / "finetune") or 0


def find_gaps(run: Path) -> list[list[int]]:
    """Env steps of neighboring rows of finetuning that are not one segment apart."""
    rows = metrics.rows(run / "metrics.jsonl")
    steps = [row["env_steps"] for row in rows if row["stage"] == "finetune"]
    return [[a, b] for a, b in itertools.pairwise(steps) if b - a != steps[0]]


if __name__ == "__main__":
    sys.exit(main())

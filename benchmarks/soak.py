"""A long OGPO training on ``peg_insert`` with kills (SIGKILL) in between: does its memory grow, does it compile again, is a row lost?

    python -m benchmarks.soak [--minutes=45] [--kills=4] [--seed=0] [--task=peg_insert] [FIELD=VALUE …]

All of the task's defaults but for the length, which is endless, and the fields given. The moments are drawn from ``seed``. A life, from a
start to its end, is steady after its second evaluation and its first checkpoint: from there on the slope of its resident memory is fitted
and what it compiles is counted (``jax_log_compiles``). Ends with 1 where something was compiled again or the rows have a gap.
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

from gcp_jax.run import metrics

MIB = 2**20
EVERY = 2.0  # seconds between samples


class Life(NamedTuple):
    """One process. samples [N, 2]: seconds since the start and bytes of resident memory; compiled: (seconds, what)."""

    samples: np.ndarray
    compiled: list[tuple[float, str]]
    steady: float  # seconds; infinite where it never came so far
    rows: int  # of finetuning that it wrote

    def told(self) -> dict[str, Any]:
        """Its figures; the slopes need two minutes of steady samples."""
        seconds, memory = self.samples[self.samples[:, 0] > self.steady].T
        enough = len(seconds) * EVERY > 120
        return {
            "minutes": round(self.samples[-1, 0] / 60, 1),
            "steady_minutes": round(len(seconds) * EVERY / 60, 1),
            "rows": self.rows,
            "mib": [round(float(x) / MIB) for x in (memory[0], memory[-1], memory.max())]
            if enough
            else None,
            "mib_per_hour": _slope(seconds, memory) if enough else None,
            "mib_per_hour_of_the_second_half": _slope(
                *(x[len(x) // 2 :] for x in (seconds, memory))
            )
            if enough
            else None,
            "compiled": len(self.compiled),
            "compiled_again": [what for at, what in self.compiled if at > self.steady],
        }


def _slope(seconds: np.ndarray, memory: np.ndarray) -> float:
    """MiB an hour, by least squares."""
    return round(float(np.polyfit(seconds, memory, 1)[0]) * 3600 / MIB, 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Do it and tell; 1 where something was compiled again or a row is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", default="peg_insert")
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE")
    chosen = parser.parse_args(argv)
    source, seconds = random.Random(chosen.seed), 60 * chosen.minutes
    moments = [*sorted(source.uniform(0, seconds) for _ in range(chosen.kills)), seconds]
    with tempfile.TemporaryDirectory() as folder:
        run, began, lives = Path(folder) / "run", time.monotonic(), []
        for moment in moments:
            lives.append(lived(command(chosen.task, run, chosen.fields), run, began + moment))
            print(json.dumps(lives[-1].told()), file=sys.stderr)
        gaps = missing(run)
    told = {"kills": chosen.kills, "lives": [life.told() for life in lives], "gaps": gaps}
    print(json.dumps(told, indent=1))
    return 1 if gaps or any(life["compiled_again"] for life in told["lives"]) else 0


def command(task: str, run: Path, fields: Sequence[str]) -> list[str]:
    """The endless training, in this folder."""
    program = [
        sys.executable,
        "-m",
        "gcp_jax.launch.cli.main",
        "train",
        f"--config=experiments/configs/{task}.py",
    ]
    own = [
        f"--config.run_dir={run}",
        "--config.finetune.env_steps=1000000000",
        "--config.video=False",
    ]
    return [*program, *own, *(f"--config.{field}" for field in fields)]


def lived(command: Sequence[str], run: Path, until: float) -> Life:
    """Start the training, watch it, and kill it at ``until``. Raises RuntimeError where it ends by itself."""
    began, steady = time.monotonic(), float("inf")
    samples: list[tuple[float, int]] = []
    compiled: list[tuple[float, str]] = []
    rows, evaluations = (len(metrics.rows(run / name)) for name in ("metrics.jsonl", "eval.jsonl"))
    saved = _saved(run)
    environment = {**os.environ, "JAX_LOG_COMPILES": "1"}
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        listener = threading.Thread(target=_listen, args=(process.stderr, began, compiled))
        listener.start()
        while time.monotonic() < until:
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}.")
            at = time.monotonic() - began
            samples.append((at, psutil.Process(process.pid).memory_info().rss))
            if (
                np.isinf(steady)
                and len(metrics.rows(run / "eval.jsonl")) >= evaluations + 2
                and _saved(run) > saved
            ):
                steady = at + EVERY
            time.sleep(EVERY)
        process.kill()
        listener.join()
    return Life(
        np.asarray(samples), compiled, steady, len(metrics.rows(run / "metrics.jsonl")) - rows
    )


def _listen(stream: IO[str], began: float, compiled: list[tuple[float, str]]) -> None:
    for line in stream:
        if "Compiling " in line:
            compiled.append((time.monotonic() - began, line.strip()[:200]))


def _saved(run: Path) -> int:
    """The clock of the newest checkpoint of finetuning."""
    names = [path.name for path in run.glob("checkpoints/finetune/*") if path.name.isdigit()]
    return max(map(int, names), default=0)


def missing(run: Path) -> list[list[int]]:
    """Pairs of neighbouring finetuning rows that are not one segment apart."""
    found = [
        row["env_steps"]
        for row in metrics.rows(run / "metrics.jsonl")
        if row["stage"] == "finetune"
    ]
    return [[a, b] for a, b in itertools.pairwise(found) if b - a != found[0]]


if __name__ == "__main__":
    sys.exit(main())

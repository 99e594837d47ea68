"""The cost of launching a run of a sweep: 100 runs that do nothing, over their number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import timing
from gcp_jax.launch.worker import Job

FILE = """from gcp_jax.launch import Sweep, grid


def get_sweep():
    return Sweep(
        "experiments/configs/reach.py",
        (grid("algorithm.critic_lr", [1e-5 * i for i in range(1, {runs} + 1)]),),
        entry_point="benchmarks.launch:finish_at_once",
    )
"""


def finish_at_once(job: Job) -> None:
    """A run that does nothing."""
    (Path(job.folder) / "summary.json").write_text("{}")


def run(*, quick: bool) -> Iterator[timing.Measured]:
    """Seconds for each run with two local processes, and of a second launch of the same sweep.

    The second launch finds all runs finished.
    """
    runs = 8 if quick else 100
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "nothing.py"
        file.write_text(FILE.format(runs=runs))
        for case in ("local", "local, all finished before"):
            seconds = launch(file, Path(folder) / "sweep", runs)
            yield case, {"runs": runs, "seconds_a_run": round(seconds / runs, 3)}


def launch(file: Path, folder: Path, runs: int) -> float:
    """Seconds of a launch.

    Raises:
      RuntimeError: not all runs were finished.
    """
    command = [
        sys.executable,
        "-m",
        "gcp_jax.launch.cli.main",
        "sweep",
        str(file),
        f"--run_dir={folder}",
        "--max_parallel=2",
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - began
    if json.loads(done.stdout.splitlines()[-1])["finished"] != runs:
        raise RuntimeError(f"{' '.join(command)} did not finish its {runs} runs")
    return seconds

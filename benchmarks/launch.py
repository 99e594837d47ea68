"""What a launcher costs: a sweep of 100 runs that do nothing, by the command, from its start to its end, over the number of runs."""

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

FILE = """from launch import Sweep, grid


def get_sweep():
    return Sweep(
        "experiments/configs/reach.py", (grid("algorithm.critic_lr", [1e-5 * i for i in range(1, {runs} + 1)]),),
        work="benchmarks.launch:nothing",
    )
"""


def nothing(job: Job) -> None:
    """A run that is done at once."""
    (Path(job.folder) / "summary.json").write_text("{}")


def run(*, quick: bool) -> Iterator[timing.Measured]:
    """Seconds a run, with two processes of this machine; of a second launch, which finds everything done, too."""
    runs = 8 if quick else 100
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "nothing.py"
        file.write_text(FILE.format(runs=runs))
        first, again = (_launched(file, Path(folder) / "sweep", runs) for _ in range(2))
    for name, spent in (("local", first), ("local, all finished before", again)):
        yield name, {"runs": runs, "seconds_a_run": round(spent / runs, 3)}


def _launched(file: Path, folder: Path, runs: int) -> float:
    command = [
        sys.executable,
        "-m",
        "gcp_jax.launch.cli.main",
        "sweep",
        str(file),
        f"--run_dir={folder}",
        "--slots=2",
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    began = time.monotonic()
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    spent = time.monotonic() - began
    if json.loads(found.stdout.splitlines()[-1])["finished"] != runs:
        raise RuntimeError(f"{' '.join(command)} did not finish its {runs} runs")
    return spent

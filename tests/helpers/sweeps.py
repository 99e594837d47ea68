"""Sweeps of runs that only count (``helpers.counting``), and what became of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from gcp_jax.launch import Sweep, grid, launcher, manifest, schedulers, worker
from gcp_jax.launch.expand import expand
from helpers import counting

REACH = "experiments/configs/reach.py"
RATES = grid("algorithm.critic_lr", (1e-4, 3e-4, 1e-3, 3e-3))
SHORT = {"finetune.env_steps": 24, "finetune.learning_starts": 0}
COMMAND = "gcp-jax sweep mine.py"


def counting_sweep(*axes, fields=None, **settings) -> Sweep:
    """A sweep over ``axes``, or ``RATES``, whose runs only count."""
    return Sweep(
        REACH,
        axes or (RATES,),
        fields={**SHORT, **(fields or {})},
        entry_point="helpers.counting:count",
        **settings,
    )


class InProcess:
    """A backend that makes attempts one after the other in this process.

    After ``limit`` attempts, if given, it raises KeyboardInterrupt.
    """

    def __init__(self, limit=None):
        self.left = limit

    def submit(self, jobs):
        return [self._run(job) for job in jobs]

    def _run(self, job):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        future = launcher.Future()
        future.set_result(worker.run_job(job))
        return future

    def close(self):
        pass


class Launched(NamedTuple):
    """How a launch ended, and the lines that the launcher printed."""

    summary: launcher.LaunchSummary
    lines: list[str]


def describe(sweep: Sweep, folder: Path) -> None:
    """Write ``sweep.json`` as a launch does, and start nothing."""
    manifest.write_manifest(expand(sweep), folder, file="mine.py", command=COMMAND)


def launch(sweep: Sweep, folder: Path, backend=None, *, retries=1) -> Launched:
    """Do what ``gcp-jax sweep`` does, except for reading flags and checking sizes."""
    runs = [] if sweep.search else expand(sweep)
    lines: list[str] = []
    manifest.write_manifest(runs, folder, file="mine.py", command=COMMAND)
    summary = launcher.launch(
        sweep,
        schedulers.make_scheduler(sweep, runs, folder),
        folder,
        backend or InProcess(),
        retries=retries,
        log=lines.append,
    )
    return Launched(summary, lines)


def results(folder: Path) -> dict[str, str]:
    """The result of every finished run, by its id."""
    return {
        path.parent.name: json.loads(path.read_text())["number"]
        for path in folder.glob("runs/*/summary.json")
    }


def steps(folder: Path) -> dict[str, list[int]]:
    """The steps of every run, in the order they were done, by its id."""
    return {
        path.parent.name: [int(line) for line in path.read_text().split()]
        for path in folder.glob("runs/*/steps.txt")
    }


def assert_resumed(done: list[int], total: int) -> None:
    """No step is left out, and only steps after a checkpoint are repeated."""
    assert set(done) == set(range(1, total + 1))
    for before, now in zip(done, done[1:], strict=False):
        checkpoint = before - (before - 1) % counting.SAVE  # a step is noted before it is saved
        assert now in (before + 1, checkpoint)

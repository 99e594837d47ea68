"""Times of several programs in one process, interleaved, so that a noisy machine is as unkind to one as to the other."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

Measured = tuple[str, dict[str, Any]]  # a case's name and its figures


class Spent(NamedTuple):
    """Seconds by the clock and by the processor, one entry a run."""

    wall: list[float]
    cpu: list[float]

    @property
    def seconds(self) -> float:
        """Median by the clock."""
        return statistics.median(self.wall)

    @property
    def cpu_seconds(self) -> float:
        """Median by the processor, all threads."""
        return statistics.median(self.cpu)


class Ratio(NamedTuple):
    """Median of the ratios of paired runs, and their range."""

    median: float
    spread: float

    def told(self) -> dict[str, float]:
        """As a benchmark's result keeps it."""
        return {"ratio": round(self.median, 3), "spread": round(self.spread, 3)}


def measure(programs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Spent]:
    """Run every program once to compile it, then all of them in turn, ``repeats`` times."""
    spent = {name: Spent([], []) for name in programs}
    for run in programs.values():
        jax.block_until_ready(run())
    for _ in range(repeats):
        for name, run in programs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            spent[name].wall.append(time.perf_counter() - wall)
            spent[name].cpu.append(time.process_time() - cpu)
    return spent


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """over/under of each pair of runs."""
    found = [a / b for a, b in zip(over, under, strict=True)]
    return Ratio(statistics.median(found), max(found) - min(found))


def machine() -> str:
    """Cores and device, as results tell them."""
    return f"{os.cpu_count()} × {jax.devices()[0].device_kind}"

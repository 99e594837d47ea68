"""Times of several programs in one process.

The programs run in turn, so that other work on the machine disturbs all of them alike. The results
of each are dropped, and the process is idle, before the next one is timed: XLA frees buffers on its
own threads, at the expense of whatever runs then.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

POLL_SECONDS = 0.005  # between two looks at whether the process is idle
LONGEST_WAIT = 2.0  # seconds
IDLE_SHARE = 0.1  # processor time of an idle process, at most, of the time by the clock

Measured = tuple[str, dict[str, Any]]  # a case's name and its figures


class Seconds(NamedTuple):
    """Seconds of the runs of one program."""

    wall: list[float]
    cpu: list[float]  # of all threads

    @property
    def median_wall(self) -> float:
        """Median by the clock."""
        return statistics.median(self.wall)

    @property
    def median_cpu(self) -> float:
        """Median by the processor."""
        return statistics.median(self.cpu)


class Ratio(NamedTuple):
    """Ratios of paired runs."""

    median: float
    spread: float  # largest minus smallest

    def figures(self) -> dict[str, float]:
        """The ratio as a benchmark's result keeps it."""
        return {"ratio": round(self.median, 3), "spread": round(self.spread, 3)}


def measure(programs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Seconds]:
    """Run every program once to compile it, then all of them in turn, ``repeats`` times."""
    seconds = {name: Seconds(wall=[], cpu=[]) for name in programs}
    for program in programs.values():
        jax.block_until_ready(program())
    for _ in range(repeats):
        for name, program in programs.items():
            wait_until_idle()
            wall_start = time.perf_counter()
            cpu_start = time.process_time()
            result = jax.block_until_ready(program())
            seconds[name].wall.append(time.perf_counter() - wall_start)
            seconds[name].cpu.append(time.process_time() - cpu_start)
            del result
    return seconds


def wait_until_idle() -> None:
    """Wait until no thread of this process computes, at most ``LONGEST_WAIT`` seconds."""
    deadline = time.perf_counter() + LONGEST_WAIT
    while time.perf_counter() < deadline:
        wall_start = time.perf_counter()
        cpu_start = time.process_time()
        time.sleep(POLL_SECONDS)
        elapsed = time.perf_counter() - wall_start
        if time.process_time() - cpu_start < IDLE_SHARE * elapsed:
            return


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """The ratio of each pair of runs."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return Ratio(median=statistics.median(ratios), spread=max(ratios) - min(ratios))


def machine() -> str:
    """Cores and device, as results name them."""
    return f"{os.cpu_count()} × {jax.devices()[0].device_kind}"

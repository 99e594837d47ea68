"""Seeds in one program against as many separate runs, compiling included.

A run is measured by its compile (tracing included, no cache) and the median of its segments, of two chunks, and told for
the segments that the task's configuration has; separate runs, one after the other, take as often as long as the lone seed.
``throughput`` is how many times faster the one program is, ``without_compiling`` the same of the segments alone, ``spread`` that
of a segment's seconds over their median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks import setup, timing

SEEDS: tuple[int, ...] = (1, 2, 4, 8, 16)
TASK = "peg_insert"


def run(*, quick: bool) -> Iterator[timing.Measured]:
    """Every number of seeds."""
    counts, repeats = ((1, 2), 2) if quick else (SEEDS, 5)
    fields: dict[str, Any] = {"finetune__envs": 8, "policy__hidden": (16, 16)} if quick else {}
    jax.config.update("jax_enable_compilation_cache", False)
    alone: tuple[float, list[float]] | None = None
    for count in counts:
        compiling, spent, segments = measure(count, repeats, **fields)
        alone = alone or (compiling, spent)
        yield (
            f"{count} seeds" if count > 1 else "1 seed",
            told(count, compiling, spent, alone, segments),
        )


def measure(count: int, repeats: int, **fields: Any) -> tuple[float, list[float], int]:
    """(seconds to compile, seconds of every segment, segments of a whole run) of ``count`` seeds in one program."""
    made = setup.make(TASK, seeds=count, finetune__rows=setup.ROWS, **fields)
    train = made.start()
    began = time.perf_counter()
    segment = made.learner.compile(train).segment
    compiling = time.perf_counter() - began
    spent = timing.measure({"segment": setup.stepper(segment, train)}, repeats)
    return compiling, spent["segment"].wall, made.size.segments


def told(
    count: int,
    compiling: float,
    spent: list[float],
    alone: tuple[float, list[float]],
    segments: int,
) -> dict[str, Any]:
    """Seconds of the program and of as many separate runs, and what the program gains."""
    segment, lone = statistics.median(spent), statistics.median(alone[1])
    together, apart = compiling + segments * segment, count * (alone[0] + segments * lone)
    return {
        "compile_s": round(compiling, 1),
        "segment_s": round(segment, 2),
        "run_s": round(together, 1),
        "separate_s": round(apart, 1),
        "throughput": round(apart / together, 2),
        "without_compiling": round(count * lone / segment, 2),
        "spread": round((max(spent) - min(spent)) / segment, 2),
    }

"""Several seeds in one program against as many separate runs, compilation included.

A run is estimated from its compilation (tracing included, without a cache) and the median of its
segments, of two chunks each, times the number of segments that the task's configuration has.
Separate runs, one after the other, take as often as long as the run of one seed. ``throughput`` is
the time of the separate runs over that of the one program, ``without_compiling`` the same of the
segments alone, ``spread`` the range of a segment's seconds over their median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from benchmarks import setup, timing

SEEDS: tuple[int, ...] = (1, 2, 4, 8, 16)
TASK = "peg_insert"


class ProgramSeconds(NamedTuple):
    """Times of one program."""

    compiling: float
    segments: list[float]  # each measured segment


def run(*, quick: bool) -> Iterator[timing.Measured]:
    """Every number of seeds."""
    counts = SEEDS
    repeats = 5
    fields: dict[str, Any] = {}
    if quick:
        counts = (1, 2)
        repeats = 2
        fields = {"finetune__envs": 8, "policy__hidden": (16, 16)}
    jax.config.update("jax_enable_compilation_cache", False)
    one_seed: ProgramSeconds | None = None
    for count in counts:
        seconds, segments = measure(count, repeats, **fields)
        one_seed = one_seed or seconds
        name = f"{count} seeds" if count > 1 else "1 seed"
        yield name, figures(count, seconds, one_seed, segments)


def measure(count: int, repeats: int, **fields: Any) -> tuple[ProgramSeconds, int]:
    """Times of ``count`` seeds in one program, and the number of segments of a run."""
    made = setup.make_run(TASK, seeds=count, finetune__unroll_chunks=setup.UNROLL_CHUNKS, **fields)
    train = made.start()
    began = time.perf_counter()
    segment = made.learner.compile(train).segment
    compiling = time.perf_counter() - began
    seconds = timing.measure({"segment": setup.make_stepper(segment, train)}, repeats)
    return ProgramSeconds(compiling, seconds["segment"].wall), made.sizes.segments


def figures(
    count: int, seconds: ProgramSeconds, one_seed: ProgramSeconds, segments: int
) -> dict[str, Any]:
    """Seconds of the program and of as many separate runs, and what the program gains."""
    segment = statistics.median(seconds.segments)
    segment_of_one = statistics.median(one_seed.segments)
    together = seconds.compiling + segments * segment
    separate = count * (one_seed.compiling + segments * segment_of_one)
    spread = max(seconds.segments) - min(seconds.segments)
    return {
        "compile_s": round(seconds.compiling, 1),
        "segment_s": round(segment, 2),
        "run_s": round(together, 1),
        "separate_s": round(separate, 1),
        "throughput": round(separate / together, 2),
        "without_compiling": round(count * segment_of_one / segment, 2),
        "spread": round(spread / segment, 2),
    }

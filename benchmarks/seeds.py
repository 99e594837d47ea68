"""Seeds in one program against as many separate runs, compiling included.

A run is measured by its compile (tracing included, no cache) and the median of its segments, and told for the segments that the
task's configuration has; separate runs, one after the other, take as often as long as the lone seed. ``throughput`` is how many
times faster the one program is, ``without_compiling`` the same of the segments alone.
"""

from __future__ import annotations

import time
from typing import Any

import jax

from benchmarks import setup, timing

SEEDS: tuple[int, ...] = (1, 2, 4, 8, 16)
TASK = "peg_insert"


def run(*, quick: bool) -> dict[str, Any]:
    """Every number of seeds."""
    counts, repeats = ((1, 2), 2) if quick else (SEEDS, 5)
    fields: dict[str, Any] = {"finetune__envs": 8, "policy__hidden": (16, 16)} if quick else {}
    jax.config.update("jax_enable_compilation_cache", False)
    found: dict[str, Any] = {}
    alone: tuple[float, float] | None = None
    for count in counts:
        compiling, segment, segments = measure(count, repeats, **fields)
        alone = alone or (compiling, segment)
        found[f"{count} seeds" if count > 1 else "1 seed"] = told(count, compiling, segment, alone, segments)
    return found


def measure(count: int, repeats: int, **fields: Any) -> tuple[float, float, int]:
    """(seconds to compile, median seconds of a segment, segments of a whole run) of ``count`` seeds in one program."""
    made = setup.make(TASK, seeds=count, **fields)
    train = made.start()
    began = time.perf_counter()
    segment = made.learner.segment.lower(train).compile()
    compiling = time.perf_counter() - began
    spent = timing.measure({"segment": setup.stepper(segment, train)}, repeats)
    return compiling, spent["segment"].seconds, made.size.segments


def told(count: int, compiling: float, segment: float, alone: tuple[float, float], segments: int) -> dict[str, Any]:
    """Seconds of the program and of as many separate runs, and what the program gains."""
    together, apart = compiling + segments * segment, count * (alone[0] + segments * alone[1])
    return {
        "compile_s": round(compiling, 1),
        "segment_s": round(segment, 2),
        "run_s": round(together, 1),
        "separate_s": round(apart, 1),
        "throughput": round(apart / together, 2),
        "without_compiling": round(count * alone[1] / segment, 2),
    }

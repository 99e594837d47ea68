"""Train a few segments twice in one process; print their time and whether both ended equal.

    python -m benchmarks.gpu_determinism [--quick]

``benchmarks.gpu`` starts it with and without XLA's flags for determinism. Compiled programs are not
kept between processes, except with --quick, so that each selects its kernels anew. The last line of
standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from typing import Any

import jax
import numpy as np

from benchmarks import setup, timing
from benchmarks.gpu_cases import QUICK_FIELDS, make_run
from gcp_jax.experiments import runtime
from gcp_jax.learner import loop
from gcp_jax.types import PyTree

TASK = "peg_insert"
SEGMENTS = 4
REPEATS = 5
QUICK_TASK = "reach"
FIELDS = {"finetune.unroll_chunks": setup.UNROLL_CHUNKS}


def main() -> None:
    """Train, compare and time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the smallest sizes")
    arguments = parser.parse_args()
    runtime.prepare_cpu()
    runtime.fix_numerics()
    if arguments.quick:
        runtime.compilation_cache()
        print(json.dumps(measure(QUICK_TASK, QUICK_FIELDS, segments=1, repeats=2)))
    else:
        jax.config.update("jax_enable_compilation_cache", False)
        print(json.dumps(measure(TASK, FIELDS, segments=SEGMENTS, repeats=REPEATS)))


def measure(task: str, fields: dict[str, Any], *, segments: int, repeats: int) -> dict[str, Any]:
    """Digests of two trainings of ``segments`` segments, and the median time of a segment.

    Args:
      task: the task.
      fields: of the configuration, by their dotted names.
      segments: of each training.
      repeats: segments that are timed.

    Returns:
      {"segment_ms", "digests": of the state after each training}.
    """
    made = make_run(task, fields)
    learner = made.learner.compile(made.start())
    digests = [_train(made, learner, segments) for _ in range(2)]
    stepper = setup.make_stepper(learner.segment, made.start())
    seconds = timing.measure({"segment": stepper}, repeats)["segment"]
    return {"segment_ms": round(1e3 * seconds.median_wall, 2), "digests": digests}


def _train(made: setup.BenchmarkRun, learner: loop.Learner, segments: int) -> str:
    train = made.start()
    for _ in range(segments):
        train, _ = learner.segment(train)
    return digest(loop.without_data(train))


def digest(tree: PyTree) -> str:
    """SHA-256 of the bytes of all arrays."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()

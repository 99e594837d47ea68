"""Acting, with sampling of the policy, against bare physics stepping of as many environments.

``best_of_1`` executes one sample of the policy, as most methods do, ``best_of_8`` the best of eight
by the critics, as OGPO does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax

from benchmarks import environments, setup, timing
from gcp_jax import envs, mesh
from gcp_jax.learner import rollout
from gcp_jax.types import PRNGKey, PyTree

TASKS = ("peg_insert", "pick_place")
COUNTS = (256, 1024)  # environments
SAMPLES = (1, 8)  # of the policy, for each chunk
UNROLL_CHUNKS = 2  # of one timed run


def run(*, quick: bool) -> Iterator[timing.Measured]:
    """Every task with each number of environments: steps/s, and fractions of bare physics."""
    counts = (8,) if quick else COUNTS
    for task, count in itertools.product(TASKS, counts):
        yield f"{task} {count}", measure(task, count, 2 if quick else 5)


def measure(
    task: str, count: int, repeats: int, samples: Sequence[int] = SAMPLES
) -> dict[str, Any]:
    """Steps/s of acting by the best of each number of samples, and of bare physics."""
    runs = {
        f"best_of_{best_of}": setup.make_run(
            task,
            finetune__envs=count,
            finetune__unroll_chunks=UNROLL_CHUNKS,
            algorithm__best_of=best_of,
        )
        for best_of in samples
    }
    [chunk] = {made.config.policy.chunk for made in runs.values()}
    steps = UNROLL_CHUNKS * chunk
    programs = {name: make_rollout(made) for name, made in runs.items()}
    programs["physics"] = environments.make_physics(envs.make(task), count, steps)
    seconds = timing.measure(programs, repeats)
    figures: dict[str, Any] = {
        f"{name}_steps_per_s": round(count * steps / seconds[name].median_wall) for name in programs
    }
    for name in runs:
        ratio = timing.paired_ratio(seconds["physics"].wall, seconds[name].wall)
        figures[f"{name}_of_physics"] = ratio.figures()
    return figures


def make_rollout(made: setup.BenchmarkRun) -> Callable[[], PyTree]:
    """Collecting a segment with an untrained policy, without learning."""
    train = mesh.take_seed(made.start(), made.learner.partition_spec, 0)

    @jax.jit
    def collect(state: PyTree, env_state: PyTree, key: PRNGKey) -> PyTree:
        return rollout.collect(
            made.task.env,
            partial(made.algorithm.act, state),
            env_state,
            key,
            unroll_chunks=UNROLL_CHUNKS,
            reset_pool=made.config.finetune.reset_pool_size,
        )

    return lambda: collect(train.learner.state, train.env_state, train.learner.key)

"""Acting, with sampling of the policy, against bare physics stepping of as many environments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from benchmarks import environments, setup, timing
from gcp_jax import envs, mesh
from gcp_jax.learner import rollout
from gcp_jax.types import PRNGKey, PyTree

TASKS = ("peg_insert", "pick_place")
COUNTS = (256, 1024)  # environments
UNROLL_CHUNKS = 2  # of one timed run


def run(*, quick: bool) -> Iterator[timing.Measured]:
    """Every task with each number of environments: steps/s, and the fraction of plain physics."""
    counts = (8,) if quick else COUNTS
    for task, count in itertools.product(TASKS, counts):
        yield f"{task} {count}", measure(task, count, 2 if quick else 5)


def measure(task: str, count: int, repeats: int) -> dict[str, Any]:
    """OGPO acts with the default policy; the best of its samples by its critics is executed."""
    made = setup.make_run(task, finetune__envs=count, finetune__unroll_chunks=UNROLL_CHUNKS)
    train = mesh.take_seed(made.start(), made.learner.partition_spec, 0)
    steps = UNROLL_CHUNKS * made.config.policy.chunk

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

    programs = {
        "rollout": lambda: collect(train.learner.state, train.env_state, train.learner.key),
        "physics": environments.make_physics(envs.make(task), count, steps),
    }
    seconds = timing.measure(programs, repeats)
    figures: dict[str, Any] = {
        f"{name}_steps_per_s": round(count * steps / seconds[name].median_wall) for name in programs
    }
    ratio = timing.paired_ratio(seconds["physics"].wall, seconds["rollout"].wall)
    figures["of_physics"] = ratio.figures()
    return figures

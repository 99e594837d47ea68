"""Acting, policy sampling included, against bare physics stepping of as many environments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from benchmarks import environments, setup, timing
from gcp_jax.learner import rollout
from gcp_jax.types import Array, PyTree

TASKS = ("peg_insert", "pick_place")
COUNTS = (256, 1024)
ROWS = 2  # chunks of one timed run


def run(*, quick: bool) -> Iterator[timing.Measured]:
    """Every task with each number of environments: steps/s, and the fraction of plain physics."""
    counts = (8,) if quick else COUNTS
    for task, count in itertools.product(TASKS, counts):
        yield f"{task} {count}", measure(task, count, 2 if quick else 5)


def measure(task: str, count: int, repeats: int) -> dict[str, Any]:
    """OGPO with the default policy acts in ``count`` environments, the best of its chains by its critics."""
    made = setup.make(task, finetune__envs=count, finetune__rows=ROWS)
    train = jax.tree.map(lambda x: x[0], made.start()._replace(store=None, base=None, clock=None))
    steps = ROWS * made.config.policy.chunk

    @jax.jit
    def collect(state: PyTree, workers: PyTree, key: Array) -> PyTree:
        act = partial(made.algorithm.act, state)
        return rollout.collect(
            made.task.env, act, workers, key, length=ROWS, pool=made.collection.pool
        )

    programs = {
        "rollout": lambda: collect(train.state, train.env, train.key),
        "physics": environments.physics(environments.envs.make(task), count, steps),
    }
    spent = timing.measure(programs, repeats)
    rates = {f"{name}_steps_per_s": round(count * steps / spent[name].seconds) for name in programs}
    return {
        **rates,
        "of_physics": timing.ratio(spent["physics"].wall, spent["rollout"].wall).told(),
    }

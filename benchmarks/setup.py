"""The learner of a run as ``gcp-jax train`` builds it, without its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from experiments import tasks
from gcp_jax import diagnostics, learner, policy
from gcp_jax import mesh as mesh_lib
from gcp_jax import train as training
from gcp_jax.config import Run
from gcp_jax.types import Algorithm, PyTree

ROWS = 2  # chunks of a measured segment: fewer than a run's, in the same proportion to its updates


class Setup(NamedTuple):
    """A configured run with an untrained policy; learning starts in the first segment."""

    config: Run
    task: training.Task
    size: training.Sizes
    algorithm: Algorithm
    collection: learner.Collection
    learner: learner.Learner
    pretrained: PyTree

    def start(self) -> PyTree:
        """The initial Train."""
        return self.learner.init(jnp.arange(self.config.seeds), self.pretrained)


def configured(env: str, method: str, fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The defaults of many environments at once with other ``fields``, by their dotted names."""
    config = tasks.defaults(env=env)
    tasks.vectorised(config)
    tasks.choose_algorithm(config, method)
    tasks.override(config, fields)
    return config


def make(env: str, method: str = "ogpo", **fields: Any) -> Setup:
    """Build a run; ``fields`` by their names with ``__`` for the dot, as ``finetune__envs=1024``."""
    config = tasks.checked(configured(env, method, {name.replace("__", "."): value for name, value in fields.items()}))
    task = tasks.make(config, film=False)
    size = training.sizes(config, task.env.specs)
    base = policy.make(config.policy, size.specs)
    algorithm = training.method(config, base, size)
    collection = learner.Collection(task.env, config.finetune.envs, size.rows, config.finetune.fresh)
    built = learner.build(
        algorithm,
        size.specs,
        mesh=mesh_lib.make(config.seeds, data=config.data),
        seeds=config.seeds,
        collection=collection,
        diagnose=diagnostics.make(algorithm, base, config.algorithm_config.gamma),
    )
    return Setup(config, task, size, algorithm, collection, built, jax.jit(base.untrained)(jax.random.key(0)))


def stepper(segment: Any, train: PyTree) -> Callable[[], PyTree]:
    """A compiled segment that goes on from where it was at every call, and gives its metrics."""

    def step() -> PyTree:
        nonlocal train
        train, metrics = segment(train)
        return metrics

    return step

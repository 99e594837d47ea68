"""The learner of a run as ``gcp-jax train`` builds it, without its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from gcp_jax import mesh as mesh_lib
from gcp_jax.config import RunConfig
from gcp_jax.core import policy
from gcp_jax.experiments import assemble
from gcp_jax.learner import diagnostics, loop
from gcp_jax.run import training
from gcp_jax.types import Algorithm, PyTree

ROWS = 2  # chunks of a measured segment: fewer than a run's, in the same proportion to its updates


class Setup(NamedTuple):
    """A configured run with an untrained policy; learning starts in the first segment."""

    config: RunConfig
    task: training.TaskInterface
    size: training.Sizes
    algorithm: Algorithm
    collection: loop.CollectConfig
    learner: loop.Learner
    pretrained: PyTree

    def start(self) -> PyTree:
        """The initial Train."""
        return self.learner.init(jnp.arange(self.config.seeds), self.pretrained)


def configured(env: str, method: str, fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The defaults of many environments at once with other ``fields``, by their dotted names."""
    config = assemble.defaults(env=env)
    assemble.apply_many_env_preset(config)
    assemble.set_algorithm(config, method)
    assemble.override(config, fields)
    return config


def make(env: str, method: str = "ogpo", **fields: Any) -> Setup:
    """Build a run; ``fields`` by their names with ``__`` for the dot, as ``finetune__envs=1024``."""
    config = assemble.frozen_config(
        configured(env, method, {name.replace("__", "."): value for name, value in fields.items()})
    )
    task = assemble.make_task(config, film=False)
    size = training.run_sizes(config, task.env.specs)
    base = policy.make_policy(config.policy, size.specs)
    algorithm = training.build_algorithm(config, base, size)
    collection = loop.CollectConfig(
        task.env, config.finetune.envs, size.rows, config.finetune.reset_pool_size
    )
    built = loop.build_learner(
        algorithm,
        size.specs,
        mesh=mesh_lib.make_mesh(config.seeds, data=config.data_parallel),
        seeds=config.seeds,
        collection=collection,
        diagnose=diagnostics.make(algorithm, base, config.algorithm_config.gamma),
    )
    return Setup(
        config, task, size, algorithm, collection, built, jax.jit(base.untrained)(jax.random.key(0))
    )


def stepper(segment: Any, train: PyTree) -> Callable[[], PyTree]:
    """A compiled segment that goes on from where it was at every call, and gives its metrics."""

    def step() -> PyTree:
        nonlocal train
        train, metrics = segment(train)
        return metrics

    return step

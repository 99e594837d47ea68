"""The learner of a run as ``gcp-jax train`` builds it, without a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from gcp_jax.config import RunConfig
from gcp_jax.experiments import assemble, run_config
from gcp_jax.learner import loop
from gcp_jax.run.assemble import FinetuneSetup, assemble_finetuning
from gcp_jax.run.sizes import RunSizes
from gcp_jax.run.task import TaskInterface
from gcp_jax.types import Algorithm, PyTree, Train

UNROLL_CHUNKS = (
    2  # of a measured segment: fewer than a run's, in the same proportion to its updates
)


class BenchmarkRun(NamedTuple):
    """A configured run with an untrained policy; learning starts in the first segment."""

    config: RunConfig
    task: TaskInterface
    finetuning: FinetuneSetup
    learner: loop.Learner
    pretrained: PyTree

    @property
    def sizes(self) -> RunSizes:
        """The sizes of finetuning."""
        return self.finetuning.sizes

    @property
    def algorithm(self) -> Algorithm:
        """The method."""
        return self.finetuning.algorithm

    def start(self) -> Train:
        """The initial state."""
        return self.learner.init(jnp.arange(self.config.seeds), self.pretrained)


def make_config(env: str, method: str, fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The defaults of a task and a method without warm-up; ``fields`` override them."""
    config = run_config.defaults(env=env)
    run_config.set_algorithm(config, method)
    run_config.override(config, {"finetune.learning_starts": 0, **fields})
    return config


def make_run(env: str, method: str = "ogpo", **fields: Any) -> BenchmarkRun:
    """Build a run; names of ``fields`` have ``__`` for the dot, as in ``finetune__envs=1024``."""
    dotted = {name.replace("__", "."): value for name, value in fields.items()}
    config = run_config.frozen_config(make_config(env, method, dotted))
    task = assemble.make_task(config, film=False)
    finetuning = assemble_finetuning(config, task)
    return BenchmarkRun(
        config=config,
        task=task,
        finetuning=finetuning,
        learner=finetuning.build_learner(),
        pretrained=jax.jit(finetuning.policy.untrained)(jax.random.key(0)),
    )


def make_stepper(segment: Callable[[Train], Any], train: Train) -> Callable[[], PyTree]:
    """A function that trains one more segment at every call and returns its metrics.

    Args:
      segment: a compiled segment.
      train: the state to start from; it is consumed.
    """

    def step() -> PyTree:
        nonlocal train
        train, metrics = segment(train)
        return metrics

    return step

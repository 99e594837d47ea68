"""From a configuration to the compiled loop of finetuning.

``gcp-jax train``, ``gcp-jax plan`` and the benchmarks all build finetuning here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gcp_jax import algorithms
from gcp_jax import mesh as mesh_lib
from gcp_jax.config import ConfigError, RunConfig
from gcp_jax.core.demonstrations import Demonstrations
from gcp_jax.core.policy import Policy, make_policy
from gcp_jax.learner import batch_sources, diagnostics, loop, population
from gcp_jax.run.sizes import RunSizes, run_sizes
from gcp_jax.run.task import TaskInterface
from gcp_jax.types import Algorithm, BatchSource, PyTree


@dataclasses.dataclass(frozen=True)
class FinetuneSetup:
    """Everything that finetuning needs; nothing is compiled, and no device is used yet."""

    config: RunConfig
    task: TaskInterface
    sizes: RunSizes
    policy: Policy  # the policy that is finetuned
    demonstrations: Demonstrations | None  # for batches with a ``demo_fraction``
    algorithm: Algorithm  # with the configuration's own hyper-parameters

    def member(self, values: Mapping[str, Any]) -> tuple[Algorithm, loop.Diagnose]:
        """The method of one member of a population, and its diagnostics.

        Args:
          values: the hyper-parameters that vary, {field: value}, possibly traced.
        """
        algorithm = build_algorithm(
            self.config, self.policy, self.sizes, self.demonstrations, values
        )
        settings = population.config_of_member(self.config, values)
        return algorithm, diagnostics.make_diagnose(algorithm, self.policy, settings.gamma)

    def collect_config(self) -> loop.CollectConfig:
        """How a segment is collected."""
        finetune = self.config.finetune
        return loop.CollectConfig(
            env=self.task.env,
            envs=finetune.envs,
            unroll_chunks=self.sizes.unroll_chunks,
            reset_pool=finetune.reset_pool_size,
            warmup_segments=self.sizes.warmup_segments,
        )

    def build_learner(self) -> loop.Learner:
        """The compiled loop over all members, on the devices of this machine."""
        members = len(self.config.members)
        return loop.build_learner(
            self.algorithm,
            self.sizes.specs,
            mesh=mesh_lib.make_mesh(members, data=self.config.data_parallel),
            seeds=members,
            collection=self.collect_config(),
            diagnose=diagnostics.make_diagnose(
                self.algorithm, self.policy, self.config.algorithm.settings.gamma
            ),
            member_fn=self.member if self.config.population else None,
        )


def assemble_finetuning(
    config: RunConfig,
    task: TaskInterface,
    *,
    policy: Policy | None = None,
    demonstrations: Demonstrations | None = None,
) -> FinetuneSetup:
    """Derive the sizes of finetuning and build its method.

    Args:
      config: the run.
      task: its task.
      policy: the cloned policy; None: a policy as ``config.policy`` describes it.
      demonstrations: needed to train if ``finetune.demo_fraction`` is positive.

    Raises:
      ConfigError: sizes contradict each other.
      ValueError: a size cannot be divided over the devices of ``data_parallel``.
    """
    sizes = run_sizes(config, task.env.specs)
    policy = policy or make_policy(config.policy, sizes.specs)
    return FinetuneSetup(
        config=config,
        task=task,
        sizes=sizes,
        policy=policy,
        demonstrations=demonstrations,
        algorithm=build_algorithm(config, policy, sizes, demonstrations),
    )


def trace_first_segment(config: RunConfig, task: TaskInterface) -> PyTree:
    """The first segment of finetuning, from an untrained policy: to be traced for its shapes.

    Returns:
      The state after the segment, and its metrics.
    """
    setup = assemble_finetuning(config, task)
    learner = setup.build_learner()
    seeds = jnp.asarray([member.seed for member in config.members], jnp.int32)
    pretrained = setup.policy.untrained(jax.random.key(0))
    return learner.segment(learner.init(seeds, pretrained, population.member_values(config)))


def build_algorithm(
    config: RunConfig,
    policy: Policy,
    sizes: RunSizes,
    demonstrations: Demonstrations | None = None,
    values: Mapping[str, Any] | None = None,
) -> Algorithm:
    """The finetuning method of a configuration, with its source of batches.

    Args:
      config: the run.
      policy: the policy that is finetuned.
      sizes: the run's sizes.
      demonstrations: needed to train if ``finetune.demo_fraction`` is positive.
      values: traced hyper-parameters of one member of a population, {field: value}.

    Raises:
      ConfigError: the method cannot learn from demonstrations, or they cannot be divided.
    """
    method = algorithms.load(config.algorithm.name, config.algorithm.module)
    settings = population.config_of_member(config, values or {})
    if algorithms.on_policy(method):
        _check_demo_fraction(config, needs_extras=True)
        source = batch_sources.on_policy(
            rows=sizes.unroll_chunks,
            columns=config.finetune.envs,
            **method.rollout_needs(settings),
        )
    else:
        needs = algorithms.replay_needs(method, settings)
        _check_demo_fraction(config, needs_extras=bool(needs.get("aligned")))
        source = _replay_source(config, sizes, demonstrations, needs)
    algorithm: Algorithm = method.make(settings, policy, source)
    return algorithm


def _replay_source(
    config: RunConfig,
    sizes: RunSizes,
    demonstrations: Demonstrations | None,
    needs: Mapping[str, Any],
) -> BatchSource:
    """The replay, mixed with demonstrations if there are any."""
    replayed, demonstrated = _batch_parts(config)
    source = batch_sources.replay(
        capacity=sizes.capacity, batch_size=replayed, updates=sizes.updates, **needs
    )
    if demonstrations is None:
        return source
    dataset = batch_sources.dataset(
        demonstrations,
        chunk=sizes.specs.chunk,
        batch_size=demonstrated,
        updates=sizes.updates,
        gamma=needs["gamma"],
        to_go=bool(needs.get("to_go")),
    )
    return batch_sources.mix_sources(source, dataset)


def _batch_parts(config: RunConfig) -> tuple[int, int]:
    """How many transitions of a batch are replayed, and how many are demonstrated."""
    finetune = config.finetune
    demonstrated = round(finetune.demo_fraction * finetune.batch_size)
    return finetune.batch_size - demonstrated, demonstrated


def _check_demo_fraction(config: RunConfig, *, needs_extras: bool) -> None:
    """Raise ConfigError if the method cannot learn from demonstrations, or they cannot be divided.

    Args:
      config: the run.
      needs_extras: the method learns from what ``act`` returned beside the action.
    """
    fraction = config.finetune.demo_fraction
    if not fraction:
        return
    if needs_extras:
        raise ConfigError(
            f"finetune.demo_fraction is {fraction}, but {config.algorithm.name} learns from what "
            "it records while acting, which demonstrations lack; it must be 0."
        )
    replayed, demonstrated = _batch_parts(config)
    devices = config.data_parallel
    if any(part < 1 or part % devices for part in (replayed, demonstrated)):
        raise ConfigError(
            f"finetune.demo_fraction is {fraction}, which makes a batch of {replayed} replayed "
            f"and {demonstrated} demonstrated transitions; both must be positive multiples of "
            f"data_parallel ({devices})."
        )

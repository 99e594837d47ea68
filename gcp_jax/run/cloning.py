"""The first stage of a run: cloning demonstrations."""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

from gcp_jax import mesh as mesh_lib
from gcp_jax.algorithms import bc
from gcp_jax.config import Member, RunConfig
from gcp_jax.core import policy as policies
from gcp_jax.core.demonstrations import Demonstrations
from gcp_jax.core.networks import fit_normalizer
from gcp_jax.learner import batch_sources, loop
from gcp_jax.run import distributed
from gcp_jax.run.errors import RunError
from gcp_jax.run.sizes import Cadence, RunSizes
from gcp_jax.run.stage import DataId, Stage
from gcp_jax.run.task import TaskInterface

CLONE_STREAM = 0x636C6F6E  # the keys of demonstrations derive from it


class CloningSetup(NamedTuple):
    """Cloning, ready to run."""

    policy: policies.Policy  # the policy that is cloned
    stage: Stage
    demonstration_facts: dict[str, Any]


def load_demonstrations(
    config: RunConfig, task: TaskInterface
) -> tuple[Demonstrations, dict[str, Any]]:
    """The run's demonstrations and their facts; the same in both stages."""
    key = jax.random.fold_in(jax.random.key(CLONE_STREAM), config.seed)
    demonstrations, facts = task.demonstrate(key)
    print(f"demonstrations: {facts}", file=sys.stderr)
    return distributed.broadcast_from_first(demonstrations), facts


def set_up_cloning(
    config: RunConfig, task: TaskInterface, sizes: RunSizes, cadence: Cadence
) -> CloningSetup:
    """Load the demonstrations and build the stage that clones them.

    Raises:
      RunError: ``pretrain.stop_at_success`` cannot be applied to these demonstrations.
    """
    print(f"cloning {config.demonstrations.episodes} demonstrations", file=sys.stderr)
    demonstrations, facts = load_demonstrations(config, task)
    policy = policies.make_policy(_policy_config(config, demonstrations), sizes.specs)
    source = batch_sources.dataset(
        demonstrations,
        chunk=config.policy.chunk,
        batch_size=config.pretrain.batch_size,
        updates=cadence.updates,
        gamma=1.0,
    )
    algorithm = bc.make(config.pretrain.algorithm, policy, source)
    seeds = [Member(seed, {}) for seed in config.all_seeds]
    learner = loop.build_learner(
        algorithm,
        sizes.specs,
        mesh=mesh_lib.make_mesh(1, data=config.data_parallel),
        seeds=1,
    )
    stage = Stage(
        cadence=cadence,
        learner=learner,
        members=seeds[:1],
        values={},
        pretrained={"normalizer": fit_normalizer(np.asarray(demonstrations.steps.obs))},
        eval_members=seeds,
        eval_policy=algorithm.eval_policy,
        export=lambda train: algorithm.export(train.learner.state),
        algorithm_of=lambda values: algorithm,
        stop_score=stop_score(config, demonstrations, by_return=task.env.specs.by_return),
        demonstrations=DataId.of(demonstrations, config),
    )
    return CloningSetup(policy, stage, facts)


def _policy_config(config: RunConfig, demonstrations: Demonstrations) -> policies.PolicyConfig:
    if not config.pretrain.rescale_actions:
        return config.policy
    return policies.rescaled_to_actions(config.policy, np.asarray(demonstrations.steps.action))


def stop_score(config: RunConfig, demonstrations: Demonstrations, *, by_return: bool) -> float:
    """The score at which cloning ends.

    Args:
      config: the run.
      demonstrations: its demonstrations.
      by_return: the task defines no success.

    Returns:
      ``pretrain.stop_at_success`` itself, or this fraction of the demonstrations' mean return.

    Raises:
      RunError: the mean return is not positive.
    """
    fraction = config.pretrain.stop_at_success
    if not by_return:
        return fraction
    if fraction == 1.0:
        return math.inf
    mean_return = float(demonstrations.returns().mean())
    if mean_return <= 0:
        raise RunError(
            f"pretrain.stop_at_success is {fraction}, a fraction of the demonstrations' mean "
            f"return, which is {mean_return:.1f}: it must be positive for that; "
            "1.0 clones to the end."
        )
    return fraction * mean_return

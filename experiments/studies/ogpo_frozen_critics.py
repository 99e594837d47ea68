"""OGPO with critics that do not learn: those of a saved policy that succeeds.

It tells apart two reasons why OGPO may fail to improve a policy: wrong values of actions, or an
actor that makes too little of right ones. Everything is OGPO's but the critics, which are read from
a saved policy and stay as they are.

    gcp-jax benchmark --algorithms=expo --envs=peg_insert --run_dir=runs/critics
    gcp-jax train --config.env.name=peg_insert \
      --config.algorithm.module=experiments/studies/ogpo_frozen_critics.py \
      --config.algorithm.critics_of=runs/critics/peg_insert/expo/policy/seed_0 \
      --config.pretrain.saved_policy=runs/critics/peg_insert/base/policy/base

Both runs must start from one clone, because critics see observations by its normalizer.
docs/results/learning.md has what came out.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gcp_jax.algorithms import ogpo
from gcp_jax.algorithms.ogpo import State, replay_needs
from gcp_jax.config_fields import NON_NEGATIVE, field
from gcp_jax.core.policy import Policy
from gcp_jax.run.saved_policy import load_saved_policy
from gcp_jax.types import Algorithm, Array, Batch, BatchSource, Metrics, Params

__all__ = ["Config", "make", "replay_needs"]


@dataclasses.dataclass(frozen=True)
class Config(ogpo.Config):
    """OGPO's settings, and where the critics come from."""

    critics_of: str = field("", None, "folder or name of a saved policy that has critics")
    critic_warmup_updates: int = field(
        0, NON_NEGATIVE, "first updates, during which the actor stays as it is"
    )


def saved_critics(name: str) -> Params:
    """The critics that are deployed with a saved policy, which choose among its samples.

    Raises:
      ValueError: if the policy is deployed without critics, or none is named.
    """
    if not name:
        raise ValueError("algorithm.critics_of is empty; name a saved policy that has critics.")
    with jax.ensure_compile_time_eval():  # a run traces this function with its initial state
        deployed = load_saved_policy(name).deployed
    if "critic" not in deployed:
        raise ValueError(
            f"algorithm.critics_of={name}: this policy is deployed without critics; choose one of "
            "EXPO or QC, or of OGPO with algorithm.deploy_best_of above 1."
        )
    return deployed["critic"]


def with_critics(state: State, critics: Params) -> State:
    """``state`` with these critics, as learned and as averaged ones.

    Raises:
      ValueError: if they have other sizes than the configured ones.
    """
    expected = jax.tree.map(jnp.shape, state.critic.params)
    if jax.tree.map(jnp.shape, critics) != expected:
        raise ValueError(
            "algorithm.critics_of has critics of other sizes than this run; set "
            "algorithm.critics and algorithm.critic_hidden as in the run that made them."
        )
    arrays = jax.tree.map(jnp.asarray, critics)
    return state._replace(critic=state.critic._replace(params=arrays, target_params=arrays))


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """Build OGPO for ``policy``, learning from ``source``, with the critics of ``critics_of``."""
    algorithm = ogpo.make(config, policy, source)
    critics = saved_critics(config.critics_of)

    def init(key: Array, pretrained: Params) -> State:
        state: State = algorithm.init(key, pretrained)
        return with_critics(state, critics)

    def update(state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        updated, metrics = algorithm.update(state, batch, key)
        return updated._replace(critic=state.critic), metrics

    return algorithm._replace(init=init, update=update)

"""QC: best-of-N on a cloned policy with critics of chunks (Li et al. 2025, arXiv 2507.07969).

Q-chunking. The generative policy β keeps cloning the replay. The best of N of its samples acts in
the environment, is evaluated and deployed, and bootstraps:

    policy          π(s) = argmax_{a ∈ {a_1, ..., a_N}} Q̄(s, a),   a_i ~ β(s)
    critic target   y = r + γ max_{a' ∈ {a'_1, ..., a'_N}} Q̄(s', a'),   a'_i ~ β(s')
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE_INT, UNIT, field
from gcp_jax.core import cloning, critic
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy
from gcp_jax.core.tree import where_tree
from gcp_jax.types import (
    Algorithm,
    Array,
    Batch,
    BatchSource,
    Metrics,
    Params,
    identity_preprocess,
)


@dataclasses.dataclass(frozen=True)
class Config(critic.Config):
    """QC's settings, besides those of the critics."""

    samples: int = field(16, POSITIVE_INT, "N: samples per decision [8–32]")
    base_lr: float = field(3e-4, NON_NEGATIVE, "Adam's learning rate of β [3e-4]")
    base_tau: float = field(0.005, UNIT, "averaging rate of the β that is sampled")


class State(NamedTuple):
    """What QC learns, for one seed."""

    base: cloning.BCState  # β
    critic: critic.CriticState
    normalizer: Normalizer
    updates: Array  # int32 []


class Samples(NamedTuple):
    """N samples of β for each observation, with their values."""

    action: Array  # [B, N, D] flattened chunks in [-1, 1]
    q: Array  # [B, N]


@dataclasses.dataclass(frozen=True)
class QC:
    """QC's equations, one method each.

    Observations named ``obs`` are raw in the methods of ``Algorithm`` (``act``, ``eval_policy``,
    ``update``) and normalized, [B, O], everywhere else. Actions are flattened chunks, [..., D].
    """

    config: Config
    policy: Policy
    base: cloning.BCUpdater
    critic: critic.Critic

    def init(self, key: Array, pretrained: Params) -> State:
        """Start from a pretrained base policy, {"net", "normalizer"}."""
        return State(
            base=self.base.init(pretrained["net"]),
            critic=self.critic.init(key),
            normalizer=pretrained["normalizer"],
            updates=jnp.int32(0),
        )

    def sample_and_score(self, params: Params, obs: Array, key: Array) -> Samples:
        """Sample β N times and value each sample.

        Args:
          params: exported parameters, as ``export`` returns them.
          obs: normalized observations [B, O].
          key: a random key; consumed.
        """
        sample_key, aggregate_key = jax.random.split(key)
        action = self.policy.sample_n(params["net"], obs, sample_key, self.config.samples)
        q = self.critic.aggregate_q(params["critic"], obs[:, None], action, aggregate_key)
        return Samples(action=action, q=q)

    def export(self, state: State) -> Params:
        """What acts and is deployed: the averaged β and the target critics."""
        return {
            "net": state.base.target_params,
            "normalizer": state.normalizer,
            "critic": state.critic.target_params,
        }

    def eval_policy(self, params: Params, obs: Array, key: Array) -> Array:
        """The best of N samples: raw observations [B, O] to chunks [B, h, A]."""
        samples = self.sample_and_score(params, params["normalizer"](obs), key)
        return self.policy.unflatten(critic.argmax_action(samples.action, samples.q))

    def act(self, state: State, obs: Array, key: Array) -> tuple[Array, Params]:
        """The best of N samples, or the first one until the critics have warmed up."""
        samples = self.sample_and_score(self.export(state), state.normalizer(obs), key)
        warm = state.updates > self.config.critic_warmup_updates
        q = jnp.where(warm, samples.q, 0.0)
        return self.policy.unflatten(critic.argmax_action(samples.action, q)), {}

    def td_target(self, state: State, batch: Batch, key: Array) -> Array:
        """y [B] = r + γ max_{a'} Q̄(s', a'), over N samples at s'."""
        next_obs = state.normalizer(batch.transitions.next_obs)
        samples = self.sample_and_score(self.export(state), next_obs, key)
        next_value = jnp.max(samples.q, -1)
        return batch.transitions.reward + batch.transitions.discount * next_value

    def update(self, state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        """One step of the critics and of β.

        During the first ``critic_warmup_updates`` updates only the critics learn.
        """
        target_key, base_key = jax.random.split(key)
        obs = state.normalizer(batch.transitions.obs)
        action = self.policy.flatten(batch.transitions.action)

        td_target = self.td_target(state, batch, target_key)
        critic_state, critic_metrics = self.critic.td_step(state.critic, obs, action, td_target)

        base, base_metrics = self.base.update(state.base, obs, batch.transitions, base_key)
        warming_up = state.updates < self.config.critic_warmup_updates
        state = state._replace(
            base=where_tree(warming_up, state.base, base),
            critic=critic_state,
            updates=state.updates + 1,
        )
        return state, critic_metrics | base_metrics


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """Build QC for ``policy``, learning from ``source``."""
    qc = QC(
        config=config,
        policy=policy,
        base=cloning.make_bc_updater(
            policy, learning_rate=config.base_lr, tau=config.base_tau, grad_clip=config.grad_clip
        ),
        critic=critic.make_critic(
            config, policy.specs.obs_dim, policy.specs.flat_action_dim, policy.config.compute
        ),
    )
    return Algorithm(
        init=qc.init,
        act=qc.act,
        preprocess_segment=identity_preprocess,
        update=qc.update,
        eval_policy=qc.eval_policy,
        export=qc.export,
        source=source,
        q_values=critic.make_q_fn(qc.critic, policy),
    )

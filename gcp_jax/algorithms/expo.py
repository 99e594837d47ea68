"""EXPO: a generative base policy and a small edit policy (Dong et al. 2025, arXiv 2507.07986).

The base policy keeps cloning the replay. An edit policy proposes a bounded correction of each of
its samples. Of N samples and their N corrections, the one with the highest value is taken:

    a_i ~ base(s),   u_i ~ edit(s, a_i),   ã_i = clip(a_i + β u_i, −1, 1),   i = 1..N
    on-the-fly policy    π(s) = argmax_{a ∈ {a_i, ã_i}} Q̄(s, a)
    critic target        y = r + γ max_{a' ∈ {a'_i, ã'_i}} Q̄(s', a')
    edit loss            E[α log edit(u | s, a) − Q(s, a + β u)]

The on-the-fly policy acts in the environment, is evaluated and deployed, and bootstraps. Q̄ is the
smaller of two target critics drawn at random.

Difference from the released code: the entropy is that of u, not of β u. The released target
entropy, −D/2 for β u, cannot be reached for β < 0.303, so its temperature grows without bound.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE, POSITIVE_INT, UNIT, field
from gcp_jax.core import cloning, critic, tanh_gaussian
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
class Config(tanh_gaussian.Config):
    """EXPO's settings, besides those of the critics and of the tanh-Gaussian edit policy."""

    samples: int = field(8, POSITIVE_INT, "N: base samples per decision, each with one edit [8]")
    edit_scale: float = field(
        0.05, POSITIVE, "β: largest edit of an action, which lies in [-1, 1] [.05–.7]"
    )
    base_lr: float = field(3e-4, NON_NEGATIVE, "Adam's learning rate of the base policy [3e-4]")
    base_tau: float = field(0.005, UNIT, "averaging rate of the base policy that is sampled")
    target_entropy: float = field(
        -0.5,
        tanh_gaussian.TARGET_ENTROPY,
        "H̄ per dimension of u; the uniform law has log 2 = .69 [−.5, of βu]",
    )


class State(NamedTuple):
    """What EXPO learns, for one seed."""

    base: cloning.BCState
    edit: tanh_gaussian.ActorState
    critic: critic.CriticState
    normalizer: Normalizer
    updates: Array  # int32 []


class Candidates(NamedTuple):
    """N base samples followed by their N edits, with values from the target critics."""

    action: Array  # [B, 2N, D] flattened chunks in [-1, 1]
    q: Array  # [B, 2N]


@dataclasses.dataclass(frozen=True)
class Expo:
    """EXPO's equations, one method each.

    Observations named ``obs`` are raw in the methods of ``Algorithm`` (``act``, ``eval_policy``,
    ``update``) and normalized, [B, O], everywhere else. Actions are flattened chunks, [..., D].
    """

    config: Config
    policy: Policy
    base: cloning.BCUpdater
    edit: tanh_gaussian.Actor
    critic: critic.Critic

    def init(self, key: Array, pretrained: Params) -> State:
        """Start from a pretrained base policy, {"net", "normalizer"}."""
        edit_key, critic_key = jax.random.split(key)
        return State(
            base=self.base.init(pretrained["net"]),
            edit=self.edit.init(edit_key),
            critic=self.critic.init(critic_key),
            normalizer=pretrained["normalizer"],
            updates=jnp.int32(0),
        )

    def apply_edit(self, action: Array, u: Array) -> Array:
        """ã = clip(a + β u, −1, 1)."""
        return jnp.clip(action + self.config.edit_scale * u, -1.0, 1.0)

    def propose(self, params: Params, obs: Array, key: Array) -> Candidates:
        """Sample the base policy N times, edit each sample, and value all 2N actions.

        Args:
          params: exported parameters, as ``export`` returns them.
          obs: normalized observations [B, O].
          key: a random key; consumed.

        Returns:
          The candidates, base samples first.
        """
        sample_key, edit_key, pair_key = jax.random.split(key, 3)
        samples = self.policy.sample_n(params["net"], obs, sample_key, self.config.samples)
        u, _ = self.edit.sample(params["edit"], (obs[:, None], samples), edit_key)
        action = jnp.concatenate([samples, self.apply_edit(samples, u)], axis=1)
        q = self.critic.min_of_two(params["critic"], obs[:, None], action, pair_key)
        return Candidates(action=action, q=q)

    def export(self, state: State) -> Params:
        """What acts and is deployed: the averaged base, the edit policy, the target critics."""
        return {
            "net": state.base.target_params,
            "edit": state.edit.params,
            "critic": state.critic.target_params,
            "normalizer": state.normalizer,
        }

    def eval_policy(self, params: Params, obs: Array, key: Array) -> Array:
        """The on-the-fly policy: raw observations [B, O] to chunks [B, h, A]."""
        candidates = self.propose(params, params["normalizer"](obs), key)
        return self.policy.unflatten(critic.argmax_action(candidates.action, candidates.q))

    def act(self, state: State, obs: Array, key: Array) -> tuple[Array, Params]:
        """The on-the-fly policy, or the first base sample until the critics have warmed up."""
        candidates = self.propose(self.export(state), state.normalizer(obs), key)
        warm = state.updates > self.config.critic_warmup_updates
        q = jnp.where(warm, candidates.q, 0.0)
        return self.policy.unflatten(critic.argmax_action(candidates.action, q)), {}

    def td_target(self, state: State, batch: Batch, key: Array) -> Array:
        """y [B] = r + γ max_{a'} Q̄(s', a'), over base samples and edits at s'."""
        next_obs = state.normalizer(batch.transitions.next_obs)
        candidates = self.propose(self.export(state), next_obs, key)
        next_value = jnp.max(candidates.q, axis=1)
        return batch.transitions.reward + batch.transitions.discount * next_value

    def update_edit(
        self, state: State, obs: Array, key: Array
    ) -> tuple[tanh_gaussian.ActorState, Metrics]:
        """One step on E[α log edit(u | s, a) − Q(s, a + β u)], with a ~ base(s)."""
        sample_key, edit_key, aggregate_key = jax.random.split(key, 3)
        action = self.policy.sample_n(state.base.target_params, obs, sample_key, 1)[:, 0]

        def q_of_edit(u: Array) -> Array:
            edited = self.apply_edit(action, u)
            return self.critic.aggregate_q(state.critic.params, obs, edited, aggregate_key)

        return self.edit.update(state.edit, (obs, action), q_of_edit, edit_key)

    def update(self, state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        """One step of the critics, the base policy and the edit policy, in this order.

        During the first ``critic_warmup_updates`` updates only the critics learn.
        """
        target_key, base_key, edit_key = jax.random.split(key, 3)
        obs = state.normalizer(batch.transitions.obs)
        action = self.policy.flatten(batch.transitions.action)

        td_target = self.td_target(state, batch, target_key)
        critic_state, critic_metrics = self.critic.td_step(state.critic, obs, action, td_target)
        state = state._replace(critic=critic_state)

        base, base_metrics = self.base.update(state.base, obs, batch.transitions, base_key)
        edit, edit_metrics = self.update_edit(state, obs, edit_key)
        warming_up = state.updates < self.config.critic_warmup_updates
        state = state._replace(
            base=where_tree(warming_up, state.base, base),
            edit=where_tree(warming_up, state.edit, edit),
            updates=state.updates + 1,
        )
        return state, critic_metrics | base_metrics | edit_metrics


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """Build EXPO for ``policy``, learning from ``source``."""
    obs_dim, action_dim = policy.specs.obs_dim, policy.specs.flat_action_dim
    expo = Expo(
        config=config,
        policy=policy,
        base=cloning.make_bc_updater(
            policy, learning_rate=config.base_lr, tau=config.base_tau, grad_clip=config.grad_clip
        ),
        edit=tanh_gaussian.make_actor(config, (obs_dim, action_dim), action_dim),
        critic=critic.make_critic(config, obs_dim, action_dim, policy.config.compute),
    )
    return Algorithm(
        init=expo.init,
        act=expo.act,
        preprocess_segment=identity_preprocess,
        update=expo.update,
        eval_policy=expo.eval_policy,
        export=expo.export,
        source=source,
        q_values=critic.make_q_fn(expo.critic, policy),
    )

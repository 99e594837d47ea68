"""OGPO's critics: their targets, pessimism and losses (see ``gcp_jax.algorithms.ogpo``)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.algorithms.ogpo_config import Config, State
from gcp_jax.core import critic, optim
from gcp_jax.core.critic import CriticState
from gcp_jax.core.policy import Policy
from gcp_jax.mesh import batch_mean
from gcp_jax.types import Array, Metrics, Params, Transition


class PessimisticQ(NamedTuple):
    """Q̄ of G chains a state, blended by their drift from the slow reference."""

    q: Array  # Q_pess, [B, G]
    drift: Array  # ρ_s, [B, G]
    beta: Array  # β, []


@dataclasses.dataclass(frozen=True)
class OGPOCritics:
    """The equations of OGPO's critics, one method each.

    Observations named ``obs`` are normalized, [B, O]. Actions are flattened chunks, [..., D];
    points of chains are [B, G, K+1, D].
    """

    config: Config
    policy: Policy
    critic: critic.Critic

    def sample_action(self, params: Params, obs: Array, key: Array, count: int) -> Array:
        """a_1, ..., a_count ~ SDE(params), [B, count, D]."""
        return self.policy.action(self.policy.sample_chain_points(params, obs, key, count))

    def pessimistic_q(self, state: State, obs: Array, points: Array) -> PessimisticQ:
        """Q_pess, ρ_s and β of chains (χ² regularization)."""
        q = self.critic.q(state.critic.target_params, obs[:, None], self.policy.action(points))
        log_drift = self.policy.log_density(
            state.actor.params, obs[:, None], points
        ) - self.policy.log_density(state.actor.slow_params, obs[:, None], points)
        drift = jax.lax.stop_gradient(jnp.exp(log_drift))
        weight = jax.nn.sigmoid(self.config.chi2_alpha * (drift - 1.0))
        blend = (1.0 - weight) * jnp.mean(q, 0) + weight * jnp.min(q, 0)
        beta = self.config.chi2 * batch_mean(jnp.std(q, 0))
        return PessimisticQ(q=blend, drift=drift, beta=beta)

    def next_points(self, state: State, next_obs: Array, key: Array) -> Array:
        """Chains of θ̄ whose last points are the next actions, [B, target_samples, K+1, D].

        Each is the best of ``target_best_of`` by the smaller of two random critics, as in acting.
        """
        count = self.config.target_samples
        best_of = self.config.target_best_of
        if best_of == 1:
            return self.policy.sample_chain_points(state.actor.target_params, next_obs, key, count)
        sample_key, pair_key = jax.random.split(key)
        points = self.policy.sample_chain_points(
            state.actor.target_params, next_obs, sample_key, count * best_of
        )
        q = self.critic.min_of_two(
            state.critic.target_params, next_obs[:, None], self.policy.action(points), pair_key
        )
        index = jnp.argmax(q.reshape(-1, count, best_of), -1)
        groups = points.reshape(-1, count, best_of, *points.shape[2:])
        return jnp.take_along_axis(groups, index[:, :, None, None, None], 2)[:, :, 0]

    def td_target(self, state: State, transitions: Transition, key: Array) -> Array:
        """y [B] = r + γ mean_m Q̄_m(s', a'), averaged over ``target_samples`` next actions a'.

        With χ², Q_pess replaces the mean over the critics.
        """
        next_obs = state.normalizer(transitions.next_obs)
        points = self.next_points(state, next_obs, key)
        if self.config.chi2:
            next_q = self.pessimistic_q(state, next_obs, points).q
        else:
            action = self.policy.action(points)
            next_q = jnp.mean(
                self.critic.q(state.critic.target_params, next_obs[:, None], action), 0
            )
        return transitions.reward + transitions.discount * jnp.mean(next_q, -1)

    def cal_ql_penalty(
        self, params: Params, state: State, obs: Array, q_data: Array, to_go: Array, key: Array
    ) -> Array:
        """Cal-QL (Nakamoto et al. 2023, arXiv 2303.05479, eq. 5.1), [].

        It lowers max(Q(s, a_π), realized return) and raises Q(s, a) of the data.

        Args:
          params: φ.
          state: whose θ̄ samples a_π.
          obs: normalized observations [B, O].
          q_data: Q_m(s, a) [M, B].
          to_go: realized discounted returns [B]; NaN if not known yet.
          key: a random key; consumed.
        """
        action = self.sample_action(state.actor.target_params, obs, key, 1)[:, 0]
        floor = jnp.where(jnp.isnan(to_go), -jnp.inf, to_go)
        q_policy = jnp.maximum(self.critic.q(params, obs, action), floor[None])
        return jnp.mean(q_policy - q_data)

    def critic_loss(
        self,
        params: Params,
        state: State,
        transitions: Transition,
        *,
        td_target: Array,
        weight: Array,
        to_go: Array | None,
        key: Array,
    ) -> tuple[Array, Metrics]:
        """mean weight · mean_m (Q_m(s, a) − y)², and Cal-QL's penalty while warming up."""
        obs = state.normalizer(transitions.obs)
        q = self.critic.q(params, obs, self.policy.flatten(transitions.action))
        error = jnp.mean((q - td_target[None]) ** 2, 0)
        loss = jnp.mean(weight * error)
        if self.config.calql and to_go is not None:
            warming_up = state.updates < self.config.critic_warmup_updates
            penalty = self.cal_ql_penalty(params, state, obs, q, to_go, key)
            loss += jnp.where(warming_up, self.config.calql, 0.0) * penalty
        q_std = jnp.mean(jnp.std(q, 0))
        return loss, {"critic_loss": loss, "q": jnp.mean(q), "q_std": q_std}

    def update(
        self,
        state: State,
        transitions: Transition,
        *,
        weight: Array,
        to_go: Array | None,
        key: Array,
    ) -> tuple[CriticState, Metrics]:
        """One step of the critics on transitions [B] of the given weights [B]."""
        target_key, calql_key = jax.random.split(key)
        td_target = self.td_target(state, transitions, target_key)

        def loss(params: Params) -> tuple[Array, Metrics]:
            return self.critic_loss(
                params,
                state,
                transitions,
                td_target=td_target,
                weight=weight,
                to_go=to_go,
                key=calql_key,
            )

        return self.critic.step(state.critic, loss)


def make_critics(config: Config, policy: Policy) -> OGPOCritics:
    """Build the critics of ``policy``'s observations and chunks."""
    ensemble = critic.make_q_ensemble(
        config.critics,
        policy.specs.obs_dim,
        policy.specs.flat_action_dim,
        config.critic_hidden,
        policy.config.compute,
    )
    return OGPOCritics(
        config=config,
        policy=policy,
        critic=critic.Critic(
            ensemble=ensemble,
            optimizer=optim.clipped_adam(config.critic_lr, config.grad_clip),
            tau=config.critic_tau,
            aggregate="mean",
        ),
    )

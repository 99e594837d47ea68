"""DSRL: steering a frozen policy in its latent noise (Wagenmaker et al. 2025, arXiv 2506.15799).

a = ODE(s, w) is a deterministic map from noise to actions. A tanh-Gaussian policy over u in (−1, 1)
chooses the noise w = m u:

    "sac"   soft actor-critic whose action is w
            critic target      y = r + γ [Q̄(s', w') − α log π(u' | s')]
            actor loss         E[α log π(u | s) − Q(s, w)]
    "na"    noise aliasing: Q^A values executed actions, and Q^W is distilled from it
            critic target      y = r + γ [Q̄^A(s', ODE(s', w')) − α log π(u' | s')]
            distillation       Q^W(s, w) → Q^A(s, ODE(s, w)),   w ~ N(0, I)
            actor loss         E[α log π(u | s) − Q^W(s, w)]

Densities are those of u.

Differences from the released code: both modes bound the noise by m; before the first update of the
actor the data comes from one pass of the sampler on N(0, I); a time limit still bootstraps.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.config_fields import POSITIVE, POSITIVE_INT, field
from gcp_jax.core import critic, denoising, tanh_gaussian
from gcp_jax.core.critic import CriticState
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

MODES = ("na", "sac")


@dataclasses.dataclass(frozen=True)
class Config(tanh_gaussian.Config):
    """DSRL's settings, besides those of the critics and of the tanh-Gaussian noise policy."""

    mode: str = field("na", MODES, "what the critics value: actions (noise aliasing) or noise")
    noise_bound: float = field(1.5, POSITIVE, "m: largest noise that is chosen [1–2.5]")
    distill_steps: int = field(
        2, POSITIVE_INT, "updates of Q^W for each of Q^A, if mode is 'na' [10]"
    )


class State(NamedTuple):
    """What DSRL learns, for one seed, and the frozen base policy."""

    base: Params
    actor: tanh_gaussian.ActorState
    critic: CriticState  # Q^A; Q(s, w) if mode is "sac"
    latent_critic: CriticState | None  # Q^W; None if mode is "sac"
    normalizer: Normalizer
    updates: Array  # int32 []


def replay_needs(config: Config) -> dict[str, object]:
    """SAC learns from the noise that was drawn, so its windows begin where a chunk began."""
    return {"gamma": config.gamma, "aligned": config.mode == "sac"}


@dataclasses.dataclass(frozen=True)
class DSRL:
    """DSRL's equations, one method each.

    Observations named ``obs`` are raw in the methods of ``Algorithm`` (``act``, ``eval_policy``,
    ``update``) and normalized, [B, O], everywhere else. Actions are flattened chunks, [..., D].
    """

    config: Config
    policy: Policy
    actor: tanh_gaussian.Actor
    critic: critic.Critic  # also the form of Q^W

    def init(self, key: Array, pretrained: Params) -> State:
        """Start on a pretrained base policy, {"net", "normalizer"}, which stays as it is."""
        actor_key, critic_key, latent_key = jax.random.split(key, 3)
        latent_critic = None
        if self.config.mode == "na":
            latent_critic = self.critic.init(latent_key)
        return State(
            base=pretrained["net"],
            actor=self.actor.init(actor_key),
            critic=self.critic.init(critic_key),
            latent_critic=latent_critic,
            normalizer=pretrained["normalizer"],
            updates=jnp.int32(0),
        )

    def prior_noise(self, key: Array, count: int) -> Array:
        """w ~ N(0, I), [count, D]."""
        return denoising.sample_noise(key, count, (self.policy.specs.flat_action_dim,))

    def act(self, state: State, obs: Array, key: Array) -> tuple[Array, Params]:
        """The steered policy, or the base policy until the critics have warmed up."""
        steer_key, prior_key = jax.random.split(key)
        obs = state.normalizer(obs)
        u, _ = self.actor.sample(state.actor.params, (obs,), steer_key)
        warm = state.updates > self.config.critic_warmup_updates
        prior = self.prior_noise(prior_key, len(obs))
        w = jnp.where(warm, self.config.noise_bound * u, prior)
        chunk = self.policy.unflatten(self.policy.sample(state.base, obs, w))
        if self.config.mode == "sac":
            return chunk, {"w": w}
        return chunk, {}

    def critic_input(self, state: State, obs: Array, w: Array) -> Array:
        """What ``critic`` values: ODE(s, w) if mode is "na", w if it is "sac"."""
        if self.config.mode == "na":
            return self.policy.sample(state.base, obs, w)
        return w

    def td_target(self, state: State, batch: Batch, key: Array) -> Array:
        """y [B] = r + γ [Q̄(s', ·) − α log π(u' | s')]."""
        sample_key, aggregate_key = jax.random.split(key)
        next_obs = state.normalizer(batch.transitions.next_obs)
        u, log_density = self.actor.sample(state.actor.params, (next_obs,), sample_key)
        next_q = self.critic.aggregate_q(
            state.critic.target_params,
            next_obs,
            self.critic_input(state, next_obs, self.config.noise_bound * u),
            aggregate_key,
        )
        soft_value = next_q - state.actor.alpha * log_density
        return batch.transitions.reward + batch.transitions.discount * soft_value

    def update_critic(self, state: State, batch: Batch, key: Array) -> tuple[CriticState, Metrics]:
        """One step of Q^A on executed actions, or of Q on the noise that was drawn."""
        td_target = self.td_target(state, batch, key)
        obs = state.normalizer(batch.transitions.obs)
        if self.config.mode == "sac":
            action = batch.transitions.extras["w"]
        else:
            action = self.policy.flatten(batch.transitions.action)
        return self.critic.td_step(state.critic, obs, action, td_target)

    def distill(
        self, state: State, latent_critic: CriticState, obs: Array, key: Array
    ) -> tuple[CriticState, Array]:
        """``distill_steps`` updates of Q^W(s, w) → Q^A(s, ODE(s, w)): (Q^W, mean loss [])."""

        def step(latent_critic: CriticState, key: Array) -> tuple[CriticState, Array]:
            noise_key, aggregate_key = jax.random.split(key)
            w = self.prior_noise(noise_key, len(obs))
            action = self.policy.sample(state.base, obs, w)
            q = self.critic.aggregate_q(state.critic.params, obs, action, aggregate_key)
            latent_critic, metrics = self.critic.td_step(latent_critic, obs, w, q)
            return latent_critic, metrics["critic_loss"]

        keys = jax.random.split(key, self.config.distill_steps)
        latent_critic, losses = jax.lax.scan(step, latent_critic, keys)
        return latent_critic, jnp.mean(losses)

    def update_actor(
        self,
        state: State,
        steering_critic: CriticState,
        obs: Array,
        actor_key: Array,
        aggregate_key: Array,
    ) -> tuple[tanh_gaussian.ActorState, Metrics]:
        """One step on E[α log π(u | s) − Q(s, m u)], with Q^W as Q if mode is "na"."""

        def q_of(u: Array) -> Array:
            w = self.config.noise_bound * u
            return self.critic.aggregate_q(steering_critic.params, obs, w, aggregate_key)

        return self.actor.update(state.actor, (obs,), q_of, actor_key)

    def update(self, state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        """One step of the critics, the distillation and one step of the actor, in this order.

        During the first ``critic_warmup_updates`` updates the actor does not learn.
        """
        critic_key, distill_key, actor_key, aggregate_key = jax.random.split(key, 4)
        obs = state.normalizer(batch.transitions.obs)
        critic_state, metrics = self.update_critic(state, batch, critic_key)
        state = state._replace(critic=critic_state)

        steering_critic = state.critic
        if state.latent_critic is not None:
            steering_critic, metrics["distill_loss"] = self.distill(
                state, state.latent_critic, obs, distill_key
            )
            state = state._replace(latent_critic=steering_critic)

        actor, actor_metrics = self.update_actor(
            state, steering_critic, obs, actor_key, aggregate_key
        )
        warming_up = state.updates < self.config.critic_warmup_updates
        state = state._replace(
            actor=where_tree(warming_up, state.actor, actor), updates=state.updates + 1
        )
        return state, metrics | actor_metrics

    def export(self, state: State) -> Params:
        """What is deployed: the base policy and the noise policy."""
        return {
            "net": state.base,
            "normalizer": state.normalizer,
            "noise": state.actor.params,
        }

    def eval_policy(self, params: Params, obs: Array, key: Array) -> Array:
        """The base policy from the mode of w: raw observations [B, O] to chunks [B, h, A]."""
        obs = params["normalizer"](obs)
        w = self.config.noise_bound * self.actor.mode(params["noise"], (obs,))
        return self.policy.unflatten(self.policy.sample(params["net"], obs, w))


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """Build DSRL for ``policy``, learning from ``source``."""
    obs_dim = policy.specs.obs_dim
    action_dim = policy.specs.flat_action_dim
    dsrl = DSRL(
        config=config,
        policy=policy,
        actor=tanh_gaussian.make_actor(config, (obs_dim,), action_dim),
        critic=critic.make_critic(config, obs_dim, action_dim, policy.config.compute),
    )
    q_values = None  # critics of noise, not of actions
    if config.mode == "na":
        q_values = critic.make_q_fn(dsrl.critic, policy)
    return Algorithm(
        init=dsrl.init,
        act=dsrl.act,
        preprocess_segment=identity_preprocess,
        update=dsrl.update,
        eval_policy=dsrl.eval_policy,
        export=dsrl.export,
        source=source,
        q_values=q_values,
    )

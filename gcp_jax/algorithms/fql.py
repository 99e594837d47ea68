"""FQL: flow Q-learning (Park et al. 2025, arXiv 2502.02538), on chunks.

A generative policy β clones the replay. A one-step policy μ(s, z) is distilled from it and at the
same time maximizes the critics:

    base policy     L(θ) = L_FM
    critic target   y = r + γ Q̄(s', μ(s', z'))
    one-step loss   L(μ) = α ‖μ(s, z) − sg ODE_θ(s, z)‖² − Q(s, μ(s, z)),   z ~ N(0, I)

μ starts untrained. Until the critics have warmed up, β acts and μ is distilled without the term of
the critics.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE_INT, UNIT, field
from gcp_jax.core import cloning, critic, denoising, optim
from gcp_jax.core.networks import ActorNet, Normalizer
from gcp_jax.core.policy import Policy
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
    """FQL's settings, besides those of the critics."""

    alpha: float = field(
        100.0, NON_NEGATIVE, "α: weight of the distillation, a mean over the chunk [10–1000]"
    )
    actor_hidden: tuple[int, ...] = field((128, 128, 128), POSITIVE_INT, "widths of μ [512 × 4]")
    actor_lr: float = field(1e-3, NON_NEGATIVE, "Adam's learning rate of μ [3e-4]")
    base_lr: float = field(3e-4, NON_NEGATIVE, "Adam's learning rate of β [3e-4]")
    base_tau: float = field(0.005, UNIT, "averaging rate of the β that is sampled")


class State(NamedTuple):
    """What FQL learns, for one seed."""

    base: cloning.BCState  # β
    one_step_params: Params  # μ
    one_step_opt_state: Params
    critic: critic.CriticState
    normalizer: Normalizer
    updates: Array  # int32 []


@dataclasses.dataclass(frozen=True)
class FQL:
    """FQL's equations, one method each.

    Observations named ``obs`` are raw in the methods of ``Algorithm`` (``act``, ``eval_policy``,
    ``update``) and normalized, [B, O], everywhere else. Actions are flattened chunks, [..., D].
    """

    config: Config
    policy: Policy
    base: cloning.BCUpdater
    one_step_net: ActorNet
    one_step_optimizer: optax.GradientTransformation
    critic: critic.Critic

    def init(self, key: Array, pretrained: Params) -> State:
        """Start from a pretrained base policy, {"net", "normalizer"}; μ is untrained."""
        one_step_key, critic_key = jax.random.split(key)
        obs = jnp.zeros((1, self.policy.specs.obs_dim))
        z = jnp.zeros((1, self.policy.specs.flat_action_dim))
        one_step_params = self.one_step_net.init(one_step_key, obs, z)["params"]
        return State(
            base=self.base.init(pretrained["net"]),
            one_step_params=one_step_params,
            one_step_opt_state=self.one_step_optimizer.init(one_step_params),
            critic=self.critic.init(critic_key),
            normalizer=pretrained["normalizer"],
            updates=jnp.int32(0),
        )

    def sample_z(self, key: Array, count: int) -> Array:
        """z ~ N(0, I), [count, D]."""
        return denoising.sample_noise(key, count, (self.policy.specs.flat_action_dim,))

    def one_step(self, params: Params, obs: Array, z: Array) -> Array:
        """μ(s, z), [B, D], not clipped."""
        return jnp.asarray(self.one_step_net.apply({"params": params}, obs, z))

    def sample_one_step(self, params: Params, obs: Array, key: Array) -> Array:
        """clip(μ(s, z), −1, 1) with fresh z, [B, D]."""
        return jnp.clip(self.one_step(params, obs, self.sample_z(key, len(obs))), -1.0, 1.0)

    def export(self, state: State) -> Params:
        """What is deployed: the averaged β and μ."""
        return {
            "net": state.base.target_params,
            "normalizer": state.normalizer,
            "one_step": state.one_step_params,
        }

    def eval_policy(self, params: Params, obs: Array, key: Array) -> Array:
        """The one-step policy: raw observations [B, O] to chunks [B, h, A]."""
        action = self.sample_one_step(params["one_step"], params["normalizer"](obs), key)
        return self.policy.unflatten(action)

    def act(self, state: State, obs: Array, key: Array) -> tuple[Array, Params]:
        """The one-step policy, or β until the critics have warmed up."""
        params = self.export(state)
        flow_chunk = self.policy.eval_policy(params, obs, key)
        one_step_chunk = self.eval_policy(params, obs, key)
        warm = state.updates > self.config.critic_warmup_updates
        return jnp.where(warm, one_step_chunk, flow_chunk), {}

    def td_target(self, state: State, batch: Batch, key: Array, aggregate_key: Array) -> Array:
        """y [B] = r + γ Q̄(s', μ(s', z'))."""
        next_obs = state.normalizer(batch.transitions.next_obs)
        next_action = self.sample_one_step(state.one_step_params, next_obs, key)
        next_value = self.critic.aggregate_q(
            state.critic.target_params, next_obs, next_action, aggregate_key
        )
        return batch.transitions.reward + batch.transitions.discount * next_value

    def one_step_loss(
        self, params: Params, state: State, obs: Array, key: Array
    ) -> tuple[Array, Metrics]:
        """α ‖μ(s, z) − ODE_θ(s, z)‖² − Q(s, μ(s, z)), with metrics.

        The second term is left out during the first ``critic_warmup_updates`` updates.
        """
        noise_key, aggregate_key = jax.random.split(key)
        z = self.sample_z(noise_key, len(obs))
        flow_action = self.policy.sample(state.base.target_params, obs, z)
        warm = state.updates >= self.config.critic_warmup_updates
        q_loss_weight = warm.astype(jnp.float32)

        action = self.one_step(params, obs, z)
        distill_loss = jnp.mean((action - flow_action) ** 2)
        q = jnp.mean(
            self.critic.aggregate_q(
                state.critic.params, obs, jnp.clip(action, -1.0, 1.0), aggregate_key
            )
        )
        loss = self.config.alpha * distill_loss - q_loss_weight * q
        return loss, {"actor_loss": loss, "distill_loss": distill_loss, "actor_q": q}

    def update_one_step(self, state: State, obs: Array, key: Array) -> tuple[State, Metrics]:
        """One step of μ on ``one_step_loss``."""
        params, opt_state, metrics = optim.gradient_step(
            lambda params: self.one_step_loss(params, state, obs, key),
            state.one_step_params,
            state.one_step_opt_state,
            self.one_step_optimizer,
            name="actor",
        )
        state = state._replace(one_step_params=params, one_step_opt_state=opt_state)
        return state, metrics

    def update(self, state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        """One step of the critics, of β and of μ, in this order."""
        target_key, aggregate_key, base_key, one_step_key = jax.random.split(key, 4)
        transitions = batch.transitions
        obs = state.normalizer(transitions.obs)

        td_target = self.td_target(state, batch, target_key, aggregate_key)
        critic_state, critic_metrics = self.critic.td_step(
            state.critic, obs, self.policy.flatten(transitions.action), td_target
        )
        base, base_metrics = self.base.update(state.base, obs, transitions, base_key)
        state = state._replace(critic=critic_state, base=base)
        state, one_step_metrics = self.update_one_step(state, obs, one_step_key)
        state = state._replace(updates=state.updates + 1)
        return state, critic_metrics | base_metrics | one_step_metrics


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """Build FQL for ``policy``, learning from ``source``."""
    obs_dim = policy.specs.obs_dim
    action_dim = policy.specs.flat_action_dim
    fql = FQL(
        config=config,
        policy=policy,
        base=cloning.make_bc_updater(
            policy, learning_rate=config.base_lr, tau=config.base_tau, grad_clip=config.grad_clip
        ),
        one_step_net=ActorNet((obs_dim, action_dim), action_dim, config.actor_hidden),
        one_step_optimizer=optim.clipped_adam(config.actor_lr, config.grad_clip),
        critic=critic.make_critic(config, obs_dim, action_dim, policy.config.compute),
    )
    return Algorithm(
        init=fql.init,
        act=fql.act,
        preprocess_segment=identity_preprocess,
        update=fql.update,
        eval_policy=fql.eval_policy,
        export=fql.export,
        source=source,
        q_values=critic.make_q_fn(fql.critic, policy),
    )

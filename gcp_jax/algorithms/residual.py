"""Residual policies: a small correction on top of a frozen base policy.

    policy    π(s) = clip(a_b + κ u, −1, 1),   a_b = ODE(s, z),   z ~ N(0, I),   u in [−1, 1]

with κ the scale of the residual u, which sees s and a_b:

    "sac"   Policy Decorator (Yuan et al. 2024, arXiv 2412.13630): u is a tanh-Gaussian, learned by
            soft actor-critic. For each chunk that is executed, the residual is used with
            probability min(steps / H, 1) (progressive exploration).
            critic target   y = r + γ [Q̄(s', a'_b + κ u') − α log π(u' | s', a'_b)]
            actor loss      E[α log π(u | s, a_b) − Q(s, a_b + κ u)]
    "td3"   ResFiT (Ankile et al. 2025, arXiv 2509.19301): u = tanh f(s, a_b) with f zero at the
            start, learned by TD3 with smoothed targets and a delayed actor.
            critic target   y = r + γ Q̄(s', a'_b + κ clip(u' + clip(ε, −c, c), −1, 1))
            actor loss      −E[Q(s, a_b + κ u)]

The base policy's action is sampled anew for every transition, so that replayed windows may begin at
any step.

Difference from the released code of ResFiT: the error of each critic is squared; there, the mean of
the critics' absolute errors is.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE, POSITIVE_INT, field
from gcp_jax.core import critic, denoising, optim, tanh_gaussian
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy
from gcp_jax.core.tree import where_tree
from gcp_jax.mesh import all_sum, sample_keys
from gcp_jax.types import Algorithm, Array, Batch, BatchSource, Metrics, Params, Segment

MODES = ("sac", "td3")


@dataclasses.dataclass(frozen=True)
class Config(tanh_gaussian.Config):
    """The settings of residual policies, besides those of the critics and of the actor."""

    mode: str = field("sac", MODES, "how the residual learns: Policy Decorator or ResFiT")
    scale: float = field(0.1, POSITIVE, "κ: scale of the residual [.03–.3]")
    explore_steps: int = field(
        12_288,
        POSITIVE_INT,
        "H: environment steps until the residual is always used, if mode is 'sac' [30k–8M]",
    )
    noise: float = field(
        0.1, NON_NEGATIVE, "standard deviation of ε, when acting and in targets ('td3')"
    )
    noise_clip: float = field(0.3, NON_NEGATIVE, "c: largest |ε| in targets ('td3') [.3]")
    policy_delay: int = field(
        4, POSITIVE_INT, "updates of the critics for each of the actor ('td3') [4]"
    )

    @property
    def first_policy_update(self) -> int:
        """The first update of a run, counted from 0, that changes the policy."""
        if self.mode != "td3":
            return self.critic_warmup_updates
        return -(-self.critic_warmup_updates // self.policy_delay) * self.policy_delay


class State(NamedTuple):
    """What a residual policy learns, for one seed, and the frozen base policy."""

    base: Params
    actor: tanh_gaussian.ActorState
    critic: critic.CriticState
    normalizer: Normalizer
    updates: Array  # int32 []
    env_steps: Array  # float32 []: executed on all devices


@dataclasses.dataclass(frozen=True)
class Residual:
    """The equations of residual policies, one method each.

    Observations named ``obs`` are raw in the methods of ``Algorithm`` (``act``, ``eval_policy``,
    ``update``) and normalized, [B, O], everywhere else. Actions are flattened chunks, [..., D].
    """

    config: Config
    policy: Policy
    actor: tanh_gaussian.Actor
    critic: critic.Critic

    def init(self, key: Array, pretrained: Params) -> State:
        """Start on a pretrained base policy, {"net", "normalizer"}, which stays as it is."""
        actor_key, critic_key = jax.random.split(key)
        return State(
            base=pretrained["net"],
            actor=self.actor.init(actor_key),
            critic=self.critic.init(critic_key),
            normalizer=pretrained["normalizer"],
            updates=jnp.int32(0),
            env_steps=jnp.float32(0),
        )

    def preprocess_segment(self, state: State, segment: Segment) -> tuple[State, Segment]:
        """Count the executed environment steps, for progressive exploration."""
        steps = all_sum(jnp.sum(segment.steps.executed, dtype=jnp.float32))
        return state._replace(env_steps=state.env_steps + steps), segment

    def combine(self, base_action: Array, u: Array) -> Array:
        """clip(a_b + κ u, −1, 1)."""
        return jnp.clip(base_action + self.config.scale * u, -1.0, 1.0)

    def base_action(self, params: Params, obs: Array, key: Array) -> Array:
        """a_b = ODE(s, z) with fresh z, [B, D]."""
        return self.policy.sample_n(params, obs, key, 1)[:, 0]

    def add_clipped_noise(self, u: Array, key: Array, noise_clip: float) -> Array:
        """clip(u + clip(ε, −c, c), −1, 1) with c = ``noise_clip`` (TD3)."""
        noise = denoising.sample_noise(key, len(u), u.shape[1:])
        clipped = jnp.clip(self.config.noise * noise, -noise_clip, noise_clip)
        return jnp.clip(u + clipped, -1.0, 1.0)

    def explore(
        self, state: State, obs: Array, base_action: Array, sample_key: Array, use_key: Array
    ) -> Array:
        """The behavior policy's residual u [B, D], 0 if progressive exploration leaves it out."""
        inputs = (obs, base_action)
        if self.config.mode == "td3":
            u = self.actor.mode(state.actor.params, inputs)
            return self.add_clipped_noise(u, sample_key, jnp.inf)
        u, _ = self.actor.sample(state.actor.params, inputs, sample_key)
        uniform = jax.vmap(jax.random.uniform)(sample_keys(use_key, len(obs)))
        use_residual = uniform < state.env_steps / self.config.explore_steps
        return jnp.where(use_residual[:, None], u, 0.0)

    def act(self, state: State, obs: Array, key: Array) -> tuple[Array, Params]:
        """The behavior policy; the base policy until the critics have warmed up."""
        base_key, sample_key, use_key = jax.random.split(key, 3)
        obs = state.normalizer(obs)
        base_action = self.base_action(state.base, obs, base_key)
        u = self.explore(state, obs, base_action, sample_key, use_key)
        warm = state.updates > self.config.critic_warmup_updates
        u = jnp.where(warm, u, 0.0)
        return self.policy.unflatten(self.combine(base_action, u)), {}

    def td_target(self, state: State, batch: Batch, key: Array) -> Array:
        """y [B]: see the head of this file."""
        base_key, sample_key, aggregate_key = jax.random.split(key, 3)
        next_obs = state.normalizer(batch.transitions.next_obs)
        base_action = self.base_action(state.base, next_obs, base_key)
        inputs = (next_obs, base_action)
        if self.config.mode == "sac":
            u, log_density = self.actor.sample(state.actor.params, inputs, sample_key)
            entropy_bonus = -state.actor.alpha * log_density
        else:
            u = self.actor.mode(state.actor.params, inputs)
            u = self.add_clipped_noise(u, sample_key, self.config.noise_clip)
            entropy_bonus = jnp.zeros_like(batch.transitions.reward)
        next_q = self.critic.aggregate_q(
            state.critic.target_params, next_obs, self.combine(base_action, u), aggregate_key
        )
        return batch.transitions.reward + batch.transitions.discount * (next_q + entropy_bonus)

    def update_actor(
        self, state: State, obs: Array, key: Array
    ) -> tuple[tanh_gaussian.ActorState, Metrics]:
        """One step on the actor loss of the mode, with a_b sampled anew."""
        base_key, sample_key, aggregate_key = jax.random.split(key, 3)
        base_action = self.base_action(state.base, obs, base_key)
        inputs = (obs, base_action)

        def q_of(u: Array) -> Array:
            action = self.combine(base_action, u)
            return self.critic.aggregate_q(state.critic.params, obs, action, aggregate_key)

        if self.config.mode == "sac":
            return self.actor.update(state.actor, inputs, q_of, sample_key)

        def td3_loss(params: Params) -> tuple[Array, Metrics]:
            loss = -jnp.mean(q_of(self.actor.mode(params, inputs)))
            return loss, {"actor_loss": loss}

        params, opt_state, metrics = optim.gradient_step(
            td3_loss,
            state.actor.params,
            state.actor.opt_state,
            self.actor.optimizer,
            name="actor",
        )
        return state.actor._replace(params=params, opt_state=opt_state), metrics

    def actor_waits(self, state: State) -> Array:
        """Whether the actor skips this update: bool []."""
        warming_up = state.updates < self.config.critic_warmup_updates
        if self.config.mode == "sac":
            return warming_up
        return warming_up | (state.updates % self.config.policy_delay != 0)

    def update(self, state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        """One step of the critics and, unless it waits, of the actor."""
        target_key, actor_key = jax.random.split(key)
        obs = state.normalizer(batch.transitions.obs)
        action = self.policy.flatten(batch.transitions.action)
        td_target = self.td_target(state, batch, target_key)
        critic_state, critic_metrics = self.critic.td_step(state.critic, obs, action, td_target)
        state = state._replace(critic=critic_state)

        actor, actor_metrics = self.update_actor(state, obs, actor_key)
        state = state._replace(
            actor=where_tree(self.actor_waits(state), state.actor, actor),
            updates=state.updates + 1,
        )
        return state, critic_metrics | actor_metrics

    def export(self, state: State) -> Params:
        """What is deployed: the base policy and the residual."""
        return {
            "net": state.base,
            "normalizer": state.normalizer,
            "residual": state.actor.params,
        }

    def eval_policy(self, params: Params, obs: Array, key: Array) -> Array:
        """The mode of the policy given a_b: raw observations [B, O] to chunks [B, h, A]."""
        obs = params["normalizer"](obs)
        base_action = self.base_action(params["net"], obs, key)
        u = self.actor.mode(params["residual"], (obs, base_action))
        return self.policy.unflatten(self.combine(base_action, u))


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """Build a residual on ``policy``, learning from ``source``."""
    obs_dim = policy.specs.obs_dim
    action_dim = policy.specs.flat_action_dim
    last_scale = 1e-4 if config.mode == "sac" else 0.0
    residual = Residual(
        config=config,
        policy=policy,
        actor=tanh_gaussian.make_actor(
            config, (obs_dim, action_dim), action_dim, last_scale=last_scale
        ),
        critic=critic.make_critic(config, obs_dim, action_dim, policy.config.compute),
    )
    return Algorithm(
        init=residual.init,
        act=residual.act,
        preprocess_segment=residual.preprocess_segment,
        update=residual.update,
        eval_policy=residual.eval_policy,
        export=residual.export,
        source=source,
        q_values=critic.make_q_fn(residual.critic, policy),
    )

"""Residual policies: a small correction on top of a frozen base (algorithms.md §5).

    a = clip(a_b + scale · u(s, a_b), ±1),   a_b = ODE(s, z)

    sac   Policy Decorator (arXiv 2412.13630): u a tanh-Gaussian learned by SAC; while acting, it is switched on for a chunk with
          probability min(steps / explore_steps, 1) (progressive exploration)
    td3   ResFiT (arXiv 2509.19301): u = tanh f with f zero at the start, learned by TD3: smoothed targets
          y = reward + discount · Q̄(s', clip(a'_b + scale · clip(u' + ε, ±1))), delayed actor

The base's action is drawn afresh for every transition, so that replayed windows may start at any step. ResFiT's released loss
squares the head-averaged error; here each head's error is squared.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE, POSITIVE_INT
from gcp_jax.core import critic, tanh_gaussian
from gcp_jax.core import denoising as chains
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy
from gcp_jax.mesh import all_sum, gradient_step, sample_keys
from gcp_jax.types import Algorithm, Array, Batch, BatchSource, PyTree, Segment


@dataclasses.dataclass(frozen=True)
class Config(tanh_gaussian.Config):
    """mode: "sac" or "td3". scale: of the residual [.03–.3]. explore_steps: H, environment steps ("sac") [30k–8M].
    noise: standard deviation of u when acting, and of its smoothing in the target, there cut at ±noise_clip ("td3").
    policy_delay: critic steps for each of the actor ("td3") [4]."""

    mode: str = "sac"
    scale: float = 0.1
    explore_steps: int = 30_000
    noise: float = 0.1
    noise_clip: float = 0.3
    policy_delay: int = 4

    RANGES = {
        **dict.fromkeys(("explore_steps", "policy_delay"), POSITIVE_INT),
        **dict.fromkeys(("noise", "noise_clip"), NON_NEGATIVE),
        "scale": POSITIVE,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        critic.check_choice(self, mode=("sac", "td3"))


class State(NamedTuple):
    """The frozen base, the residual actor, the critics, updates and environment steps done."""

    base: PyTree
    actor: tanh_gaussian.ActorState
    critic: critic.CriticState
    normalizer: Normalizer
    step: Array
    env_steps: Array


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """A residual policy as an Algorithm; ``pretrained`` is a deployed policy {"net", "normalizer"}."""
    specs, stochastic = policy.specs, config.mode == "sac"
    critics = critic.make_critic(
        config, specs.obs_dim, specs.flat_action_dim, policy.config.compute
    )
    sizes = (specs.obs_dim, specs.flat_action_dim)
    actor = tanh_gaussian.make_actor(
        config, sizes, specs.flat_action_dim, last_scale=1e-4 if stochastic else 0.0
    )
    optimizer = critic.clipped_adam(config.actor_lr, config.grad_clip)

    def init(key: Array, pretrained: PyTree) -> State:
        actor_key, critic_key = jax.random.split(key)
        nets = (actor.init(actor_key), critics.init(critic_key))
        return State(
            pretrained["net"], *nets, pretrained["normalizer"], jnp.int32(0), jnp.float32(0)
        )

    def prepare(state: State, segment: Segment) -> tuple[State, Segment]:
        """Count what was executed, for progressive exploration."""
        steps = all_sum(jnp.sum(segment.steps.executed, dtype=jnp.float32))
        return state._replace(env_steps=state.env_steps + steps), segment

    def combine(base: Array, u: Array) -> Array:
        return jnp.clip(base + config.scale * u, -1.0, 1.0)

    def base_action(net: PyTree, obs: Array, key: Array) -> Array:
        return policy.sample_n(net, obs, key, 1)[:, 0]

    def perturbed(u: Array, key: Array, cut: float) -> Array:
        """u with Gaussian noise cut at ±cut, still in the unit box (TD3)."""
        noise = chains.sample_noise(key, len(u), u.shape[1:])
        return jnp.clip(u + jnp.clip(config.noise * noise, -cut, cut), -1.0, 1.0)

    def act(state: State, obs: Array, key: Array) -> tuple[Array, PyTree]:
        base_key, draw_key, switch_key = jax.random.split(key, 3)
        obs = state.normalizer(obs)
        base = base_action(state.base, obs, base_key)
        if stochastic:
            u, _ = actor.draw(state.actor.net, (obs, base), draw_key)
            chance = jax.vmap(jax.random.uniform)(sample_keys(switch_key, len(obs)))
            on = (chance < state.env_steps / config.explore_steps)[:, None]
        else:
            u, on = (
                perturbed(actor.mode(state.actor.net, (obs, base)), draw_key, jnp.inf),
                jnp.bool_(True),
            )
        u = jnp.where(on & (state.step > config.critic_warmup_updates), u, 0.0)
        return policy.unflatten(combine(base, u)), {}

    def greedy(deployed: PyTree, obs: Array, key: Array) -> Array:
        obs = deployed["normalizer"](obs)
        base = base_action(deployed["net"], obs, key)
        return policy.unflatten(combine(base, actor.mode(deployed["residual"], (obs, base))))

    def targets(state: State, batch: Batch, key: Array) -> Array:
        base_key, draw_key, pool_key = jax.random.split(key, 3)
        data, obs = batch.transitions, state.normalizer(batch.transitions.next_obs)
        base = base_action(state.base, obs, base_key)
        if stochastic:
            u, log_density = actor.draw(state.actor.net, (obs, base), draw_key)
            bonus = -state.actor.alpha * log_density
        else:
            u = perturbed(actor.mode(state.actor.net, (obs, base)), draw_key, config.noise_clip)
            bonus = jnp.zeros_like(data.reward)
        worth = critics.aggregate_q(state.critic.target, obs, combine(base, u), pool_key)
        return data.reward + data.discount * (worth + bonus)

    def actor_step(
        state: State, obs: Array, key: Array
    ) -> tuple[tanh_gaussian.ActorState, dict[str, Array]]:
        base_key, draw_key, pool_key = jax.random.split(key, 3)
        base = base_action(state.base, obs, base_key)

        def worth(u: Array) -> Array:
            return critics.aggregate_q(state.critic.net, obs, combine(base, u), pool_key)

        if stochastic:
            return actor.improve(state.actor, (obs, base), worth, draw_key)

        def loss(net: PyTree) -> tuple[Array, dict[str, Array]]:
            value = -jnp.mean(worth(actor.mode(net, (obs, base))))
            return value, {"actor_loss": value}

        net, opt, metrics = gradient_step(loss, state.actor.net, state.actor.opt, optimizer)
        metrics["actor_gradient_norm"] = metrics.pop("gradient_norm")
        return state.actor._replace(net=net, opt=opt), metrics

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        target_key, actor_key = jax.random.split(key)
        data, obs = batch.transitions, state.normalizer(batch.transitions.obs)
        y = targets(state, batch, target_key)
        critic_state, metrics = critics.td_step(state.critic, obs, policy.flatten(data.action), y)
        state = state._replace(critic=critic_state)
        improved, learned = actor_step(state, obs, actor_key)
        waiting = state.step < config.critic_warmup_updates
        if not stochastic:
            waiting = waiting | (state.step % config.policy_delay != 0)
        improved = critic.where_tree(waiting, state.actor, improved)
        return state._replace(actor=improved, step=state.step + 1), metrics | learned

    def export(state: State) -> PyTree:
        return {"net": state.base, "normalizer": state.normalizer, "residual": state.actor.net}

    return Algorithm(
        init, act, prepare, update, greedy, export, source, critic.make_q_fn(critics, policy)
    )

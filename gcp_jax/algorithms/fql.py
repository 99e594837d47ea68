"""FQL: flow Q-learning (arXiv 2502.02538; algorithms.md §7), on chunks.

A flow clones the replay; a one-step policy μ(s, z) is distilled from it and climbs the critic,

    L(θ) = L_FM,       L(μ) = α ‖μ(s, z) − sg ODE_θ(s, z)‖² − Q(s, μ(s, z)),       y = reward + discount · Q̄(s', μ(s', z')).

μ starts untrained: while the critics warm up the flow acts, and μ is distilled without the critic's term.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax import chain as chains
from gcp_jax import critic, imitation
from gcp_jax.mesh import descend
from gcp_jax.networks import Head, Normaliser
from gcp_jax.policy import Policy
from gcp_jax.ranges import COUNT, NOT_NEGATIVE, SHARE
from gcp_jax.types import Algorithm, Array, Batch, PyTree, Source, unprepared


@dataclasses.dataclass(frozen=True)
class Config(critic.Config):
    """alpha: of the distillation; its square is a mean over the chunk's dimensions [10–1000]. actor_hidden, actor_lr: of μ.
    base_lr, base_ema: of the flow."""

    alpha: float = 100.0
    actor_hidden: tuple[int, ...] = (128, 128, 128)
    actor_lr: float = 3e-4
    base_lr: float = 3e-4
    base_ema: float = 0.005

    RANGES = {
        **dict.fromkeys(("alpha", "actor_lr", "base_lr"), NOT_NEGATIVE),
        "actor_hidden": COUNT,
        "base_ema": SHARE,
    }


class State(NamedTuple):
    """The flow, μ and its optimiser, the critics, updates done."""

    base: imitation.CloneState
    one_step: PyTree
    opt: PyTree
    critic: critic.CriticState
    normaliser: Normaliser
    step: Array


def make(config: Config, policy: Policy, source: Source) -> Algorithm:
    """FQL as an Algorithm; ``pretrained`` is a deployed policy {"net", "normaliser"}."""
    specs = policy.specs
    size = specs.flat_action_dim
    critics = critic.make(config, specs.obs_dim, size, policy.config.compute)
    cloner = imitation.make(policy, learning_rate=config.base_lr, ema=config.base_ema, grad_clip=config.grad_clip)
    net = Head((specs.obs_dim, size), size, config.actor_hidden)
    optimiser = critic.adam(config.actor_lr, config.grad_clip)

    def init(key: Array, pretrained: PyTree) -> State:
        actor_key, critic_key = jax.random.split(key)
        one_step = net.init(actor_key, jnp.zeros((1, specs.obs_dim)), jnp.zeros((1, size)))["params"]
        base = cloner.init(pretrained["net"])
        learned = (base, one_step, optimiser.init(one_step), critics.init(critic_key))
        return State(*learned, pretrained["normaliser"], jnp.int32(0))

    def noise(key: Array, count: int) -> Array:
        return chains.draw(key, count, (size,))

    def mu(params: PyTree, obs: Array, z: Array) -> Array:
        return jnp.asarray(net.apply({"params": params}, obs, z))

    def greedy(deployed: PyTree, obs: Array, key: Array) -> Array:
        obs = deployed["normaliser"](obs)
        return policy.unflatten(jnp.clip(mu(deployed["one_step"], obs, noise(key, len(obs))), -1.0, 1.0))

    def act(state: State, obs: Array, key: Array) -> tuple[Array, PyTree]:
        flow = policy.greedy({"net": state.base.target, "normaliser": state.normaliser}, obs, key)
        return jnp.where(state.step > config.critic_warmup, greedy(export(state), obs, key), flow), {}

    def one_step_update(state: State, obs: Array, key: Array) -> tuple[State, dict[str, Array]]:
        noise_key, pool_key = jax.random.split(key)
        z = noise(noise_key, len(obs))
        goal = policy.sample(state.base.target, obs, z)
        climbing = (state.step >= config.critic_warmup).astype(jnp.float32)

        def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
            action = mu(params, obs, z)
            distance = jnp.mean((action - goal) ** 2)
            worth = jnp.mean(critics.pooled(state.critic.net, obs, jnp.clip(action, -1.0, 1.0), pool_key))
            total = config.alpha * distance - climbing * worth
            return total, {"actor_loss": total, "distil_loss": distance, "actor_q": worth}

        one_step, opt, metrics = descend(loss, state.one_step, state.opt, optimiser)
        metrics["actor_gradient_norm"] = metrics.pop("gradient_norm")
        return state._replace(one_step=one_step, opt=opt), metrics

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        target_key, pool_key, clone_key, actor_key = jax.random.split(key, 4)
        data = batch.transitions
        obs, following = state.normaliser(data.obs), state.normaliser(data.next_obs)
        action = jnp.clip(mu(state.one_step, following, noise(target_key, len(obs))), -1.0, 1.0)
        y = data.reward + data.discount * critics.pooled(state.critic.target, following, action, pool_key)
        critic_state, metrics = critics.regress(state.critic, obs, policy.flatten(data.action), y)
        base, cloned = cloner.improve(state.base, obs, data, clone_key)
        state, learned = one_step_update(state._replace(critic=critic_state, base=base), obs, actor_key)
        return state._replace(step=state.step + 1), metrics | cloned | learned

    def export(state: State) -> PyTree:
        return {"net": state.base.target, "normaliser": state.normaliser, "one_step": state.one_step}

    return Algorithm(init, act, unprepared, update, greedy, export, source, critic.value(critics, policy))

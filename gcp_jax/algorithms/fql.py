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

from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE_INT, UNIT
from gcp_jax.core import cloning, critic
from gcp_jax.core import denoising as chains
from gcp_jax.core.networks import ActorNet, Normalizer
from gcp_jax.core.policy import Policy
from gcp_jax.mesh import gradient_step
from gcp_jax.types import Algorithm, Array, Batch, BatchSource, PyTree, identity_preprocess


@dataclasses.dataclass(frozen=True)
class Config(critic.Config):
    """alpha: of the distillation; its square is a mean over the chunk's dimensions [10–1000]. actor_hidden, actor_lr: of μ.
    base_lr, base_tau: of the flow."""

    alpha: float = 100.0
    actor_hidden: tuple[int, ...] = (128, 128, 128)
    actor_lr: float = 3e-4
    base_lr: float = 3e-4
    base_tau: float = 0.005

    RANGES = {
        **dict.fromkeys(("alpha", "actor_lr", "base_lr"), NON_NEGATIVE),
        "actor_hidden": POSITIVE_INT,
        "base_tau": UNIT,
    }


class State(NamedTuple):
    """The flow, μ and its optimizer, the critics, updates done."""

    base: cloning.BCState
    one_step: PyTree
    opt: PyTree
    critic: critic.CriticState
    normalizer: Normalizer
    step: Array


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """FQL as an Algorithm; ``pretrained`` is a deployed policy {"net", "normalizer"}."""
    specs = policy.specs
    size = specs.flat_action_dim
    critics = critic.make_critic(config, specs.obs_dim, size, policy.config.compute)
    cloner = cloning.make_bc_updater(
        policy, learning_rate=config.base_lr, ema=config.base_tau, grad_clip=config.grad_clip
    )
    net = ActorNet((specs.obs_dim, size), size, config.actor_hidden)
    optimizer = critic.clipped_adam(config.actor_lr, config.grad_clip)

    def init(key: Array, pretrained: PyTree) -> State:
        actor_key, critic_key = jax.random.split(key)
        one_step = net.init(actor_key, jnp.zeros((1, specs.obs_dim)), jnp.zeros((1, size)))[
            "params"
        ]
        base = cloner.init(pretrained["net"])
        learned = (base, one_step, optimizer.init(one_step), critics.init(critic_key))
        return State(*learned, pretrained["normalizer"], jnp.int32(0))

    def noise(key: Array, count: int) -> Array:
        return chains.sample_noise(key, count, (size,))

    def mu(params: PyTree, obs: Array, z: Array) -> Array:
        return jnp.asarray(net.apply({"params": params}, obs, z))

    def greedy(deployed: PyTree, obs: Array, key: Array) -> Array:
        obs = deployed["normalizer"](obs)
        return policy.unflatten(
            jnp.clip(mu(deployed["one_step"], obs, noise(key, len(obs))), -1.0, 1.0)
        )

    def act(state: State, obs: Array, key: Array) -> tuple[Array, PyTree]:
        flow = policy.eval_policy(
            {"net": state.base.target, "normalizer": state.normalizer}, obs, key
        )
        return jnp.where(
            state.step > config.critic_warmup_updates, greedy(export(state), obs, key), flow
        ), {}

    def one_step_update(state: State, obs: Array, key: Array) -> tuple[State, dict[str, Array]]:
        noise_key, pool_key = jax.random.split(key)
        z = noise(noise_key, len(obs))
        goal = policy.sample(state.base.target, obs, z)
        climbing = (state.step >= config.critic_warmup_updates).astype(jnp.float32)

        def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
            action = mu(params, obs, z)
            distance = jnp.mean((action - goal) ** 2)
            worth = jnp.mean(
                critics.aggregate_q(state.critic.net, obs, jnp.clip(action, -1.0, 1.0), pool_key)
            )
            total = config.alpha * distance - climbing * worth
            return total, {"actor_loss": total, "distill_loss": distance, "actor_q": worth}

        one_step, opt, metrics = gradient_step(loss, state.one_step, state.opt, optimizer)
        metrics["actor_gradient_norm"] = metrics.pop("gradient_norm")
        return state._replace(one_step=one_step, opt=opt), metrics

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        target_key, pool_key, clone_key, actor_key = jax.random.split(key, 4)
        data = batch.transitions
        obs, following = state.normalizer(data.obs), state.normalizer(data.next_obs)
        action = jnp.clip(mu(state.one_step, following, noise(target_key, len(obs))), -1.0, 1.0)
        y = data.reward + data.discount * critics.aggregate_q(
            state.critic.target, following, action, pool_key
        )
        critic_state, metrics = critics.td_step(state.critic, obs, policy.flatten(data.action), y)
        base, cloned = cloner.improve(state.base, obs, data, clone_key)
        state, learned = one_step_update(
            state._replace(critic=critic_state, base=base), obs, actor_key
        )
        return state._replace(step=state.step + 1), metrics | cloned | learned

    def export(state: State) -> PyTree:
        return {
            "net": state.base.target,
            "normalizer": state.normalizer,
            "one_step": state.one_step,
        }

    return Algorithm(
        init,
        act,
        identity_preprocess,
        update,
        greedy,
        export,
        source,
        critic.make_q_fn(critics, policy),
    )

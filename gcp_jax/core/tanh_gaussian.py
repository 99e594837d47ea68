"""Tanh-Gaussian actors with an automatic temperature: the maximum-entropy part that DSRL, residual SAC and EXPO share.

    u = tanh(μ + σ ε),   log π(u) = Σ [log N(μ + σ ε; μ, σ²) − log(1 − u²)]
    L(π) = E[α log π(u) − Q(s, u)],   L(α) = −log α · (E log π(u) + H̄)       (Haarnoja et al. 2018, arXiv 1812.05905, eq. 7, 18)

Densities and the target entropy H̄ are those of the *unit* action u ∈ (−1, 1)^D, whatever an algorithm scales it by afterwards.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE, POSITIVE_INT, Bounds
from gcp_jax.core import critic
from gcp_jax.core.denoising import normal_log_density
from gcp_jax.core.denoising import sample_noise as draw_noise
from gcp_jax.core.networks import ActorNet
from gcp_jax.mesh import batch_mean, gradient_step
from gcp_jax.types import Array, PyTree

LOG_STD = (-5.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Config(critic.Config):
    """Fields of the methods with such an actor, besides the critics'.

    actor_hidden, actor_lr: its widths and Adam's rate. target_entropy: H̄ per dimension of the unit action (uniform is log 2 =
    .69). temperature: the first α. temperature_lr: Adam's rate of log α.
    """

    actor_hidden: tuple[int, ...] = (128, 128, 128)
    actor_lr: float = 3e-4
    target_entropy: float = 0.0
    temperature: float = 0.1
    temperature_lr: float = 3e-4

    RANGES = {
        "actor_hidden": POSITIVE_INT,
        "actor_lr": NON_NEGATIVE,
        "target_entropy": Bounds(high=math.log(2), below=True),
        "temperature": POSITIVE,
        "temperature_lr": NON_NEGATIVE,
    }


class ActorState(NamedTuple):
    """Actor and log α with their optimizers."""

    net: PyTree
    opt: PyTree
    log_alpha: Array
    alpha_opt: PyTree

    @property
    def alpha(self) -> Array:
        """The temperature."""
        return jnp.exp(self.log_alpha)


class Actor(NamedTuple):
    """init:    (key) -> SoftState
    draw:    (params, inputs, key) -> (u [B, …, D], log π(u) [B, …]) with one key a row; ``key`` is consumed
    mode:    (params, inputs) -> tanh(μ)
    improve: (state, inputs, value: u -> [B, …], key) -> (state, metrics), a step of actor and temperature each

    ``inputs`` are one array [B, …, I] for each of the sizes the actor was made with; their leading axes broadcast.
    """

    init: Callable[[Array], ActorState]
    draw: Callable[..., tuple[Array, Array]]
    mode: Callable[..., Array]
    improve: Callable[..., tuple[ActorState, dict[str, Array]]]


def squash_gaussian(mean: Array, log_std: Array, noise: Array) -> tuple[Array, Array]:
    """(tanh(x), its log-density summed over the last axis) for x = mean + std·noise.

    ``log(1 − tanh² x) = 2 (log 2 − x − softplus(−2x))`` is exact where 1 − u² would round to 0.
    """
    log_std = jnp.clip(log_std, *LOG_STD)
    x = mean + jnp.exp(log_std) * noise
    correction = 2.0 * (jnp.log(2.0) - x - jax.nn.softplus(-2.0 * x))
    return jnp.tanh(x), jnp.sum(normal_log_density(x, mean, jnp.exp(log_std)) - correction, -1)


def make_actor(
    config: Config, sizes: tuple[int, ...], out_dim: int, *, last_scale: float = 1.0
) -> Actor:
    """An actor of ``out_dim`` numbers; ``last_scale`` scales its last layer's initial kernel."""
    net = ActorNet(sizes, 2 * out_dim, config.actor_hidden, last_scale)
    optimizer, alpha_optimizer = (
        critic.clipped_adam(rate, config.grad_clip)
        for rate in (config.actor_lr, config.temperature_lr)
    )

    def init(key: Array) -> ActorState:
        params = net.init(key, *[jnp.zeros((1, size)) for size in sizes])["params"]
        log_alpha = jnp.log(jnp.float32(config.temperature))
        return ActorState(
            params, optimizer.init(params), log_alpha, alpha_optimizer.init(log_alpha)
        )

    def split(params: PyTree, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        mean, log_std = jnp.split(jnp.asarray(net.apply({"params": params}, *inputs)), 2, -1)
        return mean, log_std

    def draw(params: PyTree, inputs: tuple[Array, ...], key: Array) -> tuple[Array, Array]:
        mean, log_std = split(params, inputs)
        noise = draw_noise(key, mean.shape[0], mean.shape[1:])
        return squash_gaussian(mean, log_std, noise)

    def mode(params: PyTree, inputs: tuple[Array, ...]) -> Array:
        return jnp.tanh(split(params, inputs)[0])

    def improve(
        state: ActorState, inputs: tuple[Array, ...], value: Callable[[Array], Array], key: Array
    ) -> tuple[ActorState, dict[str, Array]]:
        def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
            u, log_density = draw(params, inputs, key)
            worth = jnp.mean(value(u))
            total = jnp.mean(jax.lax.stop_gradient(state.alpha) * log_density) - worth
            return total, {
                "actor_loss": total,
                "actor_q": worth,
                "entropy": -jnp.mean(log_density) / out_dim,
            }

        params, opt, metrics = gradient_step(loss, state.net, state.opt, optimizer)
        excess = jax.lax.stop_gradient(batch_mean(metrics["entropy"])) - config.target_entropy

        def alpha_loss(log_alpha: Array) -> tuple[Array, dict[str, Array]]:
            return log_alpha * excess * out_dim, {}

        log_alpha, alpha_opt, _ = gradient_step(
            alpha_loss, state.log_alpha, state.alpha_opt, alpha_optimizer
        )
        metrics["actor_gradient_norm"] = metrics.pop("gradient_norm")
        return ActorState(params, opt, log_alpha, alpha_opt), {
            **metrics,
            "temperature": jnp.exp(log_alpha),
        }

    return Actor(init, draw, mode, improve)

"""Tanh-Gaussian actors with an automatic temperature, as DSRL, residual SAC and EXPO use them.

Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905), equations 7 and 18:

    u = tanh(x),   x = μ(s) + σ(s) ε,   ε ~ N(0, I)
    log π(u | s) = Σ [log N(x; μ, σ²) − log(1 − u²)]
    actor loss          E[α log π(u | s) − Q(s, u)]
    temperature loss    −log α · (E log π(u | s) + H̄)

Densities and the target entropy H̄ are those of the unit action u in (−1, 1)^D, whatever a method
multiplies it by afterwards.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE, POSITIVE_INT, Bounds, field
from gcp_jax.core import critic, denoising, optim
from gcp_jax.core.networks import ActorNet
from gcp_jax.mesh import batch_mean
from gcp_jax.types import Array, PyTree

LOG_STD = (-5.0, 2.0)
"""Bounds of log σ."""

TARGET_ENTROPY = Bounds(high=math.log(2), high_open=True)
"""Allowed target entropies per dimension: below that of the uniform law on (−1, 1)."""


@dataclasses.dataclass(frozen=True)
class Config(critic.Config):
    """The settings of a method with such an actor, besides those of the critics."""

    actor_hidden: tuple[int, ...] = field((128, 128, 128), POSITIVE_INT, "widths of the actor")
    actor_lr: float = field(1e-3, NON_NEGATIVE, "Adam's learning rate of the actor [3e-4]")
    target_entropy: float = field(
        0.0,
        TARGET_ENTROPY,
        "H̄ per dimension of the unit action; the uniform law has log 2 = .69 [0, −.5]",
    )
    temperature: float = field(0.1, POSITIVE, "α at the start")
    temperature_lr: float = field(1e-3, NON_NEGATIVE, "Adam's learning rate of log α [3e-4]")


class ActorState(NamedTuple):
    """The actor and log α with the states of their optimizers."""

    params: PyTree
    opt_state: PyTree
    log_alpha: Array  # []
    alpha_opt_state: PyTree

    @property
    def alpha(self) -> Array:
        """The temperature α, []."""
        return jnp.exp(self.log_alpha)


def squash_gaussian(mean: Array, log_std: Array, noise: Array) -> tuple[Array, Array]:
    """Return tanh(x) and its log-density, summed over the last axis, for x = mean + std · noise.

    ``log(1 − tanh² x) = 2 (log 2 − x − softplus(−2x))`` is exact also if 1 − u² would round to 0.
    """
    log_std = jnp.clip(log_std, *LOG_STD)
    x = mean + jnp.exp(log_std) * noise
    correction = 2.0 * (jnp.log(2.0) - x - jax.nn.softplus(-2.0 * x))
    u = jnp.tanh(x)
    log_density = denoising.normal_log_density(x, mean, jnp.exp(log_std)) - correction
    return u, jnp.sum(log_density, -1)


@dataclasses.dataclass(frozen=True)
class Actor:
    """A tanh-Gaussian actor π(u | inputs) and its temperature.

    ``inputs`` is a tuple of arrays [B, ..., I], one for each of ``input_dims``; their leading axes
    broadcast.
    """

    net: ActorNet
    input_dims: tuple[int, ...]
    out_dim: int  # D
    initial_temperature: float
    target_entropy: float  # per dimension of u
    optimizer: optax.GradientTransformation
    alpha_optimizer: optax.GradientTransformation

    def init(self, key: Array) -> ActorState:
        """Draw a new actor with the initial temperature."""
        inputs = [jnp.zeros((1, dim)) for dim in self.input_dims]
        params = self.net.init(key, *inputs)["params"]
        log_alpha = jnp.log(jnp.float32(self.initial_temperature))
        return ActorState(
            params=params,
            opt_state=self.optimizer.init(params),
            log_alpha=log_alpha,
            alpha_opt_state=self.alpha_optimizer.init(log_alpha),
        )

    def mean_and_log_std(self, params: PyTree, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        """μ and log σ, [B, ..., D] each."""
        output = jnp.asarray(self.net.apply({"params": params}, *inputs))
        mean, log_std = jnp.split(output, 2, -1)
        return mean, log_std

    def sample(self, params: PyTree, inputs: tuple[Array, ...], key: Array) -> tuple[Array, Array]:
        """Draw u [B, ..., D] and return it with log π(u) [B, ...]; ``key`` is consumed."""
        mean, log_std = self.mean_and_log_std(params, inputs)
        noise = denoising.sample_noise(key, mean.shape[0], mean.shape[1:])
        return squash_gaussian(mean, log_std, noise)

    def mode(self, params: PyTree, inputs: tuple[Array, ...]) -> Array:
        """tanh(μ), [B, ..., D]."""
        mean, _ = self.mean_and_log_std(params, inputs)
        return jnp.tanh(mean)

    def actor_loss(
        self,
        params: PyTree,
        alpha: Array,
        inputs: tuple[Array, ...],
        q_of: Callable[[Array], Array],
        key: Array,
    ) -> tuple[Array, dict[str, Array]]:
        """E[α log π(u) − Q(u)], with metrics. ``q_of`` maps u [B, ..., D] to Q [B, ...]."""
        u, log_density = self.sample(params, inputs, key)
        q = jnp.mean(q_of(u))
        loss = jnp.mean(jax.lax.stop_gradient(alpha) * log_density) - q
        entropy = -jnp.mean(log_density) / self.out_dim
        return loss, {"actor_loss": loss, "actor_q": q, "entropy": entropy}

    def temperature_loss(self, log_alpha: Array, entropy: Array) -> Array:
        """log α · D (H − H̄), whose gradient lowers α if the entropy H [] exceeds H̄."""
        excess = entropy - self.target_entropy
        return log_alpha * excess * self.out_dim

    def update(
        self,
        state: ActorState,
        inputs: tuple[Array, ...],
        q_of: Callable[[Array], Array],
        key: Array,
    ) -> tuple[ActorState, dict[str, Array]]:
        """Take one step on the actor's loss and one on the temperature's: (state, metrics).

        Args:
          state: the actor's state.
          inputs: what the actor sees.
          q_of: maps u [B, ..., D] to its value [B, ...].
          key: a random key; consumed.
        """
        params, opt_state, metrics = optim.gradient_step(
            lambda params: self.actor_loss(params, state.alpha, inputs, q_of, key),
            state.params,
            state.opt_state,
            self.optimizer,
            name="actor",
        )
        entropy = jax.lax.stop_gradient(batch_mean(metrics["entropy"]))
        log_alpha, alpha_opt_state, _ = optim.gradient_step(
            lambda log_alpha: (self.temperature_loss(log_alpha, entropy), {}),
            state.log_alpha,
            state.alpha_opt_state,
            self.alpha_optimizer,
            name="temperature",
        )
        new_state = ActorState(
            params=params,
            opt_state=opt_state,
            log_alpha=log_alpha,
            alpha_opt_state=alpha_opt_state,
        )
        return new_state, {**metrics, "temperature": jnp.exp(log_alpha)}


def make_actor(
    config: Config, input_dims: tuple[int, ...], out_dim: int, *, last_scale: float = 1.0
) -> Actor:
    """Build an actor of ``out_dim`` numbers.

    Args:
      config: the method's settings.
      input_dims: the size of each input.
      out_dim: D.
      last_scale: multiplies the initial values of the last layer's kernel; 0 starts it at zero.
    """
    return Actor(
        net=ActorNet(input_dims, 2 * out_dim, config.actor_hidden, last_scale),
        input_dims=input_dims,
        out_dim=out_dim,
        initial_temperature=config.temperature,
        target_entropy=config.target_entropy,
        optimizer=optim.clipped_adam(config.actor_lr, config.grad_clip),
        alpha_optimizer=optim.clipped_adam(config.temperature_lr, config.grad_clip),
    )

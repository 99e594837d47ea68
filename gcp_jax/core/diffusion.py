"""Denoising diffusion. The network predicts the noise ε.

``q(x_k | a) = N(√ᾱ_k a, (1−ᾱ_k) I)`` for k = 1 … T, with the cosine schedule. Like a flow's chain,
a denoising chain runs over t from noise at 0 to data at 1: denoising step i = 0 … K−1 starts at
t_i = i/K, which is k = T − i·T/K.

References: Ho et al. 2020 (arXiv 2006.11239) for DDPM; Song et al. 2021 (arXiv 2010.02502) for
DDIM; Nichol & Dhariwal 2021 (arXiv 2102.09672) for the schedule; DPPO (arXiv 2409.00588) for the
smallest standard deviation.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from gcp_jax import config_fields
from gcp_jax.config_fields import Bounds, field
from gcp_jax.core.denoising import (
    DENOISING_STEPS,
    SIGMA,
    DenoisingFn,
    DeterministicStep,
    StochasticStep,
)
from gcp_jax.types import Array

SCHEMES = ("ddpm", "ddim")
TRAIN_STEPS = Bounds(0, 100_000)


def cosine_schedule(steps: int) -> np.ndarray:
    """ᾱ_0 … ᾱ_T [T+1] float64.

    ``ᾱ(k) = cos²((k/T + s)/(1+s)·π/2) / ᾱ(0)`` with s = 0.008, each β at most 0.999.
    """
    angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2
    alpha_bar = np.cos(angle) ** 2
    beta = np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    return np.concatenate([[1.0], np.cumprod(1.0 - beta)])


@dataclasses.dataclass(frozen=True)
class DiffusionSampler:
    """How a diffusion is denoised.

    With the scheme "ddpm" a stochastic step samples from the posterior (DDIM's η = 1). With "ddim"
    its mean is the deterministic step (η = 0), and only ``sigma`` explores. The deterministic
    sampler is DDIM with η = 0 in both schemes.
    """

    steps: int = field(20, DENOISING_STEPS, "K: denoising steps, on the grid t_i = i/K")
    sigma: float = field(0.1, SIGMA, "smallest std of a step, sampled and scored [DPPO: 0.1]")
    scheme: str = field("ddpm", None, "of the stochastic chain: ddpm or ddim")
    train_steps: int = field(0, TRAIN_STEPS, "T, a multiple of K; 0: K. With T > K steps skip")

    def __post_init__(self) -> None:
        config_fields.check(self, "policy.")
        if self.scheme not in SCHEMES:
            raise ValueError(
                f"policy.scheme is {self.scheme!r}; a diffusion allows: {', '.join(SCHEMES)}."
            )
        if self.train_steps % self.steps:
            raise ValueError(
                f"policy.train_steps is {self.train_steps}; it must be a multiple of policy.steps "
                f"({self.steps}), or 0 for as many."
            )

    @property
    def noise_levels(self) -> int:
        """T."""
        return self.train_steps or self.steps

    @property
    def times(self) -> Array:
        """Start times of the steps, t_i = i/K [K] float32."""
        return jnp.arange(self.steps, dtype=jnp.float32) / self.steps

    def alpha_bars(self, t: Array) -> tuple[Array, Array]:
        """ᾱ at the start and at the end of the step that starts at t [...], [...] each."""
        index = jnp.round(t * self.steps).astype(jnp.int32)
        schedule = cosine_schedule(self.noise_levels)
        grid = jnp.asarray(schedule[:: -self.noise_levels // self.steps], jnp.float32)
        return grid[index], grid[index + 1]

    def variance(self, t: Array) -> Array:
        """Variance of the posterior q(x' | x, a), [...].

        ``(1−ᾱ')/(1−ᾱ) · (1−ᾱ/ᾱ')`` (DDPM eq. 7; DDIM eq. 16 with η = 1), where ' marks the end of
        the step that starts at t [...].
        """
        alpha_bar, alpha_bar_next = self.alpha_bars(t)
        return (1.0 - alpha_bar_next) / (1.0 - alpha_bar) * (1.0 - alpha_bar / alpha_bar_next)

    def std(self, t: Array) -> Array:
        """Standard deviation [...] of the stochastic step that starts at t [...]."""
        if self.scheme == "ddpm":
            posterior_std = jnp.sqrt(self.variance(t))
        else:
            posterior_std = jnp.zeros_like(t)
        return jnp.maximum(posterior_std, self.sigma)

    def stochastic_step(self, net: DenoisingFn) -> StochasticStep:
        """A step of the reverse process."""

        def step(x: Array, t: Array) -> tuple[Array, Array]:
            variance = self.variance(t) if self.scheme == "ddpm" else jnp.zeros_like(t)
            return self._ddim_mean(net, x, t, variance), self.std(t)[..., None]

        return step

    def deterministic_step(self, net: DenoisingFn) -> DeterministicStep:
        """A step of DDIM with η = 0."""

        def step(x: Array, t: Array) -> Array:
            return self._ddim_mean(net, x, t, jnp.zeros_like(t))

        return step

    def _ddim_mean(self, net: DenoisingFn, x: Array, t: Array, variance: Array) -> Array:
        epsilon = net(x, t)
        alpha_bar, alpha_bar_next = self.alpha_bars(t)
        return ddim_mean(epsilon, x, alpha_bar, alpha_bar_next, variance)

    def loss(self, net: DenoisingFn, *, action: Array, z: Array, t: Array, mask: Array) -> Array:
        """Mean of ``‖ε(x_k, k) − z‖²`` over the executed dimensions (DDPM eq. 14).

        Args:
          net: ε.
          action: demonstrated chunks [..., D].
          z: standard normal noise [..., D].
          t: uniform in [0, 1), [...]; k = T − ⌊t·T⌋.
          mask: 1 where the chunk's step was executed, [..., D].

        Returns:
          Losses [...].
        """
        levels = self.noise_levels
        level = jnp.minimum(jnp.floor(t * levels), levels - 1)
        schedule = jnp.asarray(cosine_schedule(levels)[::-1], jnp.float32)
        alpha_bar = schedule[level.astype(jnp.int32)][..., None]
        x = jnp.sqrt(alpha_bar) * action + jnp.sqrt(1.0 - alpha_bar) * z
        error = (net(x, level / levels) - z) ** 2
        return jnp.sum(error * mask, -1) / jnp.maximum(jnp.sum(mask, -1), 1.0)


def predicted_action(epsilon: Array, x: Array, alpha_bar: Array) -> Array:
    """â = (x − √(1−ᾱ) ε)/√ᾱ clipped to ±1, [..., D]; epsilon and x [..., D], alpha_bar [...]."""
    alpha_bar = alpha_bar[..., None]
    return jnp.clip((x - jnp.sqrt(1.0 - alpha_bar) * epsilon) / jnp.sqrt(alpha_bar), -1.0, 1.0)


def ddim_mean(
    epsilon: Array, x: Array, alpha_bar: Array, alpha_bar_next: Array, variance: Array
) -> Array:
    """``√ᾱ' â + √(1−ᾱ'−σ²) ε̂`` [..., D], with ε̂ the noise that belongs to â (DDIM eq. 12).

    If σ² is the variance of the posterior, this is DDPM's posterior mean.

    Args:
      epsilon: predicted noise [..., D].
      x: where the step starts [..., D].
      alpha_bar: ᾱ [...].
      alpha_bar_next: ᾱ' [...].
      variance: σ² [...].
    """
    clean = predicted_action(epsilon, x, alpha_bar)
    alpha_bar = alpha_bar[..., None]
    alpha_bar_next = alpha_bar_next[..., None]
    variance = variance[..., None]
    noise = (x - jnp.sqrt(alpha_bar) * clean) / jnp.sqrt(1.0 - alpha_bar)
    noise_scale = jnp.sqrt(jnp.maximum(1.0 - alpha_bar_next - variance, 0.0))
    return jnp.sqrt(alpha_bar_next) * clean + noise_scale * noise

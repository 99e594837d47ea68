"""Denoising diffusion: the only place with diffusion maths. The network predicts the noise ε.

``q(x_k | a) = N(√ᾱ_k a, (1−ᾱ_k) I)`` for k = 1 … T, with the cosine schedule. Like a flow's, a chain runs over t from noise
at 0 to data at 1: denoising step i = 0 … K−1 starts at t_i = i/K, which is k = T − i·T/K.

References: Ho et al. 2020 (arXiv 2006.11239) for DDPM; Song et al. 2021 (arXiv 2010.02502) for DDIM; Nichol & Dhariwal 2021
(arXiv 2102.09672) for the schedule; DPPO (arXiv 2409.00588) for the floor of the standard deviations.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import config_fields
from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE, POSITIVE_INT
from gcp_jax.core.denoising import DenoisingFn, DeterministicStep, StochasticStep

Array = jax.Array

SCHEMES = ("ddpm", "ddim")


def cosine_schedule(steps: int) -> np.ndarray:
    """ᾱ_0 … ᾱ_T [T+1] float64: ``ᾱ(k) = cos²((k/T + s)/(1+s)·π/2) / ᾱ(0)``, s = .008, each β cut at .999."""
    angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2
    survival = np.cos(angle) ** 2
    beta = np.minimum(1.0 - survival[1:] / survival[:-1], 0.999)
    return np.concatenate([[1.0], np.cumprod(1.0 - beta)])


@dataclasses.dataclass(frozen=True)
class DiffusionSampler:
    """How a diffusion is denoised.

    steps: K. train_steps: T, a multiple of K; 0 takes K. With T > K the steps skip, as in DDIM.
    scheme: of the stochastic chain, "ddpm" draws from the posterior (DDIM's η = 1), "ddim" takes the deterministic step as
        the mean (η = 0) and explores by ``sigma`` alone.
    sigma: least standard deviation of a step, when sampling and when scoring. DPPO takes .1.

    The deterministic sampler is DDIM with η = 0 in either scheme.
    """

    steps: int = 20
    sigma: float = 0.1
    scheme: str = "ddpm"
    train_steps: int = 0

    RANGES = {"steps": POSITIVE_INT, "sigma": POSITIVE, "train_steps": NON_NEGATIVE}

    def __post_init__(self) -> None:
        config_fields.check(self, "policy.")
        if self.scheme not in SCHEMES:
            raise ValueError(
                f"policy.scheme is {self.scheme!r}; a diffusion allows: {', '.join(SCHEMES)}."
            )
        if self.train_steps % self.steps:
            raise ValueError(
                f"policy.train_steps is {self.train_steps}; it must be a multiple of policy.steps ({self.steps}), or 0 for as many."
            )

    @property
    def noise_levels(self) -> int:
        """T."""
        return self.train_steps or self.steps

    @property
    def times(self) -> Array:
        """[K] float32: t_i = i/K."""
        return jnp.arange(self.steps, dtype=jnp.float32) / self.steps

    def levels(self, t: Array) -> tuple[Array, Array]:
        """ᾱ where the step that starts at t begins and where it ends, the shape of t."""
        index = jnp.round(t * self.steps).astype(jnp.int32)
        grid = jnp.asarray(
            cosine_schedule(self.noise_levels)[:: -self.noise_levels // self.steps], jnp.float32
        )
        return grid[index], grid[index + 1]

    def variance(self, t: Array) -> Array:
        """Variance of the posterior q(x' | x, a): ``(1−ᾱ')/(1−ᾱ) · (1−ᾱ/ᾱ')`` (DDPM eq. 7; DDIM eq. 16 with η = 1)."""
        survival, following = self.levels(t)
        return (1.0 - following) / (1.0 - survival) * (1.0 - survival / following)

    def std(self, t: Array) -> Array:
        """Standard deviation of the stochastic step that starts at t, at least ``sigma``; the shape of t."""
        own = jnp.sqrt(self.variance(t)) if self.scheme == "ddpm" else jnp.zeros_like(t)
        return jnp.maximum(own, self.sigma)

    def stochastic_step(self, net: DenoisingFn) -> StochasticStep:
        """A step of the reverse process."""

        def step(x: Array, t: Array) -> tuple[Array, Array]:
            variance = self.variance(t) if self.scheme == "ddpm" else jnp.zeros_like(t)
            return ddim_mean(net(x, t), x, *self.levels(t), variance), self.std(t)[..., None]

        return step

    def deterministic_step(self, net: DenoisingFn) -> DeterministicStep:
        """A step of DDIM with η = 0."""
        return lambda x, t: ddim_mean(net(x, t), x, *self.levels(t), jnp.zeros_like(t))

    def loss(self, net: DenoisingFn, *, action: Array, z: Array, t: Array, mask: Array) -> Array:
        """``mean ‖ε(x_k, k) − z‖²`` over the dimensions that count (DDPM eq. 14), k = T − ⌊t·T⌋.

        action, z, mask: [..., D]; t: [...] uniform in [0, 1). Returns [...].
        """
        count = self.noise_levels
        done = jnp.minimum(jnp.floor(t * count), count - 1)
        survival = jnp.asarray(cosine_schedule(count)[::-1], jnp.float32)[done.astype(jnp.int32)][
            ..., None
        ]
        x = jnp.sqrt(survival) * action + jnp.sqrt(1.0 - survival) * z
        error = (net(x, done / count) - z) ** 2
        return jnp.sum(error * mask, -1) / jnp.maximum(jnp.sum(mask, -1), 1.0)


def predicted_action(epsilon: Array, x: Array, survival: Array) -> Array:
    """â = (x − √(1−ᾱ) ε)/√ᾱ clipped to ±1; epsilon and x [..., D], survival ᾱ [...]."""
    survival = survival[..., None]
    return jnp.clip((x - jnp.sqrt(1.0 - survival) * epsilon) / jnp.sqrt(survival), -1.0, 1.0)


def ddim_mean(
    epsilon: Array, x: Array, survival: Array, following: Array, variance: Array
) -> Array:
    """``√ᾱ' â + √(1−ᾱ'−σ²) ε̂`` with ε̂ the noise that goes with the clipped â (DDIM eq. 12).

    For σ² the posterior's variance this is DDPM's posterior mean. epsilon and x [..., D]; the rest [...].
    """
    clean = predicted_action(epsilon, x, survival)
    survival, following, variance = survival[..., None], following[..., None], variance[..., None]
    noise = (x - jnp.sqrt(survival) * clean) / jnp.sqrt(1.0 - survival)
    return (
        jnp.sqrt(following) * clean + jnp.sqrt(jnp.maximum(1.0 - following - variance, 0.0)) * noise
    )

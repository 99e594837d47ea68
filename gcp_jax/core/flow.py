"""Flow matching: the only place with flow maths.

Noise is at t = 0, data at t = 1, and the straight path is ``x_t = (1−t) z + t a``. A *velocity* is a callable
``(x [..., D], t [...]) -> [..., D]`` with the observation already bound; chains are ``chain``'s.

References: Lipman et al. 2023 (arXiv 2210.02747) for flow matching; OGPO (arXiv 2605.03065) for the tapered SDE.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gcp_jax import config_fields
from gcp_jax.config_fields import POSITIVE, POSITIVE_INT
from gcp_jax.core.denoising import DenoisingFn, DeterministicStep, StochasticStep

Array = jax.Array

SCHEMES = ("paper", "marginal")


@dataclasses.dataclass(frozen=True)
class FlowSampler:
    """How a flow is integrated.

    steps: K, denoising steps on the grid t_i = i/K.
    sigma: σ of the tapered noise σ_t = σ·sqrt(1−t).
    scheme: "paper" adds noise of standard deviation σ_t at each step and clips the mean to ±1, as OGPO's released code;
        "marginal" adds σ_t·sqrt(dt) and clips nothing before the end, which is the Euler–Maruyama discretisation of the
        SDE with the flow's own marginals.
    """

    steps: int = 5
    sigma: float = 0.05
    scheme: str = "paper"

    RANGES = {"steps": POSITIVE_INT, "sigma": POSITIVE}

    def __post_init__(self) -> None:
        config_fields.check(self, "policy.")
        if self.scheme not in SCHEMES:
            raise ValueError(
                f"policy.scheme is {self.scheme!r}; a flow allows: {', '.join(SCHEMES)}."
            )

    @property
    def dt(self) -> float:
        """1/K."""
        return 1.0 / self.steps

    @property
    def times(self) -> Array:
        """[K] float32: t_i = i/K."""
        return jnp.arange(self.steps, dtype=jnp.float32) / self.steps

    def std(self, t: Array) -> Array:
        """Standard deviation of the step that starts at t; the shape of t."""
        tapered = self.sigma * jnp.sqrt(1.0 - t)
        return tapered if self.scheme == "paper" else tapered * self.dt**0.5

    def stochastic_step(self, net: DenoisingFn) -> StochasticStep:
        """A step of the SDE that keeps the flow's marginals."""
        return lambda x, t: (sde_mean(net(x, t), x, t, self), self.std(t)[..., None])

    def deterministic_step(self, net: DenoisingFn) -> DeterministicStep:
        """An Euler step of the ODE: x + v/K."""
        return lambda x, t: x + net(x, t) * self.dt

    def loss(self, net: DenoisingFn, *, action: Array, z: Array, t: Array, mask: Array) -> Array:
        """``matching_loss``."""
        return matching_loss(net, action=action, z=z, t=t, mask=mask)


def interpolate(z: Array, action: Array, t: Array) -> Array:
    """x_t = (1−t) z + t a; z and action [..., D], t [...]."""
    return (1.0 - t[..., None]) * z + t[..., None] * action


def matching_loss(
    velocity: DenoisingFn, *, action: Array, z: Array, t: Array, mask: Array
) -> Array:
    """Flow-matching loss per sample, ``mean ‖v(x_t, t) − (a − z)‖²`` over the dimensions that count.

    action, z, mask: [..., D], mask 1 where the chunk's step was executed; t: [...]. Returns [...].
    """
    error = (velocity(interpolate(z, action, t), t) - (action - z)) ** 2
    return jnp.sum(error * mask, -1) / jnp.maximum(jnp.sum(mask, -1), 1.0)


def sde_mean(v: Array, x: Array, t: Array, sampler: FlowSampler) -> Array:
    """Mean of the next x: ``x + [v + ½σ²(t·v − x)]·dt``; v and x [..., D], t [...].

    The score of the straight path is (t·v − x)/(1−t); σ_t² = σ²(1−t) cancels its 1/(1−t) (OGPO, SDE sampler).
    """
    drift = v + 0.5 * sampler.sigma**2 * (t[..., None] * v - x)
    mean = x + drift * sampler.dt
    return jnp.clip(mean, -1.0, 1.0) if sampler.scheme == "paper" else mean

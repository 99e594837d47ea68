"""Flow matching.

Noise is at t = 0, data at t = 1, and the straight path is ``x_t = (1−t) z + t a``. The network is
a velocity v: ``(x [..., D], t [...]) -> [..., D]`` with the observation bound.

References: Lipman et al. 2023 (arXiv 2210.02747) for flow matching; OGPO (arXiv 2605.03065) for the
tapered SDE.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from gcp_jax import config_fields
from gcp_jax.config_fields import field
from gcp_jax.core.denoising import (
    DENOISING_STEPS,
    SIGMA,
    DenoisingFn,
    DeterministicStep,
    StochasticStep,
)
from gcp_jax.types import Array

SCHEMES = ("paper", "marginal")


@dataclasses.dataclass(frozen=True)
class FlowSampler:
    """How a flow is integrated.

    With the scheme "paper" a step adds noise of standard deviation σ_t and clips its mean to ±1, as
    OGPO's released code does. With "marginal" it adds noise of standard deviation σ_t·sqrt(dt) and
    clips only the sample at the end. This is the Euler–Maruyama discretization of the SDE whose
    marginals are those of the flow.
    """

    steps: int = field(5, DENOISING_STEPS, "K: denoising steps, on the grid t_i = i/K")
    sigma: float = field(0.05, SIGMA, "σ of the tapered noise σ_t = σ·sqrt(1−t)")
    scheme: str = field("paper", None, "how noise is added: paper or marginal")

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
        """Start times of the steps, t_i = i/K [K] float32."""
        return jnp.arange(self.steps, dtype=jnp.float32) / self.steps

    def std(self, t: Array) -> Array:
        """Standard deviation [...] of the step that starts at t [...]."""
        tapered = self.sigma * jnp.sqrt(1.0 - t)
        if self.scheme == "paper":
            return tapered
        std: Array = tapered * self.dt**0.5
        return std

    def stochastic_step(self, net: DenoisingFn) -> StochasticStep:
        """A step of the SDE that has the flow's marginals."""

        def step(x: Array, t: Array) -> tuple[Array, Array]:
            return sde_mean(net(x, t), x, t, self), self.std(t)[..., None]

        return step

    def deterministic_step(self, net: DenoisingFn) -> DeterministicStep:
        """An Euler step of the ODE: x + v/K."""

        def step(x: Array, t: Array) -> Array:
            return x + net(x, t) * self.dt

        return step

    def loss(self, net: DenoisingFn, *, action: Array, z: Array, t: Array, mask: Array) -> Array:
        """``matching_loss``."""
        return matching_loss(net, action=action, z=z, t=t, mask=mask)


def interpolate(z: Array, action: Array, t: Array) -> Array:
    """x_t = (1−t) z + t a; z and action [..., D], t [...]."""
    return (1.0 - t[..., None]) * z + t[..., None] * action


def matching_loss(
    velocity: DenoisingFn, *, action: Array, z: Array, t: Array, mask: Array
) -> Array:
    """Flow-matching loss: mean of ``‖v(x_t, t) − (a − z)‖²`` over the executed dimensions.

    Args:
      velocity: v.
      action: demonstrated chunks a [..., D].
      z: standard normal noise [..., D].
      t: times [...].
      mask: 1 where the chunk's step was executed, [..., D].

    Returns:
      Losses [...].
    """
    error = (velocity(interpolate(z, action, t), t) - (action - z)) ** 2
    return jnp.sum(error * mask, -1) / jnp.maximum(jnp.sum(mask, -1), 1.0)


def sde_mean(v: Array, x: Array, t: Array, sampler: FlowSampler) -> Array:
    """Mean of the next x [..., D]: ``x + [v + ½σ²(t·v − x)]·dt``; v and x [..., D], t [...].

    The score of the straight path is (t·v − x)/(1−t); σ_t² = σ²(1−t) cancels its 1/(1−t) (OGPO).
    """
    drift = v + 0.5 * sampler.sigma**2 * (t[..., None] * v - x)
    mean = x + drift * sampler.dt
    if sampler.scheme == "paper":
        return jnp.clip(mean, -1.0, 1.0)
    return mean

"""Flow matching: the only place with flow maths.

Noise is at t = 0, data at t = 1, and the straight path is ``x_t = (1−t) z + t a``. Everything here works on flattened
chunks (last axis D = h·A) with free leading axes, and on a *velocity*: a callable ``(x [..., D], t [...]) -> [..., D]``
with the observation already bound. Leading axes of x and t have the same rank (size 1 broadcasts).

References: Lipman et al. 2023 (arXiv 2210.02747) for flow matching; OGPO (arXiv 2605.03065) for the tapered SDE.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Velocity = Callable[[Array, Array], Array]

NOISE_CUT = 3.0
SCHEMES = ("paper", "marginal")


@dataclasses.dataclass(frozen=True)
class Sampler:
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

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"policy.steps is {self.steps}; a flow needs at least 1 denoising step (10 is usual).")
        if not self.sigma > 0:
            raise ValueError(
                f"policy.sigma is {self.sigma}; the SDE needs a positive noise level (0.01 to 0.1 is usual)."
            )
        if self.scheme not in SCHEMES:
            raise ValueError(f"policy.scheme is {self.scheme!r}; allowed: {', '.join(SCHEMES)}.")

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


def interpolate(z: Array, action: Array, t: Array) -> Array:
    """x_t = (1−t) z + t a; z and action [..., D], t [...]."""
    return (1.0 - t[..., None]) * z + t[..., None] * action


def matching_loss(velocity: Velocity, *, action: Array, z: Array, t: Array, mask: Array) -> Array:
    """Flow-matching loss per sample, ``mean ‖v(x_t, t) − (a − z)‖²`` over the dimensions that count.

    action, z, mask: [..., D], mask 1 where the chunk's step was executed; t: [...]. Returns [...].
    """
    error = (velocity(interpolate(z, action, t), t) - (action - z)) ** 2
    return jnp.sum(error * mask, -1) / jnp.maximum(jnp.sum(mask, -1), 1.0)


def _grid(times: Array, like: Array) -> Array:
    """times [K] with as many leading axes of size 1 as ``like`` [..., K, D] has before its K."""
    return times.reshape((1,) * (like.ndim - 2) + (-1,))


def ode_sample(velocity: Velocity, z: Array, sampler: Sampler) -> Array:
    """Deterministic sample: Euler steps x += v/K from noise z [..., D], clipped to ±1 at the end. Returns [..., D]."""

    def step(x: Array, t: Array) -> tuple[Array, None]:
        return x + velocity(x, jnp.full((1,) * (x.ndim - 1), t)) * sampler.dt, None

    x, _ = jax.lax.scan(step, z, sampler.times)
    return jnp.clip(x, -1.0, 1.0)


def sde_mean(v: Array, x: Array, t: Array, sampler: Sampler) -> Array:
    """Mean of the next x: ``x + [v + ½σ²(t·v − x)]·dt``; v and x [..., D], t [...].

    The score of the straight path is (t·v − x)/(1−t); σ_t² = σ²(1−t) cancels its 1/(1−t) (OGPO, SDE sampler).
    """
    drift = v + 0.5 * sampler.sigma**2 * (t[..., None] * v - x)
    mean = x + drift * sampler.dt
    return jnp.clip(mean, -1.0, 1.0) if sampler.scheme == "paper" else mean


def sde_sample(velocity: Velocity, noise: Array, sampler: Sampler) -> Array:
    """Stochastic chain from standard normal noise [..., K+1, D]: noise 0 is x_0, noise i+1 drives step i (cut at ±3).

    Returns the chain x_0 … x_K [..., K+1, D]. Its last entry is NOT clipped, so that the density of what was sampled is
    the density of what is stored; execute ``action(chain)``. (OGPO's released code stores the clipped sample but
    scores the unclipped one, so its first ratio is not 1.)
    """
    steps = jnp.moveaxis(jnp.clip(noise[..., 1:, :], -NOISE_CUT, NOISE_CUT), -2, 0)

    def step(x: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        t, epsilon = inputs
        t = jnp.full((1,) * (x.ndim - 1), t)
        x = sde_mean(velocity(x, t), x, t, sampler) + sampler.std(t)[..., None] * epsilon
        return x, x

    first = noise[..., 0, :]
    _, rest = jax.lax.scan(step, first, (sampler.times, steps))
    return jnp.concatenate([first[..., None, :], jnp.moveaxis(rest, 0, -2)], axis=-2)


def action(chain: Array) -> Array:
    """The chunk a chain [..., K+1, D] stands for: its last entry clipped to ±1, [..., D]."""
    return jnp.clip(chain[..., -1, :], -1.0, 1.0)


def normal_log_density(x: Array, mean: Array | float, std: Array | float) -> Array:
    """Elementwise log N(x; mean, std²)."""
    return -0.5 * ((x - mean) / std) ** 2 - jnp.log(jnp.asarray(std)) - 0.5 * jnp.log(2.0 * jnp.pi)


def step_log_densities(velocity: Velocity, chain: Array, sampler: Sampler) -> Array:
    """log N(x_{i+1}; mu_i, σ_i²) summed over D for every denoising step, [..., K]: one batched network call.

    chain: [..., K+1, D]; the velocity is called once on [..., K, D] with t [1, …, K].
    """
    x, following = chain[..., :-1, :], chain[..., 1:, :]
    t = _grid(sampler.times, x)
    mean = sde_mean(velocity(x, t), x, t, sampler)
    return jnp.sum(normal_log_density(following, mean, sampler.std(t)[..., None]), -1)


def chain_log_density(velocity: Velocity, chain: Array, sampler: Sampler) -> Array:
    """Normalised log-density of whole chains [..., K+1, D], OGPO: ``[log N(x_0; 0, I) + Σ_i log N(x_{i+1}; mu_i, σ_i²)] / (K+1) / D``.

    Returns [...].
    """
    prior = jnp.sum(normal_log_density(chain[..., 0, :], 0.0, 1.0), -1)
    steps = jnp.sum(step_log_densities(velocity, chain, sampler), -1)
    return (prior + steps) / (sampler.steps + 1) / chain.shape[-1]

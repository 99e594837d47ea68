"""Denoising chains x_0 … x_K: what the SDE of a flow and the reverse process of a diffusion have in common.

Everything works on flattened chunks (last axis D = h·A) with free leading axes, and on one of two callables with network
and observation already bound, both of ``x [..., D]`` and ``t [...]`` whose leading axes have the same rank (1 broadcasts):

    Transition  (x, t) -> (mean [..., D], std [..., 1] or [..., D])    a stochastic denoising step N(mean, std²)
    Advance     (x, t) -> x [..., D]                                   a deterministic one

Time runs from noise at t = 0 to data at t = 1; step i starts at ``t_i = i/K``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from gcp_jax.mesh import sample_keys

Array = jax.Array
DenoisingFn = Callable[[Array, Array], Array]
StochasticStep = Callable[[Array, Array], tuple[Array, Array]]
DeterministicStep = Callable[[Array, Array], Array]

NOISE_CLIP = 3.0


class Sampler(Protocol):
    """What a generative family provides: how its network's output becomes denoising steps, and its imitation loss."""

    @property
    def steps(self) -> int:
        """K."""

    @property
    def times(self) -> Array:
        """[K] t_i."""

    def stochastic_step(self, net: DenoisingFn) -> StochasticStep:
        """The stochastic step of a bound network."""

    def deterministic_step(self, net: DenoisingFn) -> DeterministicStep:
        """The deterministic step of a bound network."""

    def loss(self, net: DenoisingFn, *, action: Array, z: Array, t: Array, mask: Array) -> Array:
        """Imitation loss of each sample: action, z, mask [..., D], t [...] uniform in [0, 1) -> [...]."""


class Chain(NamedTuple):
    """A sampled chain and the steps that made it."""

    points: Array  # [..., K+1, D]
    mean: Array  # [..., K, D]
    std: Array  # [..., K, 1 or D]

    @property
    def log_densities(self) -> Array:
        """log N(x_{i+1}; mean_i, std_i²) of every number, [..., K, D]."""
        return normal_log_density(self.points[..., 1:, :], self.mean, self.std)

    @property
    def log_density(self) -> Array:
        """Normalized log-density of the whole chain, OGPO: ``[log N(x_0; 0, I) + Σ_i log N(x_{i+1}; mu_i, σ_i²)] / (K+1) / D``,
        [...]."""
        prior = jnp.sum(normal_log_density(self.points[..., 0, :], 0.0, 1.0), -1)
        steps = jnp.sum(self.log_densities, (-2, -1))
        return (prior + steps) / (self.points.shape[-2] * self.points.shape[-1])


def sample_noise(key: Array, count: int, shape: tuple[int, ...]) -> Array:
    """Standard normal noise [count, *shape] with one key a sample; key is consumed."""
    return jax.vmap(lambda k: jax.random.normal(k, shape))(sample_keys(key, count))


def _at(t: Array, x: Array) -> Array:
    """The scalar t with as many axes as x [..., D] has before its last."""
    return jnp.full((1,) * (x.ndim - 1), t)


def _grid(times: Array, like: Array) -> Array:
    """times [K] with as many leading axes of size 1 as ``like`` [..., K, D] has before its K."""
    return times.reshape((1,) * (like.ndim - 2) + (-1,))


def ode_trajectory(advance: DeterministicStep, x: Array, times: Array) -> Array:
    """Deterministic steps at ``times`` from x [..., D]: [..., D]."""
    return jax.lax.scan(lambda x, t: (advance(x, _at(t, x)), None), x, times)[0]


def integrate_ode(advance: DeterministicStep, z: Array, times: Array) -> Array:
    """Deterministic sample from noise z [..., D], clipped to ±1 at the end: [..., D]."""
    return jnp.clip(ode_trajectory(advance, z, times), -1.0, 1.0)


def two_stage_ode(
    early: DeterministicStep, late: DeterministicStep, z: Array, times: Array, at: int
) -> Array:
    """``integrate`` whose first ``at`` steps are those of ``early``: [..., D]."""
    return integrate_ode(late, ode_trajectory(early, z, times[:at]), times[at:])


def with_min_std(transition: StochasticStep, least: float) -> StochasticStep:
    """The same step with a standard deviation of at least ``least``."""

    def step(x: Array, t: Array) -> tuple[Array, Array]:
        mean, std = transition(x, t)
        return mean, jnp.maximum(std, least)

    return step


def sample_chain(transition: StochasticStep, noise: Array, times: Array) -> Chain:
    """Stochastic chain from standard normal noise [..., K+1, D]: noise 0 is x_0, noise i+1 drives step i (cut at ±3).

    The last point is NOT clipped, so that the density of what was sampled is the density of what is stored; execute
    ``action(points)``. (OGPO's released code stores the clipped sample but scores the unclipped one, so its first ratio
    is not 1.)
    """
    steps = jnp.moveaxis(jnp.clip(noise[..., 1:, :], -NOISE_CLIP, NOISE_CLIP), -2, 0)

    def step(x: Array, inputs: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array, Array]]:
        t, epsilon = inputs
        mean, std = transition(x, _at(t, x))
        following = mean + std * epsilon
        return following, (
            following,
            mean,
            jnp.broadcast_to(std, (*mean.shape[:-1], std.shape[-1])),
        )

    first = noise[..., 0, :]
    _, made = jax.lax.scan(step, first, (times, steps))
    rest, mean, std = (jnp.moveaxis(x, 0, -2) for x in made)
    return Chain(jnp.concatenate([first[..., None, :], rest], axis=-2), mean, std)


def two_stage_chain(
    early: StochasticStep, late: StochasticStep, noise: Array, times: Array, at: int
) -> Chain:
    """``walk`` whose first ``at`` steps are those of ``early`` and are left out: points [..., K+1−at, D]."""
    if not at:
        return sample_chain(late, noise, times)
    start = sample_chain(early, noise[..., : at + 1, :], times[:at]).points[..., -1:, :]
    return sample_chain(
        late, jnp.concatenate([start, noise[..., at + 1 :, :]], axis=-2), times[at:]
    )


def chain_action(chain: Array) -> Array:
    """The chunk a chain [..., K+1, D] stands for: its last point clipped to ±1, [..., D]."""
    return jnp.clip(chain[..., -1, :], -1.0, 1.0)


def normal_log_density(x: Array, mean: Array | float, std: Array | float) -> Array:
    """Elementwise log N(x; mean, std²)."""
    return -0.5 * ((x - mean) / std) ** 2 - jnp.log(jnp.asarray(std)) - 0.5 * jnp.log(2.0 * jnp.pi)


def rescore_chain(transition: StochasticStep, chain: Array, times: Array) -> Chain:
    """An existing chain [..., K+1, D] with the steps ``transition`` would have taken from its points: one batched network
    call on [..., K, D]."""
    x = chain[..., :-1, :]
    mean, std = transition(x, _grid(times, x))
    return Chain(chain, mean, std)


def step_kl(first: Chain, second: Chain) -> Array:
    """KL(N(mean₁, std₁²) ‖ N(mean₂, std₂²)) of every denoising step, summed over D: [..., K]."""
    ratio = (first.std / second.std) ** 2
    shift = ((first.mean - second.mean) / second.std) ** 2
    return 0.5 * jnp.sum(ratio - 1.0 - jnp.log(ratio) + shift, -1)

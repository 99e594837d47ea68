"""Denoising chains x_0 … x_K: what a flow's SDE and a diffusion's reverse process have in common.

Everything works on flattened chunks (last axis D = h·A) with free leading axes, and on one of two
callables in which the network and the observation are bound. Both take ``x [..., D]`` and
``t [...]``, whose leading axes have the same rank and broadcast:

    StochasticStep     (x, t) -> (mean [..., D], std [..., 1] or [..., D])    of N(mean, std²)
    DeterministicStep  (x, t) -> x [..., D]

Time runs from noise at t = 0 to data at t = 1; step i starts at ``t_i = i/K``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from gcp_jax.config_fields import Bounds
from gcp_jax.mesh import sample_keys
from gcp_jax.types import Array, PRNGKey

DenoisingFn = Callable[[Array, Array], Array]  # (x, t) -> velocity or noise [..., D]
StochasticStep = Callable[[Array, Array], tuple[Array, Array]]
DeterministicStep = Callable[[Array, Array], Array]

NOISE_CLIP = 3.0
DENOISING_STEPS = Bounds(1, 1000)  # K
SIGMA = Bounds(0, 10, low_open=True)  # of noise on actions in [-1, 1]


class Sampler(Protocol):
    """A generative family: denoising steps from its network's output, and its imitation loss."""

    @property
    def steps(self) -> int:
        """K."""

    @property
    def times(self) -> Array:
        """Start times of the steps, t_i [K]."""

    def stochastic_step(self, net: DenoisingFn) -> StochasticStep:
        """The stochastic step of a network."""

    def deterministic_step(self, net: DenoisingFn) -> DeterministicStep:
        """The deterministic step of a network."""

    def loss(self, net: DenoisingFn, *, action: Array, z: Array, t: Array, mask: Array) -> Array:
        """Imitation loss of each sample.

        Args:
          net: the network.
          action: demonstrated chunks [..., D].
          z: standard normal noise [..., D].
          t: uniform in [0, 1), [...].
          mask: 1 where the chunk's step was executed, [..., D].

        Returns:
          Losses [...].
        """


class Chain(NamedTuple):
    """Points of a chain, and the normal distributions of its steps."""

    points: Array  # [..., K+1, D]
    mean: Array  # [..., K, D]
    std: Array  # [..., K, 1 or D]

    @property
    def log_densities(self) -> Array:
        """log N(x_{i+1}; mean_i, std_i²) of every number, [..., K, D]."""
        return normal_log_density(self.points[..., 1:, :], self.mean, self.std)

    @property
    def log_density(self) -> Array:
        """Normalized log-density of the whole chain [...], as OGPO defines it.

        ``[log N(x_0; 0, I) + Σ_i log N(x_{i+1}; mean_i, std_i²)] / (K+1) / D``.
        """
        prior = jnp.sum(normal_log_density(self.points[..., 0, :], 0.0, 1.0), -1)
        steps = jnp.sum(self.log_densities, (-2, -1))
        return (prior + steps) / (self.points.shape[-2] * self.points.shape[-1])


def sample_noise(key: PRNGKey, count: int, shape: tuple[int, ...]) -> Array:
    """Standard normal noise [count, *shape], with one key per sample; key is consumed."""
    return jax.vmap(lambda k: jax.random.normal(k, shape))(sample_keys(key, count))


def _broadcast_time(t: Array, x: Array) -> Array:
    """The scalar t with as many axes as x [..., D] has before its last."""
    return jnp.full((1,) * (x.ndim - 1), t)


def _broadcast_times(times: Array, x: Array) -> Array:
    """times [K] with as many leading axes of size 1 as x [..., K, D] has before its K."""
    return times.reshape((1,) * (x.ndim - 2) + (-1,))


def ode_trajectory(step: DeterministicStep, x: Array, times: Array) -> Array:
    """Take deterministic steps from x [..., D] at ``times``; returns the last point [..., D]."""

    def scan_step(x: Array, t: Array) -> tuple[Array, None]:
        return step(x, _broadcast_time(t, x)), None

    last, _ = jax.lax.scan(scan_step, x, times)
    return last


def integrate_ode(step: DeterministicStep, z: Array, times: Array) -> Array:
    """The deterministic sample [..., D] from noise z [..., D], clipped to ±1 at the end."""
    return jnp.clip(ode_trajectory(step, z, times), -1.0, 1.0)


def two_stage_ode(
    early: DeterministicStep, late: DeterministicStep, z: Array, times: Array, switch: int
) -> Array:
    """``integrate_ode`` with ``early`` for the first ``switch`` steps, then ``late``: [..., D]."""
    middle = ode_trajectory(early, z, times[:switch])
    return integrate_ode(late, middle, times[switch:])


def with_min_std(step: StochasticStep, min_std: float) -> StochasticStep:
    """The same step with a standard deviation of at least ``min_std``."""

    def step_with_min_std(x: Array, t: Array) -> tuple[Array, Array]:
        mean, std = step(x, t)
        return mean, jnp.maximum(std, min_std)

    return step_with_min_std


def sample_chain(step: StochasticStep, noise: Array, times: Array) -> Chain:
    """Sample a chain.

    The last point is not clipped, so that the density of the sampled point is that of the stored
    one; execute ``chain_action(points)``. (OGPO's released code stores the clipped sample but
    scores the unclipped one, so that its first ratio is not 1.)

    Args:
      step: the stochastic step.
      noise: standard normal noise [..., K+1, D]; noise 0 is x_0, noise i+1 drives step i and is
        clipped to ±NOISE_CLIP.
      times: start times of the steps [K].
    """
    first = noise[..., 0, :]
    step_noise = jnp.clip(noise[..., 1:, :], -NOISE_CLIP, NOISE_CLIP)
    step_noise = jnp.moveaxis(step_noise, -2, 0)

    def scan_step(x: Array, inputs: tuple[Array, Array]) -> tuple[Array, Chain]:
        t, epsilon = inputs
        mean, std = step(x, _broadcast_time(t, x))
        x_next = mean + std * epsilon
        std = jnp.broadcast_to(std, (*mean.shape[:-1], std.shape[-1]))
        return x_next, Chain(points=x_next, mean=mean, std=std)

    _, steps = jax.lax.scan(scan_step, first, (times, step_noise))
    steps = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2), steps)
    points = jnp.concatenate([first[..., None, :], steps.points], axis=-2)
    return Chain(points=points, mean=steps.mean, std=steps.std)


def two_stage_chain(
    early: StochasticStep, late: StochasticStep, noise: Array, times: Array, switch: int
) -> Chain:
    """``sample_chain`` with ``early`` for the first ``switch`` steps, then ``late``.

    The first steps are left out of the result: its points are [..., K+1−switch, D].
    """
    if not switch:
        return sample_chain(late, noise, times)
    early_chain = sample_chain(early, noise[..., : switch + 1, :], times[:switch])
    start = early_chain.points[..., -1:, :]
    late_noise = jnp.concatenate([start, noise[..., switch + 1 :, :]], axis=-2)
    return sample_chain(late, late_noise, times[switch:])


def chain_action(points: Array) -> Array:
    """The action of a chain [..., K+1, D]: its last point clipped to ±1, [..., D]."""
    return jnp.clip(points[..., -1, :], -1.0, 1.0)


def normal_log_density(x: Array, mean: Array | float, std: Array | float) -> Array:
    """log N(x; mean, std²), elementwise."""
    return -0.5 * ((x - mean) / std) ** 2 - jnp.log(jnp.asarray(std)) - 0.5 * jnp.log(2.0 * jnp.pi)


def rescore_chain(step: StochasticStep, points: Array, times: Array) -> Chain:
    """A chain's points with the means and deviations that another step has at them.

    This is one batched call of the network on [..., K, D].

    Args:
      step: the stochastic step.
      points: of the chain [..., K+1, D].
      times: start times of the steps [K].
    """
    x = points[..., :-1, :]
    mean, std = step(x, _broadcast_times(times, x))
    return Chain(points=points, mean=mean, std=std)


def step_kl(first: Chain, second: Chain) -> Array:
    """KL(first ‖ second) of every denoising step's normal distribution, summed over D: [..., K]."""
    ratio = (first.std / second.std) ** 2
    shift = ((first.mean - second.mean) / second.std) ** 2
    return 0.5 * jnp.sum(ratio - 1.0 - jnp.log(ratio) + shift, -1)

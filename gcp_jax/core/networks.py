"""Networks: the denoising net of a policy, critics, actors, values, and the observation normalizer.

``dtype`` is what a network computes in; its parameters, inputs and outputs are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from gcp_jax.core.layers import Dense, LayerNorm, SplitDense, add_broadcast
from gcp_jax.types import Array, Params

CONSTANT = 1e-6  # a standard deviation up to this, relative to the numbers, is rounding
ROWS_AT_ONCE = 65_536  # so that a large dataset is never in memory in float64


def apply_net(net: nn.Module, params: Params, *args: Any, **kwargs: Any) -> Array:
    """Evaluate a network that returns one array; further arguments as in ``nn.Module.apply``."""
    return jnp.asarray(net.apply({"params": params}, *args, **kwargs))


class Normalizer(NamedTuple):
    """Statistics of the demonstrations' observations; not trained further."""

    mean: Array  # [O]
    std: Array  # [O]

    def __call__(self, obs: Array) -> Array:
        """(obs − mean)/std clipped to ±10, of obs [..., O]."""
        shape = (1,) * (obs.ndim - 1) + (-1,)
        return jnp.clip((obs - self.mean.reshape(shape)) / self.std.reshape(shape), -10.0, 10.0)


def fit_normalizer(obs: NDArray[np.float32]) -> Normalizer:
    """Compute the statistics of observations, in float64 on the host.

    Args:
      obs: observations [S, O], in numpy.

    Returns:
      Mean and standard deviation. A dimension that does not change, except by what float32 rounds
      of it, gets standard deviation 1.
    """
    mean = np.mean(obs, 0, dtype=np.float64)
    variance = np.zeros_like(mean)
    for first in range(0, len(obs), ROWS_AT_ONCE):
        variance += np.sum((obs[first : first + ROWS_AT_ONCE] - mean) ** 2, 0)
    std = np.sqrt(variance / len(obs))
    largest = np.maximum(np.abs(obs.max(0)), np.abs(obs.min(0)))
    std = np.where(std > CONSTANT * np.maximum(largest, 1.0), std, 1.0)
    return Normalizer(mean=jnp.asarray(mean, jnp.float32), std=jnp.asarray(std, jnp.float32))


def sinusoidal_embedding(t: Array, dim: int) -> Array:
    """Embed times t [...] in [0, 1] into [..., dim] (Vaswani et al. 2017, on 1000·t)."""
    frequency = jnp.exp(
        -jnp.log(10_000.0) * jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2 - 1)
    )
    angle = 1000.0 * t[..., None] * frequency.reshape((1,) * t.ndim + (-1,))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class DenoisingNet(nn.Module):
    """MLP on concat(obs, x_t, time embedding) with GELU and no layer norm, as OGPO's authors.

    Its output is a flow's velocity or a diffusion's noise ε. The time embedding is
    sinusoidal 32 -> Dense 64 -> GELU -> Dense 32.
    """

    obs_dim: int
    out_dim: int  # D, also the size of x_t
    hidden: Sequence[int]
    time_dim: int = 32
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Layers in order of use."""
        dense = functools.partial(Dense, dtype=self.dtype)
        self.time_layers = [dense(2 * self.time_dim), dense(self.time_dim)]
        self.first = SplitDense(
            sizes=(self.obs_dim, self.out_dim, self.time_dim),
            features=self.hidden[0],
            dtype=self.dtype,
        )
        self.layers = [dense(width) for width in self.hidden[1:]]
        self.last = dense(self.out_dim)

    def encode(self, obs: Array) -> Array:
        """The observation's part of the first layer, [..., O] -> [..., H].

        It is the same in all denoising steps.
        """
        return self.first.part(0, obs)

    def denoise(self, encoded: Array, x: Array, t: Array) -> Array:
        """The network's output [..., D], from an encoded observation.

        Args:
          encoded: what ``encode`` returned, [..., H].
          x: noisy chunk [..., D].
          t: time [...]; leading axes of all three have one rank and broadcast.
        """
        time = sinusoidal_embedding(t, self.time_dim)
        time = self.time_layers[1](nn.gelu(self.time_layers[0](time)))
        y = nn.gelu(add_broadcast(encoded, self.first.part(1, x), self.first.part(2, time)))
        for layer in self.layers:
            y = nn.gelu(layer(y))
        return jnp.asarray(self.last(y), jnp.float32)

    def __call__(self, obs: Array, x: Array, t: Array) -> Array:
        """``denoise`` of ``encode``: obs [..., O], x [..., D], t [...] -> [..., D]."""
        return self.denoise(self.encode(obs), x, t)


class CriticNet(nn.Module):
    """Q(s, a): MLP with LayerNorm and GELU."""

    obs_dim: int
    action_dim: int
    hidden: Sequence[int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, obs: Array, action: Array) -> Array:
        """Values [...] of obs [..., O] and action [..., D], whose leading axes broadcast."""
        first = SplitDense(
            sizes=(self.obs_dim, self.action_dim), features=self.hidden[0], dtype=self.dtype
        )
        y = add_broadcast(first.part(0, obs), first.part(1, action))
        y = nn.gelu(LayerNorm(dtype=self.dtype)(y))
        for width in self.hidden[1:]:
            y = nn.gelu(LayerNorm(dtype=self.dtype)(Dense(width, dtype=self.dtype)(y)))
        return jnp.asarray(Dense(1, dtype=self.dtype)(y)[..., 0], jnp.float32)


class ActorNet(nn.Module):
    """MLP with LayerNorm and GELU on several inputs: noise, residual, edit and one-step actors."""

    sizes: Sequence[int]  # last axis of each input
    out_dim: int
    hidden: Sequence[int]
    last_scale: float = 1.0  # of the last kernel's initial variance; at 0 the output starts at 0

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        """Outputs [..., out_dim] of inputs [..., sizes[i]], whose leading axes broadcast."""
        first = SplitDense(sizes=tuple(self.sizes), features=self.hidden[0])
        y = add_broadcast(*[first.part(i, x) for i, x in enumerate(inputs)])
        y = nn.gelu(LayerNorm()(y))
        for width in self.hidden[1:]:
            y = nn.gelu(LayerNorm()(Dense(width)(y)))
        kernel_init = nn.initializers.zeros_init()
        if self.last_scale:
            kernel_init = nn.initializers.variance_scaling(
                self.last_scale, "fan_in", "truncated_normal"
            )
        return Dense(self.out_dim, kernel_init=kernel_init)(y)


class ValueNet(nn.Module):
    """V(s): MLP with LayerNorm and GELU."""

    hidden: Sequence[int]

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Values [...] of obs [..., O]."""
        y = obs
        for width in self.hidden:
            y = nn.gelu(LayerNorm()(Dense(width)(y)))
        return Dense(1)(y)[..., 0]


def make_critic_ensemble(
    members: int,
    obs_dim: int,
    action_dim: int,
    hidden: Sequence[int],
    dtype: DTypeLike = jnp.float32,
) -> nn.Module:
    """M critics with separate initializations, evaluated as one batched product.

    Returns:
      A module (obs [..., O], action [..., D]) -> [M, ...]; its parameters have a leading axis M.
    """
    ensemble = nn.vmap(
        CriticNet,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=None,
        out_axes=0,
        axis_size=members,
    )
    return ensemble(obs_dim=obs_dim, action_dim=action_dim, hidden=tuple(hidden), dtype=dtype)

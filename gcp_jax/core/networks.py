"""Networks: the denoising net of a policy, critic ensembles, and the observation normalizer.

``dtype`` is what a network computes in; its parameters, inputs and outputs are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Array = jax.Array


class Normalizer(NamedTuple):
    """Frozen statistics of the demonstrations' observations; call it on obs [..., O]."""

    mean: Array  # [O]
    std: Array  # [O]

    def __call__(self, obs: Array) -> Array:
        """(obs − mean)/std, cut at ±10."""
        shape = (1,) * (obs.ndim - 1) + (-1,)
        return jnp.clip((obs - self.mean.reshape(shape)) / self.std.reshape(shape), -10.0, 10.0)


def fit_normalizer(obs: Array, weight: Array) -> Normalizer:
    """Mean and std of obs [T, O] over the rows of weight [T] > 0; a constant dimension keeps std 1."""
    total = jnp.sum(weight)
    mean = jnp.sum(obs * weight[:, None], 0) / total
    std = jnp.sqrt(jnp.sum((obs - mean[None]) ** 2 * weight[:, None], 0) / total)
    return Normalizer(mean, jnp.where(std < 1e-6, 1.0, std))


def sinusoidal_embedding(t: Array, dim: int) -> Array:
    """Sinusoidal embedding of flow time t [...] in [0, 1] into [..., dim] (Vaswani et al. 2017, on 1000·t)."""
    frequency = jnp.exp(
        -jnp.log(10_000.0) * jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2 - 1)
    )
    angle = 1000.0 * t[..., None] * frequency.reshape((1,) * t.ndim + (-1,))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class SplitDense(nn.Module):
    """A Dense layer on the concatenation of parts whose leading axes broadcast.

    ``part(i, x)`` is the i-th part's share of the product. An observation [B, 1, O] beside samples [B, G, D] is so
    multiplied once per state and not once per sample; parameters and values are those of Dense on the concatenation.
    """

    sizes: Sequence[int]
    features: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """One kernel for all parts."""
        self.kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (sum(self.sizes), self.features)
        )
        self.bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))

    def part(self, index: int, x: Array) -> Array:
        """x [..., sizes[index]] -> [..., features]; part 0 carries the bias."""
        start = sum(self.sizes[:index])
        kernel, bias = (jnp.asarray(p, self.dtype) for p in (self.kernel, self.bias))
        out = jnp.asarray(x, self.dtype) @ kernel[start : start + self.sizes[index]]
        return out + bias.reshape((1,) * (out.ndim - 1) + (-1,)) if index == 0 else out


class DenoisingNet(nn.Module):
    """MLP on concat(obs, x_t, time embedding) with GELU and no layer norm, as OGPO's authors.

    Its output is a flow's velocity or a diffusion's noise ε.

    Time embedding: sinusoidal 32 -> Dense 64 -> GELU -> Dense 32.
    """

    obs_dim: int
    out_dim: int
    hidden: Sequence[int]
    time_dim: int = 32
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Layers in order of use."""
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        self.time_layers = [dense(2 * self.time_dim), dense(self.time_dim)]
        self.first = SplitDense(
            (self.obs_dim, self.out_dim, self.time_dim), self.hidden[0], self.dtype
        )
        self.layers = [dense(width) for width in self.hidden[1:]]
        self.last = dense(self.out_dim)

    def encode(self, obs: Array) -> Array:
        """The observation's share of the first layer: [..., O] -> [..., H]; constant over the denoising steps."""
        return self.first.part(0, obs)

    def denoise(self, encoded: Array, x: Array, t: Array) -> Array:
        """encoded [..., H], x [..., D], t [...], leading axes of one rank that broadcast -> [..., D]."""
        time = sinusoidal_embedding(t, self.time_dim)
        time = self.time_layers[1](nn.gelu(self.time_layers[0](time)))
        y = nn.gelu(encoded + self.first.part(1, x) + self.first.part(2, time))
        for layer in self.layers:
            y = nn.gelu(layer(y))
        return jnp.asarray(self.last(y), jnp.float32)

    def __call__(self, obs: Array, x: Array, t: Array) -> Array:
        """Both together."""
        return self.denoise(self.encode(obs), x, t)


class CriticNet(nn.Module):
    """Q(s, a): MLP with LayerNorm and GELU. obs [..., O] and action [..., D] broadcast; returns [...]."""

    obs_dim: int
    action_dim: int
    hidden: Sequence[int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, obs: Array, action: Array) -> Array:
        """One value for each (state, chunk)."""
        first = SplitDense((self.obs_dim, self.action_dim), self.hidden[0], self.dtype)
        y = first.part(0, obs) + first.part(1, action)
        y = nn.gelu(nn.LayerNorm(dtype=self.dtype)(y))
        for width in self.hidden[1:]:
            y = nn.gelu(nn.LayerNorm(dtype=self.dtype)(nn.Dense(width, dtype=self.dtype)(y)))
        return jnp.asarray(nn.Dense(1, dtype=self.dtype)(y)[..., 0], jnp.float32)


class ActorNet(nn.Module):
    """MLP with LayerNorm and GELU on several inputs whose leading axes broadcast: noise, residual, edit and one-step actors.

    ``last_scale`` scales the last kernel's initial values; 0 starts the network at zero.
    """

    sizes: Sequence[int]
    out_dim: int
    hidden: Sequence[int]
    last_scale: float = 1.0

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        """[..., sizes[i]] each -> [..., out_dim]."""
        first = SplitDense(tuple(self.sizes), self.hidden[0])
        y = functools.reduce(jnp.add, [first.part(i, x) for i, x in enumerate(inputs)])
        y = nn.gelu(nn.LayerNorm()(y))
        for width in self.hidden[1:]:
            y = nn.gelu(nn.LayerNorm()(nn.Dense(width)(y)))
        kernel = nn.initializers.variance_scaling(
            max(self.last_scale, 1e-30), "fan_in", "truncated_normal"
        )
        return nn.Dense(
            self.out_dim, kernel_init=kernel if self.last_scale else nn.initializers.zeros_init()
        )(y)


class ValueNet(nn.Module):
    """V(s): the same MLP on the observation alone, [..., O] -> [...]."""

    hidden: Sequence[int]

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """One value for each state."""
        y = obs
        for width in self.hidden:
            y = nn.gelu(nn.LayerNorm()(nn.Dense(width)(y)))
        return nn.Dense(1)(y)[..., 0]


def make_critic_ensemble(
    members: int,
    obs_dim: int,
    action_dim: int,
    hidden: Sequence[int],
    dtype: DTypeLike = jnp.float32,
) -> nn.Module:
    """M critics with their own initialization, evaluated as one batched product: (obs, action) -> [M, ...]."""
    many = nn.vmap(
        CriticNet,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=None,
        out_axes=0,
        axis_size=members,
    )
    return many(obs_dim, action_dim, tuple(hidden), dtype)

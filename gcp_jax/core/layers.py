"""Layers that take any leading axes, and whose gradients XLA computes fast.

Values, parameters and initializations are those of flax's layers of the same names.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gcp_jax import mesh
from gcp_jax.types import Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def broadcast(x: Array, leading: tuple[int, ...]) -> Array:
    """Broadcast x [..., H] to [*leading, H]; its gradient is a product with ones.

    The gradient of ``jnp.broadcast_to`` is a sum. XLA's CPU backend fuses it with the operations
    before it and then computes it number by number.

    Args:
      x: as many leading axes as ``leading``, each of the same size or of size 1.
      leading: sizes of the result's leading axes.
    """
    return jnp.broadcast_to(x, (*leading, x.shape[-1]))


@broadcast.defjvp
def _broadcast_jvp(
    leading: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,) = primals
    (tangent,) = tangents
    start = 0
    while start < len(leading):
        # Axes from start to end are repeated together, by one product.
        end = start
        while end < len(leading) and x.shape[end] == 1:
            end += 1
        repeats = math.prod(leading[start:end])
        if repeats > 1:
            before = math.prod(leading[:start])
            ones = mesh.vary_like(jnp.ones((before, repeats, 1), x.dtype), x)
            rows = tangent.reshape(before, 1, -1)
            repeated = jnp.matmul(ones, rows, precision=jax.lax.Precision.HIGHEST)
            tangent = repeated.reshape(*leading[:end], *tangent.shape[end:])
        start = end + 1
    return broadcast(x, leading), tangent


def add_broadcast(*parts: Array) -> Array:
    """Sum of parts [..., H] of one rank whose leading axes broadcast, by ``broadcast``."""
    leading = jnp.broadcast_shapes(*[part.shape for part in parts])[:-1]
    whole = [part for part in parts if part.shape[:-1] == leading]
    like = whole[0] if whole else functools.reduce(jnp.add, parts)

    def repeat(part: Array) -> Array:
        if part.shape[:-1] == leading:
            return part
        return broadcast(mesh.vary_like(part, like), leading)

    return functools.reduce(jnp.add, [repeat(part) for part in parts])


def affine(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """x @ kernel + bias, of x [..., I], kernel [I, O] and bias [O]: [..., O].

    Several leading axes of x are merged: with them XLA's CPU backend copies the operands of the
    gradient's products to transpose them.
    """
    y = x.reshape(-1, x.shape[-1]) @ kernel
    if bias is not None:
        y = y + bias[None] if x.ndim <= 2 else add_broadcast(y, bias[None])
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nn.Module):
    """``flax.linen.Dense``, by ``affine``."""

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., I] -> [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return affine(
            jnp.asarray(x, self.dtype),
            jnp.asarray(kernel, self.dtype),
            jnp.asarray(bias, self.dtype),
        )


class LayerNorm(nn.Module):
    """``flax.linen.LayerNorm``: normalize over the last axis, in float32."""

    dtype: DTypeLike = jnp.float32  # of the result
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., H] -> [..., H]."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        rows = jnp.asarray(x, jnp.float32).reshape(-1, x.shape[-1])
        mean = jnp.mean(rows, -1, keepdims=True)
        variance = jnp.maximum(jnp.mean(rows * rows, -1, keepdims=True) - mean * mean, 0.0)
        factor = jax.lax.rsqrt(variance + self.epsilon)
        if x.ndim <= 2:
            y = (rows - mean) * (factor * scale[None]) + bias[None]
        else:
            scale_rows = broadcast(mesh.vary_like(scale[None], rows), rows.shape[:1])
            y = add_broadcast((rows - mean) * (factor * scale_rows), bias[None])
        return jnp.asarray(y.reshape(x.shape), self.dtype)


class SplitDense(nn.Module):
    """A Dense layer on the concatenation of several inputs whose leading axes broadcast.

    ``part(i, x)`` is the product of the i-th input with its rows of the kernel; the layer's output
    is the sum of all parts. An observation [B, 1, O] beside samples [B, G, D] is therefore
    multiplied once per state and not once per sample. Parameters and values are those of a Dense
    layer on the concatenation.
    """

    sizes: Sequence[int]  # last axis of each input
    features: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """One kernel for all inputs."""
        self.kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (sum(self.sizes), self.features)
        )
        self.bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))

    def part(self, index: int, x: Array) -> Array:
        """Multiply x [..., sizes[index]] to [..., features]; part 0 also adds the bias."""
        start = sum(self.sizes[:index])
        kernel = jnp.asarray(self.kernel, self.dtype)
        bias = jnp.asarray(self.bias, self.dtype)
        rows = kernel[start : start + self.sizes[index]]
        return affine(jnp.asarray(x, self.dtype), rows, bias if index == 0 else None)

"""The matrix products inside a program, and the time that they take by themselves: what a program could reach at best."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


class Product(NamedTuple):
    """A ``dot_general``: shapes of its operands, their type, contracted and batch dimensions."""

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    dtype: str
    dimensions: Dimensions

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        (_, contracted), (_, batched) = self.dimensions
        free = [n for axis, n in enumerate(self.rhs) if axis not in (*contracted, *batched)]
        return 2 * math.prod(self.lhs) * math.prod(free)


def count(function: Callable[..., Any], *args: Any) -> Counter[Product]:
    """Every product of ``function(*args)`` and how often it runs: bodies of scans as often as they are repeated, of branches
    the one with the most work. Raises ValueError for a product in a loop whose length is not known."""
    return _of(jax.make_jaxpr(function)(*args).jaxpr)


def flops(products: Mapping[Product, int]) -> int:
    """Of all products."""
    return sum(product.flops * times for product, times in products.items())


def _of(jaxpr: Any) -> Counter[Product]:
    found: Counter[Product] = Counter()
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            lhs, rhs = (v.aval for v in eqn.invars)
            found[Product(lhs.shape, rhs.shape, str(lhs.dtype), params["dimension_numbers"])] += 1
        elif name == "scan":
            inside = _of(params["jaxpr"].jaxpr)
            found.update({product: times * params["length"] for product, times in inside.items()})
        elif name == "cond":
            found.update(max((_of(branch.jaxpr) for branch in params["branches"]), key=flops))
        elif name == "while":
            if _of(params["body_jaxpr"].jaxpr) or _of(params["cond_jaxpr"].jaxpr):
                raise ValueError("a product in a while loop runs nobody knows how often")
        else:
            for inner in jaxprs_in_params(params):
                found.update(_of(inner))
    return found


def alone(
    products: Counter[Product], options: Mapping[str, Any] | None = None
) -> dict[Product, Callable[[], Any]]:
    """A program for each different product, compiled with ``options``, on random numbers."""
    return {product: _program(product, dict(options or {})) for product in products}


def _program(product: Product, options: dict[str, Any]) -> Callable[[], Any]:
    keys = jax.random.split(jax.random.key(0))
    lhs, rhs = (
        jax.random.normal(key, shape, product.dtype)
        for key, shape in zip(keys, (product.lhs, product.rhs), strict=True)
    )

    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dot_general(a, b, product.dimensions, preferred_element_type=jnp.float32)

    run = jax.jit(multiply, compiler_options=options)
    return lambda: run(lhs, rhs)

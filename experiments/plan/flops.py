"""The matrix products inside a program, and programs of each product alone.

The time that the products alone take is a lower bound of the program's time.
"""

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
    """Every product of ``function(*args)`` and how often it runs.

    The body of a scan counts as often as it is repeated; of a branch, the case with the most work
    counts.

    Raises:
      ValueError: for a product in a while loop, whose number of turns is unknown.
    """
    return _count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def flops(products: Mapping[Product, int]) -> int:
    """Multiplications and additions of all products."""
    return sum(product.flops * times for product, times in products.items())


def _count_jaxpr(jaxpr: Any) -> Counter[Product]:
    products: Counter[Product] = Counter()
    for equation in jaxpr.eqns:
        products.update(_count_equation(equation))
    return products


def _count_equation(equation: Any) -> Counter[Product]:
    name = equation.primitive.name
    params = equation.params
    if name == "dot_general":
        lhs, rhs = (variable.aval for variable in equation.invars)
        product = Product(
            lhs=lhs.shape,
            rhs=rhs.shape,
            dtype=str(lhs.dtype),
            dimensions=params["dimension_numbers"],
        )
        return Counter([product])
    if name == "scan":
        body = _count_jaxpr(params["jaxpr"].jaxpr)
        return Counter({product: times * params["length"] for product, times in body.items()})
    if name == "cond":
        return max((_count_jaxpr(branch.jaxpr) for branch in params["branches"]), key=flops)
    if name == "while":
        if _count_jaxpr(params["body_jaxpr"].jaxpr) or _count_jaxpr(params["cond_jaxpr"].jaxpr):
            raise ValueError(
                "cannot count a product inside a while loop: the number of turns is unknown"
            )
        return Counter()
    products: Counter[Product] = Counter()
    for inner in jaxprs_in_params(params):
        products.update(_count_jaxpr(inner))
    return products


def alone(
    products: Counter[Product], options: Mapping[str, Any] | None = None
) -> dict[Product, Callable[[], Any]]:
    """A program for each different product, on random numbers.

    Args:
      products: the products.
      options: compiler options.
    """
    return {product: _program(product, dict(options or {})) for product in products}


def _program(product: Product, options: dict[str, Any]) -> Callable[[], Any]:
    keys = jax.random.split(jax.random.key(0))
    lhs = jax.random.normal(keys[0], product.lhs, product.dtype)
    rhs = jax.random.normal(keys[1], product.rhs, product.dtype)

    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dot_general(a, b, product.dimensions, preferred_element_type=jnp.float32)

    run = jax.jit(multiply, compiler_options=options)
    return lambda: run(lhs, rhs)

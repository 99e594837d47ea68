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

from gcp_jax.core.bounded_loop import most_turns

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


def count(function: Callable[..., Any], *args: Any, turns: int | None = None) -> Counter[Product]:
    """Every product of ``function(*args)`` and how often it runs.

    The body of a scan counts as often as it is repeated; of a branch, the case with the most work
    counts.

    Args:
      function: the program.
      *args: its arguments.
      turns: how often the body of a ``bounded_loop`` counts. Default: the loop's bound.

    Raises:
      ValueError: for a product in another while loop, whose number of turns is unknown.
    """
    return _count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, turns)


def flops(products: Mapping[Product, int]) -> int:
    """Multiplications and additions of all products."""
    return sum(product.flops * times for product, times in products.items())


def _count_jaxpr(jaxpr: Any, turns: int | None) -> Counter[Product]:
    products: Counter[Product] = Counter()
    for equation in jaxpr.eqns:
        products.update(_count_equation(equation, turns))
    return products


def _count_equation(equation: Any, turns: int | None) -> Counter[Product]:
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
        return _times(_count_jaxpr(params["jaxpr"].jaxpr, turns), params["length"])
    if name == "cond":
        return max((_count_jaxpr(branch.jaxpr, turns) for branch in params["branches"]), key=flops)
    if name == "while":
        body = _count_jaxpr(params["body_jaxpr"].jaxpr, turns)
        most = most_turns(equation)
        if most is not None:
            return _times(body, most if turns is None else turns)
        if body or _count_jaxpr(params["cond_jaxpr"].jaxpr, turns):
            raise ValueError(
                "cannot count a product inside a while loop: the number of turns is unknown"
            )
        return Counter()
    products: Counter[Product] = Counter()
    for inner in jaxprs_in_params(params):
        products.update(_count_jaxpr(inner, turns))
    return products


def _times(products: Counter[Product], times: int) -> Counter[Product]:
    return Counter({product: times * each for product, each in products.items()})


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

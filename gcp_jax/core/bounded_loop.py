"""A loop whose number of turns is computed, with a bound that can be read from its jaxpr."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax

from gcp_jax.types import Array, PyTree

_SCOPE = "at_most_{}_turns"
_BOUND = re.compile(_SCOPE.format(r"(\d+)"))


def bounded_loop(
    turns: Array, most: int, body: Callable[[Array, PyTree], PyTree], start: PyTree
) -> PyTree:
    """``jax.lax.fori_loop`` from 0 to ``turns``, int32 [], which is at most ``most``."""
    with jax.named_scope(_SCOPE.format(most)):
        return jax.lax.fori_loop(0, turns, body, start)


def most_turns(equation: Any) -> int | None:
    """``most`` of the loop that an equation of a jaxpr is; None if it is not a bounded loop."""
    bounds = _BOUND.findall(str(equation.source_info.name_stack))
    return int(bounds[-1]) if bounds else None

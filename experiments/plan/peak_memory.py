"""How much memory a program will need, from its jaxpr alone.

The estimate is what is alive at once if XLA fuses chains of elementwise operations.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from jax.extend.core import Literal, jaxprs_in_params

_FUSED_NAMES = """
abs add add_any and broadcast_in_dim ceil clamp convert_element_type copy cos div eq erf exp exp2
expm1 floor ge gt integer_pow iota is_finite le log log1p logistic lt max min mul ne neg not or pad
pow pvary real rem reshape round rsqrt select_n shift_left shift_right_arithmetic
shift_right_logical sign sin slice sqrt square squeeze stop_gradient sub tan tanh transpose xor
random_wrap random_unwrap
"""
FUSED = frozenset(_FUSED_NAMES.split())  # need no memory if a single other operation reads them
KEY_BYTES = 8  # of a random key


def temporaries(jaxpr: Any) -> int:
    """Bytes alive at once, over all devices, of the values between a program's inputs and outputs.

    Of a loop, the values of one turn count.
    """
    uses: Counter[Any] = Counter()
    last_use: dict[Any, int] = {}
    for index, equation in enumerate(jaxpr.eqns):
        for variable in _variables(equation.invars):
            uses[variable] += 1
            last_use[variable] = index
    outputs = set(_variables(jaxpr.outvars))
    alive: dict[Any, int] = {}
    peak = 0
    for index, equation in enumerate(jaxpr.eqns):
        is_fused = equation.primitive.name in FUSED
        for variable in equation.outvars:
            if variable in outputs or variable not in last_use:
                continue
            if not (is_fused and uses[variable] == 1):
                alive[variable] = size(variable)
        peak = max(peak, sum(alive.values()) + _inside(equation))
        for variable in [x for x in alive if last_use[x] == index]:
            del alive[variable]
    return peak


def _variables(values: Any) -> list[Any]:
    return [value for value in values if not isinstance(value, Literal)]


def _inside(equation: Any) -> int:
    """Bytes alive at once inside an equation that holds programs of its own."""
    inner = max((temporaries(jaxpr) for jaxpr in jaxprs_in_params(equation.params)), default=0)
    if equation.primitive.name == "shard_map":
        inner *= equation.params["mesh"].size
    return inner


def size(variable: Any) -> int:
    """Bytes of a variable."""
    item = getattr(variable.aval.dtype, "itemsize", KEY_BYTES)
    return int(np.prod(variable.aval.shape, dtype=np.int64)) * int(item)

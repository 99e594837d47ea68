"""How much memory a program will need, from its jaxpr alone: what is alive at once, if XLA fuses chains of elementwise operations."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from jax.extend.core import Literal, jaxprs_in_params

_NAMES = """
abs add add_any and broadcast_in_dim ceil clamp convert_element_type copy cos div eq erf exp exp2 expm1 floor ge gt integer_pow
iota is_finite le log log1p logistic lt max min mul ne neg not or pad pow pvary real rem reshape round rsqrt select_n shift_left
shift_right_arithmetic shift_right_logical sign sin slice sqrt square squeeze stop_gradient sub tan tanh transpose xor
random_wrap random_unwrap
"""
FUSED = frozenset(_NAMES.split())
"""Operations whose result needs no place of its own where a single other operation takes it."""


def temporaries(jaxpr: Any) -> int:
    """Bytes alive at once, over all devices, of what a program makes between its inputs and its outputs; of a loop, those of
    one turn."""
    uses = Counter(v for eqn in jaxpr.eqns for v in eqn.invars if not isinstance(v, Literal))
    last = {
        v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not isinstance(v, Literal)
    }
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    alive: dict[Any, int] = {}
    most = 0
    for i, eqn in enumerate(jaxpr.eqns):
        inside = max((temporaries(inner) for inner in jaxprs_in_params(eqn.params)), default=0)
        if eqn.primitive.name == "shard_map":
            inside *= eqn.params["mesh"].size
        for v in eqn.outvars:
            fused = eqn.primitive.name in FUSED and uses[v] == 1
            if v not in kept and v in last and not fused:
                alive[v] = size(v)
        most = max(most, sum(alive.values()) + inside)
        for v in [v for v in alive if last[v] == i]:
            del alive[v]
    return most


def size(v: Any) -> int:
    """Bytes of a variable; a key is two words."""
    item = getattr(v.aval.dtype, "itemsize", 8)
    return int(np.prod(v.aval.shape, dtype=np.int64)) * int(item)

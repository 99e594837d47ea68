"""XLA's options for programs on CPUs; other backends keep their own.

Physics compiles with what ``XLA_FLAGS`` say (``experiments.cpu``). Learning needs the fusion emitters that physics goes without,
and not YNN's kernels, which reduce the middle axis of an array ten times slower than a loop: measured on two cores, an update
takes .65 (FQL) to .95 (OGPO) of the time. Both compile sooner at level 1 and run as fast.
"""

from __future__ import annotations

import os
from typing import Any

import jax

_EITHER: dict[str, Any] = {"xla_backend_optimization_level": 1}
_LEARNING: dict[str, Any] = {
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_experimental_ynn_fusion_type": "",
}


def physics_options() -> dict[str, Any]:
    """Options of a program that steps environments, those that XLA_FLAGS do not set."""
    given = os.environ.get("XLA_FLAGS", "")
    on_cpu = jax.default_backend() == "cpu"
    return {name: value for name, value in _EITHER.items() if on_cpu and name not in given}


def learning_options() -> dict[str, Any]:
    """Options of a program that steps none. XLA_FLAGS have no say in how it is fused: they are set for physics."""
    known = jax.default_backend() == "cpu" and jax.__version_info__ < (0, 11)
    return {**physics_options(), **(_LEARNING if known else {})}

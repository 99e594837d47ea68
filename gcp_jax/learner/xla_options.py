"""XLA compiler options for CPU; other backends keep their own.

Programs that step physics compile with the options in ``XLA_FLAGS`` (set by
``gcp_jax.experiments.runtime``). Programs that learn need the fusion emitters, which physics is
better without, and not YNN's kernels, which are slow at reducing a middle axis of an array. Both
compile faster at optimization level 1, and run equally fast. An option that the user sets in
``XLA_FLAGS`` is the user's for every program.
"""

from __future__ import annotations

import os
from typing import Any

import jax

OWN_FLAGS = "GCP_JAX_XLA_FLAGS"
"""Environment variable with the flags in ``XLA_FLAGS`` that are this package's, not the user's."""

_ALL_PROGRAMS: dict[str, Any] = {"xla_backend_optimization_level": 1}
_LEARNING: dict[str, Any] = {
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_experimental_ynn_fusion_type": "",
}


def physics_options() -> dict[str, Any]:
    """Options of a program that steps environments, except those that XLA_FLAGS sets."""
    if jax.default_backend() != "cpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in _ALL_PROGRAMS.items() if name not in flags}


def learning_options() -> dict[str, Any]:
    """Options of a program that steps no environment, except those that the user has set."""
    options = physics_options()
    if jax.default_backend() != "cpu" or jax.__version_info__ >= (0, 11):
        return options
    own = os.environ.get(OWN_FLAGS, "").split()
    users = " ".join(flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag not in own)
    return options | {name: value for name, value in _LEARNING.items() if name not in users}

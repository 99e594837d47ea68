"""The top floor: sweeps of many runs, on this machine, on Ray or on SLURM, and the command line.

A sweep is a Python file, given to ``gcp-jax sweep``::

    from gcp_jax.launch import Sweep, grid

    def get_sweep():
        return Sweep(
            "experiments/configs/peg_insert.py",
            axes=(grid("finetune.utd", (0.0625, 0.125)),),
            seeds=4,
        )

``spec`` and ``axes`` declare a sweep, ``expand`` lists its runs, ``launcher`` does them through a
backend, ``status`` and ``sweep_page`` read the folder. What one run does belongs to
``gcp_jax.run``, and nothing below this package imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gcp_jax.lazy_names import lazy_names

if TYPE_CHECKING:
    from gcp_jax.launch.axes import (
        choice,
        drawn,
        grid,
        integers,
        log_uniform,
        uniform,
        zipped,
    )
    from gcp_jax.launch.spec import Halving, Search, Sweep

__all__ = [
    "Halving",
    "Search",
    "Sweep",
    "choice",
    "drawn",
    "grid",
    "integers",
    "log_uniform",
    "uniform",
    "zipped",
]

_MODULES = {
    "gcp_jax.launch.axes": (
        "choice",
        "drawn",
        "grid",
        "integers",
        "log_uniform",
        "uniform",
        "zipped",
    ),
    "gcp_jax.launch.spec": ("Halving", "Search", "Sweep"),
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)

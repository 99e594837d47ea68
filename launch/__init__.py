"""Sweeps: many runs from one file, on this machine, on Ray or on SLURM.

A sweep file::

    from launch import Sweep, grid

    def get_sweep():
        return Sweep("experiments/configs/peg_insert.py", axes=(grid("finetune.utd", (0.0625, 0.125)),), seeds=4)
"""

from gcp_jax.launch.axes import choice, drawn, grid, integers, log_uniform, uniform, zipped
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

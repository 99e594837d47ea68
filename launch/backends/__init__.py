"""Where the runs of a sweep are done: processes of this machine, Ray, SLURM.

A backend queues attempts at an engine that exists already; it schedules nothing itself. It has the
two methods of ``launcher.Backend``. What to run, retries and the run folders do not belong here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gcp_jax.config import ConfigError
from gcp_jax.launch.backends.local import LocalBackend
from gcp_jax.launch.backends.ray import RayBackend
from gcp_jax.launch.backends.slots import WorkerSlot, split_machine
from gcp_jax.launch.backends.slurm import SlurmBackend
from gcp_jax.launch.launcher import Backend

NAMES = ("local", "ray", "slurm")

__all__ = [
    "NAMES",
    "LocalBackend",
    "RayBackend",
    "SlurmBackend",
    "WorkerSlot",
    "make_backend",
    "split_machine",
]


def make_backend(
    name: str,
    *,
    folder: Path,
    max_parallel: int | None,
    devices: int,
    address: str,
    resources: Mapping[str, float],
    slurm: Mapping[str, Any],
) -> Backend:
    """Return the backend called ``name``.

    Args:
      name: one of ``NAMES``.
      folder: the sweep's folder.
      max_parallel: runs at a time on this machine; None: by its accelerators or cores.
      devices: accelerators of one run.
      address: of a Ray cluster; "": the one Ray finds, or a new one on this machine.
      resources: of one run, by Ray's names.
      slurm: options of sbatch, as submitit names them.

    Raises:
      ConfigError: for another name, or if the backend cannot be used.
    """
    if name == "local":
        return LocalBackend(split_machine(max_parallel, devices), devices)
    if name == "ray":
        return RayBackend(address, resources, devices)
    if name == "slurm":
        return SlurmBackend(folder, slurm, devices)
    raise ConfigError(f"--backend={name}; allowed: {', '.join(NAMES)}.")

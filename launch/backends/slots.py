"""Dividing this machine among runs that execute at the same time."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gcp_jax.config import ConfigError

CORES_PER_RUN = 2  # by default, on a machine without accelerators


class WorkerSlot(NamedTuple):
    """A share of this machine."""

    environment: Mapping[str, str]  # variables that show a process its accelerators
    cores: tuple[int, ...]  # CPU cores that the process may use


def split_machine(max_parallel: int | None, devices: int) -> list[WorkerSlot]:
    """Divide this machine among runs.

    Args:
      max_parallel: how many runs execute at a time. None: as many as the accelerators allow, or one
        for every two cores.
      devices: accelerators of one run.

    Returns:
      One slot for each run that executes at a time.

    Raises:
      ConfigError: if the machine is too small.
    """
    cores = sorted(os.sched_getaffinity(0))
    found = accelerators()
    if found:
        most = len(found) // devices
        if not most:
            raise ConfigError(
                f"a run takes {devices} accelerators (data_parallel), but this machine has "
                f"{len(found)}; lower data_parallel."
            )
        count = max_parallel or most
        machine = f"{len(found)} accelerators, of which a run takes {devices}"
    else:
        most = len(cores)
        count = max_parallel or max(len(cores) // CORES_PER_RUN, 1)
        machine = f"{len(cores)} cores"
    if count > most:
        raise ConfigError(
            f"--max_parallel={count}, but this machine has {machine}; at most {most}."
        )
    cores_per_slot = len(cores) // count
    slots = []
    for i in range(count):
        own_cores = cores[i * cores_per_slot : (i + 1) * cores_per_slot]
        own_devices = found[i * devices : (i + 1) * devices]
        # With more accelerators than cores the cores cannot be divided, so every slot has them all.
        slots.append(
            WorkerSlot(
                environment=visible_devices(own_devices) if own_devices else {},
                cores=tuple(own_cores or cores),
            )
        )
    return slots


def accelerators() -> list[str]:
    """Return the GPUs or TPU chips of this machine as "cuda:0" or "tpu:0".

    Numbered as their runtimes do, without starting one.
    """
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    selected = os.environ.get("CUDA_VISIBLE_DEVICES")
    if selected is not None:
        return [f"cuda:{name}" for name in selected.split(",") if name]
    gpus = len(glob.glob("/dev/nvidia[0-9]*"))
    if gpus:
        return [f"cuda:{i}" for i in range(gpus)]
    chips = len(glob.glob("/dev/accel[0-9]*")) or len(glob.glob("/dev/vfio/[0-9]*"))
    return [f"tpu:{i}" for i in range(chips)]


def visible_devices(devices: Sequence[str]) -> dict[str, str]:
    """Return the environment variables that show a process these devices only."""
    numbers = ",".join(name.partition(":")[2] for name in devices)
    if devices[0].startswith("cuda"):
        return {"CUDA_VISIBLE_DEVICES": numbers}
    return {
        "TPU_VISIBLE_CHIPS": numbers,
        "TPU_CHIPS_PER_PROCESS_BOUNDS": f"1,{len(devices)},1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }

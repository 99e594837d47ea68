"""Several processes ("hosts"), each with its own devices, as one run (``jax.distributed``).

Every host runs the same host loop on the same numbers; only the first one writes files. A process
that runs alone is the first of one, and nothing here communicates.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gcp_jax.run.errors import HostLost
from gcp_jax.types import PyTree

HEARTBEAT_TIMEOUT = 30  # seconds after which a silent host counts as lost


class HostsError(ValueError):
    """The other hosts cannot be joined; the message is one line with the expected form."""


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Convert JAX's error about a lost host to HostLost, if there are several hosts."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if count() == 1:
            raise
        reason = str(error).splitlines()[0]
        raise HostLost(
            f"another host has gone ({reason}); start them all again: "
            "they resume from the last checkpoint."
        ) from error


def join(where: str) -> None:
    """Join the other hosts; call it before anything else of JAX.

    Args:
      where: "auto" if JAX can find the hosts (SLURM, Kubernetes, TPU pods, Open MPI), otherwise
        "ADDRESS:PORT,COUNT,INDEX": the address of the first host, the number of hosts and the index
        of this one.

    Raises:
      HostsError: ``where`` has another form, or the hosts cannot be joined.
    """
    arguments: dict[str, Any] = {}
    try:
        if where != "auto":
            address, processes, index = where.split(",")
            arguments["coordinator_address"] = address
            arguments["num_processes"] = int(processes)
            arguments["process_id"] = int(index)
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT, **arguments)
    except (ValueError, RuntimeError) as error:
        raise HostsError(
            f"--hosts={where}: {error} Give auto on SLURM, Kubernetes, TPU pods and Open MPI; "
            "elsewhere ADDRESS:PORT,COUNT,INDEX, e.g. 10.0.0.1:1234,2,0 on the first of two hosts."
        ) from error


def count() -> int:
    """The number of hosts of this run."""
    return int(jax.process_count())


def is_primary() -> bool:
    """True on the host that writes files."""
    return jax.process_index() == 0


def with_host_prefix(stage: str) -> str:
    """The name of a stage on this host's terminal, with the host's number if there are several."""
    if count() == 1:
        return stage
    return f"{stage}, host {jax.process_index() + 1} of {count()}"


def fetch(tree: PyTree) -> PyTree:
    """Whole arrays as numpy arrays, on every host."""
    leaves, structure = jax.tree.flatten(tree)
    split = [
        i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and not x.is_fully_replicated
    ]
    if count() > 1 and split:
        gather = _make_gather(leaves[split[0]].sharding.mesh)
        whole = gather([leaves[i] for i in split])
        for i, x in zip(split, whole, strict=True):
            leaves[i] = x
    return jax.tree.unflatten(structure, jax.device_get(leaves))


@functools.lru_cache
def _make_gather(mesh: Mesh) -> Callable[[list[jax.Array]], list[jax.Array]]:
    return jax.jit(lambda leaves: leaves, out_shardings=NamedSharding(mesh, P()))


def broadcast_from_first(value: PyTree) -> PyTree:
    """The first host's numbers, on every host; the shapes must be the same everywhere."""
    if count() == 1:
        return value
    return multihost_utils.broadcast_one_to_all(value)


def largest(value: int) -> int:
    """The largest of all hosts' values."""
    if count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def wait(name: str) -> None:
    """Wait until every host has called this with the same ``name``."""
    if count() > 1:
        multihost_utils.sync_global_devices(name)

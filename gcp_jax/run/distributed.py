"""Several processes, each with its own devices, as one run (``jax.distributed``): every host runs the same host loop on the same
numbers, and the first alone writes.

Alone, a process is the first of one, and nothing here communicates.
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

from gcp_jax.types import PyTree

SILENCE = 30  # seconds after which a host that does not answer has died


class HostsError(ValueError):
    """The other hosts cannot be found; one line that says what is expected."""


class HostLost(RuntimeError):
    """Another host has gone, so that this one cannot go on; one line."""


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Raise Lost for what JAX raises where a host does not answer."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if count() == 1:
            raise
        said = str(error).splitlines()[0]
        raise HostLost(
            f"another host has gone ({said}); start them all again: they go on from the last checkpoint."
        ) from error


def join(where: str) -> None:
    """Join the other hosts, before anything else is asked of JAX.

    where: "auto", found out by JAX (SLURM, Kubernetes, TPU pods, Open MPI), or ADDRESS:PORT,COUNT,INDEX: the first host's
    address, how many there are, and which of them this is. Raises HostsError.
    """
    given: dict[str, Any] = {}
    try:
        if where != "auto":
            address, among, index = where.split(",")
            given = {
                "coordinator_address": address,
                "num_processes": int(among),
                "process_id": int(index),
            }
        jax.distributed.initialize(heartbeat_timeout_seconds=SILENCE, **given)
    except (ValueError, RuntimeError) as error:
        raise HostsError(
            f"--hosts={where}: {error} Give auto on SLURM, Kubernetes, TPU pods and Open MPI, elsewhere ADDRESS:PORT,COUNT,INDEX, "
            "10.0.0.1:1234,2,0 say on the first of two."
        ) from error


def count() -> int:
    """How many hosts share this run."""
    return jax.process_count()


def is_primary() -> bool:
    """Is this the host that writes?"""
    return jax.process_index() == 0


def with_host_prefix(stage: str) -> str:
    """A stage's name on the screen of this host."""
    return stage if count() == 1 else f"{stage}, host {jax.process_index() + 1} of {count()}"


def fetch(tree: PyTree) -> PyTree:
    """Whole arrays as numpy, on every host."""
    leaves, structure = jax.tree.flatten(tree)
    spread = [
        i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and not x.is_fully_replicated
    ]
    if count() > 1 and spread:
        whole = _gather(leaves[spread[0]].sharding.mesh)([leaves[i] for i in spread])
        for i, x in zip(spread, whole, strict=True):
            leaves[i] = x
    return jax.tree.unflatten(structure, jax.device_get(leaves))


@functools.lru_cache
def _gather(mesh: Mesh) -> Callable[[list[jax.Array]], list[jax.Array]]:
    return jax.jit(lambda leaves: leaves, out_shardings=NamedSharding(mesh, P()))


def broadcast_from_first(value: PyTree) -> PyTree:
    """The first host's numbers, on every host; their shapes are the same everywhere."""
    return value if count() == 1 else multihost_utils.broadcast_one_to_all(value)


def largest(value: int) -> int:
    """The largest of all hosts' values."""
    return (
        value if count() == 1 else int(np.max(multihost_utils.process_allgather(np.int32(value))))
    )


def wait(where: str) -> None:
    """Until every host has come here."""
    if count() > 1:
        multihost_utils.sync_global_devices(where)

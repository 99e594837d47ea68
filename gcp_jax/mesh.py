"""Devices: a mesh of the axes "seed", "data" and "copy", and helpers for code that runs on it.

Seeds are vmapped and sharded over the axis "seed", which needs no communication. The axis "data"
splits environments and batches: each device samples from its own environments, and only means over
the batch are communicated (``batch_mean``, ``core.optim.gradient_step``). Random numbers are drawn
per sample, from its position in the whole batch (``sample_keys``), so that results depend on the
number of devices by rounding only. Devices along "copy" repeat the same work. They exist only if
several hosts have more devices than the work can be split over, because every host must take part
in every program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gcp_jax.types import Array, PRNGKey, PyTree

SEED = "seed"
DATA = "data"
COPY = "copy"


def make_mesh(seeds: int, *, data: int = 1) -> Mesh:
    """Make a mesh of the devices of all hosts.

    Args:
      seeds: number of seeds; the axis "seed" has the largest size that divides it.
      data: devices of the axis "data".

    Returns:
      The mesh. Devices that are left over are idle on one host, and along "copy" on several.

    Raises:
      ValueError: if ``data`` does not divide the number of devices.
    """
    devices = jax.devices()
    if data < 1 or len(devices) % data:
        raise ValueError(
            f"data_parallel is {data}, but {len(devices)} devices are visible; "
            f"choose a divisor of {len(devices)}."
        )
    places = len(devices) // data
    many_hosts = jax.process_count() > 1
    groups = max(
        size
        for size in range(1, places + 1)
        if seeds % size == 0 and (not many_hosts or places % size == 0)
    )
    copies = places // groups if many_hosts else 1
    used = np.asarray(devices[: groups * copies * data])
    grid = used.reshape(groups, copies, data).swapaxes(1, 2)
    return Mesh(grid, (SEED, DATA, COPY), axis_types=(AxisType.Auto,) * 3)


def require_divisible(name: str, size: int, parts: int, axis: str = DATA) -> int:
    """Divide a size over the devices of an axis.

    Args:
      name: what has this size, for the message.
      size: what is to be divided.
      parts: devices of the axis.
      axis: the axis, for the message.

    Returns:
      ``size // parts``.

    Raises:
      ValueError: if ``size`` is not a positive multiple of ``parts``.
    """
    if size < 1 or size % parts:
        raise ValueError(
            f"{name} is {size}; it must be a positive multiple of the {parts} devices of the "
            f"{axis} axis."
        )
    return size // parts


def is_partition_spec(x: object) -> bool:
    """Leaf predicate: a PartitionSpec is a tuple, so pass this as ``is_leaf`` to tree functions."""
    return isinstance(x, P)


def vmap_seeds(
    function: Callable[..., Any], in_specs: PyTree, out_specs: PyTree, seeds: int
) -> Callable[..., Any]:
    """Map a function of one seed over the seeds of one device.

    A single seed is not vmapped: under a vmap of size 1 XLA fuses less, and an update takes up to
    1.4 times as long.

    Args:
      function: takes and returns trees of one seed.
      in_specs: PartitionSpecs, a prefix of the tuple of arguments; parts without the axis "seed"
        are shared by all seeds.
      out_specs: likewise for the result.
      seeds: number of seeds of one device.
    """
    if seeds > 1:
        return jax.vmap(function, in_axes=_vmap_axes(in_specs), out_axes=_vmap_axes(out_specs))

    def single(*args: PyTree) -> PyTree:
        out = function(*_map_seed_parts(lambda x: x[0], in_specs, args))
        return _map_seed_parts(lambda x: x[None], out_specs, out)

    return single


def take_seed(tree: PyTree, partition_spec: PyTree, index: int) -> PyTree:
    """Index the seed axis; parts that all seeds share are returned as they are."""
    return _map_seed_parts(lambda x: x[index], partition_spec, tree)


def _map_seed_parts(
    change: Callable[[Array], Array], partition_spec: PyTree, tree: PyTree
) -> PyTree:
    """Apply ``change`` to the leaves that have a seed axis."""

    def change_part(spec: P, part: PyTree) -> PyTree:
        if not _has_seed_axis(spec):
            return part
        return jax.tree.map(change, part)

    return jax.tree.map(change_part, partition_spec, tree, is_leaf=is_partition_spec)


def _has_seed_axis(spec: P) -> bool:
    return bool(spec) and spec[0] == SEED


def _vmap_axes(partition_spec: PyTree) -> PyTree:
    """The axis that vmap maps in each part: 0 if it has a seed axis, None if it is shared."""
    return jax.tree.map(
        lambda spec: 0 if _has_seed_axis(spec) else None, partition_spec, is_leaf=is_partition_spec
    )


def shardings(mesh: Mesh, partition_spec: PyTree) -> PyTree:
    """NamedShardings of a tree of PartitionSpecs."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), partition_spec, is_leaf=is_partition_spec
    )


def _inside_axis(axis: str) -> bool:
    """Whether the code being traced runs inside ``shard_map`` over this axis."""
    try:
        jax.lax.axis_size(axis)
    except NameError:
        return False
    return True


def data_index() -> Array:
    """This device's position on the data axis; 0 outside the compiled loop."""
    if not _inside_axis(DATA):
        return jnp.asarray(0, jnp.int32)
    index: Array = jax.lax.axis_index(DATA)
    return index


def data_size() -> int:
    """Number of devices along the data axis; 1 outside the compiled loop."""
    if not _inside_axis(DATA):
        return 1
    return jax.lax.axis_size(DATA)


def all_mean(tree: PyTree) -> PyTree:
    """Mean over the data axis, leaf by leaf."""
    if not _inside_axis(DATA):
        return tree
    return jax.lax.pmean(tree, DATA)


def all_sum(tree: PyTree) -> PyTree:
    """Sum over the data axis, leaf by leaf."""
    if not _inside_axis(DATA):
        return tree
    return jax.lax.psum(tree, DATA)


def gather(tree: PyTree) -> PyTree:
    """Concatenate leaves [n, ...] of all devices of the data axis along their first axis."""
    if not _inside_axis(DATA):
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, DATA, tiled=True), tree)


def zeros_varying_over_seeds(x: jax.ShapeDtypeStruct) -> Array:
    """Zeros of this shape that ``shard_map`` types as different between seeds.

    ``shard_map`` types both branches of a cond by the axes over which they vary.
    """
    zeros = jnp.zeros(x.shape, x.dtype)
    if not _inside_axis(SEED):
        return zeros
    varying: Array = jax.lax.pcast(zeros, SEED, to="varying")
    return varying


def zeros_varying_like(x: Array) -> Array:
    """Zeros that ``shard_map`` types as varying over the same axes as ``x``.

    The first carry of a scan needs the type of the later ones.
    """
    return vary_like(jnp.zeros_like(x), x)


def vary_like(x: Array, like: Array) -> Array:
    """x, typed by ``shard_map`` as varying over every axis that ``like`` varies over."""
    if not _inside_axis(DATA):
        return x
    return jnp.where(True, x, like[(0,) * like.ndim])


def batch_mean(x: Array) -> Array:
    """Mean of x over all its axes and over the devices of the data axis, []."""
    mean: Array = all_mean(jnp.mean(x))
    return mean


def sample_keys(key: PRNGKey, count: int) -> PRNGKey:
    """Make one key for each sample of a batch.

    Args:
      key: a random key; consumed.
      count: number of samples on this device.

    Returns:
      Keys [count] that depend on the samples' positions in the whole batch, and so not on the
      number of devices.
    """
    index = data_index() * count + jnp.arange(count)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)

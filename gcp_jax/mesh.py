"""Devices: a mesh of axes ("seed", "data", "copy"), and the few helpers that let an algorithm stay ignorant of it.

Seeds are vmapped and sharded first, which needs no communication. The data axis splits environments and batches; each
device samples its own environments' columns and only means over the batch cross (``batch_mean``, ``descend``).
Randomness is drawn per sample (``sample_keys``) from the sample's place in the whole batch, so the result does not depend
on the number of devices beyond rounding. Copies do the same work again: only where several hosts have more devices than there is
work for, since every host must have a part in a program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Array = jax.Array
PyTree = Any

SEED, DATA, COPY = "seed", "data", "copy"


def make_mesh(seeds: int, *, data: int = 1) -> Mesh:
    """Mesh of the devices of all hosts: ``data`` devices for each seed group, as many groups as divide ``seeds``.

    What is left over stays idle on one host, and repeats others' work on several. Raises ValueError if the devices cannot be
    split so.
    """
    devices = jax.devices()
    if data < 1 or len(devices) % data:
        raise ValueError(
            f"mesh.data is {data}, but {len(devices)} devices are visible; choose a divisor of {len(devices)}."
        )
    places = len(devices) // data
    several = jax.process_count() > 1
    groups = max(
        g for g in range(1, places + 1) if seeds % g == 0 and (not several or places % g == 0)
    )
    copies = places // groups if several else 1
    grid = (
        np.asarray(devices[: groups * copies * data]).reshape(groups, copies, data).swapaxes(1, 2)
    )
    return Mesh(grid, (SEED, DATA, COPY), axis_types=(AxisType.Auto,) * 3)


def require_divisible(name: str, size: int, parts: int, axis: str = DATA) -> int:
    """What each of the ``parts`` devices of an axis gets of ``size``. Raises ValueError where they cannot share it evenly."""
    if size < 1 or size % parts:
        raise ValueError(
            f"{name} is {size}; it must be a positive multiple of the {parts} devices of the {axis} axis."
        )
    return size // parts


def is_partition_spec(x: object) -> bool:
    """Is this leaf a PartitionSpec? (a PartitionSpec is a tuple, so tree functions must be told)"""
    return isinstance(x, P)


def vmap_seeds(
    function: Callable[..., Any], in_specs: PyTree, out_specs: PyTree, seeds: int
) -> Callable[..., Any]:
    """``function`` of one seed over the ``seeds`` seeds that one device holds; leaves whose layout has no seed axis are shared.

    One alone is called as it is: under a vmap of size 1 XLA fuses less, and an update takes up to 1.4 times as long.
    """
    if seeds > 1:
        return jax.vmap(function, in_axes=_vmap_axes(in_specs), out_axes=_vmap_axes(out_specs))

    def alone(*args: PyTree) -> PyTree:
        out = function(*_with_seeds(lambda x: x[0], in_specs, args))
        return _with_seeds(lambda x: x[None], out_specs, out)

    return alone


def take_seed(tree: PyTree, layout: PyTree, index: int) -> PyTree:
    """One seed's part of a tree; leaves whose layout has no seed axis as they are."""
    return _with_seeds(lambda x: x[index], layout, tree)


def _with_seeds(change: Callable[[Array], Array], layout: PyTree, tree: PyTree) -> PyTree:
    """``change`` of the leaves whose layout has a seed axis."""

    def leaves(spec: P, part: PyTree) -> PyTree:
        return jax.tree.map(change, part) if _has_seeds(spec) else part

    return jax.tree.map(leaves, layout, tree, is_leaf=is_partition_spec)


def _has_seeds(spec: P) -> bool:
    return bool(spec) and spec[0] == SEED


def _vmap_axes(layout: PyTree) -> PyTree:
    """The vmap axis of each leaf of a layout: 0 where it has a seed axis, None where all seeds share it."""
    return jax.tree.map(
        lambda spec: 0 if _has_seeds(spec) else None, layout, is_leaf=is_partition_spec
    )


def shardings(mesh: Mesh, layout: PyTree) -> PyTree:
    """NamedShardings of a layout."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), layout, is_leaf=is_partition_spec)


def _bound(axis: str) -> bool:
    try:
        jax.lax.axis_size(axis)
    except NameError:
        return False
    return True


def data_index() -> Array:
    """Which part of the data axis this is; 0 outside the compiled loop."""
    return jax.lax.axis_index(DATA) if _bound(DATA) else jnp.int32(0)


def data_size() -> int:
    """Devices along the data axis; 1 outside the compiled loop."""
    return jax.lax.axis_size(DATA) if _bound(DATA) else 1


def all_mean(tree: PyTree) -> PyTree:
    """Mean over the data axis of values that are already means over the local part."""
    return jax.lax.pmean(tree, DATA) if _bound(DATA) else tree


def all_sum(tree: PyTree) -> PyTree:
    """Sum over the data axis."""
    return jax.lax.psum(tree, DATA) if _bound(DATA) else tree


def gather(tree: PyTree) -> PyTree:
    """Concatenate leaves [n, ...] of all devices along their first axis."""
    if not _bound(DATA):
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, DATA, tiled=True), tree)


def seed_zeros(x: jax.ShapeDtypeStruct) -> Array:
    """Zeros marked as differing between seeds: shard_map types the branches of a cond by the axes they vary over."""
    zeros = jnp.zeros(x.shape, x.dtype)
    return jax.lax.pcast(zeros, SEED, to="varying") if _bound(SEED) else zeros


def zeros_like(x: Array) -> Array:
    """Zeros that vary over the same mesh axes as x; a scan's first carry must be typed like its later ones."""
    return jnp.where(True, jnp.zeros_like(x), x)


def batch_mean(x: Array) -> Array:
    """Mean of x over all its axes and over all devices, a scalar."""
    return all_mean(jnp.mean(x))


def sample_keys(key: Array, count: int) -> Array:
    """One key for each of the ``count`` local samples [count], by their place in the whole batch; ``key`` is consumed."""
    index = data_index() * count + jnp.arange(count)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def gradient_step(
    loss: Callable[[PyTree], tuple[Array, PyTree]],
    params: PyTree,
    opt_state: PyTree,
    optimizer: optax.GradientTransformation,
) -> tuple[PyTree, PyTree, PyTree]:
    """One gradient step on the mean of ``loss(params) -> (scalar, aux)`` over all devices: (params, opt_state, aux). A gradient that is
    not finite is not followed: params and opt_state stay, and aux["gradient_norm"] tells.

    The mean is taken inside the gradient: ``pmean(grad(loss))`` under shard_map is n times too large.
    """

    def mean_loss(params: PyTree) -> tuple[Array, PyTree]:
        value, aux = loss(params)
        return all_mean(value), aux

    gradient, aux = jax.grad(mean_loss, has_aux=True)(params)
    norm = optax.tree.norm(gradient)
    updates, new_state = optimizer.update(gradient, opt_state, params)
    new = optax.apply_updates(params, updates), new_state
    params, opt_state = jax.tree.map(
        lambda a, b: jnp.where(jnp.isfinite(norm), b, a), (params, opt_state), new
    )
    return params, opt_state, {**aux, "gradient_norm": norm}

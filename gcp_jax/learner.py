"""The one compiled loop: collect → source → updates, for any Algorithm, over (seed, data) devices.

``segment(Train) -> (Train, metrics)`` is jitted once and donated. Seeds are vmapped inside ``shard_map``; what all seeds
share (the clock, a dataset) carries no seed axis, so that the ring is written by a slice and the warm-up is a true branch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gcp_jax import mesh as mesh_lib
from gcp_jax import rollout
from gcp_jax.types import Algorithm, Array, PyTree, Segment, Specs, Step, Train

RUN_STREAM = 0x67637021  # all keys of training derive from it; evaluation has a stream of its own


class Collection(NamedTuple):
    """How segments are collected, sizes over all devices: N environments, L chunk rows, R pooled fresh states."""

    env: Any
    envs: int
    length: int
    pool: int
    warmup: int = 0  # segments before the first update


class Learner(NamedTuple):
    """init: (seed indices [S], pretrained) -> Train;  segment: jitted (Train) -> (Train, metrics [S]), Train donated."""

    init: Callable[..., Train]
    segment: Any
    layout: Train
    mesh: Mesh


def seed_key(seed: Array) -> Array:
    """The key of one run: by the seed's index, alone or among others."""
    return jax.random.fold_in(jax.random.key(RUN_STREAM), seed)


def _item(specs: Specs, act: Callable[[Array], tuple[Array, PyTree]], local: int) -> Segment:
    """Shapes of a segment's rows without running physics."""
    rows = (1, local, specs.chunk)
    floats, flags = jnp.zeros(rows), jnp.zeros(rows, bool)
    obs, action = jnp.zeros((*rows, specs.obs_dim)), jnp.zeros((*rows, specs.action_dim))
    _, extras = jax.eval_shape(act, jax.ShapeDtypeStruct((local, specs.obs_dim), jnp.float32))
    extras = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), extras)
    return Segment(Step(obs, action, floats, obs, flags, flags, flags, flags), extras)


def initial(algorithm: Algorithm, specs: Specs, collection: Collection | None, seed: Array, pretrained: PyTree) -> Train:
    """The Train of one seed (its part on this device): networks, environments at their starts, an empty store."""
    key, init_key, env_key = jax.random.split(seed_key(seed), 3)
    state = algorithm.init(init_key, pretrained)
    if collection is None:
        return Train(state, None, None, key, jnp.int32(0))
    local = collection.envs // mesh_lib.data_size()
    item = _item(specs, lambda obs: algorithm.act(state, obs, init_key), local)
    workers = rollout.start(collection.env, env_key, local)
    return Train(state, workers, algorithm.source.init(item), key, jnp.int32(0))


def advance(algorithm: Algorithm, collection: Collection | None, train: Train) -> tuple[Train, dict[str, Array]]:
    """One segment of one seed: collect, hand over to the source, update."""
    key, collect_key, source_key, update_key = jax.random.split(train.key, 4)
    workers, segment, metrics, ready = train.env, None, {}, None
    if collection is not None:
        act = partial(algorithm.act, train.state)
        length, pool = collection.length, collection.pool
        workers, segment, episodes = rollout.collect(collection.env, act, workers, collect_key, length=length, pool=pool)
        metrics = {f"episode/{name}": value for name, value in episodes._asdict().items()}
        ready = train.clock >= collection.warmup if collection.warmup else None
    prepare = partial(algorithm.prepare, train.state)
    store, batches = algorithm.source.step(train.store, segment, source_key, prepare, train.clock)
    keys = jax.random.split(update_key, algorithm.source.updates)
    state, learned = _updates(algorithm, train.state, batches, keys, ready)
    metrics |= {f"train/{name}": value for name, value in learned.items()}
    return Train(state, workers, store, key, train.clock + 1), metrics


def build(
    algorithm: Algorithm, specs: Specs, *, mesh: Mesh, seeds: int, collection: Collection | None = None
) -> Learner:
    """Compile-ready init and segment for ``seeds`` seeds.

    collection: None for a source that needs no environment (cloning). Raises ValueError where environments, pool, batch
    or seeds do not divide over the devices.
    """
    _check_divisible(algorithm, collection, mesh, seeds)
    seed, data = mesh_lib.SEED, mesh_lib.DATA
    layout = Train(state=P(seed), env=P(seed, data), store=algorithm.source.layout, key=P(seed), clock=P())
    axes, pinned = mesh_lib.vmap_axes(layout), mesh_lib.shardings(mesh, layout)
    shard = partial(jax.shard_map, mesh=mesh)
    start = jax.vmap(partial(initial, algorithm, specs, collection), in_axes=(0, None), out_axes=axes)
    start = jax.jit(shard(start, in_specs=(P(seed), P()), out_specs=layout), out_shardings=pinned)
    segment = jax.vmap(partial(advance, algorithm, collection), in_axes=(axes,), out_axes=(axes, 0))
    segment = shard(segment, in_specs=(layout,), out_specs=(layout, P(seed)))
    metrics = mesh_lib.shardings(mesh, P(seed))

    def init(seeds: Array, pretrained: PyTree) -> Train:
        train = start(seeds, pretrained)
        if collection is not None:
            return train
        return train._replace(store=jax.device_put(algorithm.source.init(None), pinned.store))

    segment = jax.jit(segment, donate_argnums=0, in_shardings=(pinned,), out_shardings=(pinned, metrics))
    return Learner(init, segment, layout, mesh)


def _check_divisible(algorithm: Algorithm, collection: Collection | None, mesh: Mesh, seeds: int) -> None:
    parts, groups = mesh.shape[mesh_lib.DATA], mesh.shape[mesh_lib.SEED]
    if seeds % groups:
        raise ValueError(f"seeds is {seeds}; it must be a multiple of the {groups} devices of the seed axis.")
    sizes = {"batch_size": algorithm.source.batch_size}
    if collection is not None:
        sizes |= {"rollout.envs": collection.envs, "rollout.pool": collection.pool}
    for name, size in sizes.items():
        if size < 1 or size % parts:
            raise ValueError(f"{name} is {size}; it must be a positive multiple of the {parts} devices of the data axis.")


def _updates(
    algorithm: Algorithm, state: PyTree, batches: PyTree, keys: Array, ready: Array | None
) -> tuple[PyTree, dict[str, Array]]:
    """Scan ``update`` over the batches; the mean of its metrics over updates and devices. Where the scalar ``ready`` is
    False, nothing is updated and the metrics are 0."""

    def one(state: PyTree, inputs: tuple[PyTree, Array]) -> tuple[PyTree, dict[str, Array]]:
        return algorithm.update(state, *inputs)

    def run(state: PyTree) -> tuple[PyTree, dict[str, Array]]:
        state, metrics = jax.lax.scan(one, state, (batches, keys))
        return state, mesh_lib.all_mean(jax.tree.map(jnp.mean, metrics))

    if ready is None:
        return run(state)
    zeros = jax.tree.map(mesh_lib.seed_zeros, jax.eval_shape(run, state)[1])

    def trained(state: PyTree) -> tuple[PyTree, dict[str, Array]]:
        state, metrics = run(state)
        return state, jax.tree.map(jnp.add, zeros, metrics)

    return jax.lax.cond(ready, trained, lambda state: (state, zeros), state)

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


Diagnose = Callable[[PyTree, PyTree, Segment, Array], dict[str, Array]]  # (state, base, segment, key) -> metrics
Vary = Callable[[PyTree], tuple[Algorithm, Diagnose | None]]  # (values of one member) -> its method and its diagnostics


class Collection(NamedTuple):
    """How segments are collected, sizes over all devices: N environments, L chunk rows, R pooled fresh states."""

    env: Any
    envs: int
    length: int
    pool: int
    warmup: int = 0  # segments before the first update


class Learner(NamedTuple):
    """init: (seed indices [S], pretrained, values {field: [S]} = {}) -> Train;
    segment: jitted (Train) -> (Train, metrics [S]), Train donated."""

    init: Callable[..., Train]
    segment: Any
    layout: Train
    mesh: Mesh


def seed_key(seed: Array) -> Array:
    """The key of one run: by the seed's index, alone or among others."""
    return jax.random.fold_in(jax.random.key(RUN_STREAM), seed)


def segment_item(specs: Specs, act: Callable[[Array], tuple[Array, PyTree]], local: int) -> Segment:
    """Shapes of a segment's rows without running physics."""
    rows = (1, local, specs.chunk)
    floats, flags = jnp.zeros(rows), jnp.zeros(rows, bool)
    obs, action = jnp.zeros((*rows, specs.obs_dim)), jnp.zeros((*rows, specs.action_dim))
    _, extras = jax.eval_shape(act, jax.ShapeDtypeStruct((local, specs.obs_dim), jnp.float32))
    extras = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), extras)
    return Segment(Step(obs, action, floats, obs, flags, flags, flags, flags), extras)


def initial(
    member: Vary, specs: Specs, collection: Collection | None, seed: Array, pretrained: PyTree, values: PyTree
) -> Train:
    """The Train of one seed (its part on this device): networks, environments at their starts, an empty store."""
    algorithm, _ = member(values)
    key, init_key, env_key = jax.random.split(seed_key(seed), 3)
    state = algorithm.init(init_key, pretrained)
    if collection is None:
        return Train(state, pretrained, None, None, key, jnp.int32(0), values)
    local = collection.envs // mesh_lib.data_size()
    item = segment_item(specs, lambda obs: algorithm.act(state, obs, init_key), local)
    workers = rollout.start(collection.env, env_key, local)
    return Train(state, pretrained, workers, algorithm.source.init(item), key, jnp.int32(0), values)


class _Keys(NamedTuple):
    """The keys of one segment, each used once."""

    following: Array
    collect: Array
    source: Array
    update: Array
    diagnose: Array


def _collect(member: Vary, collection: Collection, train: Train, key: Array) -> tuple[PyTree, Segment, PyTree]:
    """One seed's segment of experience by the current policy."""
    algorithm, _ = member(train.values)
    act = partial(algorithm.act, train.state)
    return rollout.collect(collection.env, act, train.env, key, length=collection.length, pool=collection.pool)


def _learn(
    member: Vary, warmup: int, train: Train, segment: Segment | None, keys: _Keys
) -> tuple[PyTree, PyTree, dict[str, Array]]:
    """One seed's updates from its source: (state, store, metrics)."""
    (algorithm, diagnose), state, clock = member(train.values), train.state, train.clock
    if segment is not None:
        state, segment = algorithm.prepare(state, segment)
    store, batches = algorithm.source.step(train.store, segment, keys.source, clock)
    update_keys = jax.random.split(keys.update, algorithm.source.updates)
    ready = clock >= warmup if warmup else None
    state, metrics = _updates(algorithm, state, batches, update_keys, ready)
    if diagnose is not None and segment is not None:
        metrics |= diagnose(state, train.base, segment, keys.diagnose)
    return state, store, metrics


def layout_of(store: PyTree) -> Any:
    """A ``Train`` of PartitionSpecs; ``store`` is the source's part."""
    seed, data = mesh_lib.SEED, mesh_lib.DATA
    return Train._make((P(seed), P(), P(seed, data), store, P(seed), P(), P(seed)))


def build(
    algorithm: Algorithm,
    specs: Specs,
    *,
    mesh: Mesh,
    seeds: int,
    collection: Collection | None = None,
    diagnose: Diagnose | None = None,
    vary: Vary | None = None,
) -> Learner:
    """Compile-ready init and segment for ``seeds`` seeds, or members of a population.

    collection: None for a source that needs no environment (cloning). diagnose: numbers to add to those of the updates, once a
    segment (``diagnostics``). vary: makes a member's own method from its traced values, in place of ``algorithm`` and
    ``diagnose`` (``population``). Raises ValueError where environments, pool, batch or seeds do not divide over the devices.

    The segment is one program of two ``shard_map`` parts. Learning is checked (``check_vma``): a parameter that would come
    to differ between devices does not compile. Collecting takes no gradients and is not, since MJX cannot be typed so.
    """
    _check_divisible(algorithm, collection, mesh, seeds)
    seed, data = mesh_lib.SEED, mesh_lib.DATA
    layout = layout_of(algorithm.source.layout)
    pinned = mesh_lib.shardings(mesh, layout)
    rows = P(seed, None, data)

    def sharded(
        function: Callable[..., Any], in_specs: PyTree, out_specs: PyTree, *, check: bool
    ) -> Callable[..., Any]:
        mapped = jax.vmap(function, in_axes=mesh_lib.vmap_axes(in_specs), out_axes=mesh_lib.vmap_axes(out_specs))
        return jax.shard_map(mapped, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check)

    member: Vary = vary or (lambda values: (algorithm, diagnose))
    start = sharded(partial(initial, member, specs, collection), (P(seed), P(), P(seed)), layout, check=False)
    start = jax.jit(start, out_shardings=pinned)
    warmup = collection.warmup if collection else 0
    updates = partial(_learn, member, warmup)
    learn = sharded(updates, (layout._replace(env=P()), rows, P(seed)), (P(seed), layout.store, P(seed)), check=True)

    def segment(train: Train) -> tuple[Train, dict[str, Array]]:
        keys = _Keys(*jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, len(_Keys._fields)))(train.key), 1, 0))
        workers, collected, metrics = train.env, None, {}
        if collection is not None:
            rollouts = partial(_collect, member, collection)
            collect = sharded(rollouts, (layout, P(seed)), (layout.env, rows, P(seed)), check=False)
            workers, collected, episodes = collect(train._replace(store=None), keys.collect)
            metrics = {f"episode/{name}": value for name, value in episodes._asdict().items()}
        state, store, learned = learn(train._replace(env=None, key=keys.following), collected, keys)
        metrics |= {f"train/{name}": value for name, value in learned.items()}
        return Train(state, train.base, workers, store, keys.following, train.clock + 1, train.values), metrics

    def init(seeds: Array, pretrained: PyTree, values: PyTree | None = None) -> Train:
        train = start(seeds, pretrained, values or {})
        if collection is not None:
            return train
        return train._replace(store=jax.device_put(algorithm.source.init(None), pinned.store))

    out = (pinned, mesh_lib.shardings(mesh, P(seed)))
    return Learner(init, jax.jit(segment, donate_argnums=0, in_shardings=(pinned,), out_shardings=out), layout, mesh)


def _check_divisible(algorithm: Algorithm, collection: Collection | None, mesh: Mesh, seeds: int) -> None:
    parts, groups = mesh.shape[mesh_lib.DATA], mesh.shape[mesh_lib.SEED]
    if seeds % groups:
        raise ValueError(f"seeds is {seeds}; it must be a multiple of the {groups} devices of the seed axis.")
    sizes = {"batch_size": algorithm.source.batch_size}
    if collection is not None:
        sizes |= {"rollout.envs": collection.envs, "rollout.pool": collection.pool}
    for name, size in sizes.items():
        if size < 1 or size % parts:
            raise ValueError(
                f"{name} is {size}; it must be a positive multiple of the {parts} devices of the data axis."
            )


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

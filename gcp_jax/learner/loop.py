"""The one compiled loop: collect → source → updates, for any Algorithm, over (seed, data) devices.

``segment(Train) -> (Train, metrics)`` is two programs, jitted once and donated: collecting steps environments and takes no
gradients, learning takes gradients and steps none, and a CPU wants them compiled differently (``compiling``). Seeds are vmapped inside ``shard_map`` (one alone is not: ``mesh.each_seed``); what all seeds
share (the clock, a dataset) carries no seed axis, so that the ring is written by a slice and the warm-up is a true branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gcp_jax import mesh as mesh_lib
from gcp_jax.learner import nonfinite, rollout, xla_options
from gcp_jax.types import Algorithm, Array, PyTree, Segment, Specs, Step, Train

RUN_STREAM = 0x67637021  # all keys of training derive from it; evaluation has a stream of its own


Diagnose = Callable[
    [PyTree, PyTree, Segment, Array], dict[str, Array]
]  # (state, base, segment, key) -> metrics
MemberFn = Callable[
    [PyTree], tuple[Algorithm, Diagnose | None]
]  # (values of one member) -> its method and its diagnostics


class CollectConfig(NamedTuple):
    """How segments are collected, sizes over all devices: N environments, L chunk rows, R pooled fresh states."""

    env: Any
    envs: int
    length: int
    pool: int
    warmup: int = 0  # segments before the first update


class Learner(NamedTuple):
    """The programs of a method.

    init:    (seed indices [S], pretrained, values {field: [S]} = {}) -> Train
    collect: (Train.env, the Train without env and store) -> (env, rows, metrics [S]); None where nothing is collected
    learn:   (the Train without env, rows) -> (Train, metrics [S])
    """

    init: Callable[..., Train]
    collect: Any
    learn: Any
    layout: Train
    mesh: Mesh

    def segment(self, train: Train) -> tuple[Train, dict[str, Array]]:
        """Collect and learn once; ``train`` is consumed."""
        workers, rows, episodes = train.env, None, {}
        train = train._replace(env=None)
        if self.collect is not None:
            workers, rows, episodes = self.collect(workers, train._replace(store=None))
        train, learned = self.learn(train, rows)
        return train._replace(env=workers), episodes | learned

    def compile(self, train: Train, options: Mapping[str, Any] | None = None) -> Learner:
        """The same with both programs compiled for a Train like this; ``options`` go before those of ``compiling``."""
        chosen, workers, rows, collect = options or {}, train.env, None, None
        train = train._replace(env=None)
        if self.collect is not None:
            lowered = self.collect.lower(workers, train._replace(store=None))
            _, rows, _ = lowered.out_info
            collect = lowered.compile({**xla_options.physics_options(), **chosen})
        learn = self.learn.lower(train, rows).compile({**xla_options.learning_options(), **chosen})
        return self._replace(collect=collect, learn=learn)


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


def initial_train_state(
    member: MemberFn,
    specs: Specs,
    collection: CollectConfig | None,
    seed: Array,
    pretrained: PyTree,
    values: PyTree,
) -> Train:
    """The Train of one seed (its part on this device): networks, environments at their starts, an empty store."""
    algorithm, _ = member(values)
    key, init_key, env_key = jax.random.split(seed_key(seed), 3)
    state = algorithm.init(init_key, pretrained)
    if collection is None:
        return Train(state, pretrained, None, None, key, jnp.int32(0), values)
    local = collection.envs // mesh_lib.data_size()
    item = segment_item(specs, lambda obs: algorithm.act(state, obs, init_key), local)
    workers = rollout.reset_envs(collection.env, env_key, local)
    return Train(state, pretrained, workers, algorithm.source.init(item), key, jnp.int32(0), values)


class Keys(NamedTuple):
    """The keys of one segment, each used once."""

    next: Array
    collect: Array
    source: Array
    update: Array
    diagnose: Array

    @classmethod
    def of(cls, key: Array) -> Keys:
        """Of one seed, from the key its Train carries."""
        return cls(*jax.random.split(key, len(cls._fields)))


def _collect(
    member: MemberFn, collection: CollectConfig, workers: rollout.EnvState, train: Train
) -> tuple[PyTree, Segment, dict[str, Array]]:
    """One seed's segment of experience by the current policy."""
    algorithm, _ = member(train.values)
    act, key = partial(algorithm.act, train.state), Keys.of(train.key).collect
    workers, rows, episodes = rollout.collect(
        collection.env, act, workers, key, length=collection.length, pool=collection.pool
    )
    return workers, rows, {f"episode/{name}": value for name, value in episodes._asdict().items()}


def _learn(
    member: MemberFn, warmup: int, train: Train, rows: Segment | None
) -> tuple[Train, dict[str, Array]]:
    """One seed's updates from its source."""
    algorithm, diagnose = member(train.values)
    clock, keys = train.clock, Keys.of(train.key)
    state, store, batches, rows = sample_batches(algorithm, train, rows, keys)
    update_keys = jax.random.split(keys.update, algorithm.source.updates)
    ready = clock >= warmup if warmup else None
    state, metrics = _updates(algorithm, state, batches, update_keys, ready)
    if diagnose is not None and rows is not None:
        metrics |= diagnose(state, train.base, rows, keys.diagnose)
    train = train._replace(state=state, store=store, key=keys.next, clock=clock + 1)
    return train, {f"train/{name}": value for name, value in metrics.items()}


def sample_batches(
    algorithm: Algorithm, train: Train, rows: Segment | None, keys: Keys
) -> tuple[PyTree, PyTree, PyTree, Segment | None]:
    """What one seed's updates begin with: (state, store, batches [U, …], rows)."""
    state = train.state
    if rows is not None:
        prepared, rows = algorithm.preprocess_segment(state, rows)
        state, _ = nonfinite.keep_if_finite(state, prepared)
    store, batches = algorithm.source.step(train.store, rows, keys.source, train.clock)
    return state, store, batches, rows


def layout_of(store: PyTree) -> Any:
    """A ``Train`` of PartitionSpecs; ``store`` is the source's part."""
    seed, data = mesh_lib.SEED, mesh_lib.DATA
    return Train._make((P(seed), P(), P(seed, data), store, P(seed), P(), P(seed)))


def build_learner(
    algorithm: Algorithm,
    specs: Specs,
    *,
    mesh: Mesh,
    seeds: int,
    collection: CollectConfig | None = None,
    diagnose: Diagnose | None = None,
    vary: MemberFn | None = None,
) -> Learner:
    """Compile-ready init and segment for ``seeds`` seeds, or members of a population.

    collection: None for a source that needs no environment (cloning). diagnose: numbers to add to those of the updates, once a
    segment (``diagnostics``). vary: makes a member's own method from its traced values, in place of ``algorithm`` and
    ``diagnose`` (``population``). Raises ValueError where environments, pool, batch or seeds do not divide over the devices.

    Learning is checked (``check_vma``): a parameter that would come
    to differ between devices does not compile. Collecting takes no gradients and is not, since MJX cannot be typed so.
    """
    seed, data = mesh_lib.SEED, mesh_lib.DATA
    layout = layout_of(algorithm.source.layout)
    alone = mesh_lib.require_divisible("seeds", seeds, mesh.shape[seed], seed)
    mesh_lib.require_divisible("batch_size", algorithm.source.batch_size, mesh.shape[data])
    if collection is not None:
        for name in ("envs", "pool"):
            mesh_lib.require_divisible(
                f"rollout.{name}", getattr(collection, name), mesh.shape[data]
            )
    pinned = mesh_lib.shardings(mesh, layout)
    rows = P(seed, None, data)

    def sharded(
        function: Callable[..., Any], in_specs: PyTree, out_specs: PyTree, *, check: bool
    ) -> Callable[..., Any]:
        each = mesh_lib.vmap_seeds(function, in_specs, out_specs, alone)
        return jax.shard_map(
            each, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check
        )

    member: MemberFn = vary or (lambda values: (algorithm, diagnose))

    def program(
        function: Callable[..., Any], in_specs: PyTree, out_specs: PyTree, *, check: bool
    ) -> Any:
        mapped = sharded(function, in_specs, out_specs, check=check)
        placed = (mesh_lib.shardings(mesh, specs) for specs in (in_specs, out_specs))
        return jax.jit(
            mapped,
            donate_argnums=0,
            **dict(zip(("in_shardings", "out_shardings"), placed, strict=True)),
        )

    start = sharded(
        partial(initial_train_state, member, specs, collection),
        (P(seed), P(), P(seed)),
        layout,
        check=False,
    )
    start = jax.jit(start, out_shardings=pinned)
    collect = None
    if collection is not None:
        arguments = (layout.env, layout._replace(env=P(), store=P()))
        collect = program(
            partial(_collect, member, collection),
            arguments,
            (layout.env, rows, P(seed)),
            check=False,
        )
    without = layout._replace(env=P())
    warmup = collection.warmup if collection else 0
    learn = program(
        partial(_learn, member, warmup), (without, rows), (without, P(seed)), check=True
    )

    def init(seeds: Array, pretrained: PyTree, values: PyTree | None = None) -> Train:
        train = start(seeds, pretrained, values or {})
        if collection is not None:
            return train
        return train._replace(store=jax.device_put(algorithm.source.init(None), pinned.store))

    return Learner(init, collect, learn, layout, mesh)


def _updates(
    algorithm: Algorithm, state: PyTree, batches: PyTree, keys: Array, ready: Array | None
) -> tuple[PyTree, dict[str, Array]]:
    """Scan ``update`` over the batches; the mean of its metrics over updates and devices, and its ``faults``. Gradients that are not
    finite were not followed (``mesh.descend``); where a number of the state is not for another reason, no update is taken. Where the scalar ``ready`` is False, nothing is updated and all numbers are 0."""

    def one(state: PyTree, inputs: tuple[PyTree, Array]) -> tuple[PyTree, Any]:
        state, metrics = algorithm.update(state, *inputs)
        return state, (metrics, nonfinite.first_nonfinite_flags(metrics))

    def run(state: PyTree) -> tuple[PyTree, dict[str, Array]]:
        new, (metrics, broken) = jax.lax.scan(one, state, (batches, keys))
        means, broken = mesh_lib.all_mean((jax.tree.map(nonfinite.mean_of_finite, metrics), broken))
        state, lost = nonfinite.keep_if_finite(state, new)
        return state, means | nonfinite.nonfinite_summary(broken, lost)

    if ready is None:
        return run(state)
    zeros = jax.tree.map(mesh_lib.seed_zeros, jax.eval_shape(run, state)[1])

    def trained(state: PyTree) -> tuple[PyTree, dict[str, Array]]:
        state, metrics = run(state)
        return state, jax.tree.map(jnp.add, zeros, metrics)

    return jax.lax.cond(ready, trained, lambda state: (state, zeros), state)

"""The compiled loop: collect a segment, sample batches, update; for any ``Algorithm``.

A segment of training is two jitted programs. One steps environments and takes no gradients, the
other takes gradients and steps no environment; a CPU needs different compiler options for them
(``xla_options``). Both are sharded over the axes "seed" and "data", and vmapped over the seeds of
each device. What all seeds share, the clock or a dataset, has no seed axis: the replay is then
written by one slice, and the warm-up is a true branch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from gcp_jax import mesh as mesh_lib
from gcp_jax.learner import nonfinite, rollout, updates, xla_options
from gcp_jax.types import (
    Algorithm,
    Array,
    LearnerState,
    Metrics,
    PRNGKey,
    PyTree,
    Segment,
    Specs,
    Step,
    Train,
    VectorEnv,
)

SEGMENT_SPEC = P(mesh_lib.SEED, None, mesh_lib.DATA)  # leaves [S, L, N, ...]
RUN_STREAM = 0x67637021  # all keys of training derive from it; evaluation has a stream of its own

# (algorithm state, base policy, segment, key) -> metrics
Diagnose = Callable[[PyTree, PyTree, Segment, PRNGKey], Metrics]
# (values of one member of a population) -> its method and its diagnostics
MemberFn = Callable[[PyTree], tuple[Algorithm, Diagnose | None]]


class CollectConfig(NamedTuple):
    """How segments are collected; sizes over all devices."""

    env: VectorEnv
    envs: int  # N
    unroll_chunks: int  # L
    reset_pool: int  # R: fresh start states of a segment, for the environments that finish
    warmup_segments: int = 0  # before the first update


class CollectInputs(NamedTuple):
    """What collecting reads of a ``LearnerState``, leaves [S, ...]; it changes none of it."""

    state: PyTree  # of the algorithm
    key: PRNGKey
    values: PyTree

    @classmethod
    def of(cls, learner: LearnerState) -> CollectInputs:
        """Take the three fields."""
        return cls(state=learner.state, key=learner.key, values=learner.values)


class Learner(NamedTuple):
    """The two programs of a method, and how its state starts and is placed."""

    # (seed indices [S], pretrained policy, values {field: [S]}) -> Train without the data
    start: Callable[..., Train]
    # (env_state, CollectInputs) -> (env_state, Segment, metrics [S]); None if nothing is collected
    collect: Any
    # (LearnerState, Segment | None) -> (LearnerState, metrics [S])
    learn: Any
    partition_spec: Train  # of PartitionSpecs
    mesh: Mesh
    data: PyTree  # of the batch source, on the host

    def init(self, seeds: ArrayLike, pretrained: PyTree, values: PyTree | None = None) -> Train:
        """The initial ``Train``.

        Args:
          seeds: seed indices [S].
          pretrained: the policy that training starts from.
          values: the members' hyper-parameters, {field: [S]}.
        """
        return self.with_data(self.start(seeds, pretrained, values or {}))

    def with_data(self, train: Train) -> Train:
        """``train`` with the data of the batch source, on the devices."""
        shardings = mesh_lib.shardings(self.mesh, self.partition_spec.learner.data)
        data = jax.device_put(self.data, shardings)
        return train._replace(learner=train.learner._replace(data=data))

    def segment(self, train: Train) -> tuple[Train, Metrics]:
        """Collect and learn once; the buffers of ``train`` are donated."""
        env_state = train.env_state
        segment = None
        episode_metrics: Metrics = {}
        if self.collect is not None:
            inputs = CollectInputs.of(train.learner)
            env_state, segment, episode_metrics = self.collect(env_state, inputs)
        learner, learning_metrics = self.learn(train.learner, segment)
        train = Train(env_state=env_state, learner=learner)
        return train, episode_metrics | learning_metrics

    def compile(self, train: Train, options: Mapping[str, Any] | None = None) -> Learner:
        """Compile both programs for a ``Train`` of these shapes.

        Args:
          train: the shapes; nothing is run.
          options: compiler options that override those of ``xla_options``.
        """
        options = options or {}
        collect = None
        segment = None
        if self.collect is not None:
            lowered = self.collect.lower(train.env_state, CollectInputs.of(train.learner))
            _, segment, _ = lowered.out_info
            collect = lowered.compile({**xla_options.physics_options(), **options})
        lowered = self.learn.lower(train.learner, segment)
        learn = lowered.compile({**xla_options.learning_options(), **options})
        return self._replace(collect=collect, learn=learn)


def seed_key(seed: Array) -> PRNGKey:
    """The key of one run: it depends on the seed's index, not on the other seeds."""
    return jax.random.fold_in(jax.random.key(RUN_STREAM), seed)


def segment_item(specs: Specs, act: Callable[[Array], tuple[Array, PyTree]], envs: int) -> Segment:
    """A segment of one row of zeros, for its shapes; no physics is run.

    Args:
      specs: sizes of observations and chunks.
      act: obs [N, O] -> (chunk, extras); it is traced only.
      envs: N on this device.
    """
    row = (1, envs, specs.chunk)
    floats = jnp.zeros(row)
    flags = jnp.zeros(row, bool)
    obs = jnp.zeros((*row, specs.obs_dim))
    _, extras = jax.eval_shape(act, jax.ShapeDtypeStruct((envs, specs.obs_dim), jnp.float32))
    steps = Step(
        obs=obs,
        action=jnp.zeros((*row, specs.action_dim)),
        reward=floats,
        next_obs=obs,
        terminated=flags,
        truncated=flags,
        success=flags,
        executed=flags,
    )
    extras = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), extras)
    return Segment(steps=steps, extras=extras)


def initial_train_state(
    member: MemberFn,
    specs: Specs,
    collection: CollectConfig | None,
    seed: Array,
    pretrained: PyTree,
    values: PyTree,
) -> Train:
    """The ``Train`` of one seed without the data, its part on this device.

    Without a collection ``env_state`` and ``buffer_state`` are None.
    """
    algorithm, _ = member(values)
    key, init_key, env_key = jax.random.split(seed_key(seed), 3)
    state = algorithm.init(init_key, pretrained)
    env_state = None
    buffer_state = None
    if collection is not None:
        local_envs = collection.envs // mesh_lib.data_size()
        item = segment_item(specs, lambda obs: algorithm.act(state, obs, init_key), local_envs)
        env_state = rollout.reset_envs(collection.env, env_key, local_envs)
        buffer_state = algorithm.source.init(item)
    learner = LearnerState(
        state=state,
        base=pretrained,
        buffer_state=buffer_state,
        data=None,
        key=key,
        clock=jnp.int32(0),
        values=values,
    )
    return Train(env_state=env_state, learner=learner)


def _collect(
    member: MemberFn, collection: CollectConfig, env_state: rollout.EnvState, inputs: CollectInputs
) -> tuple[rollout.EnvState, Segment, Metrics]:
    """Collect one seed's segment with its current policy."""
    algorithm, _ = member(inputs.values)
    env_state, segment, episodes = rollout.collect(
        collection.env,
        partial(algorithm.act, inputs.state),
        env_state,
        updates.Keys.for_collect(inputs.key),
        unroll_chunks=collection.unroll_chunks,
        reset_pool=collection.reset_pool,
    )
    metrics = {f"episode/{name}": value for name, value in episodes._asdict().items()}
    return env_state, segment, metrics


def _learn(
    member: MemberFn, warmup_segments: int, learner: LearnerState, segment: Segment | None
) -> tuple[LearnerState, Metrics]:
    """Take one seed's updates of a segment."""
    algorithm, diagnose = member(learner.values)
    keys = updates.Keys.for_learn(learner.key)
    sampled = updates.sample_batches(algorithm, learner, segment, keys)
    update_keys = jax.random.split(keys.update, algorithm.source.updates)
    ready = None
    if warmup_segments:
        ready = learner.clock >= warmup_segments
    state, metrics = updates.update_if_ready(
        algorithm, sampled.state, sampled.batches, update_keys, ready
    )
    if diagnose is not None and sampled.segment is not None:
        diagnostics = diagnose(state, learner.base, sampled.segment, keys.diagnose)
        metrics |= nonfinite.flag_missing(diagnostics)
    learner = learner._replace(
        state=state,
        buffer_state=sampled.buffer_state,
        key=keys.next,
        clock=learner.clock + 1,
    )
    return learner, {f"{nonfinite.PREFIX}{name}": value for name, value in metrics.items()}


def train_partition_spec(buffer_state: PyTree) -> Train:
    """PartitionSpecs of a ``Train``, a prefix of it, given those of the source's buffer."""
    per_seed: Any = P(mesh_lib.SEED)
    shared: Any = P()
    learner = LearnerState(
        state=per_seed,
        base=shared,
        buffer_state=buffer_state,
        data=shared,
        key=per_seed,
        clock=shared,
        values=per_seed,
    )
    return Train(env_state=P(mesh_lib.SEED, mesh_lib.DATA), learner=learner)


@dataclasses.dataclass(frozen=True)
class _Placement:
    """Maps functions of one seed to programs over all devices."""

    mesh: Mesh
    seeds_per_device: int

    def shard(
        self, function: Callable[..., Any], in_specs: PyTree, out_specs: PyTree, *, check_vma: bool
    ) -> Callable[..., Any]:
        """Vmap over the seeds of a device and ``shard_map`` over devices."""
        mapped = mesh_lib.vmap_seeds(function, in_specs, out_specs, self.seeds_per_device)
        return jax.shard_map(
            mapped, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma
        )

    def jit(
        self, function: Callable[..., Any], in_specs: PyTree, out_specs: PyTree, *, check_vma: bool
    ) -> Any:
        """``shard`` and jit; the buffers of the first argument are donated."""
        return jax.jit(
            self.shard(function, in_specs, out_specs, check_vma=check_vma),
            donate_argnums=0,
            in_shardings=mesh_lib.shardings(self.mesh, in_specs),
            out_shardings=mesh_lib.shardings(self.mesh, out_specs),
        )


def without_data(train: Train) -> Train:
    """What a checkpoint holds: everything but the data of the batch source, which is read again."""
    return train._replace(learner=train.learner._replace(data=None))


def _make_start(
    member: MemberFn,
    specs: Specs,
    collection: CollectConfig | None,
    placement: _Placement,
    partition_spec: Train,
) -> Callable[..., Train]:
    """``Learner.start``: the initial ``Train`` of all seeds."""
    start = placement.shard(
        partial(initial_train_state, member, specs, collection),
        (P(mesh_lib.SEED), P(), P(mesh_lib.SEED)),
        partition_spec,
        check_vma=False,
    )
    return jax.jit(start, out_shardings=mesh_lib.shardings(placement.mesh, partition_spec))


def _make_collect(
    member: MemberFn,
    collection: CollectConfig | None,
    placement: _Placement,
    partition_spec: Train,
) -> Any:
    """``Learner.collect``."""
    if collection is None:
        return None
    return placement.jit(
        partial(_collect, member, collection),
        in_specs=(partition_spec.env_state, CollectInputs.of(partition_spec.learner)),
        out_specs=(partition_spec.env_state, SEGMENT_SPEC, P(mesh_lib.SEED)),
        check_vma=False,
    )


def _check_divisible(mesh: Mesh, algorithm: Algorithm, collection: CollectConfig | None) -> None:
    devices = mesh.shape[mesh_lib.DATA]
    mesh_lib.require_divisible("batch_size", algorithm.source.batch_size, devices)
    if collection is not None:
        mesh_lib.require_divisible("finetune.envs", collection.envs, devices)
        mesh_lib.require_divisible("finetune.reset_pool", collection.reset_pool, devices)


def build_learner(
    algorithm: Algorithm,
    specs: Specs,
    *,
    mesh: Mesh,
    seeds: int,
    collection: CollectConfig | None = None,
    diagnose: Diagnose | None = None,
    member_fn: MemberFn | None = None,
) -> Learner:
    """Build the programs of a method; they compile at the first call.

    The learning program is checked by ``check_vma``: a parameter that could differ between the
    devices of one seed does not compile. The collecting program takes no gradients and is not
    checked, because MJX cannot be typed in this way.

    Args:
      algorithm: the method.
      specs: sizes of observations and chunks.
      mesh: the devices.
      seeds: number of seeds, or of members of a population.
      collection: how segments are collected; None if the source needs no environment (cloning).
      diagnose: metrics to add to those of the updates, once per segment.
      member_fn: makes the method of one member of a population from its traced values, instead of
        ``algorithm`` and ``diagnose``.

    Raises:
      ValueError: seeds, environments, pool or batch cannot be divided over the devices.
    """
    seeds_per_device = mesh_lib.require_divisible(
        "seeds", seeds, mesh.shape[mesh_lib.SEED], mesh_lib.SEED
    )
    _check_divisible(mesh, algorithm, collection)
    placement = _Placement(mesh=mesh, seeds_per_device=seeds_per_device)
    partition_spec = train_partition_spec(algorithm.source.partition_spec)

    def same_member(values: PyTree) -> tuple[Algorithm, Diagnose | None]:
        return algorithm, diagnose

    member = member_fn or same_member
    warmup_segments = collection.warmup_segments if collection else 0
    learn = placement.jit(
        partial(_learn, member, warmup_segments),
        in_specs=(partition_spec.learner, SEGMENT_SPEC),
        out_specs=(partition_spec.learner, P(mesh_lib.SEED)),
        check_vma=True,
    )
    return Learner(
        start=_make_start(member, specs, collection, placement, partition_spec),
        collect=_make_collect(member, collection, placement, partition_spec),
        learn=learn,
        partition_spec=partition_spec,
        mesh=mesh,
        data=algorithm.source.data,
    )

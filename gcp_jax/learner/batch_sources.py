"""Sources of minibatches: replay, dataset, on-policy, and mixtures; each a ``BatchSource``."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gcp_jax import mesh
from gcp_jax.core import returns
from gcp_jax.core.demonstrations import Demonstrations
from gcp_jax.learner.ring import (
    Ring,
    RingOrder,
    returns_to_go,
    ring_write,
    sample_start,
    sample_success,
    success_counts,
    window_steps,
)
from gcp_jax.types import (
    Array,
    Batch,
    BatchSource,
    PRNGKey,
    PyTree,
    Segment,
    Step,
)


@dataclasses.dataclass(frozen=True)
class _Replay:
    """Uniform replay of h-step windows; ``replay`` describes the fields."""

    capacity: int
    batch_size: int
    updates: int
    gamma: float
    success: bool
    to_go: bool
    aligned: bool

    def init(self, item: Segment) -> Ring:
        """An empty ring, from a segment of one row."""

        def zeros(x: Array) -> Array:
            return jnp.zeros((self.capacity, *x.shape[1:]), x.dtype)

        return Ring(steps=jax.tree.map(zeros, item.steps), extras=jax.tree.map(zeros, item.extras))

    def step(
        self, buffer_state: Ring, data: None, segment: Segment, key: PRNGKey, clock: Array
    ) -> tuple[Ring, Batch]:
        """Write a segment and sample the batches of its updates, leaves [U, B, ...]."""
        ring = ring_write(buffer_state, segment, clock)
        length = segment.steps.reward.shape[0]
        order = RingOrder.after_write(clock, length, self.capacity)
        counts = success_counts(ring.steps, order) if self.success else None
        to_go = returns_to_go(ring.steps, order, self.gamma) if self.to_go else None
        keys = jax.random.split(key, self.updates)
        batches = jax.vmap(lambda k: self._sample(ring, order, counts, to_go, k))(keys)
        return ring, _with_mean_weight_one(batches)

    def _sample(
        self,
        ring: Ring,
        order: RingOrder,
        counts: Array | None,
        to_go: Array | None,
        key: PRNGKey,
    ) -> Batch:
        """Sample one batch, its part on this device."""
        count = self.batch_size // mesh.data_size()
        uniform_key, success_key = jax.random.split(key)
        start = sample_start(ring.steps, order, uniform_key, count, aligned=self.aligned)
        extras: PyTree = {}
        if self.aligned:
            extras = jax.tree.map(lambda x: x[start.row, start.column], ring.extras)
        window = window_steps(ring.steps, start)
        batch = Batch(transitions=returns.fold_chunk(window, self.gamma, extras))
        if to_go is not None:
            batch = batch._replace(return_to_go=to_go[start.row, start.column, start.offset])
        if counts is None:
            return batch
        success, weight = sample_success(
            ring.steps, counts, success_key, batch.transitions, self.gamma
        )
        return batch._replace(success=success, success_weight=weight)


def replay(
    *,
    capacity: int,
    batch_size: int,
    updates: int,
    gamma: float,
    success: bool = False,
    to_go: bool = False,
    aligned: bool = False,
) -> BatchSource:
    """Sample uniformly from a replay of h-step windows.

    Args:
      capacity: T, chunk rows of a column; a multiple of the segment length L.
      batch_size: B over all devices.
      updates: U, batches of a segment.
      gamma: discount of one environment step.
      success: also sample B transitions of successful episodes.
      to_go: also return the discounted return to go.
      aligned: windows start at chunk starts, so that a chunk's extras belong to its transition;
        otherwise at any executed step, without extras.
    """
    source = _Replay(
        capacity=capacity,
        batch_size=batch_size,
        updates=updates,
        gamma=gamma,
        success=success,
        to_go=to_go,
        aligned=aligned,
    )
    return BatchSource(
        init=source.init,
        step=source.step,
        partition_spec=P(mesh.SEED, None, mesh.DATA),
        updates=updates,
        batch_size=batch_size,
    )


def _with_mean_weight_one(batches: Batch) -> Batch:
    """Divide ``success_weight`` [U, B] by its mean over the batch of all devices."""
    weight = batches.success_weight
    if weight is None:
        return batches
    mean = mesh.all_mean(jnp.mean(weight, -1, keepdims=True))
    return batches._replace(success_weight=weight / jnp.maximum(mean, 1e-6))


class Dataset(NamedTuple):
    """Demonstrations on the device."""

    steps: Step  # leaves [S, ...]
    end: Any  # [S] int32: for each step, one past the last step of its episode


def dataset_windows(data: Dataset, start: Array, chunk: int) -> Step:
    """The windows of ``chunk`` steps from steps ``start`` [B], leaves [B, h, ...].

    A window that would reach beyond its episode repeats the last step, not executed.
    """
    position = start[:, None] + jnp.arange(chunk, dtype=jnp.int32)[None]
    end = data.end[start][:, None]
    window: Step = jax.tree.map(lambda x: x[jnp.minimum(position, end - 1)], data.steps)
    return window._replace(executed=position < end)


def dataset_returns_to_go(data: Dataset, gamma: float) -> Array:
    """[S] discounted return from each step to its episode's end; NaN if that did not terminate."""
    step = jnp.arange(len(data.end), dtype=jnp.int32)
    decay = gamma * (step + 1 < data.end).astype(jnp.float32)

    def join(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] * later[0], earlier[1] + earlier[0] * later[1]

    _, total = jax.lax.associative_scan(join, (decay, data.steps.reward), reverse=True)
    return jnp.where(data.steps.terminated[data.end - 1], total, jnp.nan)


def uniform_steps(key: PRNGKey, count: int, steps: int) -> Array:
    """Draw ``count`` of ``steps`` steps, each equally likely, [count] int32."""
    keys = mesh.sample_keys(key, count)
    return jax.vmap(lambda k: jax.random.randint(k, (), 0, steps, jnp.int32))(keys)


@dataclasses.dataclass(frozen=True)
class _Demonstrated:
    """Uniform windows of demonstrations; ``dataset`` describes the fields."""

    chunk: int
    batch_size: int
    updates: int
    gamma: float
    to_go: bool

    def step(
        self,
        buffer_state: None,
        data: Dataset,
        segment: Segment | None,
        key: PRNGKey,
        clock: Array,
    ) -> tuple[None, Batch]:
        """Sample the batches of a segment, leaves [U, B, ...]."""
        to_go = dataset_returns_to_go(data, self.gamma) if self.to_go else None
        keys = jax.random.split(key, self.updates)
        return None, jax.vmap(lambda k: self._sample(data, to_go, k))(keys)

    def _sample(self, data: Dataset, to_go: Array | None, key: PRNGKey) -> Batch:
        """Sample one batch, its part on this device."""
        start = uniform_steps(key, self.batch_size // mesh.data_size(), len(data.end))
        window = dataset_windows(data, start, self.chunk)
        return Batch(
            transitions=returns.fold_chunk(window, self.gamma),
            return_to_go=None if to_go is None else to_go[start],
        )


def dataset(
    demonstrations: Demonstrations,
    *,
    chunk: int,
    batch_size: int,
    updates: int,
    gamma: float,
    to_go: bool = False,
) -> BatchSource:
    """Sample windows of h steps, from any step of demonstrations with equal probability.

    The demonstrations are shared by all seeds and devices. They are the source's ``data``.

    Args:
      demonstrations: at least one step.
      chunk: h.
      batch_size: B over all devices.
      updates: U, batches of a segment.
      gamma: discount of one environment step.
      to_go: also return the discounted return to go.
    """
    source = _Demonstrated(
        chunk=chunk, batch_size=batch_size, updates=updates, gamma=gamma, to_go=to_go
    )
    return BatchSource(
        init=lambda item: None,
        step=source.step,
        partition_spec=P(),
        updates=updates,
        batch_size=batch_size,
        data=Dataset(steps=demonstrations.steps, end=demonstrations.end),
    )


def on_policy(
    *, epochs: int, minibatches: int, rows: int, columns: int, gamma: float
) -> BatchSource:
    """Use each segment by itself; nothing is kept.

    A minibatch has L/minibatches rows of every column, in an order drawn per column and epoch.

    Args:
      epochs: passes over a segment.
      minibatches: parts of a segment.
      rows: L, chunk rows of a segment.
      columns: N over all devices.
      gamma: discount of one environment step.

    Raises:
      ValueError: ``minibatches`` does not divide ``rows``.
    """
    if rows % minibatches:
        raise ValueError(
            f"minibatches is {minibatches}, which does not divide the segment length {rows}; "
            "choose a divisor."
        )

    def permuted_rows(key: PRNGKey, columns: int) -> Array:
        """[minibatches, rows / minibatches, columns], for one epoch."""
        permute = jax.vmap(lambda k: jax.random.permutation(k, rows), out_axes=1)
        permutation = permute(mesh.sample_keys(key, columns))
        return permutation.reshape(minibatches, rows // minibatches, columns)

    def step(
        buffer_state: None, data: None, segment: Segment, key: PRNGKey, clock: Array
    ) -> tuple[None, Batch]:
        transitions = returns.fold_chunk(segment.steps, gamma, segment.extras)
        local_columns = segment.steps.reward.shape[1]
        epoch_keys = jax.random.split(key, epochs)
        index = jax.vmap(lambda k: permuted_rows(k, local_columns))(epoch_keys)
        index = index.reshape(epochs * minibatches, -1, local_columns)
        column = jnp.arange(local_columns)[None, None]

        def take(x: Array) -> Array:
            return x[index, column].reshape(index.shape[0], -1, *x.shape[2:])

        return None, Batch(transitions=jax.tree.map(take, transitions))

    return BatchSource(
        init=lambda item: None,
        step=step,
        partition_spec=P(),
        updates=epochs * minibatches,
        batch_size=rows // minibatches * columns,
    )


def mix_sources(first: BatchSource, second: BatchSource) -> BatchSource:
    """Concatenate the batches of two sources, e.g. a replay and demonstrations.

    The view of successful episodes is that of ``first``.

    Raises:
      ValueError: the sources have different numbers of updates. When traced: only one of them
        gives returns to go.
    """
    if first.updates != second.updates:
        raise ValueError(
            "Mixed sources must give the same number of updates; "
            f"got {first.updates} and {second.updates}."
        )

    def step(
        buffer_state: PyTree, data: PyTree, segment: Segment, key: PRNGKey, clock: Array
    ) -> tuple[PyTree, Batch]:
        first_key, second_key = jax.random.split(key)
        first_state, one = first.step(buffer_state[0], data[0], segment, first_key, clock)
        second_state, two = second.step(buffer_state[1], data[1], segment, second_key, clock)
        if (one.return_to_go is None) != (two.return_to_go is None):
            raise ValueError(
                "Only one of two mixed sources gives returns to go; make both with the same to_go."
            )

        def side_by_side(x: Array, y: Array) -> Array:
            return jnp.concatenate([x, y], axis=1)

        batch = one._replace(
            transitions=jax.tree.map(side_by_side, one.transitions, two.transitions),
            return_to_go=jax.tree.map(side_by_side, one.return_to_go, two.return_to_go),
        )
        return (first_state, second_state), batch

    return BatchSource(
        init=lambda item: (first.init(item), second.init(item)),
        step=step,
        partition_spec=(first.partition_spec, second.partition_spec),
        updates=first.updates,
        batch_size=first.batch_size + second.batch_size,
        data=(first.data, second.data),
    )

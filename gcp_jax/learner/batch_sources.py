"""Sources of minibatches: replay, dataset, on-policy, and mixtures; each a ``BatchSource``."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from gcp_jax import mesh
from gcp_jax.core import returns
from gcp_jax.learner.ring import (
    Ring,
    RingOrder,
    WindowStart,
    randint_from_uniform,
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
        self, buffer_state: Ring, segment: Segment, key: PRNGKey, clock: Array
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


class Windows(NamedTuple):
    """Demonstrations as chunk rows."""

    steps: Step  # leaves [T, N, h, ...]
    starts: Any  # [V, 3] int32: (row, column, offset) of every executed step


def chunk_windows(steps: Step, chunk: int) -> Windows:
    """Arrange demonstrated steps in chunk rows, in numpy on the host.

    Args:
      steps: time-major steps [T, N, ...]; they are padded with steps that were not executed.
      chunk: h.
    """
    steps = jax.tree.map(np.asarray, steps)
    padding = -len(steps.reward) % chunk

    def to_rows(x: np.ndarray) -> np.ndarray:
        x = np.concatenate([x, np.zeros((padding, *x.shape[1:]), x.dtype)])
        return np.moveaxis(x.reshape(-1, chunk, *x.shape[1:]), 1, 2)

    rows = jax.tree.map(to_rows, steps)
    return Windows(steps=rows, starts=np.argwhere(rows.executed).astype(np.int32))


def dataset(data: Windows, *, batch_size: int, updates: int, gamma: float) -> BatchSource:
    """Sample uniformly from the executed steps of demonstrations.

    The demonstrations are shared by all seeds and devices.

    Args:
      data: the demonstrations.
      batch_size: B over all devices.
      updates: U, batches of a segment.
      gamma: discount of one environment step.

    Raises:
      ValueError: there is no executed step.
    """
    if not len(data.starts):
        raise ValueError(
            "The demonstrations hold no executed step; generate or load at least one episode."
        )

    def sample(buffer_state: Windows, key: PRNGKey) -> Batch:
        keys = mesh.sample_keys(key, batch_size // mesh.data_size())
        uniform = jax.vmap(jax.random.uniform)(keys)
        index = randint_from_uniform(uniform, jnp.int32(len(data.starts)))
        row, column, offset = jnp.moveaxis(buffer_state.starts[index], -1, 0)
        start = WindowStart(row=row, column=column, offset=offset)
        window = window_steps(buffer_state.steps, start)
        return Batch(transitions=returns.fold_chunk(window, gamma))

    def step(
        buffer_state: Windows, segment: Segment | None, key: PRNGKey, clock: Array
    ) -> tuple[Windows, Batch]:
        keys = jax.random.split(key, updates)
        return buffer_state, jax.vmap(lambda k: sample(buffer_state, k))(keys)

    return BatchSource(
        init=lambda item: data,
        step=step,
        partition_spec=P(),
        updates=updates,
        batch_size=batch_size,
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
        buffer_state: None, segment: Segment, key: PRNGKey, clock: Array
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
      ValueError: the sources have different numbers of updates.
    """
    if first.updates != second.updates:
        raise ValueError(
            "Mixed sources must give the same number of updates; "
            f"got {first.updates} and {second.updates}."
        )

    def step(
        buffer_state: PyTree, segment: Segment, key: PRNGKey, clock: Array
    ) -> tuple[PyTree, Batch]:
        first_key, second_key = jax.random.split(key)
        first_state, first_batch = first.step(buffer_state[0], segment, first_key, clock)
        second_state, second_batch = second.step(buffer_state[1], segment, second_key, clock)
        transitions = jax.tree.map(
            lambda x, y: jnp.concatenate([x, y], axis=1),
            first_batch.transitions,
            second_batch.transitions,
        )
        batch = first_batch._replace(transitions=transitions, return_to_go=None)
        return (first_state, second_state), batch

    return BatchSource(
        init=lambda item: (first.init(item), second.init(item)),
        step=step,
        partition_spec=(first.partition_spec, second.partition_spec),
        updates=first.updates,
        batch_size=first.batch_size + second.batch_size,
    )

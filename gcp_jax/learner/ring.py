"""The ring of a replay, and windows of h steps in it.

A ring has chunk rows [T, N, h, ...], time-major, to which each segment is written by one
``dynamic_update_slice``. Its head and size follow from the clock and are therefore the same number
for all seeds. A window of h steps may start at any executed step, because a column is contiguous
in time. Each sample takes its column from its position in the batch (a stratified draw), so that
columns and batch are split over devices alike, and the draw does not depend on their number.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import mesh
from gcp_jax.core import returns
from gcp_jax.core.tree import where_tree
from gcp_jax.types import Array, PRNGKey, PyTree, Segment, Step, Transition

MIN_SUCCESSES = 64  # rows of successful episodes, before transitions of them are sampled
MAX_FROM_FLOAT = 2**16  # up to here the 23 bits of a float are uneven by less than 1 %
EXACT_STREAM = 0x65786163  # the keys of exact draws derive from it


class WindowStart(NamedTuple):
    """Where windows of h steps start."""

    row: Array  # [B] int32, of the ring
    column: Array  # [B] int32, environment
    offset: Array  # [B] int32, step within the chunk


def window_steps(steps: Step, start: WindowStart) -> Step:
    """The steps of windows, leaves [B, h, ...]; rows wrap around the ring."""
    capacity, _, h = steps.reward.shape
    ahead = start.offset[:, None] + jnp.arange(h)[None]
    rows = (start.row[:, None] + ahead // h) % capacity
    offsets = ahead % h
    columns = start.column[:, None]
    window: Step = jax.tree.map(lambda x: x[rows, columns, offsets], steps)
    return window


class _Draw(NamedTuple):
    """Random numbers of each sample, beyond its column."""

    keys: PRNGKey  # [B]
    uniform: Array  # [B] in [0, 1), drawn from ``keys``

    def below(self, bound: Array, largest: int) -> Array:
        """An integer in [0, bound) for each sample, all equally likely, [B] int32.

        Args:
          bound: [] or [B].
          largest: what ``bound`` can be at most.
        """
        if largest <= MAX_FROM_FLOAT:
            return jnp.minimum((self.uniform * bound).astype(jnp.int32), bound - 1)

        def exact(key: PRNGKey, bound: Array) -> Array:
            key = jax.random.fold_in(key, EXACT_STREAM)
            return jax.random.randint(key, (), 0, bound, jnp.int32)

        index: Array = jax.vmap(exact)(self.keys, jnp.broadcast_to(bound, self.uniform.shape))
        return index


def _stratified_columns(key: PRNGKey, count: int, columns: int) -> tuple[Array, _Draw]:
    """Draw stratified columns, and further random numbers for each.

    Args:
      key: a random key; consumed.
      count: number of samples B on this device.
      columns: number of columns.

    Returns:
      Columns [B], together uniform over all columns, and what else is random of each sample.
    """
    keys = mesh.sample_keys(key, count)
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(keys)
    position = (jnp.arange(count) + uniform[:, 0]) * (columns / count)
    column = jnp.minimum(position.astype(jnp.int32), columns - 1)
    return column, _Draw(keys=keys, uniform=uniform[:, 1])


def _executed_offset(steps: Step, row: Array, column: Array, offset: Array) -> Array:
    """Wrap an offset around the executed steps of its chunk: no window starts after the end."""
    return offset % jnp.maximum(jnp.sum(steps.executed[row, column], -1), 1)


def _nth_true_row(cumulative: Array, column: Array, n: Array) -> Array:
    """Find the row of the n-th True of a column, by bisection.

    Args:
      cumulative: how many rows up to each row are True, [T, N].
      column: the sample's column [B].
      n: which True, from 0, [B].

    Returns:
      Rows [B].
    """
    last = cumulative.shape[0] - 1
    rounds = int(np.ceil(np.log2(max(cumulative.shape[0], 2)))) + 1

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        reached = cumulative[middle, column] > n
        low = jnp.where(reached, low, jnp.minimum(middle + 1, high))
        return low, jnp.where(reached, middle, high)

    bounds = (jnp.zeros_like(n), jnp.full_like(n, last))
    row: Array = jax.lax.fori_loop(0, rounds, halve, bounds)[0]
    return row


class Ring(NamedTuple):
    """The chunk rows of a replay, in the order of the ring."""

    steps: Step  # leaves [T, N, h, ...]
    extras: PyTree  # leaves [T, N, ...]


def ring_write(buffer_state: Ring, segment: Segment, clock: Array) -> Ring:
    """Write a segment of L rows; L divides the capacity, so that a write never wraps."""
    length = segment.steps.reward.shape[0]
    capacity = buffer_state.steps.reward.shape[0]
    head = (clock * length) % capacity

    def write(ring: Array, rows: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(ring, rows, head, axis=0)

    return Ring(
        steps=jax.tree.map(write, buffer_state.steps, segment.steps),
        extras=jax.tree.map(write, buffer_state.extras, segment.extras),
    )


class RingOrder(NamedTuple):
    """Which part of a ring is filled; the same for all seeds."""

    oldest: Array  # [] row of the oldest entry
    size: Array  # [] number of filled rows

    @classmethod
    def after_write(cls, clock: Array, length: int, capacity: int) -> RingOrder:
        """The order of a ring after segment ``clock`` of ``length`` rows has been written."""
        size = jnp.minimum((clock + 1) * length, capacity)
        oldest = jnp.where(size == capacity, (clock + 1) * length, 0) % capacity
        return cls(oldest=oldest, size=size)

    def by_time(self, x: Array) -> Array:
        """Ring order [T, ...] to time order, oldest first."""
        return jnp.roll(x, -self.oldest, axis=0)

    def by_row(self, x: Array) -> Array:
        """Time order [T, ...] to ring order."""
        return jnp.roll(x, self.oldest, axis=0)

    def filled(self, capacity: int) -> Array:
        """Which rows are filled, [T, 1] bool in time order."""
        return (jnp.arange(capacity) < self.size)[:, None]


def success_counts(steps: Step, order: RingOrder) -> Array:
    """Count the rows whose episode has ended in success.

    Returns:
      Cumulative counts [T, N] in ring order.
    """
    capacity = steps.reward.shape[0]
    ended = jnp.any(steps.terminated | steps.truncated, -1)
    success = jnp.any(steps.success & steps.executed, -1)
    ended = order.by_time(ended) & order.filled(capacity)
    success = order.by_time(success)
    result = returns.monte_carlo_return(
        reward_t=jnp.zeros(ended.shape), ended_t=ended, outcome_t=success & ended, gamma=1.0
    )
    return jnp.cumsum(order.by_row(result.outcome_t), axis=0, dtype=jnp.int32)


def returns_to_go(steps: Step, order: RingOrder, gamma: float) -> Array:
    """Discounted return from each step to the end of its episode.

    Returns:
      [T, N, h] in ring order; NaN if the episode has not terminated.
    """
    capacity, columns, h = steps.reward.shape

    def flatten(x: Array) -> Array:
        """Ring order [T, N, h] to steps in time order [T·h, N]."""
        return jnp.moveaxis(order.by_time(x), 2, 1).reshape(capacity * h, columns)

    executed = flatten(steps.executed & order.by_row(order.filled(capacity))[..., None])
    ended = executed & flatten(steps.terminated | steps.truncated)
    reward = jnp.where(executed, flatten(steps.reward), 0.0)
    result = returns.monte_carlo_return(
        reward_t=reward, ended_t=ended, outcome_t=flatten(steps.terminated) & ended, gamma=gamma
    )
    total = jnp.where(result.outcome_t, result.return_t, jnp.nan)
    total = total.reshape(capacity, h, columns)
    return order.by_row(jnp.moveaxis(total, 1, 2))


def sample_start(
    steps: Step, order: RingOrder, key: PRNGKey, count: int, *, aligned: bool
) -> WindowStart:
    """Sample the starts [count] of windows that lie in the filled part."""
    capacity, columns, h = steps.reward.shape
    column, draw = _stratified_columns(key, count, columns)
    if aligned:
        row = (order.oldest + draw.below(order.size, capacity)) % capacity
        return WindowStart(row=row, column=column, offset=jnp.zeros_like(column))
    start = draw.below((order.size - 1) * h + 1, capacity * h)
    row = (order.oldest + start // h) % capacity
    offset = _executed_offset(steps, row, column, start % h)
    return WindowStart(row=row, column=column, offset=offset)


def sample_success(
    steps: Step, counts: Array, key: PRNGKey, uniform_sample: Transition, gamma: float
) -> tuple[Transition, Array]:
    """Sample windows of successful episodes.

    Args:
      steps: of the ring.
      counts: ``success_counts`` of the ring.
      key: a random key; consumed.
      uniform_sample: returned, with weight 1, as long as all columns together have fewer than
        MIN_SUCCESSES rows of successful episodes; leaves [B, ...].
      gamma: discount of one environment step.

    Returns:
      Transitions [B, ...] and their weights [B]: 0 if the column has no successful row, else 1.
    """
    capacity, columns, h = steps.reward.shape
    count = uniform_sample.reward.shape[0]
    column, draw = _stratified_columns(key, count, columns)
    available = counts[-1, column]
    index = draw.below(jnp.maximum(available, 1) * h, capacity * h)
    row = _nth_true_row(counts, column, index // h)
    offset = _executed_offset(steps, row, column, index % h)
    window = window_steps(steps, WindowStart(row=row, column=column, offset=offset))
    success = returns.fold_chunk(window, gamma, uniform_sample.extras)
    enough = mesh.all_sum(jnp.sum(counts[-1])) >= MIN_SUCCESSES
    sample = where_tree(enough, success, uniform_sample)
    return sample, jnp.where(enough, (available > 0).astype(jnp.float32), 1.0)

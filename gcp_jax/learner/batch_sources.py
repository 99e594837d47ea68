"""Where minibatches come from: Dataset, Replay, Rollout and Mix, each a ``types.Source``.

A replay is a ring of chunk rows [T, N, h, ...], time-major, written by one ``dynamic_update_slice`` a segment; its head
and size follow from the clock, so they are the same number for all seeds. Windows of h steps may start at any executed
step: a column is contiguous in time. Each sample takes its column from its place in the batch (a stratified draw), so
columns and batch are split over devices alike and the draw does not depend on how many there are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from gcp_jax import mesh
from gcp_jax.core import returns
from gcp_jax.types import Array, Batch, BatchSource, PyTree, Segment, Step, Transition

MIN_SUCCESSES = 64  # chunk rows of successful episodes before the success view is used


def _window_steps(steps: Step, row: Array, column: Array, offset: Array) -> Step:
    """Windows of h steps from (row, column, offset), each [B]; rows wrap around. Leaves [B, h, ...]."""
    capacity, _, h = steps.reward.shape
    ahead = offset[:, None] + jnp.arange(h)[None]
    rows, offsets = (row[:, None] + ahead // h) % capacity, ahead % h
    return jax.tree.map(lambda x: x[rows, column[:, None], offsets], steps)


def _stratified_columns(key: Array, count: int, columns: int) -> tuple[Array, Array]:
    """Stratified columns [count], uniform over ``columns`` taken together, and a uniform number in [0, 1) for each."""
    draws = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(mesh.sample_keys(key, count))
    place = (jnp.arange(count) + draws[:, 0]) * (columns / count)
    return jnp.minimum(place.astype(jnp.int32), columns - 1), draws[:, 1]


def _randint_from_uniform(u: Array, bound: Array) -> Array:
    """An integer in [0, bound) from u in [0, 1); exact to 2⁻²³ of the bound."""
    return jnp.minimum((u * bound).astype(jnp.int32), bound - 1)


def _executed_offset(steps: Step, row: Array, column: Array, offset: Array) -> Array:
    """Fold an offset onto the executed steps of its chunk: after the episode's end nothing may start."""
    return offset % jnp.maximum(jnp.sum(steps.executed[row, column], -1), 1)


def _nth_true_row(cumulative: Array, column: Array, n: Array) -> Array:
    """Row of the n-th True (from 0) of each sample's column [B], by bisection in cumulative counts [T, N]."""
    low, high = jnp.zeros_like(n), jnp.full_like(n, cumulative.shape[0] - 1)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        found = cumulative[middle, column] > n
        return jnp.where(found, low, jnp.minimum(middle + 1, high)), jnp.where(found, middle, high)

    rounds = int(np.ceil(np.log2(max(cumulative.shape[0], 2)))) + 1
    return jax.lax.fori_loop(0, rounds, halve, (low, high))[0]


class Ring(NamedTuple):
    """Chunk rows as they were collected."""

    steps: Step  # leaves [T, N, h, ...]
    extras: PyTree  # leaves [T, N, ...]


def ring_write(store: Ring, segment: Segment, clock: Array) -> Ring:
    """Write a segment of L rows; L divides the capacity, so a write never wraps."""
    length = segment.steps.reward.shape[0]
    capacity = store.steps.reward.shape[0]
    head = (clock * length) % capacity

    def put(ring: Array, rows: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(ring, rows, head, axis=0)

    return Ring(*jax.tree.map(put, tuple(store), tuple(segment)))


class _Order(NamedTuple):
    """Where the oldest row stands and how many rows are filled; the same for all seeds."""

    oldest: Array
    size: Array

    def by_time(self, x: Array) -> Array:
        """Ring order [T, ...] to time order, oldest first."""
        return jnp.roll(x, -self.oldest, axis=0)

    def by_row(self, x: Array) -> Array:
        """Time order back to ring order."""
        return jnp.roll(x, self.oldest, axis=0)

    def filled(self, capacity: int) -> Array:
        """[T, 1] bool in time order."""
        return (jnp.arange(capacity) < self.size)[:, None]


def success_counts(steps: Step, order: _Order) -> Array:
    """Cumulative number of rows [T, N], in ring order, whose episode is known by now to have succeeded."""
    capacity = steps.reward.shape[0]
    ended = jnp.any(steps.terminated | steps.truncated, -1)
    success = jnp.any(steps.success & steps.executed, -1)
    ended, success = order.by_time(ended) & order.filled(capacity), order.by_time(success)
    _, succeeded, _ = returns.monte_carlo_return(
        reward_t=jnp.zeros(ended.shape), ended_t=ended, outcome_t=success & ended, gamma=1.0
    )
    return jnp.cumsum(order.by_row(succeeded), axis=0, dtype=jnp.int32)


def returns_to_go(steps: Step, order: _Order, gamma: float) -> Array:
    """Realised discounted return from each step on [T, N, h], in ring order; NaN where the episode has not terminated."""
    capacity, columns, h = steps.reward.shape

    def flat(x: Array) -> Array:
        return jnp.moveaxis(order.by_time(x), 2, 1).reshape(capacity * h, columns)

    executed = flat(steps.executed & order.by_row(order.filled(capacity))[..., None])
    ended = executed & flat(steps.terminated | steps.truncated)
    reward = jnp.where(executed, flat(steps.reward), 0.0)
    _, finished, total = returns.monte_carlo_return(
        reward_t=reward, ended_t=ended, outcome_t=flat(steps.terminated) & ended, gamma=gamma
    )
    total = jnp.where(finished, total, jnp.nan).reshape(capacity, h, columns)
    return order.by_row(jnp.moveaxis(total, 1, 2))


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
    """Uniform replay of h-step windows.

    capacity: chunk rows T a column holds, a multiple of the segment length L; batch_size: B over all devices;
    updates: U a segment. success: also draw B transitions of successful episodes. to_go: also give the realised return.
    aligned: windows start at chunk starts, so that a chunk's extras belong to its transition; otherwise at any executed
    step, without extras.
    """

    def init(item: Segment) -> Ring:
        return Ring(
            *jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), tuple(item))
        )

    def step(store: Ring, segment: Segment, key: Array, clock: Array) -> tuple[Ring, Batch]:
        store = ring_write(store, segment, clock)
        length = segment.steps.reward.shape[0]
        size = jnp.minimum((clock + 1) * length, capacity)
        order = _Order(jnp.where(size == capacity, (clock + 1) * length, 0) % capacity, size)
        counts = success_counts(store.steps, order) if success else None
        future = returns_to_go(store.steps, order, gamma) if to_go else None
        local = batch_size // mesh.data_size()

        def draw(key: Array) -> Batch:
            any_key, success_key = jax.random.split(key)
            row, column, offset = _uniform(store.steps, order, any_key, local, aligned)
            extras = jax.tree.map(lambda x: x[row, column], store.extras) if aligned else {}
            batch = Batch(
                returns.fold_chunk(_window_steps(store.steps, row, column, offset), gamma, extras)
            )
            if future is not None:
                batch = batch._replace(return_to_go=future[row, column, offset])
            if counts is None:
                return batch
            good, weight = _draw_success(
                store.steps, counts, success_key, local, batch.transitions, gamma
            )
            return batch._replace(success=good, success_weight=weight)

        batches = jax.vmap(draw)(jax.random.split(key, updates))
        if batches.success_weight is not None:
            mean = mesh.all_mean(jnp.mean(batches.success_weight, -1, keepdims=True))
            batches = batches._replace(
                success_weight=batches.success_weight / jnp.maximum(mean, 1e-6)
            )
        return store, batches

    return BatchSource(init, step, P(mesh.SEED, None, mesh.DATA), updates, batch_size)


def _uniform(
    steps: Step, order: _Order, key: Array, count: int, aligned: bool
) -> tuple[Array, Array, Array]:
    """(row, column, offset), each [count], of windows that lie wholly in the filled part."""
    capacity, columns, h = steps.reward.shape
    column, u = _stratified_columns(key, count, columns)
    if aligned:
        return (
            (order.oldest + _randint_from_uniform(u, order.size)) % capacity,
            column,
            jnp.zeros_like(column),
        )
    start = _randint_from_uniform(u, (order.size - 1) * h + 1)
    row = (order.oldest + start // h) % capacity
    return row, column, _executed_offset(steps, row, column, start % h)


def _draw_success(
    steps: Step, counts: Array, key: Array, count: int, ordinary: Transition, gamma: float
) -> tuple[Transition, Array]:
    """Windows of successful episodes, and their weights [B].

    A column without any gives weight 0; while there are fewer than MIN_SUCCESSES rows in all columns together, the ordinary
    sample stands in with weight 1.
    """
    _, columns, h = steps.reward.shape
    column, u = _stratified_columns(key, count, columns)
    available = counts[-1, column]
    pick = _randint_from_uniform(u, jnp.maximum(available, 1) * h)
    row = _nth_true_row(counts, column, pick // h)
    offset = _executed_offset(steps, row, column, pick % h)
    good = returns.fold_chunk(_window_steps(steps, row, column, offset), gamma, ordinary.extras)
    enough = mesh.all_sum(jnp.sum(counts[-1])) >= MIN_SUCCESSES
    chosen = jax.tree.map(lambda a, b: jnp.where(enough, a, b), good, ordinary)
    return chosen, jnp.where(enough, (available > 0).astype(jnp.float32), 1.0)


class Windows(NamedTuple):
    """Demonstrations: chunk rows, and the (row, column, offset) of every executed step."""

    steps: Step  # leaves [T, N, h, ...]
    starts: Any  # [V, 3] int32


def chunk_windows(steps: Step, chunk: int) -> Windows:
    """Lay time-major steps [T, N, ...] out in chunk rows (padded with steps that were not executed); numpy, host side."""
    steps = jax.tree.map(np.asarray, steps)
    pad = -len(steps.reward) % chunk

    def rows(x: np.ndarray) -> np.ndarray:
        x = np.concatenate([x, np.zeros((pad, *x.shape[1:]), x.dtype)])
        return np.moveaxis(x.reshape(-1, chunk, *x.shape[1:]), 1, 2)

    laid = jax.tree.map(rows, steps)
    return Windows(laid, np.argwhere(laid.executed).astype(np.int32))


def dataset(data: Windows, *, batch_size: int, updates: int, gamma: float) -> BatchSource:
    """Windows of demonstrations, uniform over their executed steps; shared by all seeds and devices."""
    if not len(data.starts):
        raise ValueError(
            "The demonstrations hold no executed step; generate or load at least one episode."
        )

    def draw(store: Windows, key: Array) -> Batch:
        keys = mesh.sample_keys(key, batch_size // mesh.data_size())
        index = _randint_from_uniform(
            jax.vmap(jax.random.uniform)(keys), jnp.int32(len(data.starts))
        )
        row, column, offset = jnp.moveaxis(store.starts[index], -1, 0)
        return Batch(returns.fold_chunk(_window_steps(store.steps, row, column, offset), gamma))

    def step(
        store: Windows, segment: Segment | None, key: Array, clock: Array
    ) -> tuple[Windows, Batch]:
        return store, jax.vmap(lambda k: draw(store, k))(jax.random.split(key, updates))

    return BatchSource(lambda item: data, step, P(), updates, batch_size)


def on_policy(
    *, epochs: int, minibatches: int, rows: int, columns: int, gamma: float
) -> BatchSource:
    """On-policy: the segment itself, ``epochs`` passes in ``minibatches`` parts; nothing is kept.

    Each part takes L/minibatches rows of every column, in an order drawn for each column and epoch.
    """
    if rows % minibatches:
        raise ValueError(
            f"minibatches is {minibatches}, which does not divide the segment length {rows}; choose a divisor."
        )

    def order(key: Array, columns: int) -> Array:
        permute = jax.vmap(lambda k: jax.random.permutation(k, rows), out_axes=1)
        return permute(mesh.sample_keys(key, columns)).reshape(
            minibatches, rows // minibatches, columns
        )

    def step(store: None, segment: Segment, key: Array, clock: Array) -> tuple[None, Batch]:
        transitions = returns.fold_chunk(segment.steps, gamma, segment.extras)
        local = segment.steps.reward.shape[1]
        index = jax.vmap(lambda k: order(k, local))(jax.random.split(key, epochs))
        index = index.reshape(epochs * minibatches, -1, local)
        column = jnp.arange(local)[None, None]

        def take(x: Array) -> Array:
            return x[index, column].reshape(index.shape[0], -1, *x.shape[2:])

        return None, Batch(jax.tree.map(take, transitions))

    batch_size = rows // minibatches * columns
    return BatchSource(lambda item: None, step, P(), epochs * minibatches, batch_size)


def mix_sources(first: BatchSource, second: BatchSource) -> BatchSource:
    """Batches of ``first`` followed by batches of ``second`` (demonstrations, say), along the batch axis."""
    if first.updates != second.updates:
        raise ValueError(
            f"Mixed sources must give the same number of updates; got {first.updates} and {second.updates}."
        )

    def step(store: PyTree, segment: Segment, key: Array, clock: Array) -> tuple[PyTree, Batch]:
        keys = jax.random.split(key)
        one, a = first.step(store[0], segment, keys[0], clock)
        two, b = second.step(store[1], segment, keys[1], clock)
        both = jax.tree.map(
            lambda x, y: jnp.concatenate([x, y], axis=1), a.transitions, b.transitions
        )
        return (one, two), a._replace(transitions=both, return_to_go=None)

    return BatchSource(
        lambda item: (first.init(item), second.init(item)),
        step,
        (first.layout, second.layout),
        first.updates,
        first.batch_size + second.batch_size,
    )

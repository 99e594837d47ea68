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

from gcp_jax import mesh, returns
from gcp_jax.types import Array, Batch, PyTree, Segment, Source, Step, Transition

MIN_SUCCESSES = 64  # chunk rows of successful episodes before the success view is used


def _window_steps(steps: Step, row: Array, column: Array, offset: Array) -> Step:
    """Windows of h steps from (row, column, offset), each [B]; rows wrap around. Leaves [B, h, ...]."""
    capacity, _, h = steps.reward.shape
    ahead = offset[:, None] + jnp.arange(h)[None]
    rows, offsets = (row[:, None] + ahead // h) % capacity, ahead % h
    return jax.tree.map(lambda x: x[rows, column[:, None], offsets], steps)


def _columns(key: Array, count: int, columns: int) -> tuple[Array, Array]:
    """Stratified columns [count], uniform over ``columns`` taken together, and a fresh key for each sample."""
    keys = jax.vmap(jax.random.split)(mesh.sample_keys(key, count))
    place = jnp.arange(count) + jax.vmap(jax.random.uniform)(keys[:, 0])
    return jnp.minimum((place * columns / count).astype(jnp.int32), columns - 1), keys[:, 1]


def _executed_offset(steps: Step, row: Array, column: Array, offset: Array) -> Array:
    """Fold an offset onto the executed steps of its chunk: after the episode's end nothing may start."""
    return offset % jnp.maximum(jnp.sum(steps.executed[row, column], -1), 1)


def _nth_true(cumulative: Array, column: Array, n: Array) -> Array:
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


class _Hindsight(NamedTuple):
    """What is known of each row's episode by now."""

    successes: Array  # [T, N] int32 cumulative count of rows of successful episodes
    known: Array  # [T, h, N] the episode has terminated
    return_to_go: Array  # [T, h, N]


def ring_write(store: Ring, segment: Segment, clock: Array) -> Ring:
    """Write a segment of L rows; L divides the capacity, so a write never wraps."""
    length = segment.steps.reward.shape[0]
    capacity = store.steps.reward.shape[0]
    head = (clock * length) % capacity

    def put(ring: Array, rows: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(ring, rows, head, axis=0)

    return Ring(*jax.tree.map(put, tuple(store), tuple(segment)))


def _hindsight(steps: Step, oldest: Array, size: Array, gamma: float) -> _Hindsight:
    capacity, columns, h = steps.reward.shape

    def by_time(x: Array) -> Array:
        return jnp.moveaxis(jnp.roll(x, -oldest, axis=0), 2, 1).reshape(capacity * h, columns)

    def by_row(x: Array) -> Array:
        return jnp.roll(x.reshape(capacity, h, columns), oldest, axis=0)

    executed = by_time(steps.executed) & (jnp.arange(capacity * h) < size * h)[:, None]
    ended = executed & by_time(steps.terminated | steps.truncated)
    reward = jnp.where(executed, by_time(steps.reward), 0.0)
    _, success, total = returns.hindsight(reward=reward, ended=ended, outcome=by_time(steps.success), gamma=gamma)
    _, finished, _ = returns.hindsight(reward=reward, ended=ended, outcome=by_time(steps.terminated), gamma=gamma)
    successes = jnp.cumsum(by_row(success & executed)[:, 0], axis=0, dtype=jnp.int32)
    return _Hindsight(successes, by_row(finished), by_row(total))


def replay(*, capacity: int, batch_size: int, updates: int, gamma: float, success: bool = False, aligned: bool = False) -> Source:
    """Uniform replay of h-step windows.

    capacity: chunk rows T a column holds, a multiple of the segment length L; batch_size: B over all devices;
    updates: U a segment. success: also draw B transitions of successful episodes. aligned: windows start at chunk
    starts, so that a chunk's extras belong to its transition; otherwise at any executed step, without extras.
    """

    def init(item: Segment) -> Ring:
        return Ring(*jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), tuple(item)))

    def draw(store: Ring, facts: _Hindsight, key: Array, oldest: Array, size: Array, local: int) -> Batch:
        h = store.steps.reward.shape[2]
        any_key, success_key = jax.random.split(key)
        column, keys = _columns(any_key, local, store.steps.reward.shape[1])
        start = jax.vmap(lambda k: jax.random.randint(k, (), 0, (size - 1) * h + 1))(keys)
        row, offset = (oldest + start // h) % capacity, start % h
        offset = jnp.zeros_like(offset) if aligned else _executed_offset(store.steps, row, column, offset)
        extras = jax.tree.map(lambda x: x[row, column], store.extras) if aligned else {}
        ordinary = returns.fold(_window_steps(store.steps, row, column, offset), gamma, extras)
        known, to_go = facts.known[row, offset, column], facts.return_to_go[row, offset, column]
        batch = Batch(ordinary, return_to_go=jnp.where(known, to_go, jnp.nan))
        if not success:
            return batch
        good, weight = _draw_success(store, facts, success_key, local, ordinary, gamma)
        return batch._replace(success=good, success_weight=weight)

    def step(store: Ring, segment: Segment, key: Array, prepare: Any, clock: Array) -> tuple[Ring, Batch]:
        store = ring_write(store, prepare(segment), clock)
        length = segment.steps.reward.shape[0]
        size = jnp.minimum((clock + 1) * length, capacity)
        oldest = jnp.where(size == capacity, (clock + 1) * length, 0) % capacity
        facts = _hindsight(store.steps, oldest, size, gamma)
        local = batch_size // mesh.data_size()
        draw_one = lambda k: draw(store, facts, k, oldest, size, local)  # noqa: E731
        return store, jax.vmap(draw_one)(jax.random.split(key, updates))

    return Source(init, step, P(mesh.SEED, None, mesh.DATA), updates, batch_size)


def _draw_success(
    store: Ring, facts: _Hindsight, key: Array, count: int, ordinary: Transition, gamma: float
) -> tuple[Transition, Array]:
    """Windows of successful episodes, and their weights [B].

    A column without any gives weight 0; while there are fewer than MIN_SUCCESSES rows in all columns together, the ordinary
    sample stands in with weight 1.
    """
    column, keys = _columns(key, count, store.steps.reward.shape[1])
    available = facts.successes[-1, column]
    pick = jax.vmap(lambda k, n: jax.random.randint(k, (2,), 0, jnp.array([n, 1 << 20])))(keys, jnp.maximum(available, 1))
    row = _nth_true(facts.successes, column, pick[:, 0])
    offset = _executed_offset(store.steps, row, column, pick[:, 1])
    good = returns.fold(_window_steps(store.steps, row, column, offset), gamma, ordinary.extras)
    enough = mesh.all_sum(jnp.sum(facts.successes[-1])) >= MIN_SUCCESSES
    chosen = jax.tree.map(lambda a, b: jnp.where(enough, a, b), good, ordinary)
    return chosen, jnp.where(enough, (available > 0).astype(jnp.float32), 1.0)


class Windows(NamedTuple):
    """Demonstrations: chunk rows, and the (row, column, offset) of every executed step."""

    steps: Step  # leaves [T, N, h, ...]
    starts: Array  # [V, 3] int32


def windows(steps: Step, chunk: int) -> Windows:
    """Lay time-major steps [T, N, ...] out in chunk rows (padded with steps that were not executed); numpy, host side."""
    steps = jax.tree.map(np.asarray, steps)
    pad = -len(steps.reward) % chunk

    def rows(x: np.ndarray) -> np.ndarray:
        x = np.concatenate([x, np.zeros((pad, *x.shape[1:]), x.dtype)])
        return np.moveaxis(x.reshape(-1, chunk, *x.shape[1:]), 1, 2)

    laid = jax.tree.map(rows, steps)
    return Windows(laid, np.argwhere(laid.executed).astype(np.int32))


def dataset(data: Windows, *, batch_size: int, updates: int, gamma: float) -> Source:
    """Windows of demonstrations, uniform over their executed steps; shared by all seeds and devices."""
    if not len(data.starts):
        raise ValueError("The demonstrations hold no executed step; generate or load at least one episode.")

    def draw(store: Windows, key: Array) -> Batch:
        keys = mesh.sample_keys(key, batch_size // mesh.data_size())
        index = jax.vmap(lambda k: jax.random.randint(k, (), 0, len(data.starts)))(keys)
        row, column, offset = jnp.moveaxis(store.starts[index], -1, 0)
        return Batch(returns.fold(_window_steps(store.steps, row, column, offset), gamma))

    def step(store: Windows, segment: Segment | None, key: Array, prepare: Any, clock: Array) -> tuple[Windows, Batch]:
        return store, jax.vmap(lambda k: draw(store, k))(jax.random.split(key, updates))

    return Source(lambda item: data, step, P(), updates, batch_size)


def rollout(*, epochs: int, minibatches: int, rows: int, columns: int, gamma: float) -> Source:
    """On-policy: the segment itself, ``epochs`` passes in ``minibatches`` parts; nothing is kept.

    Each part takes L/minibatches rows of every column, in an order drawn for each column and epoch.
    """
    if rows % minibatches:
        raise ValueError(f"minibatches is {minibatches}, which does not divide the segment length {rows}; choose a divisor.")

    def order(key: Array, columns: int) -> Array:
        permute = jax.vmap(lambda k: jax.random.permutation(k, rows), out_axes=1)
        return permute(mesh.sample_keys(key, columns)).reshape(minibatches, rows // minibatches, columns)

    def step(store: None, segment: Segment, key: Array, prepare: Any, clock: Array) -> tuple[None, Batch]:
        segment = prepare(segment)
        transitions = returns.fold(segment.steps, gamma, segment.extras)
        local = segment.steps.reward.shape[1]
        index = jax.vmap(lambda k: order(k, local))(jax.random.split(key, epochs))
        index = index.reshape(epochs * minibatches, -1, local)
        column = jnp.arange(local)[None, None]

        def take(x: Array) -> Array:
            return x[index, column].reshape(index.shape[0], -1, *x.shape[2:])

        return None, Batch(jax.tree.map(take, transitions))

    batch_size = rows // minibatches * columns
    return Source(lambda item: None, step, P(), epochs * minibatches, batch_size)


def mix(first: Source, second: Source) -> Source:
    """Batches of ``first`` followed by batches of ``second`` (demonstrations, say), along the batch axis."""
    if first.updates != second.updates:
        raise ValueError(f"Mixed sources must give the same number of updates; got {first.updates} and {second.updates}.")

    def step(store: PyTree, segment: Segment, key: Array, prepare: Any, clock: Array) -> tuple[PyTree, Batch]:
        keys = jax.random.split(key)
        one, a = first.step(store[0], segment, keys[0], prepare, clock)
        two, b = second.step(store[1], segment, keys[1], prepare, clock)
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), a.transitions, b.transitions)
        return (one, two), a._replace(transitions=both, return_to_go=None)

    return Source(
        lambda item: (first.init(item), second.init(item)),
        step,
        (first.layout, second.layout),
        first.updates,
        first.batch_size + second.batch_size,
    )

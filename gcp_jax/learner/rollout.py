"""Collecting a segment: L chunks in N environments; finished ones restart from fresh states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax import mesh
from gcp_jax.types import Array, PRNGKey, PyTree, Segment, VectorEnv


class EnvState(NamedTuple):
    """The environments of one seed between two segments."""

    state: Any  # of the environments, leaves [N, ...]
    episode_return: Array  # [N]: undiscounted return of the current episodes so far


class EpisodeSums(NamedTuple):
    """Sums over the episodes that ended in a segment; means are computed on the host.

    Leaves are [K + 1]: entry a sums over the episodes that started a segments before the one in
    which they ended. K is ``segments_spanned``.
    """

    episodes: Array
    successes: Array
    returns: Array
    lengths: Array  # control steps
    diverged: Array


def reset_envs(env: VectorEnv, key: PRNGKey, count: int) -> EnvState:
    """Reset ``count`` environments; key is consumed."""
    state = env.reset(mesh.sample_keys(key, count))
    return EnvState(state=state, episode_return=jnp.zeros_like(state.reward))


def segments_spanned(horizon: int, chunk: int, unroll_chunks: int) -> int:
    """K: how many segments after the one in which it started an episode ends at the latest.

    Args:
      horizon: control steps of the longest episode.
      chunk: h.
      unroll_chunks: L, chunks of a segment.
    """
    longest = -(-horizon // chunk)
    return (unroll_chunks - 1 + longest - 1) // unroll_chunks


def sum_finished(state: Any, episode_return: Array, age: Array, ages: int) -> EpisodeSums:
    """Sum over the environments that have finished, by the segment in which they started.

    Args:
      state: of the environments, leaves [N, ...].
      episode_return: returns of their episodes [N].
      age: segments since their episodes started [N].
      ages: K + 1, how many ages there are.
    """
    counted = state.done[None] & (age[None] == jnp.arange(ages)[:, None])

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(counted, x[None], 0), axis=-1)

    ones = jnp.ones_like(episode_return)
    return EpisodeSums(
        episodes=total(ones),
        successes=total(ones * state.success),
        returns=total(episode_return),
        lengths=total(ones * state.time),
        diverged=total(ones * state.diverged),
    )


def collect(
    env: VectorEnv,
    act: Callable[[Array, PRNGKey], tuple[Array, PyTree]],
    env_state: EnvState,
    key: PRNGKey,
    *,
    unroll_chunks: int,
    reset_pool: int,
) -> tuple[EnvState, Segment, EpisodeSums]:
    """Collect one seed's segment.

    An environment that finished takes one of the fresh states at random before its next chunk.

    Args:
      env: the environments.
      act: (obs [N, O], key) -> (chunk [N, h, A], extras).
      env_state: where the environments are.
      key: a random key; consumed.
      unroll_chunks: L, chunks that each environment runs.
      reset_pool: fresh states made for this segment, over all devices; each device may use all.

    Returns:
      The environments' new state; the segment, leaves [L, N, h, ...] with true successors; sums
      over the episodes that ended on all devices, leaves [K + 1].
    """
    pool_key, scan_key = jax.random.split(key)
    fresh = env.reset(mesh.sample_keys(pool_key, reset_pool // mesh.data_size()))
    fresh = mesh.gather(fresh)
    count = env_state.episode_return.shape[0]

    def collect_row(
        env_state: EnvState, at: tuple[Array, PRNGKey]
    ) -> tuple[EnvState, tuple[Segment, EpisodeSums]]:
        row_index, key = at
        reset_key, act_key = jax.random.split(key)
        episode_return = jnp.where(env_state.state.done, 0.0, env_state.episode_return)
        state = env.autoreset(env_state.state, fresh, mesh.sample_keys(reset_key, count))
        chunk, extras = act(state.obs, act_key)
        state, steps = env.step(state, chunk)
        # A non-finite action has made its episode diverge in ``step``; it is not stored.
        steps = steps._replace(action=jnp.where(jnp.isfinite(steps.action), steps.action, 0.0))
        reward = jnp.sum(jnp.where(steps.executed, steps.reward, 0.0), -1)
        episode_return = episode_return + reward
        row = Segment(steps=steps, extras=extras)
        env_state = EnvState(state=state, episode_return=episode_return)
        h = chunk.shape[1]
        start_row = row_index + 1 - -(-state.time // h)  # negative in an earlier segment
        ages = 1 + segments_spanned(env.specs.horizon, h, unroll_chunks)
        sums = sum_finished(state, episode_return, -(start_row // unroll_chunks), ages)
        return env_state, (row, sums)

    row_keys = jax.random.split(scan_key, unroll_chunks)
    rows = (jnp.arange(unroll_chunks), row_keys)
    env_state, (segment, episodes) = jax.lax.scan(collect_row, env_state, rows)
    totals = jax.tree.map(lambda x: mesh.all_sum(jnp.sum(x, axis=0)), episodes)
    return env_state, segment, totals

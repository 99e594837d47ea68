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
    """Sums over the episodes that ended in a segment, scalars; means are computed on the host."""

    episodes: Array
    successes: Array
    returns: Array
    lengths: Array  # control steps
    diverged: Array


def reset_envs(env: VectorEnv, key: PRNGKey, count: int) -> EnvState:
    """Reset ``count`` environments; key is consumed."""
    state = env.reset(mesh.sample_keys(key, count))
    return EnvState(state=state, episode_return=jnp.zeros_like(state.reward))


def sum_finished(state: Any, episode_return: Array) -> EpisodeSums:
    """Sum over the environments that have finished.

    Args:
      state: of the environments, leaves [N, ...].
      episode_return: returns of their episodes [N].
    """

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(state.done, x, 0))

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
      over the episodes that ended on all devices.
    """
    pool_key, scan_key = jax.random.split(key)
    fresh = env.reset(mesh.sample_keys(pool_key, reset_pool // mesh.data_size()))
    fresh = mesh.gather(fresh)
    count = env_state.episode_return.shape[0]

    def collect_row(
        env_state: EnvState, key: PRNGKey
    ) -> tuple[EnvState, tuple[Segment, EpisodeSums]]:
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
        return env_state, (row, sum_finished(state, episode_return))

    row_keys = jax.random.split(scan_key, unroll_chunks)
    env_state, (segment, episodes) = jax.lax.scan(collect_row, env_state, row_keys)
    totals = jax.tree.map(lambda x: mesh.all_sum(jnp.sum(x)), episodes)
    return env_state, segment, totals

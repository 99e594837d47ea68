"""Collecting a segment: L chunks in N environments, finished ones restarted from a pool of fresh states."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax import mesh
from gcp_jax.types import Array, PyTree, Segment


class EnvState(NamedTuple):
    """The environments of one seed between two segments, with the running return of each episode."""

    state: PyTree  # environment states, leaves [N, ...]
    episode_return: Array  # [N]


class EpisodeSums(NamedTuple):
    """Sums over the episodes that ended in a segment (or in an evaluation); means are taken on the host."""

    episodes: Array
    successes: Array
    returns: Array
    lengths: Array
    diverged: Array


def reset_envs(env, key: Array, count: int) -> EnvState:
    """``count`` environments at their start states; key is consumed."""
    state = env.reset(mesh.sample_keys(key, count))
    return EnvState(state, jnp.zeros_like(state.reward))


def sum_finished(state: PyTree, episode_return: Array, counted: Array) -> EpisodeSums:
    """Sum what the finished environments [N] among ``counted`` achieved."""
    ended = counted & state.done

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(ended, x, 0))

    ones = jnp.ones_like(episode_return)
    return EpisodeSums(
        *map(
            total,
            (ones, ones * state.success, episode_return, ones * state.time, ones * state.diverged),
        )
    )


def collect(
    env,
    act: Callable[[Array, Array], tuple[Array, PyTree]],
    workers: EnvState,
    key: Array,
    *,
    length: int,
    pool: int,
) -> tuple[EnvState, Segment, EpisodeSums]:
    """Run ``length`` chunks of ``act(obs [N, O], key) -> (chunk [N, h, A], extras)``; key is consumed.

    ``pool`` fresh states are made once (shared by all devices); an environment that finished takes one at random
    before its next chunk. Returns segment leaves [L, N, h, ...] with the true successors.
    """
    pool_key, scan_key = jax.random.split(key)
    fresh = env.reset(mesh.sample_keys(pool_key, pool // mesh.data_size()))
    fresh = mesh.gather(fresh)
    count = workers.episode_return.shape[0]

    def row(workers: EnvState, key: Array) -> tuple[EnvState, tuple[Segment, EpisodeSums]]:
        reset_key, act_key = jax.random.split(key)
        episode_return = jnp.where(workers.state.done, 0.0, workers.episode_return)
        state = env.autoreset(workers.state, fresh, mesh.sample_keys(reset_key, count))
        chunk, extras = act(state.obs, act_key)
        state, steps = env.step(
            state, chunk
        )  # an action that is no number has diverged there, and is not remembered
        steps = steps._replace(action=jnp.where(jnp.isfinite(steps.action), steps.action, 0.0))
        episode_return = episode_return + jnp.sum(jnp.where(steps.executed, steps.reward, 0.0), -1)
        episodes = sum_finished(state, episode_return, jnp.ones_like(state.terminated))
        return EnvState(state, episode_return), (Segment(steps, extras), episodes)

    workers, (segment, episodes) = jax.lax.scan(row, workers, jax.random.split(scan_key, length))
    return workers, segment, jax.tree.map(lambda x: mesh.all_sum(jnp.sum(x)), episodes)

"""Evaluation: a policy from fixed start states; one compiled program for every stage of a run.

Start states and sampling noise come from a stream of keys of their own, by seed and episode index.
They are the same at every evaluation, so that policies are compared on common random numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gcp_jax import mesh as mesh_lib
from gcp_jax.learner import rollout
from gcp_jax.stats.eval_rows import pack_success_bits
from gcp_jax.types import Array, Deployed, PRNGKey, PyTree, VectorEnv

EVALUATION_STREAM = 0x6576616C
FILMED = 4  # episodes of each device whose states are kept for a video


class EvalOutcome(NamedTuple):
    """One entry per episode, leaves [S, E]."""

    success: Array  # bool
    episode_return: Array  # undiscounted
    length: Array  # control steps
    diverged: Array  # bool
    task: Array  # int32: index in ``specs.tasks``; 0 if the environment is one task


def build_evaluation(
    eval_policy: Callable[..., Array],
    env: VectorEnv,
    *,
    mesh: Mesh,
    episodes: int,
    chunk: int,
    filmed: int = FILMED,
) -> Any:
    """Build a jitted evaluation; it compiles at the first call.

    Args:
      eval_policy: (deployed, obs [E, O], key) -> chunks [E, h, A].
      env: the environments.
      mesh: the devices.
      episodes: E, episodes of each seed.
      chunk: h.
      filmed: F, episodes of each device whose states are returned.

    Returns:
      ``evaluate(deployed [S, ...], seeds [S]) -> (EvalOutcome [S, E], film)``, where film has the
      states after every control step, leaves [S, T, F, ...].

    Raises:
      ValueError: the episodes cannot be divided over the devices.
    """
    local_episodes = mesh_lib.require_divisible(
        "evaluation.episodes", episodes, mesh.shape[mesh_lib.DATA]
    )
    chunks_per_episode = -(-env.specs.horizon // chunk)

    def evaluate_seed(deployed: Deployed, seed: Array) -> tuple[EvalOutcome, PyTree]:
        key = jax.random.fold_in(jax.random.key(EVALUATION_STREAM), seed)
        reset_key, act_key = jax.random.split(key)

        def run_chunk(env_state: rollout.EnvState, key: PRNGKey) -> tuple[rollout.EnvState, PyTree]:
            action = eval_policy(deployed, env_state.state.obs, key)
            state, steps, states = env.film(env_state.state, action)
            reward = jnp.sum(jnp.where(steps.executed, steps.reward, 0.0), -1)
            episode_return = env_state.episode_return + reward
            env_state = rollout.EnvState(state=state, episode_return=episode_return)
            return env_state, _video_states(states, filmed)

        env_state = rollout.reset_envs(env, reset_key, local_episodes)
        chunk_keys = jax.random.split(act_key, chunks_per_episode)
        env_state, film = jax.lax.scan(run_chunk, env_state, chunk_keys)
        film = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), film)
        return _outcome(env, env_state), film

    return _jit_over_devices(evaluate_seed, mesh)


def _jit_over_devices(evaluate_seed: Callable[..., Any], mesh: Mesh) -> Any:
    """Vmap over seeds, and split seeds and episodes over the devices."""
    in_specs = (P(mesh_lib.SEED), P(mesh_lib.SEED))
    out_specs = (P(mesh_lib.SEED, mesh_lib.DATA), P(mesh_lib.SEED, None, mesh_lib.DATA))
    evaluate = jax.shard_map(
        jax.vmap(evaluate_seed),
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=False,
    )
    return jax.jit(
        evaluate,
        in_shardings=mesh_lib.shardings(mesh, in_specs),
        out_shardings=mesh_lib.shardings(mesh, out_specs),
    )


def _outcome(env: VectorEnv, env_state: rollout.EnvState) -> EvalOutcome:
    """The outcome of finished episodes [E]."""
    state = env_state.state
    task = jax.vmap(env.task)(state) if env.task else jnp.zeros_like(state.time)
    return EvalOutcome(
        success=state.success,
        episode_return=env_state.episode_return,
        length=state.time,
        diverged=state.diverged,
        task=task,
    )


def _video_states(states: Any, filmed: int) -> PyTree:
    """Take the first F episodes of states [E, h, ...], time-major [h, F, ...].

    Videos need no keys, which host code could not read: they are replaced by the time.
    """
    states = states._replace(key=states.time)
    return jax.tree.map(lambda x: jnp.swapaxes(x[:filmed], 0, 1), states)


def eval_rows(outcome: EvalOutcome, *, seeds: list[int], specs: Any) -> list[dict[str, Any]]:
    """Summarize an evaluation, one row per seed.

    Args:
      outcome: host arrays [S, E].
      seeds: the seeds' indices.
      specs: of the environment. If they define no success, a row has none; if they name several
        tasks, it has the success of each that occurred.

    Returns:
      Dicts of ``eval/`` metrics.
    """
    return [
        _eval_row(jax.tree.map(operator.itemgetter(index), outcome), seed, specs)
        for index, seed in enumerate(seeds)
    ]


def _eval_row(outcome: EvalOutcome, seed: int, specs: Any) -> dict[str, Any]:
    """The row of one seed, from leaves [E]."""
    success = outcome.success
    returns = outcome.episode_return
    row: dict[str, Any] = {"seed": seed}
    if not specs.by_return:
        row["eval/success"] = float(success.mean())
        row["eval/successes"] = int(success.sum())
        row["eval/success_bits"] = pack_success_bits(success)
    row["eval/episodes"] = int(success.size)
    row["eval/return"] = float(returns.mean())
    row["eval/return_std"] = float(returns.std(ddof=1)) if returns.size > 1 else 0.0
    row["eval/length"] = float(outcome.length.mean())
    row["eval/diverged"] = int(outcome.diverged.sum())
    for code, name in enumerate(specs.tasks):
        task_success = success[outcome.task == code]
        if task_success.size:
            row[f"eval/successes/{name}"] = int(task_success.sum())
            row[f"eval/episodes/{name}"] = int(task_success.size)
    return row

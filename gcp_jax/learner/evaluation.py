"""Evaluation: the deployed policy from fixed start states, one compiled program for every stage of a run.

Start states and sampling noise come from a key stream of their own, by seed and episode index: never training keys,
and the same at every evaluation, so that before and after are compared on common random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gcp_jax import mesh as mesh_lib
from gcp_jax.learner import rollout
from gcp_jax.stats import statistics
from gcp_jax.types import Array, PyTree

EVALUATION_STREAM = 0x6576616C
FILMED = 4  # episodes of each device whose states are kept for a video


class EvalOutcome(NamedTuple):
    """One row per episode, leaves [S, E]."""

    success: Array  # bool
    episode_return: Array  # undiscounted
    length: Array  # control steps
    diverged: Array  # bool
    task: Array  # int32: which of ``specs.tasks``; 0 where the environment is one task


def build_evaluation(
    eval_policy: Callable[..., Array],
    env: Any,
    *,
    mesh: Mesh,
    episodes: int,
    chunk: int,
    filmed: int = FILMED,
) -> Any:
    """Compile-ready jitted ``evaluate(deployed [S, ...], seeds [S]) -> (Outcome [S, E], film)``.

    eval_policy: (deployed, obs [E, O], key) -> chunks [E, h, A]. film: states after every control step, leaves
    [S, T, F, ...] for the first F = ``filmed`` episodes of each device. Raises ValueError if episodes do not divide over devices.
    """
    share = mesh_lib.require_divisible("evaluation.episodes", episodes, mesh.shape[mesh_lib.DATA])
    rows = -(-env.specs.horizon // chunk)

    def one(deployed: PyTree, seed: Array) -> tuple[EvalOutcome, PyTree]:
        key = jax.random.fold_in(jax.random.key(EVALUATION_STREAM), seed)
        reset_key, act_key = jax.random.split(key)
        workers = rollout.reset_envs(env, reset_key, share)

        def row(workers: rollout.EnvState, key: Array) -> tuple[rollout.EnvState, PyTree]:
            chunks = eval_policy(deployed, workers.state.obs, key)
            state, steps, states = env.film(workers.state, chunks)
            gained = jnp.sum(jnp.where(steps.executed, steps.reward, 0.0), -1)
            return rollout.EnvState(state, workers.episode_return + gained), _video_states(
                states, filmed
            )

        workers, film = jax.lax.scan(row, workers, jax.random.split(act_key, rows))
        state = workers.state
        film = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), film)
        task = jax.vmap(env.task)(state) if env.task else jnp.zeros_like(state.time)
        return EvalOutcome(
            state.success, workers.episode_return, state.time, state.diverged, task
        ), film

    seed, data = mesh_lib.SEED, mesh_lib.DATA
    specs = (P(seed, data), P(seed, None, data))
    evaluate = jax.shard_map(
        jax.vmap(one), mesh=mesh, in_specs=(P(seed), P(seed)), out_specs=specs, check_vma=False
    )
    shard = partial(mesh_lib.shardings, mesh)
    return jax.jit(evaluate, in_shardings=shard((P(seed), P(seed))), out_shardings=shard(specs))


def _video_states(states: PyTree, filmed: int) -> PyTree:
    """States [E, h, ...] -> the first episodes time-major [h, F, ...]; keys are of no use to a film."""
    states = states._replace(key=states.time)
    return jax.tree.map(lambda x: jnp.swapaxes(x[:filmed], 0, 1), states)


def eval_rows(outcome: EvalOutcome, *, seeds: list[int], specs: Any) -> list[dict[str, Any]]:
    """One dict of ``eval/`` numbers, and the outcomes, per seed, from an Outcome of host arrays: no success where ``specs`` say that the task is
    judged by its return, and that of each of their tasks that came up."""
    result = []
    for index, seed in enumerate(seeds):
        success, returns = outcome.success[index], outcome.episode_return[index]
        rates = {
            "eval/success": float(success.mean()),
            "eval/successes": int(success.sum()),
            "eval/success_bits": statistics.packed(success),
        }
        row = {
            "seed": seed,
            **({} if specs.by_return else rates),
            "eval/episodes": int(success.size),
            "eval/return": float(returns.mean()),
            "eval/return_std": float(returns.std(ddof=1)) if returns.size > 1 else 0.0,
            "eval/length": float(outcome.length[index].mean()),
            "eval/diverged": int(outcome.diverged[index].sum()),
        }
        for code, name in enumerate(specs.tasks):
            own = success[outcome.task[index] == code]
            if own.size:
                row |= {
                    f"eval/successes/{name}": int(own.sum()),
                    f"eval/episodes/{name}": int(own.size),
                }
        result.append(row)
    return result

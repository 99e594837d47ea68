"""Demonstrations: many scripted episodes of a task, collected by one compiled program."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from envs.protocol import Demonstrator, Env, State
from envs.wrappers import guard, recorded, time_limit
from gcp_jax.types import Step

Array = jax.Array


class Info(NamedTuple):
    """Facts of the episodes: success [E] bool, mode [E] int32, length [E] int32 in control steps, diverged [E] bool."""

    success: Array
    mode: Array
    length: Array
    diverged: Array


def collect(env: Env, noise: float, key: Array, episodes: int) -> tuple[Step, Info]:
    """``episodes`` episodes by the demonstrator at ``noise`` (0 = clean); ``key`` is consumed.

    Returns the steps, time-major with leaves [T, E, ...] where T is the horizon, and their ``Info``. An episode that
    ended is frozen for the rest of T and its steps are marked not executed. Raises ValueError without a demonstrator.
    """
    make = env.demonstrator
    if make is None:
        raise ValueError(f"environment {env.specs.name!r} has no demonstrator; give its Env one to collect with")

    @jax.jit
    def program(keys: Array, noise: float) -> tuple[Step, Info]:
        return jax.vmap(_episode(env, make(noise)), out_axes=(1, 0))(keys)

    return program(jax.random.split(key, episodes), noise)


def facts(info: Info) -> dict[str, Any]:
    """What to tell of demonstrations: how many episodes, their success, and how many took each way."""
    mode = np.asarray(info.mode)
    return {
        "episodes": len(mode),
        "success": round(float(np.mean(info.success)), 3),
        "modes": [int((mode == way).sum()) for way in np.unique(mode)],
    }


def _episode(env: Env, demonstrator: Demonstrator) -> Any:
    """(key) -> (Step with leaves [T, ...], Info with leaves []): one episode, frozen after its end."""
    env = time_limit(guard(env))

    def one(carry: tuple[State, Any], key: Array) -> tuple[tuple[State, Any], Step]:
        state, memory = carry
        action, remembered = demonstrator.act(memory, state, key)
        new, record = recorded(env, state, action)
        return (new, remembered), record

    def episode(key: Array) -> tuple[Step, Info]:
        reset_key, plan_key, act_key = jax.random.split(key, 3)
        start = env.reset(reset_key)
        memory = demonstrator.init(plan_key, start)
        keys = jax.random.split(act_key, env.specs.horizon)
        (end, memory), steps = jax.lax.scan(one, (start, memory), keys)
        return steps, Info(end.success, demonstrator.mode(memory), end.time, end.diverged)

    return episode

"""Demonstrations: many scripted episodes of a task, collected by one compiled program."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.demos import quality
from gcp_jax.envs.protocol import Demonstrator, Env, State
from gcp_jax.envs.wrappers import guard, recorded, time_limit
from gcp_jax.types import Step

Array = jax.Array

REFERENCES = 32  # episodes of each
REFERENCE_STREAM = 0x72656673


class Info(NamedTuple):
    """Facts of the episodes: success [E] bool, mode [E] int32, length [E] int32 in control steps, diverged [E] bool."""

    success: Array
    mode: Array
    length: Array
    diverged: Array


class Collected(NamedTuple):
    """Demonstrations, time-major with leaves [T, E, ...] where T is the horizon, and what they are measured against: episodes
    [T, R, ...] of the clean demonstrator and of uniformly random actions. An episode that ended is frozen for the rest of T and
    its steps are marked not executed."""

    steps: Step
    info: Info
    clean: Step
    random: Step

    def facts(self) -> dict[str, Any]:
        """What to tell of them, on the host: ``facts`` of the episodes, and their quality against the references."""
        return {
            **facts(self.info),
            **quality.measured(self.steps, clean=self.clean, random=self.random),
        }


def collect(env: Env, noise: float, key: Array, episodes: int) -> Collected:
    """``episodes`` episodes by the demonstrator at ``noise`` (0 = clean), and at most ``REFERENCES`` of each reference; ``key`` is
    consumed. Raises ValueError without a demonstrator."""
    make = env.demonstrator
    if make is None:
        raise ValueError(
            f"environment {env.specs.name!r} has no demonstrator; give its Env one to collect with"
        )

    @jax.jit
    def program(keys: Array, noise: Array, random: Array) -> tuple[Step, Info]:
        return jax.vmap(partial(_episode, env, make), out_axes=(1, 0))(keys, noise, random)

    few = min(episodes, REFERENCES)
    keys = [
        jax.random.split(key, episodes),
        jax.random.split(jax.random.fold_in(key, REFERENCE_STREAM), 2 * few),
    ]
    levels = np.repeat(np.asarray([noise, 0.0, 0.0], np.float32), [episodes, few, few])
    steps, info = program(jnp.concatenate(keys), levels, np.arange(len(levels)) >= episodes + few)
    demonstrated, clean, random = (
        jax.tree.map(lambda x, a=a, b=b: x[:, a:b], steps)
        for a, b in itertools.pairwise((0, episodes, episodes + few, episodes + 2 * few))
    )
    return Collected(demonstrated, jax.tree.map(lambda x: x[:episodes], info), clean, random)


def facts(info: Info) -> dict[str, Any]:
    """How many episodes, their success, and how many took each way."""
    mode = np.asarray(info.mode)
    return {
        "episodes": len(mode),
        "success": round(float(np.mean(info.success)), 3),
        "modes": [int((mode == way).sum()) for way in np.unique(mode)],
    }


def _episode(
    env: Env, make: Callable[[Any], Demonstrator], key: Array, noise: Array, random: Array
) -> tuple[Step, Info]:
    """(Step with leaves [T, ...], Info with leaves []): one episode, frozen after its end; of random actions where ``random``."""
    env, demonstrator = time_limit(guard(env)), make(noise)

    def one(carry: tuple[State, Any], key: Array) -> tuple[tuple[State, Any], Step]:
        state, memory = carry
        action, remembered = demonstrator.act(memory, state, key)
        anywhere = jax.random.uniform(
            jax.random.fold_in(key, REFERENCE_STREAM), action.shape, minval=-1.0
        )
        new, record = recorded(env, state, jnp.where(random, anywhere, action))
        return (new, remembered), record

    reset_key, plan_key, act_key = jax.random.split(key, 3)
    start = env.reset(reset_key)
    memory = demonstrator.init(plan_key, start)
    keys = jax.random.split(act_key, env.specs.horizon)
    (end, memory), steps = jax.lax.scan(one, (start, memory), keys)
    return steps, Info(end.success, demonstrator.mode(memory), end.time, end.diverged)

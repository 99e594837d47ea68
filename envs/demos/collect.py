"""Demonstrations: many scripted episodes of a task, collected by one compiled program."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.contracts import DIVERGED
from gcp_jax.envs.demos import quality
from gcp_jax.envs.protocol import Demonstrator, Env, State
from gcp_jax.envs.shapes import EnvError, check_modes, run_contract
from gcp_jax.envs.wrappers import guard, recorded, time_limit
from gcp_jax.types import Step

Array = jax.Array

REFERENCES = 32  # episodes of each reference
REFERENCE_STREAM = 0x72656673


class Info(NamedTuple):
    """Facts of the episodes."""

    success: Array  # [E] bool
    mode: Array  # [E] int32, which way the demonstrator took
    length: Array  # [E] int32, control steps
    diverged: Array  # [E] bool


class Collected(NamedTuple):
    """Demonstrations and what they are measured against.

    Steps are time-major with leaves [T, E, ...], where T is the horizon. An episode that ended is
    frozen for the rest of T and its steps are marked not executed.
    """

    steps: Step  # [T, E, ...]
    info: Info
    clean: Step  # [T, R, ...] episodes of the clean demonstrator
    random: Step  # [T, R, ...] episodes of uniformly random actions

    def facts(self) -> dict[str, Any]:
        """Counts of the episodes, and their quality against the references. On the host."""
        measured = quality.measured(self.steps, clean=self.clean, random=self.random)
        return {**facts(self.info), **measured}


def collect(env: Env, noise: float, key: Array, episodes: int) -> Collected:
    """Episodes of the demonstrator, and at most ``REFERENCES`` of each reference.

    Args:
      env: a task with a demonstrator.
      noise: of the demonstrator; 0 is clean.
      key: a random key; consumed.
      episodes: of the demonstrator.

    Raises:
      EnvError: if the demonstrator reports a mode that it does not have, or every episode diverged.
      ValueError: if the task has no demonstrator.
    """
    make = env.demonstrator
    if make is None:
        raise ValueError(
            f"environment {env.specs.name!r} has no demonstrator; give its Env one to collect with"
        )

    @jax.jit
    def program(keys: Array, noise: Array, random: Array) -> tuple[Step, Info]:
        return jax.vmap(partial(_episode, env, make), out_axes=(1, 0))(keys, noise, random)

    references = min(episodes, REFERENCES)
    clean_end = episodes + references
    reference_key = jax.random.fold_in(key, REFERENCE_STREAM)
    keys = [jax.random.split(key, episodes), jax.random.split(reference_key, 2 * references)]
    counts = [episodes, references, references]
    noises = np.repeat(np.asarray([noise, 0.0, 0.0], np.float32), counts)
    is_random = np.arange(len(noises)) >= clean_end
    steps, info = program(jnp.concatenate(keys), noises, is_random)
    run_contract(env, "demonstrator", lambda: check_modes(info.mode, make(0.0).modes))
    _check_diverged(env, np.asarray(info.diverged[:episodes]))

    def episodes_between(first: int, end: int) -> Step:
        episodes: Step = jax.tree.map(lambda x: x[:, first:end], steps)
        return episodes

    return Collected(
        steps=episodes_between(0, episodes),
        info=jax.tree.map(lambda x: x[:episodes], info),
        clean=episodes_between(episodes, clean_end),
        random=episodes_between(clean_end, clean_end + references),
    )


def _check_diverged(env: Env, diverged: np.ndarray) -> None:
    """Print how many episodes [E] diverged; raise EnvError if all did."""
    count = int(diverged.sum())
    if not count:
        return
    found = f"{count} of {len(diverged)} demonstrations of {env.specs.name} {DIVERGED}"
    if count == len(diverged):
        raise EnvError(f"{found}.")
    print(f"note: {found}", file=sys.stderr)


def facts(info: Info) -> dict[str, Any]:
    """Number of episodes, their success rate, and how many took each way."""
    mode = np.asarray(info.mode)
    return {
        "episodes": len(mode),
        "success": round(float(np.mean(info.success)), 3),
        "modes": [int((mode == way).sum()) for way in np.unique(mode)],
    }


def _episode(
    env: Env, make: Callable[[Any], Demonstrator], key: Array, noise: Array, random: Array
) -> tuple[Step, Info]:
    """One episode, frozen after its end; of random actions if ``random`` [] bool.

    Returns:
      Steps with leaves [T, ...] and facts with leaves [].
    """
    env, demonstrator = time_limit(guard(env)), make(noise)

    def one(carry: tuple[State, Any], key: Array) -> tuple[tuple[State, Any], Step]:
        state, memory = carry
        demonstrated, memory = demonstrator.act(memory, state, key)
        uniform_key = jax.random.fold_in(key, REFERENCE_STREAM)
        uniform = jax.random.uniform(uniform_key, demonstrated.shape, minval=-1.0)
        new, record = recorded(env, state, jnp.where(random, uniform, demonstrated))
        return (new, memory), record

    reset_key, plan_key, act_key = jax.random.split(key, 3)
    start = env.reset(reset_key)
    memory = demonstrator.init(plan_key, start)
    keys = jax.random.split(act_key, env.specs.horizon)
    (end, memory), steps = jax.lax.scan(one, (start, memory), keys)
    info = Info(
        success=end.success,
        mode=demonstrator.mode(memory),
        length=end.time,
        diverged=end.diverged,
    )
    return steps, info

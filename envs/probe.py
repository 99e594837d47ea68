"""The compiled programs of an environment, and a rollout of random actions for the contracts.

All steps of many environments go through one program, ``Programs.roll``, so their physics is
compiled once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.envs.protocol import Env, State
from gcp_jax.envs.wrappers import ChunkEnv, autoreset, select, training
from gcp_jax.types import Step

Array = jax.Array


class Record(NamedTuple):
    """A rollout with resets, leaves [T, n, ...]."""

    step: Step
    key: Array  # [T, n, words] the state's key before the step
    time: Array  # [T, n] after the step
    diverged: Array  # [T, n]
    next_start: Array  # [T, n, O] observation the next step starts from, after autoreset


class Inputs(NamedTuple):
    """What a rollout consumes."""

    action: Array  # [T, n, A]
    key: Array  # [T, n] typed, for autoreset


class Programs(NamedTuple):
    """The compiled programs of many environments, through the wrappers of training."""

    reset: Callable[[Array], State]  # keys [n] -> state
    roll: Callable[[State, Inputs, State, Array, Array], tuple[State, Record]]
    """(state, inputs [T], pool of fresh states, steps [] ≤ T, renew [] bool) -> (state, record [T])

    If ``renew``, finished environments start afresh from the pool."""
    max_steps: int  # T

    def step(self, state: State, action: Array) -> tuple[State, Step]:
        """One step with ``action`` [n, A] and no reset, by the program of ``roll``."""
        once = Inputs(action=action, key=state.key)
        inputs = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.max_steps, *x.shape)), once)
        state, record = self.roll(state, inputs, state, jnp.int32(1), jnp.bool_(False))
        return state, jax.tree.map(lambda x: x[0], record.step)


class Probe(NamedTuple):
    """What the contracts look at, made once."""

    env: Env
    keys: Array  # [n] typed
    programs: Programs
    starts: State  # leaves [n, ...]
    actions: Array  # [n, A] in [-1, 1]
    inputs: Inputs  # of the random rollout
    pool: State  # of the random rollout, leaves [n, ...]
    record: Record  # of random actions; numpy

    def step(self, state: State, action: Array) -> tuple[State, Step]:
        """One step of all environments, compiled."""
        return self.programs.step(state, action)

    def reset(self, keys: Array) -> State:
        """Resets with ``keys`` [n], compiled."""
        return self.programs.reset(keys)


def compiled(env: Env, max_steps: int, options: dict[str, Any] | None = None) -> Programs:
    """The programs of an environment, which compile at their first call.

    ``options`` are XLA's, for the program that steps.
    """
    stack = training(env)

    @functools.partial(jax.jit, compiler_options=options)
    def roll(
        state: State, inputs: Inputs, pool: State, steps: Array, renew: Array
    ) -> tuple[State, Record]:
        first = jax.tree.map(lambda x: x[0], inputs)
        row = jax.eval_shape(functools.partial(_advance, stack), state, first, pool, renew)[1]
        empty = jax.tree.map(lambda x: jnp.zeros((max_steps, *x.shape), x.dtype), row)

        def body(time: Array, carry: tuple[State, Record]) -> tuple[State, Record]:
            state, record = carry
            now = jax.tree.map(lambda x: x[time], inputs)
            state, row = _advance(stack, state, now, pool, renew)
            return state, jax.tree.map(lambda rows, x: rows.at[time].set(x), record, row)

        rolled: tuple[State, Record] = jax.lax.fori_loop(0, steps, body, (state, empty))
        return rolled

    return Programs(reset=jax.jit(stack.reset), roll=roll, max_steps=max_steps)


def _advance(
    stack: ChunkEnv, state: State, inputs: Inputs, pool: State, renew: Array
) -> tuple[State, Record]:
    """One step and its row of the record; ``inputs`` without the axis of time."""
    new, chunk_record = stack.step(state, inputs.action[:, None])
    step = jax.tree.map(lambda x: x[:, 0], chunk_record)
    after = select(renew, autoreset(new, pool, inputs.key), new)
    row = Record(
        step=step,
        key=jax.random.key_data(state.key),
        time=new.time,
        diverged=new.diverged,
        next_start=after.obs,
    )
    return after, row


def make_probe(env: Env, programs: Programs, key: Array, n: int) -> Probe:
    """Roll out random actions."""
    reset_key, action_key, roll_key = jax.random.split(key, 3)
    roll_action_key, pool_key, renew_key = jax.random.split(roll_key, 3)
    keys = jax.random.split(reset_key, n)
    starts = programs.reset(keys)
    rows = (programs.max_steps, n)
    shape = (n, env.specs.action_dim)
    inputs = Inputs(
        action=jax.random.uniform(
            roll_action_key, (programs.max_steps, *shape), minval=-1.0, maxval=1.0
        ),
        key=jax.random.split(renew_key, rows),
    )
    pool = programs.reset(jax.random.split(pool_key, n))
    steps = jnp.int32(programs.max_steps)
    _, record = programs.roll(starts, inputs, pool, steps, jnp.bool_(True))
    return Probe(
        env=env,
        keys=keys,
        programs=programs,
        starts=starts,
        actions=jax.random.uniform(action_key, shape, minval=-1.0, maxval=1.0),
        inputs=inputs,
        pool=pool,
        record=jax.device_get(record),
    )

"""Wrappers of environments, composed as vector ∘ chunk ∘ time limit ∘ guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.envs.protocol import Env, EnvSpecs, State
from gcp_jax.types import Step

Array = jax.Array


def select(pred: Array, on_true: State, on_false: State) -> State:
    """``on_true`` if ``pred`` [] bool, else ``on_false``, for a whole state; keys included."""
    selected: State = jax.tree.map(
        lambda a, b: jax.lax.select(jnp.broadcast_to(pred, a.shape), a, b), on_true, on_false
    )
    return selected


def guard(env: Env) -> Env:
    """Hold back physics that becomes NaN or infinite.

    The last finite state stays, the episode is truncated and counted as ``diverged``, and it is
    never a success.
    """

    def step(state: State, action: Array) -> State:
        new = env.step(state, action)
        floats = [
            x
            for x in jax.tree.leaves((new.physics, new.obs, new.reward))
            if jnp.issubdtype(x.dtype, jnp.floating)
        ]
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))
        held = state._replace(
            reward=jnp.zeros_like(new.reward),
            success=jnp.zeros_like(new.success),
            terminated=jnp.zeros_like(new.terminated),
            truncated=jnp.ones_like(new.truncated),
            diverged=jnp.ones_like(new.diverged),
            time=new.time,
            key=new.key,
        )
        return select(finite, new, held)

    return env._replace(step=step)


def time_limit(env: Env) -> Env:
    """Truncate after ``specs.horizon`` control steps.

    A task that ends in the same step stays terminated.
    """

    def step(state: State, action: Array) -> State:
        new = env.step(state, action)
        time = state.time + 1
        late = (time >= env.specs.horizon) & ~new.terminated
        return new._replace(time=time, truncated=new.truncated | late)

    return env._replace(step=step)


def autoreset(state: State, pool: State, key: Array) -> State:
    """Give each finished environment one of the pool's fresh states, drawn at random.

    Args:
      state: leaves [N, ...].
      pool: fresh states, leaves [R, ...].
      key: typed keys [N]; consumed.

    Returns:
      The states [N, ...]. A drawn one gets the key of its environment, so that two environments
      with the same start still differ in what is random later.
    """

    def one(state: State, key: Array) -> State:
        choose_key, state_key = jax.random.split(key)
        index = jax.random.randint(choose_key, (), 0, pool.time.shape[0])
        start = jax.tree.map(lambda x: x[index], pool)._replace(key=state_key)
        return select(state.done, start, state)

    return jax.vmap(one)(state, key)


class ChunkEnv(NamedTuple):
    """An environment that runs whole chunks."""

    reset: Callable[[Array], State]
    step: Callable[[State, Array], tuple[State, Step]]
    """(state, chunk [h, A]) -> (state, steps [h, ...])"""
    film: Callable[[State, Array], tuple[State, Step, State]]
    """The same, with the states after each step [h, ...] as a third result"""
    specs: EnvSpecs
    task: Callable[[State], Array] | None = None  # as in Env
    autoreset: Callable[[State, State, Array], State] = autoreset


def recorded(env: Env, state: State, action: Array) -> tuple[State, Step]:
    """One step and its record.

    A state that is done stays frozen and its step is marked not executed.
    """
    new = select(state.done, state, env.step(state, action))
    record = Step(
        obs=state.obs,
        action=action,
        reward=new.reward,
        next_obs=new.obs,
        terminated=new.terminated,
        truncated=new.truncated,
        success=new.success,
        executed=~state.done,
    )
    return new, record


def chunk(env: Env) -> ChunkEnv:
    """Run a chunk of h actions open loop.

    After the episode's end the state is frozen for the rest of the chunk and its steps are marked
    not executed. The reset happens between chunks (``autoreset``).
    """

    def one(state: State, action: Array) -> tuple[State, tuple[Step, State]]:
        new, record = recorded(env, state, action)
        return new, (record, new)

    def film(state: State, actions: Array) -> tuple[State, Step, State]:
        state, (steps, states) = jax.lax.scan(one, state, actions)
        return state, steps, states

    def step(state: State, actions: Array) -> tuple[State, Step]:
        state, steps, _ = film(state, actions)
        return state, steps

    return ChunkEnv(reset=env.reset, step=step, film=film, specs=env.specs, task=env.task)


def vector(env: ChunkEnv) -> ChunkEnv:
    """Many environments: keys [N], states [N, ...], chunks [N, h, A], steps [N, h, ...]."""
    return env._replace(reset=jax.vmap(env.reset), step=jax.vmap(env.step), film=jax.vmap(env.film))


def training(env: Env) -> ChunkEnv:
    """The stack every run uses: vector ∘ chunk ∘ time limit ∘ guard."""
    return vector(chunk(time_limit(guard(env))))

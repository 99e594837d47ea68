"""Environments of other suites behind our protocol: objects with ``reset(key)`` and ``step(state, action)`` in the manner of
brax and MuJoCo Playground.

What is carried between steps is their whole state without its empty arrays: those come out of a sharded program with
another sharding than they went in, which compiles it a second time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from gcp_jax.envs.physics.common import initial_state
from gcp_jax.envs.physics.mjx import one_batch
from gcp_jax.envs.protocol import NO_SUCCESS, Demonstrator, Env, EnvSpecs, Scene, State

Array = jax.Array
PyTree = Any


class AdaptedEnv(NamedTuple):
    """The non-empty leaves of the other suite's state, in its order."""

    leaves: tuple[Array, ...]


def adapt(
    foreign: Any,
    *,
    name: str,
    model_field: str,
    horizon: int,
    model: mujoco.MjModel,
    qpos: Callable[[PyTree], Array],
    demonstrator: Callable[[float], Demonstrator] | None = None,
) -> Env:
    """``foreign`` as an Env. Its ``done`` terminates, its reward is kept, nothing is a success.

    model_field: its attribute that holds the MJX model; qpos: where the joint positions [nq] are in a state of it, for the
    renderer. Raises ValueError where it observes several arrays.
    """
    on_host = jax.tree.map(np.asarray, getattr(foreign, model_field))

    def placed() -> Any:
        """With its model as constants of the program that is traced: MJX commits it to one device."""
        copied = copy.copy(foreign)
        setattr(copied, model_field, jax.tree.map(jnp.asarray, on_host))
        return copied

    @one_batch
    def begin(key: Array) -> PyTree:
        with jax.numpy_rank_promotion("allow"):
            return placed().reset(key)

    @one_batch
    def deterministic_step(state: PyTree, action: Array) -> PyTree:
        with jax.numpy_rank_promotion("allow"):
            return placed().step(state, action)

    example = jax.eval_shape(begin, jax.random.key(0))
    if not hasattr(example.obs, "shape"):
        raise ValueError(f"{name} observes {sorted(example.obs)}: a single array is needed.")
    layout, tree = jax.tree.flatten(example)

    def pack(state: PyTree) -> AdaptedEnv:
        leaves = zip(jax.tree.leaves(state), layout, strict=True)
        return AdaptedEnv(tuple(jnp.asarray(x, like.dtype) for x, like in leaves if like.size))

    def unpack(physics: AdaptedEnv) -> PyTree:
        kept = iter(physics.leaves)
        return jax.tree.unflatten(
            tree, [next(kept) if x.size else jnp.zeros(x.shape, x.dtype) for x in layout]
        )

    def reset(key: Array) -> State:
        own_key, state_key = jax.random.split(key)
        state = begin(own_key)
        return initial_state(pack(state), state.obs.astype(jnp.float32), state_key)

    def step(state: State, action: Array) -> State:
        new = deterministic_step(unpack(state.physics), jnp.clip(action, -1.0, 1.0))
        return state._replace(
            physics=pack(new),
            obs=new.obs.astype(jnp.float32),
            reward=jnp.asarray(new.reward, jnp.float32),
            terminated=jnp.asarray(new.done, jnp.float32) > 0.5,
        )

    specs = EnvSpecs(
        name=name,
        obs_dim=example.obs.shape[-1],
        action_dim=foreign.action_size,
        horizon=horizon,
        control_dt=float(foreign.dt),
        success=NO_SUCCESS,
    )
    camera = model.camera(0).name if model.ncam else ""
    scene = Scene(model, lambda state: {"qpos": qpos(unpack(state.physics))}, camera)
    return Env(reset, step, specs, demonstrator=demonstrator, scene=lambda: scene)

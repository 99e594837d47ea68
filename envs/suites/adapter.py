"""Environments of other suites behind our protocol.

They are objects with ``reset(key)`` and ``step(state, action)`` in the manner of brax and MuJoCo
Playground. What is carried between steps is their whole state without its empty arrays: those come
out of a sharded program with another sharding than they went in, which compiles it a second time.
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


class AdaptedState(NamedTuple):
    """The state of the other suite's environment."""

    leaves: tuple[Array, ...]  # its non-empty leaves, in its order


class Packing(NamedTuple):
    """How the other suite's state becomes an AdaptedState and back."""

    layout: list[jax.ShapeDtypeStruct]  # of all its leaves
    tree: Any  # its structure

    def pack(self, state: PyTree) -> AdaptedState:
        """Drop the empty leaves; fix the dtypes of the others."""
        leaves = zip(jax.tree.leaves(state), self.layout, strict=True)
        return AdaptedState(tuple(jnp.asarray(x, like.dtype) for x, like in leaves if like.size))

    def unpack(self, physics: AdaptedState) -> PyTree:
        """The whole state again."""
        kept = iter(physics.leaves)
        leaves = [
            next(kept) if like.size else jnp.zeros(like.shape, like.dtype) for like in self.layout
        ]
        return jax.tree.unflatten(self.tree, leaves)


def adapt(
    suite_env: Any,
    *,
    name: str,
    model_field: str,
    horizon: int,
    model: mujoco.MjModel,
    qpos: Callable[[PyTree], Array],
    demonstrator: Callable[[float], Demonstrator] | None = None,
) -> Env:
    """``suite_env`` as an Env. Its ``done`` terminates, its reward is kept, nothing is a success.

    Args:
      suite_env: an environment of another suite.
      name: of the task.
      model_field: the attribute of ``suite_env`` that holds the MJX model.
      horizon: control steps of an episode.
      model: the model that is drawn.
      qpos: the joint positions [nq] of a state of ``suite_env``, for the renderer.
      demonstrator: by its noise, as in ``Env``.

    Raises:
      ValueError: if it observes several arrays.
    """
    suite_reset, suite_step = _host_model_functions(suite_env, model_field)
    example = jax.eval_shape(suite_reset, jax.random.key(0))
    if not hasattr(example.obs, "shape"):
        raise ValueError(f"{name} observes {sorted(example.obs)}: a single array is needed.")
    packing = Packing(*jax.tree.flatten(example))

    def reset(key: Array) -> State:
        suite_key, state_key = jax.random.split(key)
        state = suite_reset(suite_key)
        return initial_state(packing.pack(state), state.obs.astype(jnp.float32), state_key)

    def step(state: State, action: Array) -> State:
        new = suite_step(packing.unpack(state.physics), jnp.clip(action, -1.0, 1.0))
        return state._replace(
            physics=packing.pack(new),
            obs=new.obs.astype(jnp.float32),
            reward=jnp.asarray(new.reward, jnp.float32),
            terminated=jnp.asarray(new.done, jnp.float32) > 0.5,
        )

    def pose(state: State) -> dict[str, Any]:
        return {"qpos": qpos(packing.unpack(state.physics))}

    specs = EnvSpecs(
        name=name,
        obs_dim=example.obs.shape[-1],
        action_dim=suite_env.action_size,
        horizon=horizon,
        control_dt=float(suite_env.dt),
        success=NO_SUCCESS,
    )
    scene = Scene(model, pose, camera=model.camera(0).name if model.ncam else "")
    return Env(reset, step, specs, demonstrator=demonstrator, scene=lambda: scene)


def _host_model_functions(suite_env: Any, model_field: str) -> tuple[Callable, Callable]:
    """(reset, step) of ``suite_env`` with its model as constants of the program that is traced.

    MJX commits the model's arrays to one device, which sharded programs refuse.
    """
    host_model = jax.tree.map(np.asarray, getattr(suite_env, model_field))

    def with_model() -> Any:
        env = copy.copy(suite_env)
        setattr(env, model_field, jax.tree.map(jnp.asarray, host_model))
        return env

    @one_batch
    def reset(key: Array) -> PyTree:
        with jax.numpy_rank_promotion("allow"):
            return with_model().reset(key)

    @one_batch
    def step(state: PyTree, action: Array) -> PyTree:
        with jax.numpy_rank_promotion("allow"):
            return with_model().step(state, action)

    return reset, step

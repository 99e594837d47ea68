"""What tasks share: the sparse reward, the record after a reset and a step, commands, starts, directions, and steering for demonstrators."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.protocol import State

Array = jax.Array
PyTree = Any


def initial_state(physics: PyTree, obs: Array, key: Array) -> State:
    """The state a reset returns; ``obs`` [O], ``key`` typed [] and not used before."""
    no = jnp.zeros((), bool)
    return State(
        physics=physics,
        obs=obs,
        reward=jnp.zeros(()),
        terminated=no,
        truncated=no,
        success=no,
        diverged=no,
        time=jnp.zeros((), jnp.int32),
        key=key,
    )


def next_state(state: State, *, physics: PyTree, obs: Array, success: Array, bonus: float) -> State:
    """The state after a control step: −1 per step, ``bonus`` on top where ``success`` [] bool, which ends the task."""
    reward = -1.0 + bonus * success.astype(jnp.float32)
    return state._replace(
        physics=physics, obs=obs, reward=reward, terminated=success, success=success
    )


def clip_step_towards(delta: Array, reach: float) -> Array:
    """The action [D] that moves by ``delta`` [D], in one control step if it can, else straight at full speed.

    ``reach`` is how far one control step goes at action 1, in the unit of ``delta``.
    """
    wanted = delta / reach
    return wanted / jnp.maximum(1.0, jnp.max(jnp.abs(wanted)))


def add_action_noise(action: Array, key: Array, std: float) -> Array:
    """``action`` [A] with Gaussian noise of ``std`` per step, clipped to [-1, 1]; ``key`` is consumed."""
    return jnp.clip(action + std * jax.random.normal(key, action.shape), -1.0, 1.0)


def integrate_command(
    target: Array, action: Array, *, reach: Any, low: Any, high: Any, held: Array, lead: Any
) -> Array:
    """The next commanded position [D]: ``target`` [D] moved by the clipped ``action`` [D] times ``reach``, within ``low`` and
    ``high``, and at most ``lead`` away from where the robot is, ``held`` [D]: that bounds the force."""
    wanted = jnp.clip(target + reach * jnp.clip(action, -1.0, 1.0), low, high)
    return jnp.clip(wanted, held - lead, held + lead)


def box(key: Array, middle_mm: tuple[float, ...], spread_mm: tuple[float, ...]) -> Array:
    """A point [D], metres, uniform in the box around ``middle_mm`` with half-widths ``spread_mm``; ``key`` is consumed."""
    unit = jax.random.uniform(key, (len(middle_mm),), minval=-1.0, maxval=1.0)
    return 0.001 * (np.asarray(middle_mm) + np.asarray(spread_mm) * unit)


def yaw_quaternion(yaw: Array) -> Array:
    """The unit quaternion [4] (w, x, y, z) of a turn by ``yaw`` [] radians about the vertical."""
    return jnp.stack([jnp.cos(yaw / 2), jnp.zeros(()), jnp.zeros(()), jnp.sin(yaw / 2)])


def yaw_axes(turn: Array) -> tuple[Array, Array]:
    """The x and z axes, [3] each, of a body turned by the unit quaternion ``turn`` [4] (w, x, y, z)."""
    w, x, y, z = turn
    forward = jnp.stack([1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y)])
    upward = jnp.stack([2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y)])
    return forward, upward

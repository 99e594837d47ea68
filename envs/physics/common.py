"""Pieces that tasks share: states, commands, random starts, directions, steering."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.protocol import State

Array = jax.Array
PyTree = Any


def initial_state(physics: PyTree, obs: Array, key: Array) -> State:
    """The state that a reset returns.

    Args:
      physics: what the task carries between steps.
      obs: the first observation [O].
      key: a typed key [] that was not used before; it becomes the state's key.
    """
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
    """The state after a control step, with the sparse reward that all tasks share.

    The reward is −1 per step, plus ``bonus`` if ``success`` [] bool, which also ends the task.
    """
    reward = -1.0 + bonus * success.astype(jnp.float32)
    return state._replace(
        physics=physics, obs=obs, reward=reward, terminated=success, success=success
    )


def integrate_command(
    command: Array,
    action: Array,
    *,
    max_step: Any,
    low: Any,
    high: Any,
    measured: Array,
    lead: Any,
) -> Array:
    """The next commanded position [D], from the last ``command`` [D] and an ``action`` [D].

    Args:
      command: commanded position [D].
      action: [D]; clipped to [-1, 1] here.
      max_step: how far the command moves in one control step at action 1.
      low: smallest command.
      high: largest command.
      measured: where the robot is, [D].
      lead: how far the command may be ahead of ``measured``; this bounds the force.
    """
    moved = jnp.clip(command + max_step * jnp.clip(action, -1.0, 1.0), low, high)
    return jnp.clip(moved, measured - lead, measured + lead)


def sample_box_mm(key: Array, middle_mm: tuple[float, ...], spread_mm: tuple[float, ...]) -> Array:
    """A point [D], metres, uniform in the box round ``middle_mm`` with half-widths ``spread_mm``.

    ``key`` is consumed.
    """
    unit = jax.random.uniform(key, (len(middle_mm),), minval=-1.0, maxval=1.0)
    point: Array = 0.001 * (np.asarray(middle_mm) + np.asarray(spread_mm) * unit)
    return point


def yaw_quaternion(yaw: Array) -> Array:
    """The quaternion [4] (w, x, y, z) of a rotation by ``yaw`` [] radians about the vertical."""
    return jnp.stack([jnp.cos(yaw / 2), jnp.zeros(()), jnp.zeros(()), jnp.sin(yaw / 2)])


def quaternion_axes(quaternion: Array) -> tuple[Array, Array]:
    """The x and z axes, [3] each, of a body with orientation ``quaternion`` [4] (w, x, y, z)."""
    w, x, y, z = quaternion
    x_axis = jnp.stack([1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y)])
    z_axis = jnp.stack([2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y)])
    return x_axis, z_axis


def clip_step_towards(delta: Array, max_step: float) -> Array:
    """The action [D] that moves by ``delta`` [D], or straight towards it at full speed.

    ``max_step`` is how far one control step goes at action 1, in the unit of ``delta``.
    """
    action = delta / max_step
    return action / jnp.maximum(1.0, jnp.max(jnp.abs(action)))


def add_action_noise(action: Array, key: Array, std: float) -> Array:
    """``action`` [A] plus Gaussian noise of ``std``, clipped to [-1, 1]; ``key`` is consumed."""
    return jnp.clip(action + std * jax.random.normal(key, action.shape), -1.0, 1.0)


def way_round(
    place: Array,
    goal: Array,
    side: Array,
    *,
    before_x: float,
    after_x: float,
    detour: float,
    clear: float,
    passed_x: float,
) -> Array:
    """The next waypoint [3] from ``place`` [3] round an obstacle at the origin to ``goal`` [3].

    Args:
      place: where the carried object is, metres.
      goal: where it is to go, metres; its height is kept on the way.
      side: [] −1 passes on the right of the obstacle, +1 on the left.
      before_x: x of the waypoint beside the obstacle, before it is passed.
      after_x: x of the waypoint behind it.
      detour: distance of both waypoints from the x axis.
      clear: distance from the x axis beyond which the object can pass.
      passed_x: x beyond which the object heads straight for the goal.
    """
    aside = jnp.stack([jnp.float32(before_x), side * detour, goal[2]])
    past = jnp.stack([jnp.float32(after_x), side * detour, goal[2]])
    waypoint = jnp.where(side * place[1] < clear, aside, past)
    return jnp.where(place[0] > passed_x, goal, waypoint)

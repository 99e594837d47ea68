"""The eight tasks of multi_task: what is to be brought where, and when that succeeded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.physics.common import quaternion_axes
from gcp_jax.envs.tasks.multi_task.scene import (
    BUTTON,
    DRAWER,
    HALF,
    HAND,
    PEG_HALF,
    RIM,
    SOCKET,
    TASKS,
    Config,
    Physics,
    Places,
    X,
    Z,
    door_handle,
    places,
)

Array = jax.Array

BLOCK, PEG = 0, 1  # rows of View.axes and View.velocity


class View(NamedTuple):
    """What goals and demonstrators look at, in metres and seconds."""

    places: Places
    fingers: Array  # [2] openings
    fixtures: Array  # [3] drawer, door (radians), button
    axes: Array  # [2, 2, 3] x and z axes of block and peg
    velocity: Array  # [2, 3] of block and peg
    command: Array  # [4] commanded hand position and opening
    goal: Array  # [3] where the task's thing is to go


class Goal(NamedTuple):
    """One task: its thing is to be brought to its goal."""

    rule: str  # when it succeeded, in words; formatted with the ``config``
    thing: Callable[[Places], Array]  # places -> [3] metres
    goal: Callable[[Config, Places, Array], Array]
    """(config, places, drawn [3] in [-1, 1]) -> [3] metres"""
    success: Callable[[Config, View], Array]  # -> [] bool


def select_task(task: Array, values: Iterable[Any]) -> Any:
    """The one of ``values``, in the order of TASKS, that belongs to ``task`` [] int32."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves)[task], *values)


def view(config: Config, physics: Physics) -> View:
    """What is seen of the episode's task."""
    qpos, qvel = physics.body.qpos, physics.body.qvel
    where = places(qpos)
    goals = (GOALS[name].goal(config, where, physics.drawn) for name in TASKS)
    quaternions = (qpos[8:12], qpos[15:19])
    return View(
        places=where,
        fingers=qpos[3:5],
        fixtures=qpos[19:22],
        axes=jnp.stack([jnp.stack(quaternion_axes(quaternion)) for quaternion in quaternions]),
        velocity=jnp.stack([qvel[5:8], qvel[11:14]]),
        command=physics.command,
        goal=select_task(physics.task, goals),
    )


def succeeded(config: Config, physics: Physics) -> Array:
    """[] bool: the episode's task is done."""
    seen = view(config, physics)
    success: Array = select_task(
        physics.task, (GOALS[name].success(config, seen) for name in TASKS)
    )
    return success


def point_in_box(middle_mm: tuple[float, ...], spread_mm: tuple[float, ...], drawn: Array) -> Array:
    """The point [D], metres, of the box round ``middle_mm`` at ``drawn`` [≥ D] in [-1, 1]."""
    point: Array = 0.001 * (np.asarray(middle_mm) + np.asarray(spread_mm) * drawn[: len(middle_mm)])
    return point


def _stroke(range_mm: tuple[float, float], drawn: Array) -> Array:
    """[] metres: the point that ``drawn`` [3] picks from the middle and half-width ``range_mm``."""
    return point_in_box(range_mm[:1], range_mm[1:], drawn)[0]


def _reach_goal(config: Config, places: Places, drawn: Array) -> Array:
    return point_in_box(config.reach_mm, config.reach_spread_mm, drawn)


def _push_goal(config: Config, places: Places, drawn: Array) -> Array:
    return jnp.append(point_in_box(config.push_mm, config.push_spread_mm, drawn), HALF)


def _lift_goal(config: Config, places: Places, drawn: Array) -> Array:
    return point_in_box(config.lift_mm, config.lift_spread_mm, drawn)


def _drawer_goal(config: Config, places: Places, drawn: Array) -> Array:
    handle: Array = DRAWER + _stroke(config.drawer_mm, drawn) * X
    return handle


def _door_goal(config: Config, places: Places, drawn: Array) -> Array:
    middle, spread = config.door
    return door_handle(middle + spread * drawn[0])


def _button_goal(config: Config, places: Places, drawn: Array) -> Array:
    top: Array = BUTTON - _stroke(config.button_mm, drawn) * Z
    return top


def _insert_goal(config: Config, places: Places, drawn: Array) -> Array:
    return jnp.append(SOCKET, PEG_HALF[2])


def _stack_goal(config: Config, places: Places, drawn: Array) -> Array:
    return places.block + np.array([0.0, 0.0, HALF + PEG_HALF[2]])


def _near_goal(config: Config, view: View, place: Array) -> Array:
    near: Array = jnp.linalg.norm(place - view.goal) < 0.001 * config.tolerance_mm
    return near


def _hand_at_goal(config: Config, view: View) -> Array:
    return _near_goal(config, view, view.places.hand)


def _block_rests(config: Config, view: View) -> Array:
    slow = jnp.linalg.norm(view.velocity[BLOCK]) < config.max_speed
    success: Array = _near_goal(config, view, view.places.block) & slow
    return success


def _drawer_open(config: Config, view: View) -> Array:
    return view.places.drawer[0] > view.goal[0]


def _door_open(config: Config, view: View) -> Array:
    return view.places.door[0] < view.goal[0]


def _button_pressed(config: Config, view: View) -> Array:
    return view.places.button[2] < view.goal[2]


def _peg_upright(view: View) -> Array:
    z_axis = view.axes[PEG, 1]
    return z_axis[2] > 0.97


def _peg_inserted(config: Config, view: View) -> Array:
    sideways = jnp.max(jnp.abs(view.places.peg[:2] - SOCKET)) < PEG_HALF[0]
    foot = view.places.peg[2] - PEG_HALF[2]
    success: Array = sideways & _peg_upright(view) & (foot < RIM - 0.001 * config.depth_mm)
    return success


def peg_on_block(view: View, margin: float) -> Array:
    """[] bool: the peg stands on the block, at most ``margin`` metres off sideways."""
    offset = view.places.peg - view.goal
    centred = jnp.hypot(offset[0], offset[1]) < margin
    return centred & (jnp.abs(offset[2]) < 0.0025) & _peg_upright(view)


def _peg_stacked(config: Config, view: View) -> Array:
    released = jnp.min(view.fingers) > PEG_HALF[0] + HAND.pad_radius + 0.003
    slow = jnp.linalg.norm(view.velocity[PEG]) < config.max_speed
    success: Array = peg_on_block(view, 0.001 * config.tolerance_mm) & released & slow
    return success


GOALS: dict[str, Goal] = {
    "reach": Goal(
        rule="the hand within {config.tolerance_mm} mm of the goal",
        thing=lambda places: places.hand,
        goal=_reach_goal,
        success=_hand_at_goal,
    ),
    "push": Goal(
        rule=(
            "the block within {config.tolerance_mm} mm of the goal on the table, "
            "slower than {config.max_speed} m/s"
        ),
        thing=lambda places: places.block,
        goal=_push_goal,
        success=_block_rests,
    ),
    "pick_place": Goal(
        rule=(
            "the block within {config.tolerance_mm} mm of the goal in the air, "
            "slower than {config.max_speed} m/s"
        ),
        thing=lambda places: places.block,
        goal=_lift_goal,
        success=_block_rests,
    ),
    "drawer": Goal(
        rule="the drawer open to the goal, {config.drawer_mm[0]} mm in the middle",
        thing=lambda places: places.drawer,
        goal=_drawer_goal,
        success=_drawer_open,
    ),
    "door": Goal(
        rule="the door open to the goal, {config.door[0]} rad in the middle",
        thing=lambda places: places.door,
        goal=_door_goal,
        success=_door_open,
    ),
    "button": Goal(
        rule="the button pressed to the goal, {config.button_mm[0]} mm in the middle",
        thing=lambda places: places.button,
        goal=_button_goal,
        success=_button_pressed,
    ),
    "insert": Goal(
        rule="the peg upright in the socket, its foot {config.depth_mm} mm below the mouth",
        thing=lambda places: places.peg,
        goal=_insert_goal,
        success=_peg_inserted,
    ),
    "stack": Goal(
        rule=(
            "the peg released on the block, {config.tolerance_mm} mm off at most, "
            "slower than {config.max_speed} m/s"
        ),
        thing=lambda places: places.peg,
        goal=_stack_goal,
        success=_peg_stacked,
    ),
}
"""The tasks by name; one for each of TASKS."""

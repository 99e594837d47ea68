"""Demonstrator of multi_task: where the hand should go next in each task."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.envs.physics.common import add_action_noise
from gcp_jax.envs.protocol import Demonstrator, State
from gcp_jax.envs.robots import two_finger_hand
from gcp_jax.envs.tasks.multi_task.goals import View, peg_on_block, select_task, view
from gcp_jax.envs.tasks.multi_task.scene import (
    HALF,
    HAND,
    PEG_GRASP,
    TASKS,
    Config,
    X,
    Z,
    door_handle,
)

Array = jax.Array

PUSH_HEIGHT = 0.016  # metres, at which it pushes the block
PUSH_OPENING = 0.016  # metres, opening with which it pushes
TOUCH = HALF + 0.008 + HAND.pad_radius  # metres from the block's middle to a hand at its side
FIRM = 0.4 * HAND.squeeze  # metres the fingers must lag for it to lift
DOOR_LEAD = 0.2  # radians it pulls the door ahead of where it is
OVERSHOOT = 0.01  # metres past the goal that it aims for with drawer and button


class Plan(NamedTuple):
    """What a demonstrator drew."""

    way: Array  # [] int32: 0 swings right, 1 left
    thing_error: Array  # [3] metres, of where it sees the thing
    goal_error: Array  # [3] metres, of where it sees the goal


class Move(NamedTuple):
    """Where the hand should go."""

    place: Array  # [3] metres
    opening: Array  # [] metres


class Script(NamedTuple):
    """How one task is demonstrated."""

    aim: Callable[[View, Plan], Move]
    blur: float  # metres, std per unit of noise of where it sees thing and goal


def make_demonstrator(config: Config, noise: float) -> Demonstrator:
    """Do the episode's task; swing right or left on the way to the thing and, if free, with it.

    Noise misplaces thing and goal once per episode (the task's ``blur``) and disturbs every action
    (0.1 std per unit).
    """

    def init(key: Array, state: State) -> Plan:
        way_key, thing_key, goal_key = jax.random.split(key, 3)
        blurs = jnp.array([SCRIPTS[name].blur for name in TASKS])
        blur = noise * blurs[state.physics.task]
        return Plan(
            way=jax.random.randint(way_key, (), 0, 2),
            thing_error=blur * jax.random.normal(thing_key, (3,)),
            goal_error=blur * jax.random.normal(goal_key, (3,)),
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        seen = view(config, state.physics)
        move = select_task(state.physics.task, (SCRIPTS[name].aim(seen, plan) for name in TASKS))
        action = two_finger_hand.move_towards(
            seen.command,
            move.place,
            move.opening,
            max_step=0.001 * config.max_step_mm,
            max_grip_step=0.001 * config.max_grip_step_mm,
        )
        return add_action_noise(action, key, 0.1 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.way, modes=2)


def _route(
    here: Array, there: Array, way: Array, *, height: float = 0.05, slope: float = 4.0
) -> Array:
    """The next waypoint [3] of something at ``here`` [3] that is to come down on ``there`` [3].

    It is to the side of the goal while far, and above it until within about a millimetre.

    Args:
      here: metres.
      there: metres.
      way: [] 0 swings right, 1 left.
      height: largest height above ``there``, metres.
      slope: height per distance.
    """
    delta = (there - here)[:2]
    distance = jnp.linalg.norm(delta)
    swing = 0.8 * jnp.clip((distance - 0.02) / 0.04, 0.0, 1.0) * (2.0 * way - 1.0)
    above = jnp.minimum(height, slope * jnp.maximum(distance - 0.0015, 0.0))
    return there + jnp.stack([-swing * delta[1], swing * delta[0], above])


def _bring(view: View, thing: Array, plan: Plan, to: Array) -> Move:
    """Come down over ``thing`` [3], close, and take it ``to`` [3]; start over if it is lost."""
    hand = view.places.hand
    grasp = thing + plan.thing_error
    around = two_finger_hand.is_around(grasp - hand, 0.008)
    gripped = around & (jnp.max(view.fingers) - view.command[3] > FIRM)
    carried = hand + to - thing
    return Move(
        place=jnp.where(gripped, carried, _route(hand, grasp, plan.way)),
        opening=jnp.where(around, HAND.closed, HAND.open),
    )


def _reach(view: View, plan: Plan) -> Move:
    place = _route(view.places.hand, view.goal + plan.goal_error, plan.way, height=0.0)
    return Move(place=place, opening=jnp.float32(HAND.open))


def _push(view: View, plan: Plan) -> Move:
    """Come down at the side of the block furthest from the goal, then push it straight there.

    The block sticks to the pads.
    """
    hand, block = view.places.hand, view.places.block + plan.thing_error
    to_goal = (view.goal + plan.goal_error - view.places.block)[:2]
    distance = jnp.linalg.norm(to_goal)
    is_main_axis = jnp.abs(to_goal) >= jnp.max(jnp.abs(to_goal))
    face = jnp.where(is_main_axis, jnp.sign(to_goal), 0.0)
    offset = hand[:2] - block[:2]
    along = jnp.dot(offset, face)
    beside = jnp.linalg.norm(offset - along * face)
    behind = (along < -0.025) & (beside < 0.015) & (hand[2] < PUSH_HEIGHT + 0.008)
    ready = jnp.append(block[:2] - (TOUCH + 0.012) * face, PUSH_HEIGHT)
    step = jnp.minimum(0.5, 0.015 / (distance + 1e-6)) * to_goal
    push = jnp.append(hand[:2] + step, PUSH_HEIGHT)
    place = jnp.where(behind, push, _route(hand, ready, plan.way))
    return Move(place=place, opening=jnp.float32(PUSH_OPENING))


def _pick_place(view: View, plan: Plan) -> Move:
    block = view.places.block
    to = _route(block, view.goal + plan.goal_error, plan.way, height=0.0)
    return _bring(view, block, plan, to)


def _open_drawer(view: View, plan: Plan) -> Move:
    return _bring(view, view.places.drawer, plan, view.goal + plan.goal_error + OVERSHOOT * X)


def _open_door(view: View, plan: Plan) -> Move:
    to = door_handle(view.fixtures[1] + DOOR_LEAD) + plan.goal_error
    return _bring(view, view.places.door, plan, to)


def _press_button(view: View, plan: Plan) -> Move:
    pressed = view.goal + plan.goal_error - OVERSHOOT * Z
    place = _route(view.places.hand, pressed, plan.way)
    return Move(place=place, opening=jnp.float32(HAND.closed))


def _insert(view: View, plan: Plan) -> Move:
    peg = view.places.peg
    to = _route(peg, view.goal + plan.goal_error, plan.way, height=0.06, slope=40.0)
    return _bring(view, peg + PEG_GRASP, plan, to + PEG_GRASP)


def _stack(view: View, plan: Plan) -> Move:
    """Bring the peg onto the block, then let go."""
    peg = view.places.peg
    placed = peg_on_block(view, 0.008)
    to = _route(peg, view.goal + plan.goal_error, plan.way)
    bring = _bring(view, peg + PEG_GRASP, plan, to + PEG_GRASP)
    return Move(
        place=jnp.where(placed, view.command[:3], bring.place),
        opening=jnp.where(placed, HAND.open, bring.opening),
    )


SCRIPTS: dict[str, Script] = {
    "reach": Script(_reach, blur=0.004),
    "push": Script(_push, blur=0.004),
    "pick_place": Script(_pick_place, blur=0.003),
    "drawer": Script(_open_drawer, blur=0.004),
    "door": Script(_open_door, blur=0.005),
    "button": Script(_press_button, blur=0.008),
    "insert": Script(_insert, blur=0.001),
    "stack": Script(_stack, blur=0.002),
}
"""The tasks' scripts by name; one for each of TASKS."""

"""Demonstrator of handover."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.physics.common import add_action_noise
from gcp_jax.envs.protocol import Demonstrator, State
from gcp_jax.envs.robots import two_finger_hand
from gcp_jax.envs.tasks.handover.scene import (
    GIVER,
    GRASP,
    HAND,
    SIDE,
    TAKER,
    Config,
    bar,
    hands,
    point_on_bar,
)

Array = jax.Array


class Plan(NamedTuple):
    """What a demonstrator drew."""

    way: Array  # [] int32: the giver holds the bar's right half in 0 and its left half in 1
    giver_error: Array  # [3] metres, of where it sees the giver's grasp
    taker_error: Array  # [3] metres, of where it sees the taker's grasp
    goal_error: Array  # [3] metres, of where it sees the goal


def make_demonstrator(config: Config, noise: float) -> Demonstrator:
    """Pass the bar over: the giver holds it above the fence until the taker has closed on it.

    The giver grasps the bar and brings it over the fence; the taker comes down over the other half
    and closes; the giver opens and rises; the taker lays the bar at the goal and opens. A lost bar
    is picked up again. Noise misplaces both grasps and the goal once per episode (3 mm std per
    unit) and disturbs every action (0.1 std per unit).
    """
    steps = {
        "max_step": 0.001 * config.max_step_mm,
        "max_grip_step": 0.001 * config.max_grip_step_mm,
    }

    def init(key: Array, state: State) -> Plan:
        way_key, giver_key, taker_key, goal_key = jax.random.split(key, 4)
        return Plan(
            way=jax.random.randint(way_key, (), 0, 2),
            giver_error=0.003 * noise * jax.random.normal(giver_key, (3,)),
            taker_error=0.003 * noise * jax.random.normal(taker_key, (3,)),
            goal_error=0.003 * noise * jax.random.normal(goal_key, (3,)),
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, command, goal = state.physics
        measured = hands(body)
        giver_side = GRASP * (2.0 * plan.way - 1.0)
        giver = _grasp(
            measured[GIVER], command[GIVER], point_on_bar(body, giver_side) + plan.giver_error
        )
        taker = _grasp(
            measured[TAKER], command[TAKER], point_on_bar(body, -giver_side) + plan.taker_error
        )
        giver_aim, giver_opening = _give(config, bar(body), giver, taker)
        taker_aim, taker_opening = _take(config, bar(body), giver, taker, goal + plan.goal_error)
        moves = [
            two_finger_hand.move_towards(command[GIVER], giver_aim, giver_opening, **steps),
            two_finger_hand.move_towards(command[TAKER], taker_aim, taker_opening, **steps),
        ]
        return add_action_noise(jnp.concatenate(moves), key, 0.1 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.way, modes=2)


class Grasp(NamedTuple):
    """A hand and the place at which it is to grasp the bar."""

    hand: Array  # [3] metres, where it is
    around: Array  # [] bool: it is at the grasp
    holds: Array  # [] bool: and has closed on the bar
    opened: Array  # [] bool: its pads are off the bar
    approach: Array  # [3] metres, where it should go next to grasp: from above


def _grasp(measured: Array, command: Array, grasp: Array) -> Grasp:
    """The state of a grasp.

    ``measured`` and ``command`` [4] are position and opening of the hand, ``grasp`` [3] is where it
    is to close. A hand that has begun to close opens again only if it is far off.
    """
    hand, opening = measured[:3], measured[3]
    offset = grasp - hand
    distance = jnp.hypot(offset[0], offset[1])
    closing = command[3] < HAND.open - 0.004
    around = two_finger_hand.is_around(offset, jnp.where(closing, 0.015, 0.006))
    return Grasp(
        hand=hand,
        around=around,
        holds=around & (opening - command[3] > 0.5 * HAND.squeeze),
        opened=opening > SIDE + HAND.pad_radius + 0.003,
        approach=two_finger_hand.hover_above(grasp, distance, height=0.05, margin=0.003),
    )


def _give(config: Config, place: Array, giver: Grasp, taker: Grasp) -> tuple[Array, Array]:
    """Where the giver should go next, [3], and its opening []; the bar is at ``place`` [3]."""
    passed = taker.holds | _across(place)
    bring = giver.hand + _over_fence(config, place, jnp.zeros(2)) - place
    rise = giver.hand.at[2].add(jnp.where(giver.opened, 0.03, 0.0))
    leave = jnp.where(_beside(giver, place), rise, 0.001 * np.asarray(config.giver_mm))
    aim = jnp.where(passed, leave, jnp.where(giver.holds, bring, giver.approach))
    return aim, jnp.where(giver.around & ~passed, HAND.closed, HAND.open)


def _take(
    config: Config, place: Array, giver: Grasp, taker: Grasp, goal: Array
) -> tuple[Array, Array]:
    """Where the taker should go next, [3], and its opening []; the bar is at ``place`` [3]."""
    from_goal = jnp.hypot(*(place - goal)[:2])
    lying = (from_goal < 0.005) & (place[2] < SIDE + 0.003)
    offered = (place[2] > _carry_height(config) - 0.015) & (jnp.abs(place[0]) < 0.01)
    wait = jnp.array([0.06, 0.0, _carry_height(config) + 0.05])
    fetch = jnp.where(offered | _across(place), taker.approach, wait)
    down = goal.at[2].set(SIDE - 0.003)
    bar_aim = jnp.where(from_goal < 0.01, down, _over_fence(config, place, goal[:2]))
    bring = jnp.where(_beside(giver, place), 0.0, bar_aim - place)
    aim = jnp.where(taker.holds, taker.hand + bring, fetch)
    opening = jnp.where(taker.around & ~lying, HAND.closed, HAND.open)
    return jnp.where(lying, taker.hand, aim), opening


def _carry_height(config: Config) -> float:
    """Height of the bar in the air, metres."""
    return 0.001 * config.fence_mm + 0.045


def _over_fence(config: Config, place: Array, goal: Array) -> Array:
    """Next waypoint [3] of the bar at ``place`` [3] to the air above ``goal`` [2]: first up."""
    height = _carry_height(config)
    return jnp.where(place[2] > height - 0.015, jnp.append(goal, height), place.at[2].set(height))


def _across(place: Array) -> Array:
    """[] bool: the bar at ``place`` [3] is on the taker's side."""
    return place[0] > 0.03


def _beside(giver: Grasp, place: Array) -> Array:
    """[] bool: the giver's fingers stand beside the bar at ``place`` [3]."""
    return (jnp.abs(giver.hand[0] - place[0]) < 0.05) & (giver.hand[2] < place[2] + 0.025)

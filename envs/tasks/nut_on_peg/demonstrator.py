"""Demonstrator of nut_on_peg."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.envs.physics.common import add_action_noise, clip_step_towards
from gcp_jax.envs.physics.mjx import Body
from gcp_jax.envs.protocol import Demonstrator, State
from gcp_jax.envs.robots import two_finger_hand
from gcp_jax.envs.tasks.nut_on_peg.scene import HAND, TOP, Config, handle, nut, skew, turned

Array = jax.Array


class Plan(NamedTuple):
    """What a demonstrator drew."""

    way: Array  # [] int32: 0 turns the nut clockwise, 1 anticlockwise
    handle_error: Array  # [3] metres, of where it sees the handle
    peg_error: Array  # [2] metres, of where it sees the peg
    yaw_error: Array  # [] radians, of how far it sees the peg turned


def make_demonstrator(config: Config, noise: float) -> Demonstrator:
    """Grasp the handle, lift the nut, turn it, bring it over the peg, push it down.

    A lost nut is grasped again. Noise misplaces the handle (2 mm std per unit) and the peg (1 mm,
    0.04 rad) once per episode and disturbs every action (0.1 std per unit).
    """
    max_step, max_grip_step = 0.001 * config.max_step_mm, 0.001 * config.max_grip_step_mm

    def init(key: Array, state: State) -> Plan:
        way_key, handle_key, peg_key, yaw_key = jax.random.split(key, 4)
        return Plan(
            way=jax.random.randint(way_key, (), 0, 2),
            handle_error=0.002 * noise * jax.random.normal(handle_key, (3,)),
            peg_error=0.001 * noise * jax.random.normal(peg_key, (2,)),
            yaw_error=0.04 * noise * jax.random.normal(yaw_key, ()),
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, command = state.physics
        grasp = handle(body) + plan.handle_error
        offset = grasp - body.qpos[:3]
        distance = jnp.hypot(offset[0], offset[1])
        around = two_finger_hand.is_around(offset, 0.006) & (jnp.abs(skew(body)) < 0.15)
        gripped = around & (jnp.max(body.qpos[4:6]) - command[4] > 0.6 * HAND.squeeze)
        above = two_finger_hand.hover_above(grasp, distance, height=0.04, margin=0.003)
        carry_place, carry_yaw = _carry(plan, body)
        aim = jnp.where(gripped, carry_place, above)
        yaw = jnp.where(gripped, carry_yaw, body.qpos[3] + skew(body))
        opening = jnp.where(around, HAND.closed, HAND.open)
        moves = (
            clip_step_towards(aim - command[:3], max_step),
            clip_step_towards(yaw[None] - command[3:4], config.max_yaw_step),
            clip_step_towards(opening - command[4:], max_grip_step),
        )
        return add_action_noise(jnp.concatenate(moves), key, 0.1 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.way, modes=2)


def _carry(plan: Plan, body: Body) -> tuple[Array, Array]:
    """Where the hand that holds the nut should go next, [3] metres, and its yaw, [] radians."""
    carry_height, push_depth = TOP + 0.016, 0.004
    peg_yaw = (2.0 * plan.way - 1.0) * jnp.pi / 4 + plan.yaw_error
    nut_yaw = body.qpos[3] + skew(body)
    place = nut(body)
    offset = jnp.hypot(*(place[:2] - plan.peg_error))
    aligned = (offset < 0.001) & (jnp.abs(nut_yaw - peg_yaw) < 0.06)
    on_peg = (offset < 0.006) & (place[2] < TOP)
    height = jnp.where(aligned | on_peg, -push_depth, carry_height)
    over_peg = jnp.append(plan.peg_error, height)
    lifted = on_peg | (place[2] > carry_height - 0.012)
    nut_aim = jnp.where(lifted, over_peg, place.at[2].set(carry_height))
    yaw_aim = jnp.where(lifted, peg_yaw, nut_yaw)
    hand_from_nut = turned(body.qpos[:3] - place, yaw_aim - nut_yaw)
    return nut_aim + hand_from_nut, yaw_aim - skew(body)

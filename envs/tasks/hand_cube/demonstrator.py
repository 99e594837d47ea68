"""Demonstrator of hand_cube: pinch the cube with two opposite tips, turn it, grip again."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.physics.common import add_action_noise, clip_step_towards
from gcp_jax.envs.protocol import Demonstrator, State
from gcp_jax.envs.tasks.hand_cube.scene import (
    AROUND,
    FINGERS,
    OPEN,
    TIP,
    Config,
    cube,
    fingertips,
    joints_for_tips,
    remaining_yaw,
    wrap_angle,
)

Array = jax.Array

AWAY = 0.054  # metres, half the distance of two opposite tips that clear the cube's corners
HEIGHT = 0.025  # metres, of the tips
SQUEEZE = 0.008  # metres, how far into the cube's faces it commands the tips
SWEEP = 0.6  # radians to either side of its base that a finger goes round the palm's middle
SLANT = 0.35  # radians between the line of the tips and the normal of the faces they press, at most
TURN_STEP = 0.06  # radians per control step, of turning
CLOSE_STEP = 0.0035  # metres per control step, of closing or opening
MOVE_STEP = 0.004  # metres per control step, of the middle of the grip

BACK, CLOSE, TURN, RELEASE = range(4)  # phases


class Grip(NamedTuple):
    """Where two opposite fingertips are."""

    middle: Array  # [2] metres, between them
    reach: Array  # [] metres, half their distance
    angle: Array  # [] radians by which their line is turned from the fingers' bases


class Plan(NamedTuple):
    """What a demonstrator drew, and its phase."""

    pair: Array  # [] int32: 0 turns with fingers 0 and 2, 1 with 1 and 3
    error: Array  # [2] metres, of where it sees the cube
    goal_error: Array  # [] radians, of where it sees the goal's yaw
    phase: Array  # [] int32


def make_demonstrator(config: Config, noise: float) -> Demonstrator:
    """Pinch the cube, turn it as far as the tips reach, let go, go back and grip again.

    Noise misplaces the cube (7 mm std per unit) and the goal's yaw (0.2 rad std per unit) once per
    episode, and disturbs every action (0.15 std per unit).
    """

    def init(key: Array, state: State) -> Plan:
        pair_key, place_key, goal_key = jax.random.split(key, 3)
        return Plan(
            pair=jax.random.randint(pair_key, (), 0, 2),
            error=0.007 * noise * jax.random.normal(place_key, (2,)),
            goal_error=0.2 * noise * jax.random.normal(goal_key),
            phase=jnp.int32(BACK),
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        command = state.physics.command
        grip, phase = _next_grip(config, plan, state)
        moves = np.arange(FINGERS) % 2 == plan.pair
        joints = jnp.where(jnp.repeat(moves, 4), joints_for_tips(tips_of(grip)), OPEN)
        action = clip_step_towards(joints - command, config.max_step)
        return add_action_noise(action, key, 0.15 * noise), plan._replace(phase=phase)

    return Demonstrator(init, act, mode=lambda plan: plan.pair, modes=2)


def _next_grip(config: Config, plan: Plan, state: State) -> tuple[Grip, Array]:
    """The next commanded grip and the phase [] int32."""
    body, command, goal = state.physics
    half = 0.0005 * config.side_mm
    now = grip_of(fingertips(command), plan.pair)
    turn = remaining_yaw(state.physics) + plan.goal_error
    direction = jnp.where(turn > 0.0, 1.0, -1.0)
    yaw = goal - remaining_yaw(state.physics)
    seen = cube(body)[:2] + plan.error
    begin = _begin(yaw, direction)
    closed = (half + TIP) / jnp.cos(wrap_angle(now.angle - yaw, np.pi / 2)) - SQUEEZE

    at_begin = (jnp.abs(now.angle - begin) < 0.03) & (jnp.linalg.norm(now.middle - seen) < 0.002)
    clear = now.reach > AWAY - 0.002
    gripped = now.reach < closed + 0.002
    at_end = (direction * now.angle > SWEEP - 0.01) & (jnp.abs(turn) > 0.03)
    done = jnp.stack([at_begin & clear, gripped, at_end, clear])[plan.phase]
    phase = jnp.where(done, (plan.phase + 1) % 4, plan.phase)

    aims = (
        Grip(middle=seen, reach=jnp.asarray(AWAY), angle=begin),
        Grip(middle=seen, reach=closed - 0.001, angle=begin),
        Grip(middle=jnp.zeros(2), reach=closed, angle=now.angle + 0.5 * turn),
        Grip(middle=now.middle, reach=jnp.asarray(AWAY), angle=now.angle),
    )
    aim = jax.tree.map(lambda *options: jnp.stack(options)[phase], *aims)
    max_step = Grip(
        middle=jnp.asarray(MOVE_STEP), reach=jnp.asarray(CLOSE_STEP), angle=jnp.asarray(TURN_STEP)
    )
    moved = jax.tree.map(lambda a, b, step: a + jnp.clip(b - a, -step, step), now, aim, max_step)
    return moved, phase


def grip_of(tips: Array, pair: Array) -> Grip:
    """The grip of ``pair`` [] int32, from all tips [4, 3]."""
    one, other = tips[pair, :2], tips[pair + 2, :2]
    x, y = (one - other) / 2
    return Grip(
        middle=(one + other) / 2,
        reach=jnp.hypot(x, y),
        angle=wrap_angle(jnp.arctan2(y, x) - jnp.asarray(AROUND)[pair]),
    )


def tips_of(grip: Grip) -> Array:
    """The tips [4, 3] of both pairs standing like ``grip`` from their own bases, at ``HEIGHT``."""
    heading = AROUND + grip.angle
    x = grip.middle[0] + grip.reach * jnp.cos(heading)
    y = grip.middle[1] + grip.reach * jnp.sin(heading)
    return jnp.stack([x, y, jnp.full(FINGERS, HEIGHT)], axis=-1)


def _begin(yaw: Array, direction: Array) -> Array:
    """The angle [] at which to grip a cube at ``yaw`` [] for the longest turn in ``direction``."""
    furthest = SWEEP + SLANT  # a face whose normal is further back than this is out of reach
    face = jnp.mod(direction * yaw + furthest, np.pi / 2) - furthest
    return direction * jnp.maximum(face - SLANT, -SWEEP)

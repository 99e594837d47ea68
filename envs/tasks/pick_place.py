"""pick_place: grasp a block and bring it, left or right of a pillar, to a goal in the air.

A ``two_finger_hand`` closes along x. The block has weight. The origin is the foot of the pillar, z
up.

Observation [24], all of order one:

| index | content | unit |
|---|---|---|
| 0–2 | block from hand | 50 mm |
| 3–5 | goal from block | 50 mm |
| 6–8 | position of the block | 100 mm |
| 9–11 | x axis of the block | 1 |
| 12–14 | velocity of the block | 0.3 m/s |
| 15–17 | velocity of the hand | 0.3 m/s |
| 18–20 | lead of the commanded position over the hand | 20 mm |
| 21–22 | opening of each finger beyond the block's side | 10 mm |
| 23 | lead of the commanded opening | 10 mm |

Action [4]: change of the commanded hand position (0–2) and opening (3), in units of ``max_step_mm``
and ``max_grip_step_mm``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import config_fields
from gcp_jax.config_fields import FINITE, NON_NEGATIVE, POSITIVE, POSITIVE_INT, field
from gcp_jax.envs.physics.common import (
    add_action_noise,
    initial_state,
    integrate_command,
    next_state,
    quaternion_axes,
    sample_box_mm,
    way_round,
    yaw_quaternion,
)
from gcp_jax.envs.physics.mjx import CONTROL_DT, Backend, Body, at_rest, scene, simulation
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State
from gcp_jax.envs.robots import two_finger_hand
from gcp_jax.envs.robots.two_finger_hand import TwoFingerHand

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.35, "poor": 2.1, "bad": 3.1}  # success 100 %, 66 %, 27 %, 9 %

HALF = 0.02  # metres, half the side of the block
HAND = TwoFingerHand(
    open=0.042,
    closed=0.016,
    pad_radius=0.006,
    lead=0.02,
    low=(-0.13, -0.11, 0.015),
    high=(0.13, 0.11, 0.16),
    slide_damping="70",
    slide_gain="1500",
    palm_radius=".02",
    palm_mass=".6",
    rail=".055 .01 .008",
    finger_damping="12",
    finger_gain="400",
    finger_size=".004 .008 .028",
    finger_mass=".04",
    pad_offset=".008",
)

NEAR = 0.05  # metres of one unit of relative position in the observation
FAR = 0.1  # metres of one unit of position in the arena
SPEED = 0.3  # m/s of one unit of velocity


@dataclass(frozen=True)
class Config:
    """Starts and goals are boxes, given by their middle and half-widths (spread)."""

    tolerance_mm: float = field(10.0, POSITIVE, "mm, distance from the goal that counts as success")
    max_speed: float = field(0.1, POSITIVE, "m/s, fastest block that counts as success")
    max_step_mm: float = field(
        8.0, POSITIVE, "mm per control step and axis of the commanded position at action 1"
    )
    max_grip_step_mm: float = field(
        4.0, POSITIVE, "mm per control step of the commanded opening of each finger at action 1"
    )
    hand_mm: tuple[float, float, float] = field((-80.0, 0.0, 100.0), FINITE, "mm, hand's starts")
    hand_spread_mm: tuple[float, float, float] = field(
        (20.0, 30.0, 10.0), NON_NEGATIVE, "mm, half-widths of the hand's starts"
    )
    block_mm: tuple[float, float] = field((-80.0, 0.0), FINITE, "mm, block's starts")
    block_spread_mm: tuple[float, float] = field(
        (15.0, 25.0), NON_NEGATIVE, "mm, half-widths of the block's starts"
    )
    yaw_spread: float = field(0.15, NON_NEGATIVE, "rad, the block starts turned by up to this")
    goal_mm: tuple[float, float, float] = field((80.0, 0.0, 75.0), FINITE, "mm, goals")
    goal_spread_mm: tuple[float, float, float] = field(
        (15.0, 25.0, 20.0), NON_NEGATIVE, "mm, half-widths of the goals"
    )
    friction: float = field(1.0, POSITIVE, "coefficient of friction of all contacts")
    horizon: int = field(88, POSITIVE_INT, "control steps of an episode")
    bonus: float = field(5.0, FINITE, "reward at success, on top of the -1 of every step")

    def __post_init__(self) -> None:
        config_fields.check(self, "env.")


class Physics(NamedTuple):
    """What the task carries."""

    body: Body  # hand x, y, z, two fingers, pose of the block
    command: Array  # [4] metres: commanded hand position and opening
    goal: Array  # [3] metres


class Plan(NamedTuple):
    """What a demonstrator drew."""

    side: Array  # [] int32: 0 carries on the right of the pillar, 1 on the left
    block_error: Array  # [3] metres, of where it sees the block
    goal_error: Array  # [3] metres, of where it sees the goal


_WORLD = """
<camera name="main" pos=".02 -.46 .34" xyaxes="1 0 0 0 .57 .82" fovy="42"/>
<geom name="floor" type="plane" size="1 1 .1" material="tiles"/>
<geom name="pillar" type="capsule" fromto="0 0 0 0 0 .2" size=".012" material="obstacle"/>
<body name="goal" mocap="true"><geom type="box" size="{half} {half} {half}" material="goal"/></body>
{hand}
<body name="block" pos="0 0 {half}">
  <freejoint name="block"/>
  <geom name="block" type="box" size="{half} {half} {half}" mass=".1" material="object"/>
</body>
"""

_PAIR = """<pair geom1="{one}" geom2="{other}" condim="3" friction="{mu} {mu} .005 .0001 .0001"/>"""

_TOUCHING = (
    *((pad, "block") for pad in two_finger_hand.pads()),
    ("floor", "block"),
    ("pillar", "block"),
    ("pillar", "hand"),
)


def mjcf(config: Config) -> str:
    """The scene in metres."""
    pairs = [_PAIR.format(one=one, other=other, mu=config.friction) for one, other in _TOUCHING]
    return scene(
        "pick_place",
        world=_WORLD.format(half=HALF, hand=HAND.mjcf()),
        pairs="".join(pairs),
        actuators=HAND.actuators(),
        gravity=9.81,
    )


def block(body: Body) -> Array:
    """The middle of the block, [3] metres."""
    return body.qpos[5:8]


def observe(physics: Physics) -> Array:
    """The observation [24]; see the module."""
    body, command, goal = physics
    hand, opening = body.qpos[:3], body.qpos[3:5]
    x_axis, _ = quaternion_axes(body.qpos[8:12])
    parts = (
        (block(body) - hand) / NEAR,
        (goal - block(body)) / NEAR,
        block(body) / FAR,
        x_axis,
        body.qvel[5:8] / SPEED,
        body.qvel[:3] / SPEED,
        (command[:3] - hand) / HAND.lead,
        (opening - HALF - HAND.pad_radius) / HAND.squeeze,
        (command[3:] - jnp.mean(opening)) / HAND.squeeze,
    )
    return jnp.concatenate(parts)


def make(config: Config, backend: Backend = "mjx") -> Env:
    """Build the task."""
    simulated = simulation(mjcf(config), backend=backend)
    max_step = 0.001 * np.array([config.max_step_mm] * 3 + [config.max_grip_step_mm])
    low, high = HAND.limits

    def reset(key: Array) -> State:
        hand_key, block_key, yaw_key, goal_key, state_key = jax.random.split(key, 5)
        hand = sample_box_mm(hand_key, config.hand_mm, config.hand_spread_mm)
        place = sample_box_mm(block_key, config.block_mm, config.block_spread_mm)
        yaw = jax.random.uniform(yaw_key, minval=-config.yaw_spread, maxval=config.yaw_spread)
        fingers, height = jnp.full(2, HAND.open), jnp.full(1, HALF)
        qpos = jnp.concatenate([hand, fingers, place, height, yaw_quaternion(yaw)])
        physics = Physics(
            body=at_rest(qpos, nv=11),
            command=jnp.append(hand, HAND.open),
            goal=sample_box_mm(goal_key, config.goal_mm, config.goal_spread_mm),
        )
        return initial_state(physics, observe(physics), state_key)

    def step(state: State, action: Array) -> State:
        body, command, goal = state.physics
        command = integrate_command(
            command,
            action,
            max_step=max_step,
            low=low,
            high=high,
            measured=HAND.measured(body.qpos),
            lead=HAND.max_lead,
        )
        body = simulated.step(body, two_finger_hand.control(command))
        physics = Physics(body=body, command=command, goal=goal)
        return next_state(
            state,
            physics=physics,
            obs=observe(physics),
            success=succeeded(config, physics),
            bonus=config.bonus,
        )

    specs = EnvSpecs(
        name="pick_place",
        obs_dim=24,
        action_dim=4,
        horizon=config.horizon,
        control_dt=CONTROL_DT,
        success=(
            f"the block within {config.tolerance_mm} mm of the goal, "
            f"slower than {config.max_speed} m/s"
        ),
    )
    return Env(
        reset,
        step,
        specs,
        demonstrator=lambda noise: demonstrator(config, noise),
        scene=lambda: Scene(simulated.model, _pose, "main"),
    )


def _pose(state: State) -> dict[str, np.ndarray]:
    return {"qpos": state.physics.body.qpos, "mocap_pos": state.physics.goal[None]}


def succeeded(config: Config, physics: Physics) -> Array:
    """[] bool: the block is at the goal and slow."""
    distance = jnp.linalg.norm(block(physics.body) - physics.goal)
    slow = jnp.linalg.norm(physics.body.qvel[5:8]) < config.max_speed
    success: Array = (distance < 0.001 * config.tolerance_mm) & slow
    return success


def demonstrator(config: Config, noise: float) -> Demonstrator:
    """Come down over the block, close, carry it round the pillar to the goal.

    A lost block is grasped again. Noise misplaces block and goal once per episode (3 mm std per
    unit) and disturbs every action (0.1 std per unit).
    """
    max_step, max_grip_step = 0.001 * config.max_step_mm, 0.001 * config.max_grip_step_mm

    def init(key: Array, state: State) -> Plan:
        side_key, block_key, goal_key = jax.random.split(key, 3)
        return Plan(
            side=jax.random.randint(side_key, (), 0, 2),
            block_error=0.003 * noise * jax.random.normal(block_key, (3,)),
            goal_error=0.003 * noise * jax.random.normal(goal_key, (3,)),
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, command, goal = state.physics
        grasp = block(body) + plan.block_error
        offset = grasp - body.qpos[:3]
        distance = jnp.hypot(offset[0], offset[1])
        around = two_finger_hand.is_around(offset, 0.008)
        gripped = around & (jnp.max(body.qpos[3:5]) - command[3] > 0.6 * HAND.squeeze)
        above = two_finger_hand.hover_above(grasp, distance, height=0.06, margin=0.004)
        waypoint = way_round(
            block(body),
            goal + plan.goal_error,
            2.0 * plan.side - 1.0,
            before_x=-0.075,
            after_x=0.03,
            detour=0.065,
            clear=0.05,
            passed_x=0.01,
        )
        action = two_finger_hand.move_towards(
            command,
            jnp.where(gripped, waypoint - offset, above),
            jnp.where(around, HAND.closed, HAND.open),
            max_step=max_step,
            max_grip_step=max_grip_step,
        )
        return add_action_noise(action, key, 0.1 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.side, modes=2)

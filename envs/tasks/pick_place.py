"""pick_place: grasp a block and bring it to a goal in the air behind a pillar. Left or right of it, never through it.

A hand on three slides closes two fingers, each with a pad of two balls, along x. Hand and fingers carry their own
weight; the block does not. The origin is the foot of the pillar, z up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.physics.common import (
    add_action_noise,
    box,
    clip_step_towards,
    initial_state,
    integrate_command,
    next_state,
    yaw_axes,
    yaw_quaternion,
)
from gcp_jax.envs.physics.mjx import CONTROL_DT, Body, at_rest, scene, simulation
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.35, "poor": 2.1, "bad": 3.1}  # success 100 %, 66 %, 27 %, 9 %

HALF = 0.02  # metres, half the side of the block
PAD = 0.006  # metres, radius of the balls of a pad
OPEN, CLOSED = 0.042, 0.016  # metres from the middle of the hand to a pad's centre, commanded
LEAD = 0.02  # metres the commanded position may run ahead of the hand
SQUEEZE = 0.01  # metres the commanded opening may run ahead of the fingers: bounds the grip force
LIMITS = np.array(
    [[-0.13, -0.11, 0.015], [0.13, 0.11, 0.16]]
)  # metres, commanded position of the hand

NEAR = 0.05  # metres of one unit of relative position in the observation
FAR = 0.1  # metres of one unit of position in the arena
SPEED = 0.3  # m/s of one unit of velocity


@dataclass(frozen=True)
class Config:
    """Lengths in millimetres, as the names say; boxes of starts and goals as their middle and half-widths."""

    tolerance_mm: float = 10.0  # distance of the block from the goal that counts as there
    still: float = 0.1  # m/s the block may move when it is there
    speed_mm: float = (
        8.0  # the commanded position moves this far per control step at action 1, per axis
    )
    grip_mm: float = (
        4.0  # the commanded opening of each finger changes by this per control step at action 1
    )
    hand_mm: tuple[float, float, float] = (-80.0, 0.0, 100.0)
    hand_spread_mm: tuple[float, float, float] = (20.0, 30.0, 10.0)
    block_mm: tuple[float, float] = (-80.0, 0.0)
    block_spread_mm: tuple[float, float] = (15.0, 25.0)
    yaw: float = 0.15  # radians, the block is turned by up to this
    goal_mm: tuple[float, float, float] = (80.0, 0.0, 75.0)
    goal_spread_mm: tuple[float, float, float] = (15.0, 25.0, 20.0)
    friction: float = 1.0
    horizon: int = 88  # control steps
    bonus: float = 5.0  # reward on top of the −1 of the step of success


class Physics(NamedTuple):
    """body: hand x, y, z, two fingers, the block's pose; target [4]: commanded hand and opening; goal [3]; metres."""

    body: Body
    target: Array
    goal: Array


class Plan(NamedTuple):
    """What a demonstrator drew: side [] int32, 0 carries right of the pillar and 1 left; the errors [3] in metres of
    where it sees the block and the goal."""

    side: Array
    block_error: Array
    goal_error: Array


_WORLD = """
<camera name="main" pos=".02 -.46 .34" xyaxes="1 0 0 0 .57 .82" fovy="42"/>
<geom name="floor" type="plane" size="1 1 .1" material="tiles"/>
<geom name="pillar" type="capsule" fromto="0 0 0 0 0 .2" size=".012" material="obstacle"/>
<body name="goal" mocap="true"><geom type="box" size="{half} {half} {half}" material="goal"/></body>
<body name="hand" gravcomp="1">
  <joint name="x" type="slide" axis="1 0 0" damping="70"/>
  <joint name="y" type="slide" axis="0 1 0" damping="70"/>
  <joint name="z" type="slide" axis="0 0 1" damping="70"/>
  <geom name="hand" type="capsule" fromto="0 0 .065 0 0 .1" size=".02" mass=".6" material="dark"/>
  <geom name="rail" type="box" pos="0 0 .055" size=".055 .01 .008" mass=".05" material="dark"/>
  <body name="left" gravcomp="1">
    <joint name="left" type="slide" axis="-1 0 0" damping="12" ref="{open}"/>
    {left}
  </body>
  <body name="right" gravcomp="1">
    <joint name="right" type="slide" axis="1 0 0" damping="12" ref="{open}"/>
    {right}
  </body>
</body>
<body name="block" pos="0 0 {half}">
  <freejoint name="block"/>
  <geom name="block" type="box" size="{half} {half} {half}" mass=".1" material="object"/>
</body>
"""

_FINGER = """
<geom type="box" pos="{x} 0 .027" size=".004 .008 .028" mass=".04" material="steel"/>
<geom name="{side}_front" type="sphere" pos="{x} -.008 0" size="{pad}" mass=".005" material="steel"/>
<geom name="{side}_back" type="sphere" pos="{x} .008 0" size="{pad}" mass=".005" material="steel"/>
"""

_PAIR = '<pair geom1="{one}" geom2="{other}" condim="3" friction="{mu} {mu} .005 .0001 .0001"/>'

_TOUCHING = (
    *((f"{side}_{place}", "block") for side in ("left", "right") for place in ("front", "back")),
    ("floor", "block"),
    ("pillar", "block"),
    ("pillar", "hand"),
)

_ACTUATORS = "".join(f'<position joint="{axis}" kp="1500"/>' for axis in "xyz") + "".join(
    f'<position joint="{side}" kp="400"/>' for side in ("left", "right")
)


def mjcf(config: Config) -> str:
    """The scene in metres."""
    left = _FINGER.format(side="left", x=-OPEN, pad=PAD)
    right = _FINGER.format(side="right", x=OPEN, pad=PAD)
    return scene(
        "pick_place",
        world=_WORLD.format(half=HALF, open=OPEN, left=left, right=right),
        pairs="".join(
            _PAIR.format(one=one, other=other, mu=config.friction) for one, other in _TOUCHING
        ),
        actuators=_ACTUATORS,
        gravity=9.81,
    )


def block(body: Body) -> Array:
    """The middle of the block, [3] metres."""
    return body.qpos[5:8]


def heading(body: Body) -> Array:
    """The block's own x axis in the world, [3]."""
    return yaw_axes(body.qpos[8:12])[0]


def observe(physics: Physics) -> Array:
    """[24]: block from hand, goal from block, block, its x axis and velocity, hand's velocity, lead of the command,
    openings and lead of the grip; all of order one."""
    body, target, goal = physics
    hand, opening = body.qpos[:3], body.qpos[3:5]
    parts = (
        (block(body) - hand) / NEAR,
        (goal - block(body)) / NEAR,
        block(body) / FAR,
        heading(body),
        body.qvel[5:8] / SPEED,
        body.qvel[:3] / SPEED,
        (target[:3] - hand) / LEAD,
        (opening - HALF - PAD) / SQUEEZE,
        (target[3:] - jnp.mean(opening)) / SQUEEZE,
    )
    return jnp.concatenate(parts)


def make(config: Config) -> Env:
    """action [4]: how the commanded hand position and opening change, in units of ``speed_mm`` and ``grip_mm``."""
    simulated = simulation(mjcf(config))
    speed = 0.001 * np.array([config.speed_mm] * 3 + [config.grip_mm])
    low, high = np.append(LIMITS[0], CLOSED), np.append(LIMITS[1], OPEN)
    ahead = np.array([LEAD] * 3 + [SQUEEZE])

    def reset(key: Array) -> State:
        hand_key, block_key, yaw_key, goal_key, state_key = jax.random.split(key, 5)
        hand = box(hand_key, config.hand_mm, config.hand_spread_mm)
        place = box(block_key, config.block_mm, config.block_spread_mm)
        yaw = jax.random.uniform(yaw_key, minval=-config.yaw, maxval=config.yaw)
        qpos = jnp.concatenate(
            [hand, jnp.full(2, OPEN), place, jnp.full(1, HALF), yaw_quaternion(yaw)]
        )
        goal = box(goal_key, config.goal_mm, config.goal_spread_mm)
        physics = Physics(at_rest(qpos, nv=11), jnp.append(hand, OPEN), goal)
        return initial_state(physics, observe(physics), state_key)

    def step(state: State, action: Array) -> State:
        body, target, goal = state.physics
        held = jnp.append(body.qpos[:3], jnp.mean(body.qpos[3:5]))
        target = integrate_command(
            target, action, reach=speed, low=low, high=high, held=held, lead=ahead
        )
        physics = Physics(simulated.step(body, jnp.append(target, target[3])), target, goal)
        return next_state(
            state,
            physics=physics,
            obs=observe(physics),
            success=placed(config, physics),
            bonus=config.bonus,
        )

    specs = EnvSpecs(
        name="pick_place",
        obs_dim=24,
        action_dim=4,
        horizon=config.horizon,
        control_dt=CONTROL_DT,
        success=f"the block within {config.tolerance_mm} mm of the goal, slower than {config.still} m/s",
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


def placed(config: Config, physics: Physics) -> Array:
    """[] bool: the block is at the goal and slow."""
    away = jnp.linalg.norm(block(physics.body) - physics.goal)
    return (away < 0.001 * config.tolerance_mm) & (
        jnp.linalg.norm(physics.body.qvel[5:8]) < config.still
    )


def demonstrator(config: Config, noise: float) -> Demonstrator:
    """Comes down over the block, closes, carries it round the pillar to the goal; starts over when it loses the block.

    Noise misplaces block and goal once per episode (3 mm std per unit) and shakes every action (0.1 std per unit).
    """
    speed, grip = 0.001 * config.speed_mm, 0.001 * config.grip_mm

    def init(key: Array, state: State) -> Plan:
        side_key, block_key, goal_key = jax.random.split(key, 3)
        side = jax.random.randint(side_key, (), 0, 2)
        return Plan(
            side, *(0.003 * noise * jax.random.normal(k, (3,)) for k in (block_key, goal_key))
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, target, goal = state.physics
        seen = block(body) + plan.block_error
        offset = seen - body.qpos[:3]
        around = (jnp.abs(offset[2]) < 0.008) & (jnp.hypot(offset[0], offset[1]) < 0.008)
        gripped = around & (jnp.max(body.qpos[3:5]) - target[3] > 0.6 * SQUEEZE)
        above = seen.at[2].add(
            jnp.minimum(0.06, 4.0 * jnp.maximum(jnp.hypot(offset[0], offset[1]) - 0.004, 0.0))
        )
        carried = _carry(block(body), goal + plan.goal_error, 2.0 * plan.side - 1.0) - offset
        aim = jnp.where(gripped, carried, above)
        fingers = jnp.where(around, CLOSED, OPEN) - target[3:]
        action = jnp.concatenate(
            [clip_step_towards(aim - target[:3], speed), clip_step_towards(fingers, grip)]
        )
        return add_action_noise(action, key, 0.1 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.side, modes=2)


def _carry(place: Array, goal: Array, way: Array) -> Array:
    """Where the block at ``place`` [3] should go next on its way round the pillar, ``way`` [] −1 right or +1 left."""
    detour, clear = 0.065, 0.05
    aside = jnp.stack([jnp.float32(-0.075), way * detour, goal[2]])
    past = jnp.stack([jnp.float32(0.03), way * detour, goal[2]])
    return jnp.where(place[0] > 0.01, goal, jnp.where(way * place[1] < clear, aside, past))

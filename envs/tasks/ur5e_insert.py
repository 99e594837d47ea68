"""ur5e_insert: a UR5e brings a peg that it holds round a post to a hole and pushes it in. Left or right of the post.

The arm, the gripper and their control are those of ``envs.ur5e``. The peg is held by friction alone: it may slip, tilt
or fall. It is square and the walls have no chamfer. The fixture with the hole stands elsewhere in every episode. The
origin is the foot of the post, 0.45 m in front of the arm, x away from the arm, z up.
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
    next_state,
    yaw_axes,
    yaw_quaternion,
)
from gcp_jax.envs.physics.mjx import CONTROL_DT, Body, at_rest
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State
from gcp_jax.envs.robots import ur5e
from gcp_jax.envs.robots.ur5e import CLOSED, OPEN, SPEED, YAW, Tool

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.2, "poor": 2.0, "bad": 3.0}  # success 100 %, 73 %, 33 %, 14 %

FIXTURE = 1  # number of the body, the first of the world
HEIGHT = 0.06  # metres of the fixture, the hole's mouth above the floor
LENGTH = 0.07  # metres of the peg
GRASP = 0.05  # metres from the tip to the tool
SUNK = 0.0005  # metres the pads start inside the peg: at a bare touch, rounding decides which pad pushes first
LEAD = 0.012  # metres the commanded position may run ahead of the tool: bounds the force of a jam
LIMITS = np.array(
    [[-0.15, -0.14, 0.07, -0.6, CLOSED], [0.14, 0.14, 0.18, 0.6, OPEN]]
)  # metres, radians; command

NEAR = 0.05  # metres of one unit of relative position in the observation
FINE = 0.002  # metres over which the offset from the hole's axis is observed a second time, finely
PLACE = 0.005  # metres of one unit of the hole's position
SLIP = 0.01  # metres over which the peg's position in the hand is observed
TILT = 0.1  # radians over which the peg's tilt is observed


@dataclass(frozen=True)
class Config:
    """Lengths in millimetres, as the names say; boxes of starts as their middle and half-widths. The clearance is
    total: the hole's side minus the peg's."""

    clearance_mm: float = 2.0
    width_mm: float = 20.0  # side of the peg
    depth_mm: float = 20.0  # tip this far below the mouth: success
    speed_mm: float = (
        6.0  # the commanded position moves this far per control step at action 1, per axis
    )
    turn: float = 0.05  # radians, the same of the commanded yaw
    grip_mm: float = 4.0  # the same of the commanded opening, at each finger
    hand_mm: tuple[float, float, float] = (-110.0, 0.0, 140.0)
    hand_spread_mm: tuple[float, float, float] = (15.0, 30.0, 10.0)
    hand_yaw: float = 0.25  # radians, gripper and peg start turned by up to this
    hole_mm: tuple[float, float] = (100.0, 0.0)
    hole_spread_mm: tuple[float, float] = (6.0, 6.0)
    friction: float = 0.3  # of the peg in the hole
    grip_friction: float = 1.0  # of the peg in the gripper
    horizon: int = 130  # control steps
    bonus: float = 5.0  # reward on top of the −1 of the step of success


class Physics(NamedTuple):
    """body: peg, arm, fingers, with the fixture's place in its model; tool: where it is in ``body``; target [5]:
    commanded position, yaw, opening; metres and radians."""

    body: Body
    tool: Tool
    target: Array


class Plan(NamedTuple):
    """What a demonstrator drew: side [] int32, 0 passes right and 1 left; error [2], metres, of where it sees the
    hole."""

    side: Array
    error: Array


_WORLD = """
<camera name="main" pos=".75 -.95 .62" xyaxes=".78 .62 0 -.27 .33 .9" fovy="42"/>
<geom name="floor" type="plane" size="2 2 .1" material="tiles"/>
<geom name="post" type="capsule" fromto="0 0 0 0 0 .2" size=".012" material="obstacle"/>
<body name="fixture" pos="{hole_x} {hole_y} 0" mocap="{mocap}">
  <geom name="west" type="box" pos="-{wall} 0 {middle}" size="{half} {span} {middle}" material="fixture"/>
  <geom name="east" type="box" pos="{wall} 0 {middle}" size="{half} {span} {middle}" material="fixture"/>
  <geom name="south" type="box" pos="0 -{wall} {middle}" size="{gap} {half} {middle}" material="fixture"/>
  <geom name="north" type="box" pos="0 {wall} {middle}" size="{gap} {half} {middle}" material="fixture"/>
  <geom name="west_rim" type="capsule" fromto="-{rim} -{gap} {rim_z} -{rim} {gap} {rim_z}" size="{round}" material="fixture"/>
  <geom name="east_rim" type="capsule" fromto="{rim} -{gap} {rim_z} {rim} {gap} {rim_z}" size="{round}" material="fixture"/>
  <geom name="south_rim" type="capsule" fromto="-{gap} -{rim} {rim_z} {gap} -{rim} {rim_z}" size="{round}" material="fixture"/>
  <geom name="north_rim" type="capsule" fromto="-{gap} {rim} {rim_z} {gap} {rim} {rim_z}" size="{round}" material="fixture"/>
</body>
<body name="peg" pos="0 0 .3">
  <freejoint name="peg"/>
  <geom name="core" type="capsule" fromto="0 0 -{end} 0 0 {end}" size="{radius}" mass=".02" material="object"/>
  {peg}
</body>
"""

_BOX = (
    '<geom name="sides" type="box" size="{radius} {radius} {half}" mass=".08" material="object"/>'
)
_BALL = '<geom name="{name}" type="sphere" pos="{x} {y} -{low}" size="{size}" mass="0" material="object"/>'

_CORNERS = {
    "south_west": (-1, -1),
    "south_east": (1, -1),
    "north_west": (-1, 1),
    "north_east": (1, 1),
}
_WALLS = ("west", "east", "south", "north")

_SOLVER = 8  # iterations: with 4, 2 of 99,840 random steps throw a dropped peg to infinity; with 2 a jammed one sinks in


def _world(config: Config, mocap: bool = False) -> str:
    """The MJCF of fixture, post and peg, in metres; renderers move the fixture by ``mocap``, episodes by their model."""
    radius, half = 0.0005 * config.width_mm, 0.0125
    gap, rounding = radius + 0.0005 * config.clearance_mm, 0.002
    hole_x, hole_y = (0.001 * x for x in config.hole_mm)
    return _WORLD.format(
        gap=gap,
        half=half,
        wall=gap + half,
        span=gap + 2 * half,
        middle=HEIGHT / 2,
        rim=gap + rounding,
        rim_z=HEIGHT - rounding,
        round=rounding,
        hole_x=hole_x,
        hole_y=hole_y,
        mocap=str(mocap).lower(),
        radius=radius,
        end=LENGTH / 2 - radius,
        peg=_square(radius),
    )


def _square(radius: float, rounding: float = 0.001) -> str:
    """What makes a peg square: a box to be held by, and balls at the corners of its tip, which meet the walls."""
    reach, low = radius - rounding, LENGTH / 2 - rounding
    balls = (
        _BALL.format(name=name, x=x * reach, y=y * reach, low=low, size=rounding)
        for name, (x, y) in _CORNERS.items()
    )
    return _BOX.format(radius=radius, half=LENGTH / 2) + "".join(balls)


def _pairs(config: Config) -> str:
    """Each corner meets the two walls on its side; the shaft, as an inscribed capsule, meets the hole's rims."""
    in_hole = [(corner, wall) for corner in _CORNERS for wall in _WALLS if wall in corner]
    in_hole += [("core", f"{wall}_rim") for wall in _WALLS]
    around = [("floor", "core"), ("post", "core"), *(("post", part) for part in ur5e.HAND)]
    in_hand = [(pad, "sides") for pad in ur5e.PADS]
    return ur5e.touching(in_hole + around, config.friction) + ur5e.touching(
        in_hand, config.grip_friction
    )


def upright(body: Body) -> Array:
    """The peg's axis, from its tip upwards, [3]."""
    return yaw_axes(body.qpos[3:7])[1]


def tip(body: Body) -> Array:
    """The middle of the peg's lower end, [3] metres."""
    return body.qpos[:3] - 0.5 * LENGTH * upright(body)


def turned(body: Body) -> Array:
    """[] radians, the yaw of the peg."""
    heading = yaw_axes(body.qpos[3:7])[0]
    return jnp.arctan2(heading[1], heading[0])


def mouth(body: Body) -> Array:
    """The middle of the hole's mouth, [3] metres."""
    return body.model["body_pos"][FIXTURE] + np.array([0.0, 0.0, HEIGHT])


def observe(config: Config, robot: ur5e.Robot, physics: Physics) -> Array:
    """[34]: tip from the mouth, its sideways part again at the scale of the clearance, place of the hole, tilt, yaw and
    velocity of the peg, tip from tool, then 18 numbers of the arm (``ur5e.proprioception``); all of order one."""
    body, tool, target = physics
    where = tip(body) - mouth(body)
    parts = (
        where / NEAR,
        jnp.tanh(where[:2] / FINE),
        (mouth(body)[:2] - 0.001 * np.asarray(config.hole_mm)) / PLACE,
        jnp.tanh(upright(body)[:2] / TILT),
        turned(body)[None] / YAW,
        body.qvel[:3] / SPEED,
        jnp.tanh((tip(body) - tool.position + np.array([0.0, 0.0, GRASP])) / SLIP),
        ur5e.proprioception(robot, body, tool, target),
    )
    return jnp.concatenate(parts)


def make(config: Config) -> Env:
    """action [5]: how the commanded position, yaw and opening change, in units of ``speed_mm``, ``turn``, ``grip_mm``."""
    home = 0.001 * np.asarray(config.hand_mm)
    robot = ur5e.robot(
        "ur5e_insert", world=_world(config), pairs=_pairs(config), home=home, iterations=_SOLVER
    )
    model = robot.simulation.model
    pace = np.array([*[0.001 * config.speed_mm] * 3, config.turn, 0.001 * config.grip_mm])
    opening = 0.0005 * config.width_mm - SUNK

    def reset(key: Array) -> State:
        hand_key, turn_key, hole_key, state_key = jax.random.split(key, 4)
        offset = box(hand_key, (0.0, 0.0, 0.0), config.hand_spread_mm)
        turn = jax.random.uniform(turn_key, minval=-config.hand_yaw, maxval=config.hand_yaw)
        shift = box(hole_key, (0.0, 0.0), config.hole_spread_mm)
        places = jnp.asarray(model.body_pos, jnp.float32).at[FIXTURE, :2].add(shift)
        peg = jnp.zeros(7).at[3].set(1.0)
        body = at_rest(jnp.concatenate([peg, ur5e.start(robot, offset, turn, opening)]), ur5e.NV)
        tool = ur5e.sense(robot, body)
        body = body._replace(
            qpos=body.qpos.at[ur5e.OBJECT].set(_grasped(tool)), model={"body_pos": places}
        )
        physics = Physics(body, tool, ur5e.held(body, tool).at[4].set(CLOSED))
        return initial_state(physics, observe(config, robot, physics), state_key)

    def step(state: State, action: Array) -> State:
        body, tool, target = state.physics
        physics = Physics(
            *ur5e.driven(robot, body, tool, target, action, pace=pace, limits=LIMITS, lead=LEAD)
        )
        return next_state(
            state,
            physics=physics,
            obs=observe(config, robot, physics),
            success=inserted(config, physics),
            bonus=config.bonus,
        )

    specs = EnvSpecs(
        name="ur5e_insert",
        obs_dim=34,
        action_dim=5,
        horizon=config.horizon,
        control_dt=CONTROL_DT,
        success=f"the tip of the peg inside the hole, {config.depth_mm} mm below its mouth",
    )
    return Env(
        reset,
        step,
        specs,
        demonstrator=lambda noise: demonstrator(config, noise),
        scene=lambda: Scene(
            ur5e.drawn("ur5e_insert", world=_world(config, mocap=True)),
            _pose,
            "main",
            simulated=model,
        ),
    )


def _grasped(tool: Tool) -> Array:
    """The pose [7] of a peg upright in the gripper."""
    return jnp.concatenate(
        [tool.position.at[2].add(0.5 * LENGTH - GRASP), yaw_quaternion(tool.yaw)]
    )


def _pose(state: State) -> dict[str, np.ndarray]:
    body = state.physics.body
    return {"qpos": ur5e.drawn_qpos(body.qpos), "mocap_pos": body.model["body_pos"][None, FIXTURE]}


def inserted(config: Config, physics: Physics) -> Array:
    """[] bool: the tip is ``depth_mm`` below the mouth and within the hole's walls."""
    x, y, z = tip(physics.body) - mouth(physics.body)
    inside = jnp.maximum(jnp.abs(x), jnp.abs(y)) < 0.0005 * config.width_mm
    return inside & (z < -0.001 * config.depth_mm)


def demonstrator(config: Config, noise: float) -> Demonstrator:
    """Round the post at a distance, to a point above the hole, aligned with it, then down.

    Noise misplaces the hole once per episode (1 mm std per unit) and shakes every action (0.1 std per unit).
    """
    detour, clear, hover = 0.095, 0.08, 0.012

    def init(key: Array, state: State) -> Plan:
        side_key, error_key = jax.random.split(key)
        return Plan(
            jax.random.randint(side_key, (), 0, 2),
            0.001 * noise * jax.random.normal(error_key, (2,)),
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, tool, target = state.physics
        where, hole = tip(body), mouth(body)
        seen = hole.at[:2].add(plan.error)
        way = 2.0 * plan.side - 1.0
        offset = jnp.hypot(where[0] - seen[0], where[1] - seen[1])
        centred = (offset < 0.001) & (jnp.abs(turned(body)) < 0.03)
        down = jnp.where(centred | (where[2] < hole[2]), -0.03, hover)
        height = hole[2] + hover
        aside = jnp.stack([jnp.float32(0.001 * config.hand_mm[0]), way * detour, height])
        past = jnp.stack([seen[0], way * detour, height])
        before = jnp.where(way * where[1] < clear, aside, past)
        aim = jnp.where(where[0] < seen[0] - 0.012, before, seen.at[2].add(down))
        parts = (
            clip_step_towards(aim - where + tool.position - target[:3], 0.001 * config.speed_mm),
            clip_step_towards((tool.yaw - turned(body) - target[3])[None], config.turn),
            jnp.full(1, -1.0),
        )
        return add_action_noise(jnp.concatenate(parts), key, 0.1 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.side, modes=2)

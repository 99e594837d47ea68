"""ur5e_insert: a UR5e brings a peg that it holds round a post to a hole and pushes it in.

The arm, the gripper and their commands are those of ``robots.ur5e``. It goes on the left or the
right of the post. The peg is held by friction alone: it may slip, tilt or fall. It is square and
the walls have no chamfer. The fixture with the hole stands elsewhere in every episode. The origin
is the foot of the post, 0.45 m in front of the arm, x away from the arm, z up.

Observation [34], all of order one:

| index | content | unit |
|---|---|---|
| 0–2 | tip of the peg from the hole's mouth | 50 mm |
| 3–4 | tanh of the sideways part of the same | 2 mm |
| 5–6 | position of the hole from its middle | 5 mm |
| 7–8 | tanh of the tilt of the peg | 0.1 rad |
| 9 | yaw of the peg | 0.5 rad |
| 10–12 | velocity of the peg | 0.3 m/s |
| 13–15 | tanh of the slip of the peg in the hand | 10 mm |
| 16–18 | velocity of the tool | 0.3 m/s |
| 19 | yaw rate of the tool | 1 rad/s |
| 20 | yaw of the tool | 0.5 rad |
| 21–23 | lead of the commanded position over the tool | 30 mm |
| 24 | lead of the commanded yaw | 0.2 rad |
| 25 | lead of the commanded opening | 10 mm |
| 26–27 | opening of each finger | 42.7 mm |
| 28–33 | joints of the arm from home | 0.5 rad |

Action [5]: change of the commanded tool position (0–2), yaw (3) and opening (4), in units of
``max_step_mm``, ``max_yaw_step`` and ``max_grip_step_mm``.
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
    clip_step_towards,
    initial_state,
    next_state,
    quaternion_axes,
    sample_box_mm,
    yaw_quaternion,
)
from gcp_jax.envs.physics.mjx import CONTROL_DT, Backend, Body, at_rest
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State
from gcp_jax.envs.robots import ur5e
from gcp_jax.envs.robots.ur5e import CLOSED, OPEN, SPEED, YAW, Tool

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.2, "poor": 2.0, "bad": 3.0}  # success 100 %, 73 %, 33 %, 14 %

FIXTURE = 1  # number of the body, the first of the world
HEIGHT = 0.06  # metres of the fixture, the hole's mouth above the floor
LENGTH = 0.07  # metres of the peg
GRASP = 0.05  # metres from the tip to the tool
SUNK = 0.0005  # metres the pads start inside the peg; at a bare touch, rounding decides who pushes
LEAD = 0.012  # metres the commanded position may be ahead of the tool: bounds the force of a jam
LIMITS = np.array(
    [[-0.15, -0.14, 0.07, -0.6, CLOSED], [0.14, 0.14, 0.18, 0.6, OPEN]]
)  # metres and radians, smallest and largest command

NEAR = 0.05  # metres of one unit of relative position in the observation
FINE = 0.002  # metres over which the offset from the hole's axis is observed a second time, finely
PLACE = 0.005  # metres of one unit of the hole's position
SLIP = 0.01  # metres over which the peg's position in the hand is observed
TILT = 0.1  # radians over which the peg's tilt is observed


@dataclass(frozen=True)
class Config:
    """Starts are boxes, given by their middle and half-widths (spread)."""

    clearance_mm: float = field(2.0, NON_NEGATIVE, "mm, the hole's side minus the peg's")
    width_mm: float = field(20.0, POSITIVE, "mm, side of the peg")
    depth_mm: float = field(20.0, POSITIVE, "mm of the tip below the mouth that count as success")
    max_step_mm: float = field(
        6.0, POSITIVE, "mm per control step and axis of the commanded position at action 1"
    )
    max_yaw_step: float = field(
        0.05, NON_NEGATIVE, "rad per control step of the commanded yaw at action 1"
    )
    max_grip_step_mm: float = field(
        4.0, POSITIVE, "mm per control step of the commanded opening of each finger at action 1"
    )
    hand_mm: tuple[float, float, float] = field((-110.0, 0.0, 140.0), FINITE, "mm, tool's starts")
    hand_spread_mm: tuple[float, float, float] = field(
        (15.0, 30.0, 10.0), NON_NEGATIVE, "mm, half-widths of the tool's starts"
    )
    hand_yaw_spread: float = field(
        0.25, NON_NEGATIVE, "rad, gripper and peg start turned by up to this"
    )
    hole_mm: tuple[float, float] = field((100.0, 0.0), FINITE, "mm, places of the hole")
    hole_spread_mm: tuple[float, float] = field(
        (6.0, 6.0), NON_NEGATIVE, "mm, half-widths of the hole's places"
    )
    friction: float = field(0.3, POSITIVE, "coefficient of friction of the peg in the hole")
    grip_friction: float = field(1.0, POSITIVE, "coefficient of friction of the peg in the gripper")
    horizon: int = field(130, POSITIVE_INT, "control steps of an episode")
    bonus: float = field(5.0, FINITE, "reward at success, on top of the -1 of every step")

    def __post_init__(self) -> None:
        config_fields.check(self, "env.")


class Physics(NamedTuple):
    """What the task carries."""

    body: Body  # peg, arm, fingers, with the fixture's place in its model
    tool: Tool  # where it is in ``body``
    command: Array  # [5] metres and radians: commanded position, yaw and opening


class Plan(NamedTuple):
    """What a demonstrator drew."""

    side: Array  # [] int32: 0 passes on the right of the post, 1 on the left
    error: Array  # [2] metres, of where it sees the hole


_WORLD = """
<camera name="main" pos=".75 -.95 .62" xyaxes=".78 .62 0 -.27 .33 .9" fovy="42"/>
<geom name="floor" type="plane" size="2 2 .1" material="tiles"/>
<geom name="post" type="capsule" fromto="0 0 0 0 0 .2" size=".012" material="obstacle"/>
<body name="fixture" pos="{hole_x} {hole_y} 0" mocap="{mocap}">
  <geom name="west" type="box" pos="-{wall} 0 {middle}" size="{half} {span} {middle}"
    material="fixture"/>
  <geom name="east" type="box" pos="{wall} 0 {middle}" size="{half} {span} {middle}"
    material="fixture"/>
  <geom name="south" type="box" pos="0 -{wall} {middle}" size="{gap} {half} {middle}"
    material="fixture"/>
  <geom name="north" type="box" pos="0 {wall} {middle}" size="{gap} {half} {middle}"
    material="fixture"/>
  <geom name="west_rim" type="capsule" fromto="-{rim} -{gap} {rim_z} -{rim} {gap} {rim_z}"
    size="{round}" material="fixture"/>
  <geom name="east_rim" type="capsule" fromto="{rim} -{gap} {rim_z} {rim} {gap} {rim_z}"
    size="{round}" material="fixture"/>
  <geom name="south_rim" type="capsule" fromto="-{gap} -{rim} {rim_z} {gap} -{rim} {rim_z}"
    size="{round}" material="fixture"/>
  <geom name="north_rim" type="capsule" fromto="-{gap} {rim} {rim_z} {gap} {rim} {rim_z}"
    size="{round}" material="fixture"/>
</body>
<body name="peg" pos="0 0 .3">
  <freejoint name="peg"/>
  <geom name="core" type="capsule" fromto="0 0 -{end} 0 0 {end}" size="{radius}" mass=".02"
    material="object"/>
  {peg}
</body>
"""

_BOX = """
<geom name="sides" type="box" size="{radius} {radius} {half}" mass=".08" material="object"/>
"""

_BALL = """
<geom name="{name}" type="sphere" pos="{x} {y} -{low}" size="{size}" mass="0" material="object"/>
"""

_CORNERS = {
    "south_west": (-1, -1),
    "south_east": (1, -1),
    "north_west": (-1, 1),
    "north_east": (1, 1),
}
_WALLS = ("west", "east", "south", "north")

_SOLVER_ITERATIONS = 8  # with 4, random steps can throw a dropped peg; with 2 a jammed one sinks in


def _world(config: Config, mocap: bool = False) -> str:
    """The MJCF of fixture, post and peg, in metres.

    Renderers move the fixture by ``mocap``, episodes by their model.
    """
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
        peg=_square_peg(radius),
    )


def _square_peg(radius: float, rounding: float = 0.001) -> str:
    """A box to be held by, and balls at the corners of the tip, which meet the walls."""
    offset, low = radius - rounding, LENGTH / 2 - rounding
    balls = (
        _BALL.format(name=name, x=x * offset, y=y * offset, low=low, size=rounding)
        for name, (x, y) in _CORNERS.items()
    )
    return _BOX.format(radius=radius, half=LENGTH / 2) + "".join(balls)


def _pairs(config: Config) -> str:
    """Each corner meets the two walls on its side; the shaft, a capsule, meets the hole's rims."""
    in_hole = [(corner, wall) for corner in _CORNERS for wall in _WALLS if wall in corner]
    in_hole += [("core", f"{wall}_rim") for wall in _WALLS]
    around = [("floor", "core"), ("post", "core"), *(("post", part) for part in ur5e.HAND)]
    in_hand = [(pad, "sides") for pad in ur5e.PADS]
    outside_pairs = ur5e.contact_pairs(in_hole + around, config.friction)
    return outside_pairs + ur5e.contact_pairs(in_hand, config.grip_friction)


def peg_axis(body: Body) -> Array:
    """The peg's axis, from its tip upwards, [3]."""
    return quaternion_axes(body.qpos[3:7])[1]


def tip(body: Body) -> Array:
    """The middle of the peg's lower end, [3] metres."""
    return body.qpos[:3] - 0.5 * LENGTH * peg_axis(body)


def peg_yaw(body: Body) -> Array:
    """[] radians, the yaw of the peg."""
    x_axis = quaternion_axes(body.qpos[3:7])[0]
    return jnp.arctan2(x_axis[1], x_axis[0])


def mouth(body: Body) -> Array:
    """The middle of the hole's mouth, [3] metres."""
    return body.model["body_pos"][FIXTURE] + np.array([0.0, 0.0, HEIGHT])


def observe(config: Config, robot: ur5e.Robot, physics: Physics) -> Array:
    """The observation [34]; see the module."""
    body, tool, command = physics
    offset = tip(body) - mouth(body)
    slip = tip(body) - tool.position + np.array([0.0, 0.0, GRASP])
    parts = (
        offset / NEAR,
        jnp.tanh(offset[:2] / FINE),
        (mouth(body)[:2] - 0.001 * np.asarray(config.hole_mm)) / PLACE,
        jnp.tanh(peg_axis(body)[:2] / TILT),
        peg_yaw(body)[None] / YAW,
        body.qvel[:3] / SPEED,
        jnp.tanh(slip / SLIP),
        ur5e.proprioception(robot, body, tool, command),
    )
    return jnp.concatenate(parts)


def make(config: Config, backend: Backend = "mjx") -> Env:
    """Build the task."""
    robot = ur5e.make_robot(
        "ur5e_insert",
        world=_world(config),
        pairs=_pairs(config),
        home_mm=config.hand_mm,
        iterations=_SOLVER_ITERATIONS,
        backend=backend,
    )
    grip_step = 0.001 * config.max_grip_step_mm
    max_step = np.array([0.001 * config.max_step_mm] * 3 + [config.max_yaw_step, grip_step])

    def step(state: State, action: Array) -> State:
        body, tool, command = state.physics
        body, tool, command = ur5e.control_step(
            robot, body, tool, command, action, max_step=max_step, limits=LIMITS, lead=LEAD
        )
        physics = Physics(body=body, tool=tool, command=command)
        return next_state(
            state,
            physics=physics,
            obs=observe(config, robot, physics),
            success=succeeded(config, physics),
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
        lambda key: _reset(config, robot, key),
        step,
        specs,
        demonstrator=lambda noise: demonstrator(config, noise),
        scene=lambda: Scene(
            ur5e.render_model("ur5e_insert", world=_world(config, mocap=True)),
            _pose,
            "main",
            simulated=robot.simulation.model,
        ),
    )


def _reset(config: Config, robot: ur5e.Robot, key: Array) -> State:
    """The start of an episode."""
    hand_key, yaw_key, hole_key, state_key = jax.random.split(key, 4)
    offset = sample_box_mm(hand_key, (0.0, 0.0, 0.0), config.hand_spread_mm)
    spread = config.hand_yaw_spread
    yaw = jax.random.uniform(yaw_key, minval=-spread, maxval=spread)
    shift = sample_box_mm(hole_key, (0.0, 0.0), config.hole_spread_mm)
    body_pos = jnp.asarray(robot.simulation.model.body_pos, jnp.float32)
    body_pos = body_pos.at[FIXTURE, :2].add(shift)
    opening = 0.0005 * config.width_mm - SUNK
    peg = jnp.zeros(7).at[3].set(1.0)
    qpos = jnp.concatenate([peg, ur5e.start_qpos(robot, offset, yaw, opening)])
    body = at_rest(qpos, ur5e.NV)
    tool = ur5e.sense(robot, body)
    qpos = body.qpos.at[ur5e.OBJECT].set(_held_peg(tool))
    body = body._replace(qpos=qpos, model={"body_pos": body_pos})
    command = ur5e.measured_command(body, tool).at[4].set(CLOSED)
    physics = Physics(body=body, tool=tool, command=command)
    return initial_state(physics, observe(config, robot, physics), state_key)


def _held_peg(tool: Tool) -> Array:
    """The pose [7] of a peg upright in the gripper."""
    middle = tool.position.at[2].add(0.5 * LENGTH - GRASP)
    return jnp.concatenate([middle, yaw_quaternion(tool.yaw)])


def _pose(state: State) -> dict[str, np.ndarray]:
    body = state.physics.body
    return {"qpos": ur5e.render_qpos(body.qpos), "mocap_pos": body.model["body_pos"][None, FIXTURE]}


def succeeded(config: Config, physics: Physics) -> Array:
    """[] bool: the tip is ``depth_mm`` below the mouth and within the hole's walls."""
    x, y, z = tip(physics.body) - mouth(physics.body)
    inside = jnp.maximum(jnp.abs(x), jnp.abs(y)) < 0.0005 * config.width_mm
    success: Array = inside & (z < -0.001 * config.depth_mm)
    return success


def demonstrator(config: Config, noise: float) -> Demonstrator:
    """Go round the post at a distance, to a point above the hole, aligned with it, then down.

    Noise misplaces the hole once per episode (1 mm std per unit) and disturbs every action (0.1 std
    per unit).
    """
    detour, clear, hover = 0.095, 0.08, 0.012
    max_step = 0.001 * config.max_step_mm

    def init(key: Array, state: State) -> Plan:
        side_key, error_key = jax.random.split(key)
        return Plan(
            side=jax.random.randint(side_key, (), 0, 2),
            error=0.001 * noise * jax.random.normal(error_key, (2,)),
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, tool, command = state.physics
        place, hole = tip(body), mouth(body)
        seen = hole.at[:2].add(plan.error)
        side = 2.0 * plan.side - 1.0
        offset = jnp.hypot(place[0] - seen[0], place[1] - seen[1])
        aligned = (offset < 0.001) & (jnp.abs(peg_yaw(body)) < 0.03)
        height = jnp.where(aligned | (place[2] < hole[2]), -0.03, hover)
        way_height = hole[2] + hover
        aside = jnp.stack([jnp.float32(0.001 * config.hand_mm[0]), side * detour, way_height])
        past = jnp.stack([seen[0], side * detour, way_height])
        before_post = jnp.where(side * place[1] < clear, aside, past)
        aim = jnp.where(place[0] < seen[0] - 0.012, before_post, seen.at[2].add(height))
        yaw = tool.yaw - peg_yaw(body)
        parts = (
            clip_step_towards(aim - place + tool.position - command[:3], max_step),
            clip_step_towards((yaw - command[3])[None], config.max_yaw_step),
            jnp.full(1, -1.0),
        )
        return add_action_noise(jnp.concatenate(parts), key, 0.1 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.side, modes=2)

"""ur5e_pick_place: a UR5e grasps a cube and brings it to a goal in the air behind a post. Left or right of it.

The arm, the gripper and their control are those of ``envs.ur5e``. The cube lies turned, so that the gripper must turn
with it. The origin is the foot of the post, 0.45 m in front of the arm, x away from the arm, z up.
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
from gcp_jax.envs.robots.ur5e import CLOSED, LEAD, OPEN, SPEED, SQUEEZE, Tool

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.4, "poor": 2.1, "bad": 3.0}  # success 100 %, 69 %, 28 %, 11 %

HALF = 0.02  # metres, half the side of the cube
LIMITS = np.array(
    [[-0.18, -0.16, 0.015, -0.8, CLOSED], [0.16, 0.16, 0.16, 0.8, OPEN]]
)  # metres, radians; command

NEAR = 0.05  # metres of one unit of relative position in the observation
FAR = 0.1  # metres of one unit of position in the arena


@dataclass(frozen=True)
class Config:
    """Lengths in millimetres, as the names say; boxes of starts and goals as their middle and half-widths."""

    tolerance_mm: float = 10.0  # distance of the cube from the goal that counts as there
    still: float = 0.1  # m/s the cube may move when it is there
    speed_mm: float = (
        8.0  # the commanded position moves this far per control step at action 1, per axis
    )
    turn: float = 0.05  # radians, the same of the commanded yaw
    grip_mm: float = 4.0  # the same of the commanded opening, at each finger
    hand_mm: tuple[float, float, float] = (-120.0, 0.0, 100.0)
    hand_spread_mm: tuple[float, float, float] = (20.0, 30.0, 15.0)
    hand_yaw: float = 0.2  # radians, the gripper starts turned by up to this
    cube_mm: tuple[float, float] = (-120.0, 0.0)
    cube_spread_mm: tuple[float, float] = (20.0, 35.0)
    cube_yaw: float = 0.5  # radians, the cube lies turned by up to this
    goal_mm: tuple[float, float, float] = (110.0, 0.0, 75.0)
    goal_spread_mm: tuple[float, float, float] = (15.0, 35.0, 20.0)
    friction: float = 1.0
    horizon: int = 120  # control steps
    bonus: float = 5.0  # reward on top of the −1 of the step of success


class Physics(NamedTuple):
    """body: cube, arm, fingers; tool: where it is in ``body``; target [5]: commanded position, yaw, opening; goal [3];
    metres and radians."""

    body: Body
    tool: Tool
    target: Array
    goal: Array


class Plan(NamedTuple):
    """What a demonstrator drew: side [] int32, 0 carries right of the post and 1 left; the errors [3] in metres of where
    it sees the cube and the goal."""

    side: Array
    cube_error: Array
    goal_error: Array


_WORLD = f"""
<camera name="main" pos=".75 -.95 .62" xyaxes=".78 .62 0 -.27 .33 .9" fovy="42"/>
<geom name="floor" type="plane" size="2 2 .1" material="tiles"/>
<geom name="post" type="capsule" fromto="0 0 0 0 0 .2" size=".015" material="obstacle"/>
<body name="goal" mocap="true"><geom type="box" size="{HALF} {HALF} {HALF}" material="goal"/></body>
<body name="cube" pos="0 0 {HALF}">
  <freejoint name="cube"/>
  <geom name="cube" type="box" size="{HALF} {HALF} {HALF}" mass=".08" material="object"/>
</body>
"""

_TOUCHING = (
    *((pad, "cube") for pad in ur5e.PADS),
    ("floor", "cube"),
    ("post", "cube"),
    *(("post", part) for part in ur5e.HAND),
)


def cube(body: Body) -> Array:
    """The middle of the cube, [3] metres."""
    return body.qpos[:3]


def heading(body: Body) -> Array:
    """The cube's own x axis in the world, [3]."""
    return yaw_axes(body.qpos[3:7])[0]


def observe(robot: ur5e.Robot, physics: Physics) -> Array:
    """[33]: cube from tool, goal from cube, cube, its x axis in the tool's frame, its velocity, then 18 numbers of the
    arm (``ur5e.proprioception``); all of order one."""
    body, tool, target, goal = physics
    parts = (
        (cube(body) - tool.position) / NEAR,
        (goal - cube(body)) / FAR,
        cube(body) / FAR,
        tool.rotation.T @ heading(body),
        body.qvel[:3] / SPEED,
        ur5e.proprioception(robot, body, tool, target),
    )
    return jnp.concatenate(parts)


def make(config: Config) -> Env:
    """action [5]: how the commanded position, yaw and opening change, in units of ``speed_mm``, ``turn``, ``grip_mm``."""
    touching = ur5e.touching(_TOUCHING, config.friction)
    home = 0.001 * np.asarray(config.hand_mm)
    robot = ur5e.robot("ur5e_pick_place", world=_WORLD, pairs=touching, home=home)
    pace = np.array([*[0.001 * config.speed_mm] * 3, config.turn, 0.001 * config.grip_mm])

    def reset(key: Array) -> State:
        hand_key, turn_key, cube_key, yaw_key, goal_key, state_key = jax.random.split(key, 6)
        offset = box(hand_key, (0.0, 0.0, 0.0), config.hand_spread_mm)
        turn = jax.random.uniform(turn_key, minval=-config.hand_yaw, maxval=config.hand_yaw)
        yaw = jax.random.uniform(yaw_key, minval=-config.cube_yaw, maxval=config.cube_yaw)
        place = box(cube_key, config.cube_mm, config.cube_spread_mm)
        qpos = jnp.concatenate(
            [place, jnp.full(1, HALF), yaw_quaternion(yaw), ur5e.start(robot, offset, turn, OPEN)]
        )
        body = at_rest(qpos, ur5e.NV)
        tool = ur5e.sense(robot, body)
        goal = box(goal_key, config.goal_mm, config.goal_spread_mm)
        physics = Physics(body, tool, ur5e.held(body, tool), goal)
        return initial_state(physics, observe(robot, physics), state_key)

    def step(state: State, action: Array) -> State:
        body, tool, target, goal = state.physics
        moved = ur5e.driven(robot, body, tool, target, action, pace=pace, limits=LIMITS, lead=LEAD)
        physics = Physics(*moved, goal)
        return next_state(
            state,
            physics=physics,
            obs=observe(robot, physics),
            success=placed(config, physics),
            bonus=config.bonus,
        )

    specs = EnvSpecs(
        name="ur5e_pick_place",
        obs_dim=33,
        action_dim=5,
        horizon=config.horizon,
        control_dt=CONTROL_DT,
        success=f"the cube within {config.tolerance_mm} mm of the goal, slower than {config.still} m/s",
    )
    return Env(
        reset,
        step,
        specs,
        demonstrator=lambda noise: demonstrator(config, noise),
        scene=lambda: Scene(
            ur5e.drawn("ur5e_pick_place", world=_WORLD),
            _pose,
            "main",
            simulated=robot.simulation.model,
        ),
    )


def _pose(state: State) -> dict[str, np.ndarray]:
    return {"qpos": ur5e.drawn_qpos(state.physics.body.qpos), "mocap_pos": state.physics.goal[None]}


def placed(config: Config, physics: Physics) -> Array:
    """[] bool: the cube is at the goal and slow."""
    away = jnp.linalg.norm(cube(physics.body) - physics.goal)
    return (away < 0.001 * config.tolerance_mm) & (
        jnp.linalg.norm(physics.body.qvel[:3]) < config.still
    )


def demonstrator(config: Config, noise: float) -> Demonstrator:
    """Turns as the cube lies, comes down over it, closes, carries it round the post to the goal; starts over when it
    loses the cube.

    Noise misplaces cube and goal once per episode (3 mm std per unit) and shakes every action (0.1 std per unit).
    """
    speed, turn, grip = 0.001 * config.speed_mm, config.turn, 0.001 * config.grip_mm

    def init(key: Array, state: State) -> Plan:
        side_key, cube_key, goal_key = jax.random.split(key, 3)
        side = jax.random.randint(side_key, (), 0, 2)
        return Plan(
            side, *(0.003 * noise * jax.random.normal(k, (3,)) for k in (cube_key, goal_key))
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, tool, target, goal = state.physics
        seen = cube(body) + plan.cube_error
        offset = seen - tool.position
        aside, askew = jnp.hypot(offset[0], offset[1]), _quarter(heading(body)) - tool.yaw
        around = (jnp.abs(offset[2]) < 0.01) & (aside < 0.01)
        gripped = around & (jnp.min(ur5e.openings(body)) - target[4] > 0.6 * SQUEEZE)
        above = seen.at[2].add(
            jnp.minimum(0.06, 4.0 * jnp.maximum(aside + 0.05 * jnp.abs(askew) - 0.006, 0.0))
        )
        carried = _carry(cube(body), goal + plan.goal_error, 2.0 * plan.side - 1.0) - offset
        aim = jnp.where(gripped, carried, above)
        yaw = jnp.where(gripped, target[3], tool.yaw + askew)
        fingers = jnp.where(around, CLOSED, OPEN)
        parts = (
            clip_step_towards(aim - target[:3], speed),
            clip_step_towards((yaw - target[3])[None], turn),
            clip_step_towards((fingers - target[4])[None], grip),
        )
        return add_action_noise(jnp.concatenate(parts), key, 0.1 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.side, modes=2)


def _quarter(axis: Array) -> Array:
    """The yaw [] nearest to 0 at which the gripper closes on two sides of a cube with the x axis ``axis`` [3]."""
    quarter = 0.5 * jnp.pi
    yaw = jnp.arctan2(axis[1], axis[0])
    return yaw - quarter * jnp.round(yaw / quarter)


def _carry(place: Array, goal: Array, way: Array) -> Array:
    """Where the cube at ``place`` [3] should go next on its way round the post, ``way`` [] −1 right or +1 left."""
    detour, clear = 0.11, 0.09
    aside = jnp.stack([jnp.float32(-0.11), way * detour, goal[2]])
    past = jnp.stack([jnp.float32(0.09), way * detour, goal[2]])
    return jnp.where(place[0] > 0.07, goal, jnp.where(way * place[1] < clear, aside, past))

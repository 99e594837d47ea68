"""ur5e_pick_place: a UR5e grasps a cube and brings it, left or right of a post, to a goal.

The arm, the gripper and their commands are those of ``robots.ur5e``. The cube lies turned, and the
gripper must turn with it. The goal is in the air. The origin is the foot of the post, 0.45 m in
front of the arm, x away from the arm, z up.

Observation [33], all of order one:

| index | content | unit |
|---|---|---|
| 0–2 | cube from tool | 50 mm |
| 3–5 | goal from cube | 100 mm |
| 6–8 | position of the cube | 100 mm |
| 9–11 | x axis of the cube in the tool's frame | 1 |
| 12–14 | velocity of the cube | 0.3 m/s |
| 15–17 | velocity of the tool | 0.3 m/s |
| 18 | yaw rate of the tool | 1 rad/s |
| 19 | yaw of the tool | 0.5 rad |
| 20–22 | lead of the commanded position over the tool | 30 mm |
| 23 | lead of the commanded yaw | 0.2 rad |
| 24 | lead of the commanded opening | 10 mm |
| 25–26 | opening of each finger | 42.7 mm |
| 27–32 | joints of the arm from home | 0.5 rad |

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
    way_round,
    yaw_quaternion,
)
from gcp_jax.envs.physics.mjx import CONTROL_DT, Backend, Body, at_rest
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State
from gcp_jax.envs.robots import two_finger_hand, ur5e
from gcp_jax.envs.robots.ur5e import CLOSED, LEAD, OPEN, SPEED, SQUEEZE, Tool

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.4, "poor": 2.1, "bad": 3.0}  # success 100 %, 69 %, 28 %, 11 %

HALF = 0.02  # metres, half the side of the cube
LIMITS = np.array(
    [[-0.18, -0.16, 0.015, -0.8, CLOSED], [0.16, 0.16, 0.16, 0.8, OPEN]]
)  # metres and radians, smallest and largest command

NEAR = 0.05  # metres of one unit of relative position in the observation
FAR = 0.1  # metres of one unit of position in the arena


@dataclass(frozen=True)
class Config:
    """Starts and goals are boxes, given by their middle and half-widths (spread)."""

    tolerance_mm: float = field(10.0, POSITIVE, "mm, distance from the goal that counts as success")
    max_speed: float = field(0.1, POSITIVE, "m/s, fastest cube that counts as success")
    max_step_mm: float = field(
        8.0, POSITIVE, "mm per control step and axis of the commanded position at action 1"
    )
    max_yaw_step: float = field(
        0.05, NON_NEGATIVE, "rad per control step of the commanded yaw at action 1"
    )
    max_grip_step_mm: float = field(
        4.0, POSITIVE, "mm per control step of the commanded opening of each finger at action 1"
    )
    hand_mm: tuple[float, float, float] = field((-120.0, 0.0, 100.0), FINITE, "mm, tool's starts")
    hand_spread_mm: tuple[float, float, float] = field(
        (20.0, 30.0, 15.0), NON_NEGATIVE, "mm, half-widths of the tool's starts"
    )
    hand_yaw_spread: float = field(
        0.2, NON_NEGATIVE, "rad, the gripper starts turned by up to this"
    )
    cube_mm: tuple[float, float] = field((-120.0, 0.0), FINITE, "mm, cube's starts")
    cube_spread_mm: tuple[float, float] = field(
        (20.0, 35.0), NON_NEGATIVE, "mm, half-widths of the cube's starts"
    )
    cube_yaw_spread: float = field(0.5, NON_NEGATIVE, "rad, the cube lies turned by up to this")
    goal_mm: tuple[float, float, float] = field((110.0, 0.0, 75.0), FINITE, "mm, goals")
    goal_spread_mm: tuple[float, float, float] = field(
        (15.0, 35.0, 20.0), NON_NEGATIVE, "mm, half-widths of the goals"
    )
    friction: float = field(1.0, POSITIVE, "coefficient of friction of all contacts")
    horizon: int = field(120, POSITIVE_INT, "control steps of an episode")
    bonus: float = field(5.0, FINITE, "reward at success, on top of the -1 of every step")

    def __post_init__(self) -> None:
        config_fields.check(self, "env.")


class Physics(NamedTuple):
    """What the task carries."""

    body: Body  # cube, arm, fingers
    tool: Tool  # where it is in ``body``
    command: Array  # [5] metres and radians: commanded position, yaw and opening
    goal: Array  # [3] metres


class Plan(NamedTuple):
    """What a demonstrator drew."""

    side: Array  # [] int32: 0 carries on the right of the post, 1 on the left
    cube_error: Array  # [3] metres, of where it sees the cube
    goal_error: Array  # [3] metres, of where it sees the goal


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


def cube_x_axis(body: Body) -> Array:
    """The cube's own x axis in the world, [3]."""
    return quaternion_axes(body.qpos[3:7])[0]


def observe(robot: ur5e.Robot, physics: Physics) -> Array:
    """The observation [33]; see the module."""
    body, tool, command, goal = physics
    parts = (
        (cube(body) - tool.position) / NEAR,
        (goal - cube(body)) / FAR,
        cube(body) / FAR,
        tool.rotation.T @ cube_x_axis(body),
        body.qvel[:3] / SPEED,
        ur5e.proprioception(robot, body, tool, command),
    )
    return jnp.concatenate(parts)


def make(config: Config, backend: Backend = "mjx") -> Env:
    """Build the task."""
    robot = ur5e.make_robot(
        "ur5e_pick_place",
        world=_WORLD,
        pairs=ur5e.contact_pairs(_TOUCHING, config.friction),
        home_mm=config.hand_mm,
        backend=backend,
    )
    grip_step = 0.001 * config.max_grip_step_mm
    max_step = np.array([0.001 * config.max_step_mm] * 3 + [config.max_yaw_step, grip_step])

    def step(state: State, action: Array) -> State:
        body, tool, command, goal = state.physics
        body, tool, command = ur5e.control_step(
            robot, body, tool, command, action, max_step=max_step, limits=LIMITS, lead=LEAD
        )
        physics = Physics(body=body, tool=tool, command=command, goal=goal)
        return next_state(
            state,
            physics=physics,
            obs=observe(robot, physics),
            success=succeeded(config, physics),
            bonus=config.bonus,
        )

    specs = EnvSpecs(
        name="ur5e_pick_place",
        obs_dim=33,
        action_dim=5,
        horizon=config.horizon,
        control_dt=CONTROL_DT,
        success=(
            f"the cube within {config.tolerance_mm} mm of the goal, "
            f"slower than {config.max_speed} m/s"
        ),
    )
    return Env(
        lambda key: _reset(config, robot, key),
        step,
        specs,
        demonstrator=lambda noise: demonstrator(config, noise),
        scene=lambda: Scene(
            ur5e.render_model("ur5e_pick_place", world=_WORLD),
            _pose,
            "main",
            simulated=robot.simulation.model,
        ),
    )


def _reset(config: Config, robot: ur5e.Robot, key: Array) -> State:
    """The start of an episode."""
    keys = jax.random.split(key, 6)
    hand_key, hand_yaw_key, cube_key, cube_yaw_key, goal_key, state_key = keys
    offset = sample_box_mm(hand_key, (0.0, 0.0, 0.0), config.hand_spread_mm)
    hand_spread, cube_spread = config.hand_yaw_spread, config.cube_yaw_spread
    hand_yaw = jax.random.uniform(hand_yaw_key, minval=-hand_spread, maxval=hand_spread)
    cube_yaw = jax.random.uniform(cube_yaw_key, minval=-cube_spread, maxval=cube_spread)
    parts = (
        sample_box_mm(cube_key, config.cube_mm, config.cube_spread_mm),
        jnp.full(1, HALF),
        yaw_quaternion(cube_yaw),
        ur5e.start_qpos(robot, offset, hand_yaw, OPEN),
    )
    body = at_rest(jnp.concatenate(parts), ur5e.NV)
    tool = ur5e.sense(robot, body)
    physics = Physics(
        body=body,
        tool=tool,
        command=ur5e.measured_command(body, tool),
        goal=sample_box_mm(goal_key, config.goal_mm, config.goal_spread_mm),
    )
    return initial_state(physics, observe(robot, physics), state_key)


def _pose(state: State) -> dict[str, np.ndarray]:
    qpos = ur5e.render_qpos(state.physics.body.qpos)
    return {"qpos": qpos, "mocap_pos": state.physics.goal[None]}


def succeeded(config: Config, physics: Physics) -> Array:
    """[] bool: the cube is at the goal and slow."""
    distance = jnp.linalg.norm(cube(physics.body) - physics.goal)
    slow = jnp.linalg.norm(physics.body.qvel[:3]) < config.max_speed
    success: Array = (distance < 0.001 * config.tolerance_mm) & slow
    return success


def demonstrator(config: Config, noise: float) -> Demonstrator:
    """Turn as the cube lies, come down over it, close, carry it round the post to the goal.

    A lost cube is grasped again. Noise misplaces cube and goal once per episode (3 mm std per unit)
    and disturbs every action (0.1 std per unit).
    """
    max_step, max_grip_step = 0.001 * config.max_step_mm, 0.001 * config.max_grip_step_mm

    def init(key: Array, state: State) -> Plan:
        side_key, cube_key, goal_key = jax.random.split(key, 3)
        return Plan(
            side=jax.random.randint(side_key, (), 0, 2),
            cube_error=0.003 * noise * jax.random.normal(cube_key, (3,)),
            goal_error=0.003 * noise * jax.random.normal(goal_key, (3,)),
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, tool, command, goal = state.physics
        grasp = cube(body) + plan.cube_error
        offset = grasp - tool.position
        yaw_error = _nearest_grasp_yaw(cube_x_axis(body)) - tool.yaw
        around = two_finger_hand.is_around(offset, 0.01)
        gripped = around & (jnp.min(ur5e.openings(body)) - command[4] > 0.6 * SQUEEZE)
        distance = jnp.hypot(offset[0], offset[1]) + 0.05 * jnp.abs(yaw_error)
        above = two_finger_hand.hover_above(grasp, distance, height=0.06, margin=0.006)
        waypoint = way_round(
            cube(body),
            goal + plan.goal_error,
            2.0 * plan.side - 1.0,
            before_x=-0.11,
            after_x=0.09,
            detour=0.11,
            clear=0.09,
            passed_x=0.07,
        )
        aim = jnp.where(gripped, waypoint - offset, above)
        yaw = jnp.where(gripped, command[3], tool.yaw + yaw_error)
        opening = jnp.where(around, CLOSED, OPEN)
        parts = (
            clip_step_towards(aim - command[:3], max_step),
            clip_step_towards((yaw - command[3])[None], config.max_yaw_step),
            clip_step_towards((opening - command[4])[None], max_grip_step),
        )
        return add_action_noise(jnp.concatenate(parts), key, 0.1 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.side, modes=2)


def _nearest_grasp_yaw(x_axis: Array) -> Array:
    """The yaw [] nearest to 0 at which the gripper grasps a cube with ``x_axis`` [3]."""
    quarter = 0.5 * jnp.pi
    yaw = jnp.arctan2(x_axis[1], x_axis[0])
    return yaw - quarter * jnp.round(yaw / quarter)

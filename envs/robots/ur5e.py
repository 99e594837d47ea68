"""The UR5e with the Robotiq 2F-85 (``ur5e_model``): its tool, its commands and what it senses.

The command is that of the tool, the point midway between the pads: its position, its yaw and the
opening; the tool points down. One step of damped least squares turns the error of the tool into
targets of the joints, so near that no joint reaches its limit of torque. This also keeps the joints
below 1.5 rad/s (the three large ones) and 1.1 rad/s.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from gcp_jax.envs.physics.common import integrate_command
from gcp_jax.envs.physics.mjx import Backend, Body, Frames, Simulation, scene, simulation
from gcp_jax.envs.robots.ur5e_model import (
    ARM,
    ARM_DOF,
    ARM_JOINTS,
    CLOSED,
    FINGERS,
    HAND,
    KNUCKLE,
    NV,
    OBJECT,
    OPEN,
    OPEN_ANGLE,
    PAD,
    PADS,
    RADIUS,
    compile_model,
    contact_pairs,
    render_model,
    render_qpos,
)

Array = jax.Array

__all__ = [
    "CLOSED", "HAND", "LEAD", "NV", "OBJECT", "OPEN", "PADS", "SPEED", "SQUEEZE", "YAW", "Robot",
    "Tool", "contact_pairs", "control_step", "make_robot", "measured_command", "openings",
    "proprioception", "render_model", "render_qpos", "sense", "start_qpos",
]  # fmt: skip

START_POSE = np.array([-1.57, -1.57, 1.57, -1.57, -1.57, 1.57])  # radians, elbow up

# Radians a joint's target may be ahead: limit of torque over stiffness.
TARGET_LEAD = np.array([0.075] * 3 + [0.056] * 3)
LEAST_SQUARES_DAMPING = 0.02  # in metres and radians
HOME_ITERATIONS = 50  # of the least squares that look for the home
LEAD = 0.03  # metres the commanded position may be ahead of the tool: bounds the force
YAW_LEAD = 0.2  # radians the commanded yaw may be ahead
SQUEEZE = 0.01  # metres the commanded opening may be ahead: bounds the grip force, to about 30 N

SPEED = 0.3  # m/s of one unit of velocity in the observation
SPIN = 1.0  # rad/s of one unit of angular velocity
YAW = 0.5  # radians of one unit of yaw
BEND = 0.5  # radians of one unit of the joints


class Tool(NamedTuple):
    """The point midway between the pads."""

    position: Array  # [3] metres
    rotation: Array  # [3, 3]; columns: along the opening, sideways, down
    jacobian: Array  # [6, 6] velocity and angular velocity by the arm's joints

    @property
    def yaw(self) -> Array:
        """[] radians from the world's x axis to the direction in which the gripper opens."""
        return jnp.arctan2(self.rotation[1, 0], self.rotation[0, 0])


class Home(NamedTuple):
    """The arm with its tool at the middle of a task's starts."""

    joints: np.ndarray  # [6] radians
    jacobian: np.ndarray  # [6, 6] of the tool


class Robot(NamedTuple):
    """The arm in a task's world."""

    simulation: Simulation
    home: np.ndarray  # [6] joints with the tool at the middle of the starts
    inverse: np.ndarray  # [6, 6] change of joints there by change of the tool (metres, radians)
    pads: np.ndarray  # ids of the pads' geoms
    flange: int  # id of a site


def make_robot(
    name: str,
    *,
    world: str,
    pairs: str,
    home_mm: tuple[float, ...],
    iterations: int = 2,
    backend: Backend = "mjx",
) -> Robot:
    """The arm in a task's ``world``.

    Args:
      name: of the model.
      world: elements of the worldbody, with exactly one free joint. The origin is ``REACH`` in
        front of the arm.
      pairs: contact pairs, as ``contact_pairs`` returns them.
      home_mm: [3] mm, the middle of the tool's starts.
      iterations: of the solver.
      backend: as in ``simulation``.

    Raises:
      ImportError: in one line, if ogbench is not installed.
    """
    source = scene(
        name, world=world, pairs=pairs, actuators="", gravity=9.81, iterations=iterations
    )
    model = compile_model(source, meshes=False)
    pads, flange = _landmarks(model)
    home = _solve_home(tuple(home_mm))
    return Robot(
        simulation=simulation(model, backend=backend),
        home=home.joints,
        inverse=np.linalg.inv(home.jacobian),
        pads=pads,
        flange=flange,
    )


def _landmarks(model: mujoco.MjModel) -> tuple[np.ndarray, int]:
    """Ids of the pads' geoms and of the flange's site."""
    pads = np.array([model.geom(pad).id for pad in PADS])
    return pads, model.site("arm/attachment_site").id


_EMPTY_WORLD = """
<body name="object"><freejoint/><geom type="sphere" size=".01" mass=".1"/></body>
"""


@functools.lru_cache
def _solve_home(home_mm: tuple[float, ...]) -> Home:
    """Inverse kinematics from ``START_POSE``: the arm with its tool at ``home_mm`` [3] and yaw 0.

    It depends on nothing else of the task, so it is solved in a world with nothing but a free
    object.
    """
    source = scene("home", world=_EMPTY_WORLD, pairs="", actuators="")
    model = compile_model(source, meshes=False)
    pads, flange = _landmarks(model)
    data, joints = mujoco.MjData(model), START_POSE
    position = jnp.asarray(0.001 * np.asarray(home_mm))
    for _ in range(HOME_ITERATIONS):
        data.qpos[ARM] = joints
        mujoco.mj_kinematics(model, data)
        rotation = data.site_xmat[flange].reshape(3, 3)
        change, jacobian = _improve(
            position, data.geom_xpos[pads], rotation, data.xanchor, data.xaxis
        )
        joints = joints + np.asarray(change)
    return Home(joints=joints, jacobian=np.asarray(jacobian))


@jax.jit
def _improve(position: Array, *frames: Array) -> tuple[Array, Array]:
    """The change of the joints [6] that moves the tool to ``position`` [3], and its Jacobian."""
    tool = _tool_of(*frames)
    change = _least_squares(tool.jacobian, _tool_error(tool, position, jnp.zeros(())))
    return change, tool.jacobian


def _tool_of(pads: Array, rotation: Array, anchors: Array, axes: Array) -> Tool:
    """From the pads [4, 3], the flange [3, 3], and all joints' anchors and axes [njnt, 3]."""
    position, axis = jnp.mean(pads, 0), axes[ARM_JOINTS]
    arm = position[None] - anchors[ARM_JOINTS]
    jacobian = jnp.concatenate([jnp.cross(axis, arm), axis], 1).T
    return Tool(position=position, rotation=rotation, jacobian=jacobian)


def sense(robot: Robot, body: Body) -> Tool:
    """Where the tool is."""
    frames: Frames = robot.simulation.frames(body)
    return _tool_of(
        frames.geom_xpos[robot.pads], frames.site_xmat[robot.flange], frames.xanchor, frames.xaxis
    )


def _tool_error(tool: Tool, position: Array, yaw: Array) -> Array:
    """[6]: what is missing to ``position`` [3] and to pointing down with ``yaw`` [].

    In metres and radians, in the world's axes.
    """
    cos, sin, zero = jnp.cos(yaw), jnp.sin(yaw), jnp.zeros(())
    wanted = jnp.stack(
        [
            jnp.stack([cos, sin, zero]),
            jnp.stack([sin, -cos, zero]),
            jnp.stack([zero, zero, zero - 1.0]),
        ]
    )
    rotation = 0.5 * jnp.sum(jnp.cross(tool.rotation.T, wanted), 0)
    return jnp.concatenate([position - tool.position, rotation])


def _least_squares(jacobian: Array, error: Array) -> Array:
    """The change of the joints [6] that moves the tool by ``error`` [6]; damped least squares."""
    damped = jacobian @ jacobian.T + LEAST_SQUARES_DAMPING**2 * jnp.eye(6)
    return jacobian.T @ jax.scipy.linalg.solve(damped, error, assume_a="pos")


def start_qpos(robot: Robot, offset: Array, yaw: Array, opening: float) -> Array:
    """Arm and fingers [8] with the tool ``offset`` [3] metres and ``yaw`` [] from home.

    To first order.
    """
    zero = jnp.zeros(2)
    joints = robot.home + robot.inverse @ jnp.concatenate([offset, zero, yaw[None]])
    return jnp.concatenate([joints, _finger_angle(jnp.full(2, opening))])


def openings(body: Body) -> Array:
    """[2] metres from the middle of the gripper to the face of each pad."""
    opening: Array = KNUCKLE[0] - PAD + RADIUS * jnp.cos(OPEN_ANGLE + body.qpos[FINGERS])
    return opening


def _finger_angle(opening: Array) -> Array:
    """The fingers' angle at ``opening`` metres."""
    return jnp.arccos((opening + PAD - KNUCKLE[0]) / RADIUS) - OPEN_ANGLE


def measured_command(body: Body, tool: Tool) -> Array:
    """[5]: where the tool is, its yaw and its opening."""
    return jnp.concatenate([tool.position, tool.yaw[None], jnp.mean(openings(body))[None]])


def control_step(
    robot: Robot,
    body: Body,
    tool: Tool,
    command: Array,
    action: Array,
    *,
    max_step: np.ndarray,
    limits: np.ndarray,
    lead: float,
) -> tuple[Body, Tool, Array]:
    """One control step.

    Args:
      robot: the arm.
      body: its joints and the object.
      tool: where the tool is in ``body``.
      command: [5] commanded position, yaw and opening.
      action: [5] in [-1, 1], change of the command.
      max_step: [5] change of the command at action 1, metres and radians.
      limits: [2, 5] smallest and largest command.
      lead: metres the commanded position may be ahead of the tool.

    Returns:
      The next body, tool and command.
    """
    low, high = limits
    command = integrate_command(
        command,
        action,
        max_step=max_step,
        low=low,
        high=high,
        measured=measured_command(body, tool),
        lead=np.array([lead, lead, lead, YAW_LEAD, SQUEEZE]),
    )
    body = _track(robot, body, tool, command)
    return body, sense(robot, body), command


def _track(robot: Robot, body: Body, tool: Tool, command: Array) -> Body:
    """One control step towards ``command`` [5]: position, yaw and opening of the tool."""
    change = _least_squares(tool.jacobian, _tool_error(tool, command[:3], command[3]))
    change = change / jnp.maximum(1.0, jnp.max(jnp.abs(change) / TARGET_LEAD))
    fingers = jnp.full(2, _finger_angle(command[4]))
    return robot.simulation.step(body, jnp.concatenate([body.qpos[ARM] + change, fingers]))


def proprioception(robot: Robot, body: Body, tool: Tool, command: Array) -> Array:
    """What the arm feels of itself, [18], all of order one.

    Velocity of the tool (3) and its yaw rate, yaw, lead of the command in position (3), yaw and
    opening, openings (2), joints from home (6).
    """
    velocity = tool.jacobian @ body.qvel[ARM_DOF]
    lead = command - measured_command(body, tool)
    parts = (
        velocity[:3] / SPEED,
        velocity[5:] / SPIN,
        tool.yaw[None] / YAW,
        lead[:3] / LEAD,
        lead[3:4] / YAW_LEAD,
        lead[4:] / SQUEEZE,
        openings(body) / OPEN,
        (body.qpos[ARM] - robot.home) / BEND,
    )
    return jnp.concatenate(parts)

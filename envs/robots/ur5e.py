"""A UR5e arm with a Robotiq 2F-85 gripper for MJX: edits, in memory, of the models that the package ogbench ships.

Nothing of the package is copied, and it is not imported. Simulated are the arm's six joints with the original's masses
and stiffness, a quarter of its damping (0.05 s of lag instead of 0.2 s), gravity compensated, no meshes. Of the gripper's
linkage (two five-bars with springs) each finger keeps the driven hinge: it is placed at the middle of the arc that the
real pad follows, and the pad is two balls, so that only their positions matter and they move as on the real, parallel
finger. The fingers are driven separately, each by half of the grip. Renderers draw the whole linkage with its meshes.

Control is of the tool, the point midway between the pads: its position, its yaw and the opening; it points down. One
step of damped least squares turns the error of the tool into targets of the joints, so near that no joint reaches its
limit of torque, which also keeps them below 1.5 rad/s (the three large ones) and 1.1 rad/s. A task has one freely moving
object, which comes first: qpos [15] = object 7, arm 6, fingers 2; qvel [14] = object 6, arm 6, fingers 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from gcp_jax.envs.physics.common import integrate_command
from gcp_jax.envs.physics.mjx import Body, Frames, Simulation, scene, simulation
from gcp_jax.envs.robots.vendor_models import delete, folder

Array = jax.Array

OBJECT, ARM, FINGERS = slice(0, 7), slice(7, 13), slice(13, 15)  # parts of qpos
ARM_DOF = slice(6, 12)  # of qvel
ARM_JOINTS = slice(1, 7)  # of all joints
NV = 14

REACH = 0.45  # metres from the arm's base to the origin of the tasks, along x
POSE = np.array(
    [-1.57, -1.57, 1.57, -1.57, -1.57, 1.57]
)  # radians, elbow up, near which the home is looked for

DAMPING_RATIO = 0.25  # of the original's damping
TARGET_LEAD = np.array(
    [0.075] * 3 + [0.056] * 3
)  # radians a joint's target may run ahead: torque limit by stiffness
LEAST_SQUARES = 0.02  # damping of the least squares, in metres and radians
ITERATIONS = 50  # of the least squares that look for the home
SEEN = 2  # group of the geoms that are drawn

PAD = 0.006  # metres, radius of the balls of a pad
PAD_HALF = 0.008  # metres from the middle of a pad to each ball
OPEN, CLOSED = 0.0427, 0.002  # metres from the middle to the face of a pad
LINK = np.array(
    [0.037, 0.044]
)  # metres sideways and forwards from a knuckle to the fingertip's joint, open
PAD_FORWARD = 0.1307  # metres from the gripper's base to the middle of a pad, open
GRIP, GRIP_DAMPING, GRIP_ARMATURE = 10.0, 0.4, 0.001  # N·m/rad, N·m·s/rad and kg·m² of a finger
FINGER_MASS = 0.061  # kg

RADIUS = float(np.hypot(*LINK))  # metres, of a pad's arc
OPEN_ANGLE = float(np.arctan2(LINK[1], LINK[0]))  # radians from sideways, open
KNUCKLE = (
    np.array([OPEN + PAD, PAD_FORWARD]) - LINK
)  # metres sideways and forwards, middle of a pad's arc

LEAD = 0.03  # metres the commanded position may run ahead of the tool: bounds the force
YAW_LEAD = 0.2  # radians the commanded yaw may run ahead
SQUEEZE = 0.01  # metres the commanded opening may run ahead of the fingers: bounds the grip force, to about 30 N

SPEED, TURN = 0.3, 1.0  # m/s and rad/s of one unit of velocity in the observation
YAW, BEND = 0.5, 0.5  # radians of one unit of yaw and of the joints

HAND = tuple(
    f"gripper/{geom}" for geom in ("palm", "knuckles", "left_finger", "right_finger")
)  # meet obstacles
PADS = tuple(
    f"gripper/{side}_{place}" for side in ("left", "right") for place in ("front", "back")
)  # meet the object

_PAIR = """<pair geom1="{one}" geom2="{other}" condim="3" friction="{mu} {mu} .005 .0001 .0001"
  solref=".01 1" solimp=".9 .95 .001"/>"""


class Tool(NamedTuple):
    """The point midway between the pads: position [3] metres; rotation [3, 3], columns: along the opening, its third
    down; jacobian [6, 6]: velocity and angular velocity by the arm's joints."""

    position: Array
    rotation: Array
    jacobian: Array

    @property
    def yaw(self) -> Array:
        """[] radians from the world's x axis to the direction in which the gripper opens."""
        return jnp.arctan2(self.rotation[1, 0], self.rotation[0, 0])


class Robot(NamedTuple):
    """home: joints [6] with the tool at the task's middle of starts; inverse [6, 6]: change of joints there by change
    of the tool (metres, radians); pads: ids of the pads' geoms; flange: id of a site."""

    simulation: Simulation
    home: np.ndarray
    inverse: np.ndarray
    pads: np.ndarray
    flange: int


def robot(name: str, *, world: str, pairs: str, home: np.ndarray, iterations: int = 2) -> Robot:
    """The arm in a task's ``world``, made for a tool that starts about ``home`` [3] metres; the rest as in
    ``physics.scene``. The origin is ``REACH`` in front of the arm; ``world`` has exactly one free joint.

    Raises ImportError, in one line, where ogbench is not installed.
    """
    source = scene(
        name, world=world, pairs=pairs, actuators="", gravity=9.81, iterations=iterations
    )
    model = _compiled(source, meshes=False)
    pads, flange = (
        np.array([model.geom(pad).id for pad in PADS]),
        model.site("arm/attachment_site").id,
    )
    joints, jacobian = _reached(model, pads, flange, home)
    return Robot(simulation(model), joints, np.linalg.inv(jacobian), pads, flange)


def touching(pairs: Iterable[tuple[str, str]], friction: float) -> str:
    """The MJCF of contact pairs, by the names of their geoms; the grip sinks about 1 mm into a held object."""
    return "".join(_PAIR.format(one=one, other=other, mu=friction) for one, other in pairs)


def drawn(name: str, *, world: str) -> mujoco.MjModel:
    """The same with the meshes and the whole linkage, for renderers; its qpos comes from ``drawn_qpos``."""
    return _compiled(scene(name, world=world, pairs="", actuators=""), meshes=True)


def _compiled(source: str, meshes: bool) -> mujoco.MjModel:
    """The task of the MJCF ``source`` with the arm and the gripper."""
    spec = mujoco.MjSpec.from_string(source)
    models = folder("ogbench", "manipspace", "descriptions", holds="the UR5e model is")
    arm = mujoco.MjSpec.from_file(str(models / "universal_robots_ur5e" / "ur5e.xml"))
    gripper = mujoco.MjSpec.from_file(str(models / "robotiq_2f85" / "2f85.xml"))
    for part in (arm, gripper):
        part.option = spec.option
        unseen = [
            geom
            for geom in part.geoms
            if geom.type != mujoco.mjtGeom.mjGEOM_MESH or geom.group != SEEN
        ]
        delete(
            part, (*part.keys, *part.lights, *(unseen if meshes else (*part.geoms, *part.meshes)))
        )
    if not meshes:
        _soften(arm)
        _simplify(gripper)
        for body in (*arm.bodies, *gripper.bodies):
            body.gravcomp = 1.0
    spec.attach(arm, frame=spec.worldbody.add_frame(pos=[-REACH, 0.0, 0.0]), prefix="arm/")
    spec.attach(gripper, site=spec.site("arm/attachment_site"), prefix="gripper/")
    return spec.compile()


def _soften(arm: mujoco.MjSpec) -> None:
    """The actuators' damping becomes the joints', which Euler integrates implicitly, and smaller."""
    for actuator in arm.actuators:
        arm.joint(actuator.target).damping[0] = -DAMPING_RATIO * actuator.biasprm[2]
        actuator.biasprm[2] = 0.0


def _simplify(gripper: mujoco.MjSpec) -> None:
    """Two driven fingers, each a hinge with the two balls of its pad, and the geoms that meet obstacles."""
    linkage = [
        gripper.body(f"{side}_{part}")
        for side in ("left", "right")
        for part in ("driver", "spring_link")
    ]
    delete(
        gripper,
        (*gripper.excludes, *gripper.equalities, *gripper.actuators, *gripper.tendons, *linkage),
    )
    base, capsule, ball = (
        gripper.body("base"),
        mujoco.mjtGeom.mjGEOM_CAPSULE,
        mujoco.mjtGeom.mjGEOM_SPHERE,
    )
    base.add_geom(
        name="palm", type=capsule, fromto=[0, 0, 0.03, 0, 0, 0.06], size=[0.04, 0, 0], mass=0
    )
    base.add_geom(
        name="knuckles",
        type=capsule,
        fromto=[0, -0.05, 0.08, 0, 0.05, 0.08],
        size=[0.02, 0, 0],
        mass=0,
    )
    for side, way, turned in (("right", 1.0, [1, 0, 0, 0]), ("left", -1.0, [0, 0, 0, 1])):
        finger = base.add_body(name=side, pos=[0.0, way * KNUCKLE[0], KNUCKLE[1]], quat=turned)
        finger.add_joint(
            name=side,
            axis=[1, 0, 0],
            range=[0.0, 0.8],
            damping=[GRIP_DAMPING, 0, 0],
            armature=GRIP_ARMATURE,
        )
        ends = [-PAD_HALF, *LINK, PAD_HALF, *LINK]
        finger.add_geom(name=f"{side}_finger", type=capsule, fromto=ends, size=[PAD, 0, 0], mass=0)
        for place, x in (("front", -PAD_HALF), ("back", PAD_HALF)):
            finger.add_geom(
                name=f"{side}_{place}",
                type=ball,
                pos=[x, *LINK],
                size=[PAD, 0, 0],
                mass=FINGER_MASS / 2,
            )
        servo = gripper.add_actuator(name=side, target=side, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        servo.set_to_position(kp=GRIP)


def _reached(
    model: mujoco.MjModel, pads: np.ndarray, flange: int, home: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The joints [6] that bring the tool to ``home`` [3] with yaw 0, and its Jacobian [6, 6] there."""
    data, joints = mujoco.MjData(model), POSE

    @jax.jit
    def improve(*found: Array) -> tuple[Array, Array]:
        tool = _tool(*found)
        return _least_squares(
            tool.jacobian, _error(tool, jnp.asarray(home), jnp.zeros(()))
        ), tool.jacobian

    for _ in range(ITERATIONS):
        data.qpos[ARM] = joints
        mujoco.mj_kinematics(model, data)
        change, jacobian = improve(
            data.geom_xpos[pads], data.site_xmat[flange].reshape(3, 3), data.xanchor, data.xaxis
        )
        joints = joints + np.asarray(change)
    return joints, np.asarray(jacobian)


def _tool(pads: Array, rotation: Array, anchors: Array, axes: Array) -> Tool:
    """From the balls of the pads [4, 3], the flange [3, 3] and all joints' anchors and axes [njnt, 3]."""
    position, axis = jnp.mean(pads, 0), axes[ARM_JOINTS]
    arm = position[None] - anchors[ARM_JOINTS]
    return Tool(position, rotation, jnp.concatenate([jnp.cross(axis, arm), axis], 1).T)


def sense(robot: Robot, body: Body) -> Tool:
    """Where the tool is."""
    frames: Frames = robot.simulation.frames(body)
    return _tool(
        frames.geom_xpos[robot.pads], frames.site_xmat[robot.flange], frames.xanchor, frames.xaxis
    )


def _error(tool: Tool, position: Array, yaw: Array) -> Array:
    """[6]: what is missing to ``position`` [3] and to pointing down with ``yaw`` [], metres and radians, world's axes."""
    cos, sin, zero = jnp.cos(yaw), jnp.sin(yaw), jnp.zeros(())
    wanted = jnp.stack(
        [
            jnp.stack([cos, sin, zero]),
            jnp.stack([sin, -cos, zero]),
            jnp.stack([zero, zero, zero - 1.0]),
        ]
    )
    turn = 0.5 * jnp.sum(jnp.cross(tool.rotation.T, wanted), 0)
    return jnp.concatenate([position - tool.position, turn])


def _least_squares(jacobian: Array, error: Array) -> Array:
    """The change of the joints [6] that brings the tool by ``error`` [6], damped near singular poses."""
    damped = jacobian @ jacobian.T + LEAST_SQUARES**2 * jnp.eye(6)
    return jacobian.T @ jax.scipy.linalg.solve(damped, error, assume_a="pos")


def start(robot: Robot, offset: Array, yaw: Array, opening: float) -> Array:
    """Positions of arm and fingers [8] with the tool moved from home by about ``offset`` [3] metres and ``yaw`` [], to
    first order."""
    zero = jnp.zeros(2)
    joints = robot.home + robot.inverse @ jnp.concatenate([offset, zero, yaw[None]])
    return jnp.concatenate([joints, _angle(jnp.full(2, opening))])


def openings(body: Body) -> Array:
    """[2] metres from the middle of the gripper to the face of each pad."""
    return KNUCKLE[0] - PAD + RADIUS * jnp.cos(OPEN_ANGLE + body.qpos[FINGERS])


def _angle(opening: Array) -> Array:
    """The fingers' angle at ``opening`` metres."""
    return jnp.arccos((opening + PAD - KNUCKLE[0]) / RADIUS) - OPEN_ANGLE


def held(body: Body, tool: Tool) -> Array:
    """[5] as a command: where the tool is, its yaw and its opening."""
    return jnp.concatenate([tool.position, tool.yaw[None], jnp.mean(openings(body))[None]])


def driven(
    robot: Robot,
    body: Body,
    tool: Tool,
    target: Array,
    action: Array,
    *,
    pace: np.ndarray,
    limits: np.ndarray,
    lead: float,
) -> tuple[Body, Tool, Array]:
    """One control step of ``action`` [5], which changes the commanded position, yaw and opening ``target`` [5] by ``pace`` [5] per
    unit, within ``limits`` [2, 5] and at most ``lead`` metres before the tool: (body, tool, target)."""
    ahead = np.array([lead, lead, lead, YAW_LEAD, SQUEEZE])
    low, high = limits
    target = integrate_command(
        target, action, reach=pace, low=low, high=high, held=held(body, tool), lead=ahead
    )
    moved = _moved(robot, body, tool, target)
    return moved, sense(robot, moved), target


def _moved(robot: Robot, body: Body, tool: Tool, target: Array) -> Body:
    """One control step towards ``target`` [5]: position, yaw and opening of the tool."""
    joints = _least_squares(tool.jacobian, _error(tool, target[:3], target[3]))
    joints = joints / jnp.maximum(1.0, jnp.max(jnp.abs(joints) / TARGET_LEAD))
    control = jnp.concatenate([body.qpos[ARM] + joints, jnp.full(2, _angle(target[4]))])
    return robot.simulation.step(body, control)


def proprioception(robot: Robot, body: Body, tool: Tool, target: Array) -> Array:
    """[18]: velocity of the tool and of its yaw, yaw, lead of the command in position, yaw and opening, openings, joints
    from home; all of order one."""
    velocity = tool.jacobian @ body.qvel[ARM_DOF]
    ahead = target - held(body, tool)
    parts = (
        velocity[:3] / SPEED,
        velocity[5:] / TURN,
        tool.yaw[None] / YAW,
        ahead[:3] / LEAD,
        ahead[3:4] / YAW_LEAD,
        ahead[4:] / SQUEEZE,
        openings(body) / OPEN,
        (body.qpos[ARM] - robot.home) / BEND,
    )
    return jnp.concatenate(parts)


def drawn_qpos(qpos: np.ndarray) -> np.ndarray:
    """``qpos`` [15] of the simulated model as the drawn one's [21]: the linkage of a finger at angle a turns by a at the
    driver, 0 at the coupler, a at the spring link and −a at the follower."""
    right, left = (angle * np.array([1.0, 0.0, 1.0, -1.0]) for angle in qpos[FINGERS])
    return np.concatenate([qpos[: FINGERS.start], right, left])

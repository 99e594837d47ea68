"""Models of the UR5e with the Robotiq 2F-85: in-memory edits of those in the package ogbench.

Nothing of the package is copied, and it is not imported. The arm is simulated without meshes: its
six joints have the original's masses and stiffness and a quarter of its damping (0.05 s of lag
instead of 0.2 s), gravity compensated. Of the gripper's linkage (two five-bars with springs) each
finger keeps the driven hinge. The hinge is placed at the middle of the arc that the real pad
follows, and the pad is two balls, so that only their positions matter, and they move as on the
real, parallel finger. The fingers are driven separately, each by half of the grip. Renderers draw
the whole linkage with meshes.

A task has one freely moving object, which comes first: qpos [15] = object 7, arm 6, fingers 2;
qvel [14] = object 6, arm 6, fingers 2.
"""

from __future__ import annotations

from collections.abc import Iterable

import mujoco
import numpy as np

from gcp_jax.envs.physics.mjx import scene
from gcp_jax.envs.robots.vendor_models import delete_elements, package_folder

OBJECT, ARM, FINGERS = slice(0, 7), slice(7, 13), slice(13, 15)  # parts of qpos
ARM_DOF = slice(6, 12)  # of qvel
ARM_JOINTS = slice(1, 7)  # of all joints
NV = 14

REACH = 0.45  # metres from the arm's base to the origin of the tasks, along x
DAMPING_RATIO = 0.25  # of the original's damping
SEEN = 2  # group of the geoms that are drawn


PAD = 0.006  # metres, radius of the balls of a pad
PAD_HALF = 0.008  # metres from the middle of a pad to each ball
OPEN, CLOSED = 0.0427, 0.002  # metres from the middle to the face of a pad
LINK = np.array([0.037, 0.044])  # metres sideways and forwards from knuckle to fingertip, open
PAD_FORWARD = 0.1307  # metres from the gripper's base to the middle of a pad, open
FINGER_GAIN = 10.0  # N·m/rad
FINGER_DAMPING = 0.4  # N·m·s/rad
FINGER_ARMATURE = 0.001  # kg·m²
FINGER_MASS = 0.061  # kg

RADIUS = float(np.hypot(*LINK))  # metres, of a pad's arc
OPEN_ANGLE = float(np.arctan2(LINK[1], LINK[0]))  # radians from sideways, open
KNUCKLE = np.array([OPEN + PAD, PAD_FORWARD]) - LINK  # metres, middle of a pad's arc

HAND = tuple(f"gripper/{geom}" for geom in ("palm", "knuckles", "left_finger", "right_finger"))
"""Geoms that meet obstacles."""
PADS = tuple(f"gripper/{side}_{place}" for side in ("left", "right") for place in ("front", "back"))
"""Geoms that meet the object."""

_PAIR = """<pair geom1="{one}" geom2="{other}" condim="3" friction="{mu} {mu} .005 .0001 .0001"
  solref=".01 1" solimp=".9 .95 .001"/>"""


def contact_pairs(pairs: Iterable[tuple[str, str]], friction: float) -> str:
    """The MJCF of contact pairs, by the names of their geoms.

    The grip sinks about 1 mm into a held object.
    """
    return "".join(_PAIR.format(one=one, other=other, mu=friction) for one, other in pairs)


def render_model(name: str, *, world: str) -> mujoco.MjModel:
    """The same with the meshes and the whole linkage; its qpos comes from ``render_qpos``."""
    return compile_model(scene(name, world=world, pairs="", actuators=""), meshes=True)


def render_qpos(qpos: np.ndarray) -> np.ndarray:
    """``qpos`` [15] of the simulated model as that of the drawn one, [21].

    The linkage of a finger at angle a turns by a at the driver, 0 at the coupler, a at the spring
    link and −a at the follower.
    """
    right, left = (angle * np.array([1.0, 0.0, 1.0, -1.0]) for angle in qpos[FINGERS])
    return np.concatenate([qpos[: FINGERS.start], right, left])


def compile_model(source: str, meshes: bool) -> mujoco.MjModel:
    """The scene of the MJCF ``source`` with the arm and the gripper."""
    spec = mujoco.MjSpec.from_string(source)
    models = package_folder("ogbench", "manipspace", "descriptions", holds="the UR5e model is")
    arm = mujoco.MjSpec.from_file(str(models / "universal_robots_ur5e" / "ur5e.xml"))
    gripper = mujoco.MjSpec.from_file(str(models / "robotiq_2f85" / "2f85.xml"))
    for part in (arm, gripper):
        part.option = spec.option
        delete_elements(part, (*part.keys, *part.lights))
        if meshes:
            delete_elements(part, (geom for geom in part.geoms if not _is_drawn(geom)))
        else:
            delete_elements(part, (*part.geoms, *part.meshes))
    if not meshes:
        _soften(arm)
        _simplify(gripper)
        for body in (*arm.bodies, *gripper.bodies):
            body.gravcomp = 1.0
    spec.attach(arm, frame=spec.worldbody.add_frame(pos=[-REACH, 0.0, 0.0]), prefix="arm/")
    spec.attach(gripper, site=spec.site("arm/attachment_site"), prefix="gripper/")
    return spec.compile()


def _is_drawn(geom: mujoco.MjsGeom) -> bool:
    is_seen_mesh: bool = geom.type == mujoco.mjtGeom.mjGEOM_MESH and geom.group == SEEN
    return is_seen_mesh


def _soften(arm: mujoco.MjSpec) -> None:
    """Make the actuators' damping the joints', which Euler integrates implicitly, and smaller."""
    for actuator in arm.actuators:
        arm.joint(actuator.target).damping[0] = -DAMPING_RATIO * actuator.biasprm[2]
        actuator.biasprm[2] = 0.0


def _simplify(gripper: mujoco.MjSpec) -> None:
    """Replace the linkage by two driven fingers; add the geoms that meet obstacles."""
    linkage = [
        gripper.body(f"{side}_{part}")
        for side in ("left", "right")
        for part in ("driver", "spring_link")
    ]
    delete_elements(
        gripper,
        (*gripper.excludes, *gripper.equalities, *gripper.actuators, *gripper.tendons, *linkage),
    )
    base, capsule = gripper.body("base"), mujoco.mjtGeom.mjGEOM_CAPSULE
    palm = [0, 0, 0.03, 0, 0, 0.06]
    knuckles = [0, -0.05, 0.08, 0, 0.05, 0.08]
    base.add_geom(name="palm", type=capsule, fromto=palm, size=[0.04, 0, 0], mass=0)
    base.add_geom(name="knuckles", type=capsule, fromto=knuckles, size=[0.02, 0, 0], mass=0)
    _add_finger(gripper, "right", pos=[0.0, KNUCKLE[0], KNUCKLE[1]], quat=[1, 0, 0, 0])
    _add_finger(gripper, "left", pos=[0.0, -KNUCKLE[0], KNUCKLE[1]], quat=[0, 0, 0, 1])


def _add_finger(gripper: mujoco.MjSpec, side: str, *, pos: list[float], quat: list[int]) -> None:
    """A finger on a driven hinge, with the two balls of its pad."""
    finger = gripper.body("base").add_body(name=side, pos=pos, quat=quat)
    finger.add_joint(
        name=side,
        axis=[1, 0, 0],
        range=[0.0, 0.8],
        damping=[FINGER_DAMPING, 0, 0],
        armature=FINGER_ARMATURE,
    )
    finger.add_geom(
        name=f"{side}_finger",
        type=mujoco.mjtGeom.mjGEOM_CAPSULE,
        fromto=[-PAD_HALF, *LINK, PAD_HALF, *LINK],
        size=[PAD, 0, 0],
        mass=0,
    )
    for place, x in (("front", -PAD_HALF), ("back", PAD_HALF)):
        finger.add_geom(
            name=f"{side}_{place}",
            type=mujoco.mjtGeom.mjGEOM_SPHERE,
            pos=[x, *LINK],
            size=[PAD, 0, 0],
            mass=FINGER_MASS / 2,
        )
    servo = gripper.add_actuator(name=side, target=side, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    servo.set_to_position(kp=FINGER_GAIN)

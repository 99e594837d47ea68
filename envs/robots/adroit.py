"""The Adroit hand for MJX: in-memory edits of the models that the package gymnasium-robotics ships.

Nothing of the package is copied, and it is not imported. The hand is the original's (24 joints,
position actuators of 1 N·m/rad at the fingers) without tendons, sensors, dry friction and the
limits of fingers and thumb. Only the listed pairs of geoms touch, so its fingers pass through each
other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from gcp_jax.envs.robots.vendor_models import delete_elements, package_folder

Array = jax.Array

TIMESTEP = 0.004  # seconds of one physics step
SUBSTEPS = 8  # physics steps of one control step
ARM_GAIN = 500.0  # N or N·m of an arm's actuator per unit of command
ARM_STIFFNESS = 200.0  # N/m or N·m/rad of the same
ARM_DAMPING = 20.0  # N·s/m or N·m·s/rad that demonstrators add: without it the slides ring

FINGERS = ("ff", "mf", "rf", "lf")
_DIGITS = ("FF", "MF", "RF", "LF", "TH")  # how the names of their joints begin
_TIPS = {"ff": 0.024, "mf": 0.024, "rf": 0.024, "lf": 0.024, "th": 0.026}  # metres along the bone
_TIP_RADIUS = 0.007  # metres, of the balls at the tips that meet a table
_KNUCKLE_RADIUS = 0.009  # metres, of those at the knuckles

Edit = Callable[[mujoco.MjSpec], None]


class JointRange(NamedTuple):
    """A closed range."""

    middle: np.ndarray  # [D]
    half: np.ndarray  # [D] half-width

    def to_unit(self, value: Array) -> Array:
        """``value`` [D] with the range mapped to [-1, 1]."""
        return (value - self.middle) / self.half

    def from_unit(self, unit: Array) -> Array:
        """The value [D] of ``unit`` [D], which is clipped to [-1, 1]."""
        value: Array = self.middle + self.half * jnp.clip(unit, -1.0, 1.0)
        return value


def joint_range(bounds: np.ndarray) -> JointRange:
    """The range with ``bounds`` [D, 2], lowest and highest."""
    low, high = np.asarray(bounds, np.float32).T
    return JointRange(middle=0.5 * (low + high), half=0.5 * (high - low))


def simulated_model(task: str, edit: Edit) -> mujoco.MjModel:
    """The model of ``task`` ("relocate", "door") for MJX: primitives only.

    ``edit`` makes the task's own changes to the pruned specification.

    Raises:
      ImportError: in one line, if gymnasium-robotics is not installed.
    """
    spec = _pruned_spec(task)
    meshes = [geom for geom in spec.geoms if geom.type == mujoco.mjtGeom.mjGEOM_MESH]
    delete_elements(spec, meshes)
    delete_elements(spec, spec.meshes)
    edit(spec)
    return spec.compile()


def render_model(task: str, edit: Edit) -> mujoco.MjModel:
    """The same with the meshes, for renderers. Compiling them takes seconds."""
    spec = _pruned_spec(task)
    edit(spec)
    return spec.compile()


def _pruned_spec(task: str) -> mujoco.MjSpec:
    """The specification in MJX's settings: no sensors, tendons, dry friction or contacts.

    Cylinders become capsules. Fingers and thumb lose the limits of their joints, 22 rows of the
    solver: their commands end there.
    """
    assets = package_folder(
        "gymnasium_robotics", "envs", "assets", "adroit_hand", holds="the Adroit models are"
    )
    spec = mujoco.MjSpec.from_file(str(assets / f"adroit_{task}.xml"))
    tracker = spec.body("vive_tracker")
    delete_elements(spec, (*spec.sensors, *spec.tendons, *spec.pairs, tracker))
    option = spec.option
    option.timestep = TIMESTEP
    option.integrator = mujoco.mjtIntegrator.mjINT_EULER
    option.iterations, option.ls_iterations, option.noslip_iterations = 2, 4, 0
    option.disableflags |= mujoco.mjtDisableBit.mjDSBL_WARMSTART
    for joint in spec.joints:
        joint.frictionloss = 0.0
        if joint.name.startswith(_DIGITS):
            joint.limited = mujoco.mjtLimited.mjLIMITED_FALSE
    for geom in spec.geoms:
        geom.contype = geom.conaffinity = 0
        geom.margin = 0.0
        if geom.type == mujoco.mjtGeom.mjGEOM_CYLINDER:
            geom.type = mujoco.mjtGeom.mjGEOM_CAPSULE
    return spec


def add_contacts(
    spec: mujoco.MjSpec, geom: str, others: Iterable[str], friction: float = 0.0
) -> None:
    """Let ``geom`` touch each of ``others``, by name; without friction if that is 0."""
    coefficients = [friction, friction, 0.005, 1e-4, 1e-4]
    condim = 3 if friction else 1
    for other in others:
        spec.add_pair(geomname1=geom, geomname2=other, condim=condim, friction=coefficients)


def add_feelers(spec: mujoco.MjSpec) -> list[str]:
    """Add massless balls at the tips and middle knuckles; returns their names.

    They keep the hand above a table.
    """
    for finger, along in _TIPS.items():
        _add_ball(spec, f"{finger}distal", f"{finger}_tip", _TIP_RADIUS, along)
    for finger in FINGERS:
        _add_ball(spec, f"{finger}middle", f"{finger}_knuckle", _KNUCKLE_RADIUS, 0.0)
    return [f"{finger}_tip" for finger in _TIPS] + [f"{finger}_knuckle" for finger in FINGERS]


def _add_ball(spec: mujoco.MjSpec, body: str, name: str, radius: float, along: float) -> None:
    spec.body(body).add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=[radius, 0.0, 0.0],
        pos=[0.0, 0.0, along],
        mass=0.0,
        contype=0,
        conaffinity=0,
        group=4,
    )


def arm_command(target: Array, q: Array, v: Array, max_error: np.ndarray, load: Array) -> Array:
    """The command [D] of an arm's actuators that moves its joints to ``target``.

    Args:
      target: [D] metres or radians.
      q: [D] positions of the joints.
      v: [D] velocities.
      max_error: [D] the pull is that of an error of at most this.
      load: [D] N or N·m that the arm has to carry.
    """
    near_target = q + jnp.clip(target - q, -max_error, max_error)
    return (ARM_STIFFNESS * near_target - ARM_DAMPING * v + load) / ARM_GAIN

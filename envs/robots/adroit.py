"""The Adroit hand for MJX: edits, in memory, of the models that the package gymnasium-robotics ships.

Nothing of the package is copied, and it is not imported. The hand is the original's (24 joints, position actuators of
1 N·m/rad at the fingers) without tendons, sensors, dry friction and the limits of fingers and thumb; only the listed
pairs of geoms touch, so its fingers pass through each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from gcp_jax.envs.robots.vendor_models import delete, folder

Array = jax.Array

TIMESTEP = 0.004  # seconds of one physics step
SUBSTEPS = 8  # physics steps of one control step
ARM_GAIN, ARM_STIFFNESS = (
    500.0,
    200.0,
)  # N or N·m of an arm's actuator per unit of command, and per metre or radian
ARM_DAMPING = (
    20.0  # N·s/m or N·m·s/rad that demonstrators add to an arm's joint: without it the slides ring
)

FINGERS = ("ff", "mf", "rf", "lf")
_DIGITS = ("FF", "MF", "RF", "LF", "TH")  # how the names of their joints begin
_TIPS = {
    "ff": 0.024,
    "mf": 0.024,
    "rf": 0.024,
    "lf": 0.024,
    "th": 0.026,
}  # metres along the last bone
_TIP, _KNUCKLE = 0.007, 0.009  # metres, radii of the balls that meet the table


class JointRange(NamedTuple):
    """A closed range by its middle [D] and half-width [D]."""

    middle: np.ndarray
    half: np.ndarray

    def unit(self, value: Array) -> Array:
        """``value`` [D] with the range mapped to [-1, 1]."""
        return (value - self.middle) / self.half

    def value(self, unit: Array) -> Array:
        """The value [D] of ``unit`` [D], which is clipped to [-1, 1]."""
        return self.middle + self.half * jnp.clip(unit, -1.0, 1.0)


def ranged(bounds: np.ndarray) -> JointRange:
    """``bounds`` [D, 2], lowest and highest."""
    low, high = np.asarray(bounds, np.float32).T
    return JointRange(0.5 * (low + high), 0.5 * (high - low))


class Models(NamedTuple):
    """simulated: primitives only, for MJX; drawn: with the meshes, the same joints."""

    simulated: mujoco.MjModel
    drawn: mujoco.MjModel


def models(task: str, edit: Callable[[mujoco.MjSpec, bool], None]) -> Models:
    """The models of ``task`` ("relocate", "door").

    ``edit`` makes the task's own changes to the pruned specification, and is told whether it is the one to be drawn.

    Raises ImportError, in one line, where gymnasium-robotics is not installed.
    """
    assets = folder(
        "gymnasium_robotics", "envs", "assets", "adroit_hand", holds="the Adroit models are"
    )
    path = str(assets / f"adroit_{task}.xml")
    compiled = []
    for drawn in (False, True):
        spec = mujoco.MjSpec.from_file(path)
        _prune(spec)
        if not drawn:
            delete(spec, (geom for geom in spec.geoms if geom.type == mujoco.mjtGeom.mjGEOM_MESH))
            delete(spec, spec.meshes)
        edit(spec, drawn)
        compiled.append(spec.compile())
    return Models(*compiled)


def _prune(spec: mujoco.MjSpec) -> None:
    """The settings of MJX; no sensors, tendons, dry friction or contacts; cylinders become capsules.

    Fingers and thumb lose the limits of their joints, 22 rows of the solver: their commands end there.
    """
    delete(spec, (*spec.sensors, *spec.tendons, *spec.pairs, spec.body("vive_tracker")))
    option = spec.option
    option.timestep, option.integrator = TIMESTEP, mujoco.mjtIntegrator.mjINT_EULER
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


def touching(spec: mujoco.MjSpec, one: str, others: Iterable[str], friction: float = 0.0) -> None:
    """Let the geom ``one`` touch each of ``others``, by name; without friction where that is 0."""
    for other in others:
        sliding = [friction, friction, 0.005, 1e-4, 1e-4]
        spec.add_pair(geomname1=one, geomname2=other, condim=3 if friction else 1, friction=sliding)


def feelers(spec: mujoco.MjSpec) -> list[str]:
    """Add massless balls at the tips and middle knuckles, which keep the hand above a table; returns their names."""
    for finger, along in _TIPS.items():
        _ball(spec, f"{finger}distal", f"{finger}_tip", _TIP, along)
    for finger in FINGERS:
        _ball(spec, f"{finger}middle", f"{finger}_knuckle", _KNUCKLE, 0.0)
    return [f"{finger}_tip" for finger in _TIPS] + [f"{finger}_knuckle" for finger in FINGERS]


def _ball(spec: mujoco.MjSpec, body: str, name: str, radius: float, along: float) -> None:
    size, pos = [radius, 0.0, 0.0], [0.0, 0.0, along]
    kind = mujoco.mjtGeom.mjGEOM_SPHERE
    spec.body(body).add_geom(
        name=name, type=kind, size=size, pos=pos, mass=0.0, contype=0, conaffinity=0, group=4
    )


def arm_command(wanted: Array, q: Array, v: Array, reach: np.ndarray, load: Array) -> Array:
    """The command [D] of an arm's actuators that moves its joints to ``wanted`` [D], metres or radians.

    ``q`` and ``v`` [D] are their positions and velocities; the pull is that of an error of at most ``reach`` [D];
    ``load`` [D], N or N·m, is what the arm has to carry.
    """
    pulled = q + jnp.clip(wanted - q, -reach, reach)
    return (ARM_STIFFNESS * pulled - ARM_DAMPING * v + load) / ARM_GAIN

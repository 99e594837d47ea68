"""Scene of hand_cube: its configuration, its MJCF, and the kinematics of its fingers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import config_fields
from gcp_jax.config_fields import FINITE, NON_NEGATIVE, POSITIVE, POSITIVE_INT, field
from gcp_jax.envs.physics.common import quaternion_axes
from gcp_jax.envs.physics.mjx import Body, scene

Array = jax.Array

FINGERS = 4
AROUND = np.pi / 2 * np.arange(FINGERS)  # radians, where on the palm's rim each finger stands
RIM = 0.095  # metres from the middle of the palm to a finger's base
BASE = 0.012  # metres, height of the first flexion
LINKS = np.array([0.050, 0.040, 0.040])  # metres: proximal, middle, distal to the middle of the tip
TIP = 0.008  # metres, radius of a fingertip
OPEN = np.tile([0.0, -0.477, 2.032, 0.945], FINGERS)  # radians, the hand that lets go
LOW = np.tile([-0.9, -0.9, 0.3, 0.3], FINGERS)  # radians, smallest commanded angles
HIGH = np.tile([0.9, 0.9, 2.2, 1.9], FINGERS)  # radians, the largest


@dataclass(frozen=True)
class Config:
    """Starts and goals."""

    tolerance: float = field(0.15, POSITIVE, "rad, orientation error that counts as success")
    max_spin: float = field(
        0.6, POSITIVE, "rad/s, fastest rotation of the cube that counts as success"
    )
    goal_turn: tuple[float, float] = field(
        (0.8, 2.1),
        NON_NEGATIVE,
        "rad, least and largest yaw from the start to the goal, either way",
    )
    yaw_spread: float = field(0.5, NON_NEGATIVE, "rad, the cube starts turned by up to this")
    spread_mm: float = field(
        5.0, NON_NEGATIVE, "mm, the cube starts up to this far from the palm's middle, per axis"
    )
    bend: float = field(0.1, FINITE, "rad, joints start up to this far from the open hand")
    side_mm: float = field(50.0, POSITIVE, "mm, side of the cube")
    max_step: float = field(0.12, POSITIVE, "rad per control step of a commanded angle at action 1")
    friction: float = field(1.0, POSITIVE, "coefficient of friction of the fingertips on the cube")
    palm_friction: float = field(0.3, POSITIVE, "coefficient of friction of the palm")
    horizon: int = field(150, POSITIVE_INT, "control steps of an episode")
    bonus: float = field(5.0, FINITE, "reward at success, on top of the -1 of every step")

    def __post_init__(self) -> None:
        config_fields.check(self, "env.")


class Physics(NamedTuple):
    """What the task carries."""

    body: Body  # sixteen joints, finger by finger, and pose of the cube
    command: Array  # [16] radians, commanded angles
    goal: Array  # [] radians, yaw


_WORLD = """
<camera name="main" pos="-.11 -.33 .33" xyaxes=".95 -.316 0 .21 .63 .75" fovy="42"/>
<geom name="palm" type="plane" size=".13 .13 .01" material="tiles"/>
<body name="goal" mocap="true" pos="0 0 .14">
  <geom type="box" size="{half} {half} {half}" material="goal"/>
  <geom type="sphere" pos="{half} 0 0" size=".008" material="fixture"/>
</body>
{fingers}
<body name="cube" pos="0 0 {half}">
  <freejoint name="cube"/>
  <geom name="cube" type="box" size="{half} {half} {half}" mass=".2" material="object"/>
  <geom type="box" pos="{half} 0 0" size=".001 .008 .008" mass="0" material="fixture"/>
</body>
"""

_FINGER = """
<body name="base{i}" pos="{x} {y} {base}" euler="0 0 {inward}">
  <joint name="yaw{i}" axis="0 0 1" {joint}/>
  <geom type="capsule" fromto="0 0 -.004 0 0 .004" size=".012" mass=".03" material="dark"/>
  <body name="proximal{i}">
    <joint name="proximal{i}" axis="0 1 0" {joint}/>
    <geom type="capsule" fromto="0 0 0 0 0 {l0}" size=".009" mass=".03" material="steel"/>
    <body name="middle{i}" pos="0 0 {l0}">
      <joint name="middle{i}" axis="0 1 0" {joint}/>
      <geom type="capsule" fromto="0 0 0 0 0 {l1}" size=".008" mass=".02" material="dark"/>
      <body name="distal{i}" pos="0 0 {l1}">
        <joint name="distal{i}" axis="0 1 0" {joint}/>
        <geom type="capsule" fromto="0 0 0 0 0 {l2}" size=".006" mass=".01" material="steel"/>
        <geom name="tip{i}" type="sphere" pos="0 0 {l2}" size="{tip}" mass=".005" material="dark"/>
      </body>
    </body>
  </body>
</body>
"""

_JOINT = 'type="hinge" damping=".08" armature=".001"'

_PAIR = """<pair geom1="{one}" geom2="{other}" condim="3" friction="{mu} {mu} .005 .0001 .0001"
  solimp=".5 .8 .002"/>"""

_ACTUATORS = "".join(
    f'<position joint="{part}{i}" kp="1.5"/>'
    for i in range(FINGERS)
    for part in ("yaw", "proximal", "middle", "distal")
)

_SOLVER_ITERATIONS = 2  # with one, the cube rocks twice as fast and some demonstrations fail


def mjcf(config: Config) -> str:
    """The scene in metres."""
    l0, l1, l2 = LINKS
    sizes = {"base": BASE, "l0": l0, "l1": l1, "l2": l2, "tip": TIP, "joint": _JOINT}
    fingers = [
        _FINGER.format(i=i, x=RIM * np.cos(a), y=RIM * np.sin(a), inward=a + np.pi, **sizes)
        for i, a in enumerate(AROUND)
    ]
    tips = [f"tip{i}" for i in range(FINGERS)]
    pairs = [(tip, "cube", config.friction) for tip in tips]
    pairs += [(geom, "palm", config.palm_friction) for geom in (*tips, "cube")]
    return scene(
        "hand_cube",
        world=_WORLD.format(half=0.0005 * config.side_mm, fingers="".join(fingers)),
        pairs="".join(_PAIR.format(one=one, other=other, mu=mu) for one, other, mu in pairs),
        actuators=_ACTUATORS,
        gravity=9.81,
        iterations=_SOLVER_ITERATIONS,
    )


def fingertips(joints: Array) -> Array:
    """The middles of the tips, [4, 3] metres, at joint angles [16]."""
    yaw, *bends = joints.reshape(FINGERS, 4).T
    tilt = jnp.cumsum(jnp.stack(bends), axis=0)  # [3, 4] of the links from the vertical, inwards
    reach, height = LINKS @ jnp.sin(tilt), BASE + LINKS @ jnp.cos(tilt)
    heading = yaw + AROUND + np.pi
    x = RIM * np.cos(AROUND) + reach * jnp.cos(heading)
    y = RIM * np.sin(AROUND) + reach * jnp.sin(heading)
    return jnp.stack([x, y, height], axis=-1)


def joints_for_tips(tips: Array, tilt: float = 2.5) -> Array:
    """The joint angles [16] that bring the tips to ``tips`` [4, 3] metres.

    ``tilt`` is the angle of the distal links from the vertical, radians.
    """
    x, y, z = tips.T
    dx, dy = x - RIM * np.cos(AROUND), y - RIM * np.sin(AROUND)
    yaw = wrap_angle(jnp.arctan2(dy, dx) - AROUND - np.pi)
    along, up = jnp.hypot(dx, dy) - LINKS[2] * np.sin(tilt), z - BASE - LINKS[2] * np.cos(tilt)
    cosine = (along**2 + up**2 - LINKS[0] ** 2 - LINKS[1] ** 2) / (2.0 * LINKS[0] * LINKS[1])
    middle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    elbow = jnp.arctan2(LINKS[1] * jnp.sin(middle), LINKS[0] + LINKS[1] * jnp.cos(middle))
    proximal = jnp.arctan2(along, up) - elbow
    return jnp.stack([yaw, proximal, middle, tilt - proximal - middle], axis=-1).reshape(-1)


def wrap_angle(angle: Array, period: float = 2.0 * np.pi) -> Array:
    """``angle`` within half a period of zero."""
    return jnp.mod(angle + period / 2, period) - period / 2


def cube(body: Body) -> Array:
    """The middle of the cube, [3] metres."""
    return body.qpos[16:19]


def remaining_yaw(physics: Physics) -> Array:
    """[] radians in [−π, π): yaw from the cube to the goal."""
    x_axis, _ = quaternion_axes(physics.body.qpos[19:23])
    return wrap_angle(physics.goal - jnp.arctan2(x_axis[1], x_axis[0]))

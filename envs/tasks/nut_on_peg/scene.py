"""Scene of nut_on_peg: its configuration, its MJCF, and where the nut is."""

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
from gcp_jax.envs.robots import two_finger_hand
from gcp_jax.envs.robots.two_finger_hand import TwoFingerHand

Array = jax.Array

BAR = 0.004  # metres, radius of the nut's bars
HANDLE = np.array([0.02, 0.006, 0.008])  # metres, half-sides; it stands on the bars' underside
GRASP = 0.045  # metres from the middle of the hole to where the handle is grasped
PEG = 0.01  # metres, half the side of the peg
EDGE = 0.0035  # metres, radius of the peg's edges
TOP = 0.04  # metres, height of the peg
YAW_LEAD = 0.2  # radians the commanded yaw may be ahead of the hand
HAND = TwoFingerHand(
    open=0.03,
    closed=0.0,
    pad_radius=0.005,
    lead=0.018,
    yaw_lead=YAW_LEAD,
    low=(-0.22, -0.12, 0.006, -1.2),
    high=(0.06, 0.12, 0.12, 1.2),
    closes_along="y",
    slide_damping="50",
    slide_gain="1000",
    yaw_damping=".28",
    yaw_gain="4",
    palm_radius=".018",
    palm_mass=".5",
    rail=".01 .042 .008",
    finger_damping="14",
    finger_gain="600",
    finger_size=".012 .004 .028",
    finger_mass=".04",
    pad_offset=".012",
)


@dataclass(frozen=True)
class Config:
    """Starts are boxes, given by their middle and half-widths (spread)."""

    clearance_mm: float = field(2.0, NON_NEGATIVE, "mm, the hole's side minus the peg's")
    seat_mm: float = field(
        9.0,
        FINITE,
        "mm, height of the nut's middle over the floor that counts as down; it lies at 4",
    )
    max_step_mm: float = field(
        8.0, POSITIVE, "mm per control step and axis of the commanded position at action 1"
    )
    max_yaw_step: float = field(
        0.08, NON_NEGATIVE, "rad per control step of the commanded yaw at action 1"
    )
    max_grip_step_mm: float = field(
        4.0, POSITIVE, "mm per control step of the commanded opening of each finger at action 1"
    )
    nut_mm: tuple[float, float] = field((-110.0, 0.0), FINITE, "mm, nut's starts")
    nut_spread_mm: tuple[float, float] = field(
        (15.0, 30.0), NON_NEGATIVE, "mm, half-widths of the nut's starts"
    )
    yaw_spread: float = field(0.35, NON_NEGATIVE, "rad, the nut starts turned by up to this")
    hand_mm: tuple[float, float, float] = field((-150.0, 0.0, 70.0), FINITE, "mm, hand's starts")
    hand_spread_mm: tuple[float, float, float] = field(
        (20.0, 30.0, 10.0), NON_NEGATIVE, "mm, half-widths of the hand's starts"
    )
    peg_spread_mm: tuple[float, float] = field(
        (10.0, 10.0), NON_NEGATIVE, "mm, half-widths of a shift of nut and hand against the peg"
    )
    friction: float = field(1.0, POSITIVE, "coefficient of friction of the pads on the handle")
    slip: float = field(0.3, FINITE, "coefficient of friction of the nut on peg and floor")
    horizon: int = field(100, POSITIVE_INT, "control steps of an episode")
    bonus: float = field(5.0, FINITE, "reward at success, on top of the -1 of every step")

    def __post_init__(self) -> None:
        config_fields.check(self, "env.")


class Physics(NamedTuple):
    """What the task carries."""

    body: Body  # hand x, y, z, yaw, two fingers, pose of the nut
    command: Array  # [5] metres and radians: commanded hand position, yaw and opening


_WORLD = """
<camera name="main" pos="-.08 -.31 .25" xyaxes="1 0 0 0 .57 .82" fovy="42"/>
<geom name="floor" type="plane" size="1 1 .1" material="tiles"/>
<body name="peg" euler="0 0 .785398">{peg}</body>
{hand}
<body name="nut" pos="0 0 {bar}">
  <joint name="nut" type="free" armature=".0001"/>
  {nut}
</body>
"""

_BAR = """
<geom name="{name}" type="capsule" fromto="{x0} {y0} 0 {x1} {y1} 0" size="{bar}" mass=".005"
  material="object"/>
"""

_HANDLE = """
<geom name="handle" type="box" pos="{x} 0 {z}" size="{dx} {dy} {dz}" mass=".06" material="object"/>
<geom name="foot" type="sphere" pos="{end} 0 0" size="{bar}" mass="0" material="object"/>
"""

_EDGE = """
<geom name="{name}" type="capsule" fromto="{x} {y} 0 {x} {y} {top}" size="{edge}"
  material="fixture"/>
"""

_PAIR = """<pair geom1="{one}" geom2="{other}" condim="3" friction="{mu} {mu} .005 .0001 .0001"
  solimp="{solimp}"/>"""

_SOFT = ".9 .95 .001"
_HARD = ".97 .97 .001"  # of the pads: in soft ones the nut slowly turns under its weight

_BARS = ("front", "back", "near", "off")
_EDGES = ("edge_0", "edge_1", "edge_2", "edge_3")

_GRASPED = tuple((pad, "handle") for pad in two_finger_hand.pads())
_SLIDING = (
    *((edge, bar) for edge in _EDGES for bar in _BARS),
    *((pad, "core") for pad in two_finger_hand.pads()),
    ("floor", "front"),
    ("floor", "foot"),
)

_SOLVER_ITERATIONS = 4  # with 2, noisy demonstrations fail more often; 1 throws the nut
_MAX_CONTACTS = 8  # of each kind at once: as many as a hole has with the edges of a peg


def mjcf(config: Config) -> str:
    """The scene in metres."""
    pairs = [
        _PAIR.format(one=one, other=other, mu=config.friction, solimp=_HARD)
        for one, other in _GRASPED
    ]
    pairs += [
        _PAIR.format(one=one, other=other, mu=config.slip, solimp=_SOFT) for one, other in _SLIDING
    ]
    return scene(
        "nut_on_peg",
        world=_WORLD.format(
            bar=BAR,
            hand=HAND.mjcf(),
            peg=_peg_mjcf(),
            nut=_nut_mjcf(PEG + 0.0005 * config.clearance_mm + BAR),
        ),
        pairs="".join(pairs),
        actuators=HAND.actuators(),
        gravity=9.81,
        max_contact_points=_MAX_CONTACTS,
        iterations=_SOLVER_ITERATIONS,
    )


def _nut_mjcf(half: float) -> str:
    """Four bars round the hole, ``half`` metres from its middle, and the handle."""
    ends = {
        "front": (half, -half, half, half),
        "back": (-half, -half, -half, half),
        "near": (-half, -half, half, -half),
        "off": (-half, half, half, half),
    }
    bars = [
        _BAR.format(name=name, x0=x0, y0=y0, x1=x1, y1=y1, bar=BAR)
        for name, (x0, y0, x1, y1) in ends.items()
    ]
    dx, dy, dz = HANDLE
    stem = _BAR.format(name="stem", x0=-half, y0=0.0, x1=dx - GRASP, y1=0.0, bar=BAR)
    handle = _HANDLE.format(
        x=-GRASP, z=dz - BAR, dx=dx, dy=dy, dz=dz, end=-GRASP - dx + BAR, bar=BAR
    )
    return "".join(bars) + stem + handle


def _peg_mjcf() -> str:
    """Four round edges, closer together than a bar is thick, and a core that keeps the pads out."""
    place = PEG - EDGE
    corners = ((-place, -place), (place, -place), (place, place), (-place, place))
    edges = [
        _EDGE.format(name=name, x=x, y=y, top=TOP - EDGE, edge=EDGE)
        for name, (x, y) in zip(_EDGES, corners, strict=True)
    ]
    return "".join(edges) + _EDGE.format(name="core", x=0, y=0, top=TOP - PEG, edge=PEG)


def nut(body: Body) -> Array:
    """The middle of the hole, [3] metres."""
    return body.qpos[6:9]


def turned(point: Array, angle: Array) -> Array:
    """``point`` [3] turned anticlockwise about the vertical by ``angle`` []."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y, z = point
    return jnp.stack([cos * x - sin * y, sin * x + cos * y, z])


def skew(body: Body) -> Array:
    """How far the nut is turned against the hand, [] radians."""
    x, y, _ = turned(quaternion_axes(body.qpos[9:13])[0], -body.qpos[3])
    return jnp.arctan2(y, x)


def handle(body: Body) -> Array:
    """Where the nut is to be grasped, the middle of the handle, [3] metres."""
    x_axis, z_axis = quaternion_axes(body.qpos[9:13])
    middle: Array = nut(body) - GRASP * x_axis + (HANDLE[2] - BAR) * z_axis
    return middle

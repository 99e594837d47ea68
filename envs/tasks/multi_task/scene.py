"""Scene of multi_task: its configuration, its MJCF, and where everything on the table is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import config_fields
from gcp_jax.config_fields import FINITE, NON_NEGATIVE, POSITIVE, POSITIVE_INT, field
from gcp_jax.envs.physics.mjx import Body, scene
from gcp_jax.envs.robots import two_finger_hand
from gcp_jax.envs.robots.two_finger_hand import TwoFingerHand

Array = jax.Array

TASKS = ("reach", "push", "pick_place", "drawer", "door", "button", "insert", "stack")
"""Names of the tasks, in the order of their codes."""

X, Z = np.eye(3)[0], np.eye(3)[2]
HALF = 0.02  # metres, half the side of the block
PEG_HALF = np.array([0.012, 0.012, 0.03])  # metres, half the sides of the peg
PEG_GRASP = np.array([0.0, 0.0, 0.012])  # metres from the peg's middle to where it is held
SOCKET = np.array([0.165, -0.06])  # metres, axis of the socket
RIM = 0.028  # metres, height of the socket's mouth
DRAWER = np.array([-0.13, 0.13, 0.07])  # metres, handle of the closed drawer; it opens along x
HINGE = np.array([0.15, 0.19])  # metres, vertical axis of the door
DOOR_LENGTH = 0.1  # metres from the hinge to the door's handle; the door opens towards −x
DOOR_HEIGHT = 0.07  # metres, of the door's handle
BUTTON = np.array([0.02, 0.14, 0.045])  # metres, middle of the top of the free button
HAND = TwoFingerHand(
    open=0.042,
    closed=0.008,
    pad_radius=0.006,
    lead=0.02,
    low=(-0.2, -0.16, 0.015),
    high=(0.2, 0.2, 0.18),
    slide_damping="70",
    slide_gain="1500",
    palm_radius=".02",
    palm_mass=".6",
    rail=".055 .01 .008",
    finger_damping="12",
    finger_gain="400",
    finger_size=".004 .008 .028",
    finger_mass=".04",
    pad_offset=".008",
    bars=True,
)


@dataclass(frozen=True)
class Config:
    """Starts and goals are boxes, given by their middle and half-widths (spread)."""

    tasks: tuple[str, ...] = field(TASKS, None, "names of the tasks that are drawn, equally often")
    tolerance_mm: float = field(
        10.0,
        POSITIVE,
        "mm from the goal that counts as success: reach, push, pick_place, stack (sideways)",
    )
    max_speed: float = field(0.1, POSITIVE, "m/s, fastest block or peg that counts as success")
    max_step_mm: float = field(
        8.0, POSITIVE, "mm per control step and axis of the commanded position at action 1"
    )
    max_grip_step_mm: float = field(
        4.0, POSITIVE, "mm per control step of the commanded opening of each finger at action 1"
    )
    hand_mm: tuple[float, float, float] = field((0.0, 0.0, 110.0), FINITE, "mm, hand's starts")
    hand_spread_mm: tuple[float, float, float] = field(
        (30.0, 20.0, 15.0), NON_NEGATIVE, "mm, half-widths of the hand's starts"
    )
    block_mm: tuple[float, float] = field((-70.0, -70.0), FINITE, "mm, block's starts")
    block_spread_mm: tuple[float, float] = field(
        (20.0, 20.0), NON_NEGATIVE, "mm, half-widths of the block's starts"
    )
    peg_mm: tuple[float, float] = field((50.0, -60.0), FINITE, "mm, peg's starts")
    peg_spread_mm: tuple[float, float] = field(
        (15.0, 25.0), NON_NEGATIVE, "mm, half-widths of the peg's starts"
    )
    yaw_spread: float = field(0.15, NON_NEGATIVE, "rad, block and peg start turned by up to this")
    reach_mm: tuple[float, float, float] = field((0.0, 0.0, 90.0), FINITE, "mm, reach: goals")
    reach_spread_mm: tuple[float, float, float] = field(
        (130.0, 110.0, 50.0), NON_NEGATIVE, "mm, reach: half-widths of the goals"
    )
    push_mm: tuple[float, float] = field((-70.0, 35.0), FINITE, "mm, push: goals")
    push_spread_mm: tuple[float, float] = field(
        (25.0, 15.0), NON_NEGATIVE, "mm, push: half-widths of the goals"
    )
    lift_mm: tuple[float, float, float] = field(
        (-20.0, 30.0, 100.0), FINITE, "mm, pick_place: goals"
    )
    lift_spread_mm: tuple[float, float, float] = field(
        (50.0, 30.0, 25.0), NON_NEGATIVE, "mm, pick_place: half-widths of the goals"
    )
    drawer_mm: tuple[float, float] = field(
        (60.0, 10.0), FINITE, "mm the drawer is to be opened: middle and half-width"
    )
    door: tuple[float, float] = field(
        (0.7, 0.1), FINITE, "rad the door is to be opened: middle and half-width"
    )
    button_mm: tuple[float, float] = field(
        (13.0, 2.0), FINITE, "mm the button is to be pressed: middle and half-width"
    )
    clearance_mm: float = field(4.0, NON_NEGATIVE, "mm, side of the socket minus the peg's")
    depth_mm: float = field(
        20.0, POSITIVE, "mm of the peg's foot below the socket's mouth that count as inserted"
    )
    friction: float = field(
        1.0, POSITIVE, "coefficient of friction of all contacts but the table's"
    )
    drag: float = field(1.0, NON_NEGATIVE, "N s/m, viscous drag of block and peg")
    horizon: int = field(100, POSITIVE_INT, "control steps of an episode")
    bonus: float = field(5.0, FINITE, "reward at success, on top of the -1 of every step")

    def __post_init__(self) -> None:
        config_fields.check(self, "env.")


class Physics(NamedTuple):
    """What the task carries."""

    body: Body  # hand, fingers, block, peg, fixtures
    command: Array  # [4] metres: commanded hand position and opening
    task: Array  # [] int32, index into TASKS
    drawn: Array  # [3] in [-1, 1]: which of the task's goals


class Places(NamedTuple):
    """Where things are, [3] metres each."""

    hand: Array
    block: Array  # its middle
    peg: Array  # its middle
    drawer: Array  # its handle
    door: Array  # its handle
    button: Array  # its top


_WORLD = """
<camera name="main" pos=".0 -.62 .52" xyaxes="1 0 0 0 .66 .75" fovy="40"/>
<geom name="floor" type="plane" size="1 1 .1" material="tiles"/>
<body name="goal" mocap="true"><geom type="sphere" size=".01" material="goal"/></body>
{hand}
<body name="block">
  {free}
  <geom name="block" type="box" size="{half} {half} {half}" mass=".1" material="object"/>
</body>
<body name="peg">
  {free}
  <geom name="peg" type="box" size="{peg_half}" mass=".06" material="obstacle"/>
  {corners}
</body>
<body name="socket" pos="{socket}">
  <geom name="west" type="box" pos="-{wall} 0 {mid}" size=".006 {span} {mid}" material="fixture"/>
  <geom name="east" type="box" pos="{wall} 0 {mid}" size=".006 {span} {mid}" material="fixture"/>
  <geom name="south" type="box" pos="0 -{wall} {mid}" size="{gap} .006 {mid}" material="fixture"/>
  <geom name="north" type="box" pos="0 {wall} {mid}" size="{gap} .006 {mid}" material="fixture"/>
</body>
<geom type="box" pos="-.21 .13 .025" size=".055 .045 .025" material="dark"/>
<body name="drawer" pos="{drawer}">
  <joint name="drawer" type="slide" axis="1 0 0" damping="8" range="0 .1"/>
  <geom type="box" pos="-.065 0 -.048" size=".06 .038 .016" mass=".3" material="fixture"/>
  <geom type="box" pos="0 0 -.045" size=".006 .045 .02" mass=".05" material="fixture"/>
  <geom type="capsule" fromto="0 -.025 -.025 0 -.025 0" size=".005" mass=".01" material="steel"/>
  <geom type="capsule" fromto="0 .025 -.025 0 .025 0" size=".005" mass=".01" material="steel"/>
  <geom name="drawer" type="capsule" fromto="0 -.025 0 0 .025 0" size=".01" mass=".03"
    material="steel"/>
</body>
<geom type="capsule" fromto="{hinge} 0 {hinge} .06" size=".01" material="dark"/>
<body name="door" pos="{hinge} 0">
  <joint name="door" type="hinge" axis="0 0 -1" damping=".1" range="0 1.2"/>
  <geom type="box" pos="0 -.05 .027" size=".006 .05 .024" mass=".3" material="fixture"/>
  <geom name="door" type="capsule" fromto="0 -{door} .04 0 -{door} .085" size=".01" mass=".05"
    material="steel"/>
</body>
<geom type="box" pos="{button_xy} .012" size=".03 .03 .012" material="dark"/>
<body name="button" pos="{button}" gravcomp="1">
  <joint name="button" type="slide" axis="0 0 -1" stiffness="150" damping="4" range="0 .02"/>
  <geom name="button" type="box" pos="0 0 -.015" size=".02 .02 .015" mass=".1"
    material="obstacle"/>
</body>
"""

_FREE = """
<joint type="slide" axis="1 0 0" damping="{drag}"/>
<joint type="slide" axis="0 1 0" damping="{drag}"/>
<joint type="slide" axis="0 0 1" damping="{drag}"/>
<joint type="ball" damping=".001"/>
"""

_CORNER = """
<geom name="{name}" type="sphere" pos="{x} {y} {z}" size="{size}" mass="0" material="obstacle"/>
"""

_SMOOTH = '<pair geom1="floor" geom2="{thing}" condim="1"/>'

_PAIR = """<pair geom1="{one}" geom2="{other}" condim="3" friction="{mu} {mu} .005 .0001 .0001"/>"""

_CORNERS = tuple(f"corner{i}" for i in range(4))
_WALLS = ("west", "east", "south", "north")

_TOUCHING = (
    *((pad, thing) for pad in two_finger_hand.pads() for thing in ("block", "peg", "button")),
    *((side, handle) for side in two_finger_hand.SIDES for handle in ("drawer", "door")),
    *((corner, other) for corner in _CORNERS for other in (*_WALLS, "block")),
)

_SOLVER_ITERATIONS = 2  # with one, a pushed block slips off the pads


def mjcf(config: Config) -> str:
    """The scene in metres."""
    gap = PEG_HALF[0] + 0.0005 * config.clearance_mm
    world = _WORLD.format(
        hand=HAND.mjcf(),
        free=_FREE.format(drag=config.drag),
        half=HALF,
        peg_half=_text(PEG_HALF),
        corners="".join(_corners_mjcf()),
        socket=_text([*SOCKET, 0.0]),
        gap=gap,
        wall=gap + 0.006,
        span=gap + 0.012,
        mid=0.5 * RIM,
        drawer=_text(DRAWER),
        hinge=_text(HINGE),
        door=DOOR_LENGTH,
        button=_text(BUTTON),
        button_xy=_text(BUTTON[:2]),
    )
    pairs = [_SMOOTH.format(thing=thing) for thing in ("block", "peg")]
    pairs += [_PAIR.format(one=one, other=other, mu=config.friction) for one, other in _TOUCHING]
    return scene(
        "multi_task",
        world=world,
        pairs="".join(pairs),
        actuators=HAND.actuators(),
        gravity=9.81,
        max_contact_points=8,
        iterations=_SOLVER_ITERATIONS,
    )


def _text(numbers: Iterable[float]) -> str:
    return " ".join(f"{x:g}" for x in numbers)


def _corners_mjcf(rounding: float = 0.001) -> list[str]:
    """The four corners of the peg's foot, as balls.

    They meet the socket and the block as a box does, at less cost.
    """
    x, y, z = PEG_HALF - rounding
    signs = ((1, 1), (1, -1), (-1, 1), (-1, -1))
    return [
        _CORNER.format(name=name, x=i * x, y=j * y, z=-z, size=rounding)
        for name, (i, j) in zip(_CORNERS, signs, strict=True)
    ]


def places(qpos: Array) -> Places:
    """Where things are, from joint positions [22]."""
    drawer, door, button = qpos[19:22]
    return Places(
        hand=qpos[:3],
        block=qpos[5:8],
        peg=qpos[12:15],
        drawer=DRAWER + drawer * X,
        door=door_handle(door),
        button=BUTTON - button * Z,
    )


def door_handle(angle: Array) -> Array:
    """Where the door's handle is, [3] metres, if the door is open by ``angle`` [] radians."""
    to_hinge = DOOR_LENGTH * jnp.stack([jnp.sin(angle), jnp.cos(angle)])
    return jnp.append(HINGE - to_hinge, DOOR_HEIGHT)

"""A hand on slides with two fingers: its MJCF, its commands, and how a demonstrator grasps with it.

The hand moves on three slides, on some tasks also on a vertical hinge. Two fingers, each with a pad
of two balls, close along x or y. Hand and fingers carry their own weight. Position actuators drive
the slides, the hinge and both fingers; the fingers share one command.

qpos of a hand: x, y, z, (yaw,) left finger, right finger. Command: x, y, z, (yaw,) opening. The
opening is the distance from the middle of the hand to a pad's centre, in metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.physics.common import clip_step_towards

Array = jax.Array

SIDES = ("left", "right")
PLACES = ("front", "back")  # the two balls of a pad

_HAND = """
<body name="{name}" gravcomp="1">
  <joint name="{prefix}x" type="slide" axis="1 0 0" damping="{slide_damping}"/>
  <joint name="{prefix}y" type="slide" axis="0 1 0" damping="{slide_damping}"/>
  <joint name="{prefix}z" type="slide" axis="0 0 1" damping="{slide_damping}"/>
  {yaw}
  <geom name="{name}" type="capsule" fromto="0 0 .065 0 0 .1" size="{palm_radius}"
    mass="{palm_mass}" material="dark"/>
  <geom name="{prefix}rail" type="box" pos="0 0 .055" size="{rail}" mass=".05" material="dark"/>
  {left}
  {right}
</body>
"""

_YAW = """
<joint name="{prefix}yaw" type="hinge" axis="0 0 1" damping="{damping}" armature=".005"/>
"""

_FINGER = """
<body name="{finger}" gravcomp="1">
  <joint name="{finger}" type="slide" axis="{axis}" damping="{damping}" ref="{open}"/>
  <geom type="box" pos="{bone}" size="{size}" mass="{mass}" material="steel"/>
  <geom name="{finger}_front" type="sphere" pos="{front}" size="{pad}" mass=".005"
    material="steel"/>
  <geom name="{finger}_back" type="sphere" pos="{back}" size="{pad}" mass=".005"
    material="steel"/>
  {bar}
</body>
"""

_BAR = """
<geom name="{finger}" type="capsule" fromto="{front} {back}" size="{pad}" mass="0"
  material="steel"/>
"""


@dataclass(frozen=True, kw_only=True)
class TwoFingerHand:
    """The numbers of one hand. Those that only the MJCF needs are text, as MuJoCo reads them."""

    open: float  # metres, opening of the open hand
    closed: float  # metres, opening that is commanded to close it
    pad_radius: float  # metres, of the balls of a pad
    lead: float  # metres the commanded position may be ahead of the hand: bounds the force
    squeeze: float = 0.01  # metres the commanded opening may be ahead: bounds the grip force
    yaw_lead: float | None = None  # radians the commanded yaw may be ahead; None: no yaw hinge
    low: tuple[float, ...]  # metres (radians for the yaw), smallest command without the opening
    high: tuple[float, ...]  # the largest

    closes_along: str = "x"  # or "y": the direction in which the fingers move
    slide_damping: str  # N·s/m
    slide_gain: str  # N/m
    yaw_damping: str = ""  # N·m·s/rad
    yaw_gain: str = ""  # N·m/rad
    palm_radius: str  # metres
    palm_mass: str  # kg
    rail: str  # metres, half-sides
    finger_damping: str  # N·s/m
    finger_gain: str  # N/m
    finger_size: str  # metres, half-sides
    finger_mass: str  # kg
    pad_offset: str  # metres from the middle of a pad to each of its balls
    bars: bool = False  # each pad also has a capsule between its balls, named like the finger

    def mjcf(self, name: str = "hand", prefix: str = "") -> str:
        """The body of the hand; ``prefix`` precedes the names of its parts."""
        yaw = "" if self.yaw_lead is None else _YAW.format(prefix=prefix, damping=self.yaw_damping)
        return _HAND.format(
            name=name,
            prefix=prefix,
            slide_damping=self.slide_damping,
            yaw=yaw,
            palm_radius=self.palm_radius,
            palm_mass=self.palm_mass,
            rail=self.rail,
            left=self._finger(f"{prefix}left", -1 if self.closes_along == "x" else 1),
            right=self._finger(f"{prefix}right", 1 if self.closes_along == "x" else -1),
        )

    def _finger(self, finger: str, direction: int) -> str:
        """The body of one finger, which opens in the positive or negative ``direction``."""
        offset = direction * self.open
        if self.closes_along == "x":
            axis = f"{direction} 0 0"
            bone = f"{offset} 0 .027"
            front, back = f"{offset} -{self.pad_offset} 0", f"{offset} {self.pad_offset} 0"
        else:
            axis = f"0 {direction} 0"
            bone = f"0 {offset} .027"
            front, back = f"{self.pad_offset} {offset} 0", f"-{self.pad_offset} {offset} 0"
        bar = _BAR.format(finger=finger, front=front, back=back, pad=self.pad_radius)
        return _FINGER.format(
            finger=finger,
            axis=axis,
            damping=self.finger_damping,
            open=self.open,
            bone=bone,
            size=self.finger_size,
            mass=self.finger_mass,
            front=front,
            back=back,
            pad=self.pad_radius,
            bar=bar if self.bars else "",
        )

    def actuators(self, prefix: str = "") -> str:
        """The position actuators, in the order of qpos."""
        slides = [f'<position joint="{prefix}{axis}" kp="{self.slide_gain}"/>' for axis in "xyz"]
        yaw = (
            []
            if self.yaw_lead is None
            else [f'<position joint="{prefix}yaw" kp="{self.yaw_gain}"/>']
        )
        fingers = [f'<position joint="{prefix}{side}" kp="{self.finger_gain}"/>' for side in SIDES]
        return "".join(slides + yaw + fingers)

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest command, [D] each."""
        return np.append(self.low, self.closed), np.append(self.high, self.open)

    @property
    def max_lead(self) -> np.ndarray:
        """How far each part of the command may be ahead of the hand, [D]."""
        yaw = [] if self.yaw_lead is None else [self.yaw_lead]
        return np.array([self.lead] * 3 + yaw + [self.squeeze])

    def measured(self, qpos: Array) -> Array:
        """Where the hand is, as a command [D]; ``qpos`` begins with the hand."""
        joints = len(self.low)
        return jnp.append(qpos[:joints], jnp.mean(qpos[joints : joints + 2]))


def pads(prefix: str = "") -> tuple[str, ...]:
    """Names of the four balls of a hand's pads."""
    return tuple(f"{prefix}{side}_{place}" for side in SIDES for place in PLACES)


def control(command: Array) -> Array:
    """The control [D + 1] of a ``command`` [D]: its opening goes to both fingers."""
    return jnp.append(command, command[-1])


def is_around(offset: Array, margin: Array | float) -> Array:
    """[] bool: a hand that is ``offset`` [3] metres away from its grasp can close there."""
    return (jnp.abs(offset[2]) < margin) & (jnp.hypot(offset[0], offset[1]) < margin)


def hover_above(grasp: Array, distance: Array, *, height: float, margin: float) -> Array:
    """Where to go [3] to come down on ``grasp`` [3] from above.

    Args:
      grasp: where the hand is to close, metres.
      distance: [] how far the hand is from it sideways, metres.
      height: largest height above the grasp, metres.
      margin: distance within which the hand goes straight down; the height is 4 times what is
        beyond.
    """
    return grasp.at[2].add(jnp.minimum(height, 4.0 * jnp.maximum(distance - margin, 0.0)))


def move_towards(
    command: Array, aim: Array, opening: Any, *, max_step: float, max_grip_step: float
) -> Array:
    """The action [4] that moves a hand's ``command`` [4] to ``aim`` [3] and ``opening`` [], metres.

    The hand has no yaw hinge. ``max_step`` and ``max_grip_step`` are the metres of one control step
    at action 1.
    """
    hand = clip_step_towards(aim - command[:3], max_step)
    fingers = clip_step_towards(opening - command[3:], max_grip_step)
    return jnp.concatenate([hand, fingers])

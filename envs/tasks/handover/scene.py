"""Scene of handover: its configuration, its MJCF, and where hands and bar are."""

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

LENGTH, SIDE = 0.07, 0.012  # metres, half the length of the bar and half its thickness
GRASP = 0.03  # metres from the middle of the bar to where a hand holds it
FENCE_THICKNESS, FENCE_LENGTH = 0.012, 0.14  # metres, halves
GIVER, TAKER = 0, 1
HANDS = ("giver", "taker")
HAND = TwoFingerHand(
    open=0.032,
    closed=0.008,
    pad_radius=0.006,
    lead=0.018,
    low=(-0.22, -0.12, 0.01),
    high=(0.008, 0.12, 0.2),
    slide_damping="50",
    slide_gain="1000",
    palm_radius=".018",
    palm_mass=".5",
    rail=".042 .01 .008",
    finger_damping="20",
    finger_gain="600",
    finger_size=".004 .012 .028",
    finger_mass=".1",
    pad_offset=".016",
)  # limits of the giver; those of the taker are mirrored in x


@dataclass(frozen=True)
class Config:
    """Starts and goals are boxes, given by their middle and half-widths (spread)."""

    tolerance_mm: float = field(
        10.0, POSITIVE, "mm, distance of each end of the bar from its place that counts as success"
    )
    max_speed: float = field(0.05, POSITIVE, "m/s, fastest bar that counts as success")
    release_mm: float = field(
        2.0, NON_NEGATIVE, "mm each finger of the taker must be open beyond the bar at success"
    )
    fence_mm: float = field(60.0, FINITE, "mm, height of the fence")
    max_step_mm: float = field(
        8.0, POSITIVE, "mm per control step and axis of the commanded positions at action 1"
    )
    max_grip_step_mm: float = field(
        4.0, POSITIVE, "mm per control step of the commanded opening of each finger at action 1"
    )
    giver_mm: tuple[float, float, float] = field((-130.0, 0.0, 110.0), FINITE, "mm, giver's starts")
    taker_mm: tuple[float, float, float] = field((130.0, 0.0, 110.0), FINITE, "mm, taker's starts")
    hand_spread_mm: tuple[float, float, float] = field(
        (20.0, 25.0, 15.0), NON_NEGATIVE, "mm, half-widths of both hands' starts"
    )
    bar_mm: tuple[float, float] = field((-130.0, 0.0), FINITE, "mm, bar's starts")
    bar_spread_mm: tuple[float, float] = field(
        (20.0, 25.0), NON_NEGATIVE, "mm, half-widths of the bar's starts"
    )
    yaw_spread: float = field(0.12, NON_NEGATIVE, "rad, the bar starts turned by up to this")
    goal_mm: tuple[float, float] = field((130.0, 0.0), FINITE, "mm, goals")
    goal_spread_mm: tuple[float, float] = field(
        (20.0, 25.0), NON_NEGATIVE, "mm, half-widths of the goals"
    )
    friction: float = field(
        1.0, POSITIVE, "coefficient of friction of all contacts but the floor's"
    )
    drag: float = field(0.5, NON_NEGATIVE, "N s/m, viscous drag of the bar")
    horizon: int = field(150, POSITIVE_INT, "control steps of an episode")
    bonus: float = field(5.0, FINITE, "reward at success, on top of the -1 of every step")

    def __post_init__(self) -> None:
        config_fields.check(self, "env.")


class Physics(NamedTuple):
    """What the task carries."""

    body: Body  # giver x, y, z and two fingers, taker likewise, pose of the bar
    command: Array  # [2, 4] metres: commanded position and opening of giver and taker
    goal: Array  # [3] metres, of the bar's middle


_WORLD = """
<camera name="main" pos="0 -.52 .4" xyaxes="1 0 0 0 .57 .82" fovy="44"/>
<geom name="floor" type="plane" size="1 1 .1" material="tiles"/>
<geom name="fence" type="box" pos="0 0 {half_height}" size="{thick} {long} {half_height}"
  material="obstacle"/>
<body name="goal" mocap="true">
  <geom type="box" size="{side} {length} {side}" material="goal"/>
</body>
{giver}
{taker}
<body name="bar">
  <joint name="bar_x" type="slide" axis="1 0 0" damping="{drag}"/>
  <joint name="bar_y" type="slide" axis="0 1 0" damping="{drag}"/>
  <joint name="bar_z" type="slide" axis="0 0 1" damping="{drag}"/>
  <joint name="bar" type="ball" damping=".002"/>
  <geom name="bar" type="box" size="{length} {side} {side}" mass=".08" material="object"/>
  <geom name="head" type="sphere" pos="{end} 0 0" size="{side}" mass="0" material="object"/>
  <geom name="tail" type="sphere" pos="-{end} 0 0" size="{side}" mass="0" material="object"/>
</body>
"""

_SMOOTH = '<pair geom1="floor" geom2="bar" condim="1"/>'

# Hard: in soft pads the bar slowly turns under its weight.
_PAIR = """<pair geom1="{one}" geom2="{other}" condim="3" friction="{mu} {mu} .005 .0001 .0001"
  solref=".01 1" solimp=".99 .99 .001"/>"""

_TOUCHING = (
    *((pad, "bar") for hand in HANDS for pad in two_finger_hand.pads(f"{hand}_")),
    *((inner, "fence") for inner in ("giver_right_front", "taker_left_front", "head", "tail")),
    ("giver", "taker"),
)

_SOLVER_ITERATIONS = 4  # fewer, and clean demonstrations fail
_MAX_CONTACTS = 8  # of each kind at once: as many as two hands have with the bar


def mjcf(config: Config) -> str:
    """The scene in metres."""
    pairs = [_PAIR.format(one=one, other=other, mu=config.friction) for one, other in _TOUCHING]
    return scene(
        "handover",
        world=_WORLD.format(
            half_height=0.0005 * config.fence_mm,
            thick=FENCE_THICKNESS,
            long=FENCE_LENGTH,
            length=LENGTH,
            side=SIDE,
            end=LENGTH - SIDE,
            drag=config.drag,
            giver=HAND.mjcf("giver", "giver_"),
            taker=HAND.mjcf("taker", "taker_"),
        ),
        pairs=_SMOOTH + "".join(pairs),
        actuators="".join(HAND.actuators(f"{hand}_") for hand in HANDS),
        gravity=9.81,
        max_contact_points=_MAX_CONTACTS,
        iterations=_SOLVER_ITERATIONS,
    )


def hands(body: Body) -> Array:
    """Giver and taker: position and opening, [2, 4] metres."""
    joints = body.qpos[:10].reshape(2, 5)
    return jnp.concatenate([joints[:, :3], jnp.mean(joints[:, 3:], axis=1, keepdims=True)], axis=1)


def bar(body: Body) -> Array:
    """The middle of the bar, [3] metres."""
    return body.qpos[10:13]


def point_on_bar(body: Body, distance: Array | float) -> Array:
    """The point [3] on the bar's axis ``distance`` [] metres from its middle to its left end."""
    x_axis, _ = quaternion_axes(body.qpos[13:17])
    return bar(body) + distance * x_axis


def command_limits() -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest command of both hands, [2, 4] each; the taker's x is mirrored."""
    giver_low, giver_high = HAND.limits
    taker_low, taker_high = giver_low.copy(), giver_high.copy()
    taker_low[0] = -giver_high[0]
    taker_high[0] = -giver_low[0]
    return np.stack([giver_low, taker_low]), np.stack([giver_high, taker_high])

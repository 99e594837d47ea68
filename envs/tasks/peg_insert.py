"""peg_insert: bring a peg round a post to a hole and push it in; left or right of the post.

The tool moves on three slides and holds the peg by a wrist of two compliant hinges; it does not
turn about the vertical. The origin is the centre of the hole's mouth, z up. A square peg has no
chamfer: beyond about 2 mm of offset it jams on the rim. There is no gravity (the tool carries it).

Observation [13], all of order one:

| index | content | unit |
|---|---|---|
| 0–2 | tip of the peg from where the hole is seen | 20 mm |
| 3–4 | tanh of the sideways part of the same | 2 mm |
| 5–7 | velocity of the tool | 0.2 m/s |
| 8–9 | deflection of the wrist (pitch, roll) | 0.1 rad |
| 10–12 | lead of the commanded position over the tool | 10 mm |

Action [3]: change of the commanded position of the tip, in units of ``max_step_mm``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import config_fields
from gcp_jax.config_fields import FINITE, NON_NEGATIVE, POSITIVE, POSITIVE_INT, field
from gcp_jax.envs.physics.common import (
    add_action_noise,
    clip_step_towards,
    initial_state,
    integrate_command,
    next_state,
)
from gcp_jax.envs.physics.mjx import CONTROL_DT, Backend, Body, at_rest, scene, simulation
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.1, "poor": 1.7, "bad": 2.6}  # success 100 %, 65 %, 33 %, 9 %

LENGTH = 0.02  # metres of one unit of position in the observation
SPEED = 0.2  # m/s of one unit of velocity
FINE = 0.002  # metres over which the offset from the hole's axis is observed a second time, finely
DEFLECTION = 0.1  # radians of one unit of wrist deflection
LEAD = 0.01  # metres the commanded position may be ahead of the tool: bounds the force
WRIST = 0.08  # metres from the hinges down to the tip of the peg
LOW = np.array([-0.09, -0.06, -0.04])  # metres, smallest commanded position of the tip
HIGH = np.array([0.05, 0.06, 0.04])  # metres, the largest


@dataclass(frozen=True)
class Config:
    """Starts are boxes, given by their middle and half-widths (spread)."""

    peg: str = field("square", ("square", "round"), "shape; a round peg centres itself")
    clearance_mm: float = field(1.0, NON_NEGATIVE, "mm, the hole's side minus the peg's")
    width_mm: float = field(20.0, POSITIVE, "mm, side or diameter of the peg")
    depth_mm: float = field(20.0, POSITIVE, "mm of the tip below the mouth that count as success")
    max_step_mm: float = field(
        4.0, POSITIVE, "mm per control step and axis of the commanded position at action 1"
    )
    start_mm: tuple[float, float, float] = field((-60.0, 0.0, 25.0), FINITE, "mm, tip's starts")
    start_spread_mm: tuple[float, float, float] = field(
        (10.0, 15.0, 6.0), NON_NEGATIVE, "mm, half-widths of the tip's starts"
    )
    post_mm: tuple[float, float] = field((-30.0, 8.0), FINITE, "mm, x and radius of the post")
    hole_noise_mm: float = field(
        0.0, NON_NEGATIVE, "mm, std of where the hole is seen; drawn once per episode"
    )
    friction: float = field(0.3, POSITIVE, "coefficient of friction of all contacts")
    horizon: int = field(80, POSITIVE_INT, "control steps of an episode")
    bonus: float = field(5.0, FINITE, "reward at success, on top of the -1 of every step")

    def __post_init__(self) -> None:
        config_fields.check(self, "env.")


class Physics(NamedTuple):
    """What the task carries."""

    body: Body  # five joints: x, y, z of the tool, two hinges
    command: Array  # [3] metres, commanded position of the tip
    seen: Array  # [2] metres, where the hole is seen


class Plan(NamedTuple):
    """What a demonstrator drew."""

    side: Array  # [] int32: 0 passes on the right of the post, 1 on the left
    error: Array  # [2] metres, on top of where the hole is seen


_WORLD = """
<camera name="main" pos="-.025 -.36 .22" xyaxes="1 0 0 0 .47 .88" fovy="40"/>
<geom name="floor" type="plane" size="1 1 .1" pos="0 0 -.06" material="tiles"/>
<geom name="west" type="box" pos="-{wall} 0 -.03" size="{half} {span} .03" material="fixture"/>
<geom name="east" type="box" pos="{wall} 0 -.03" size="{half} {span} .03" material="fixture"/>
<geom name="south" type="box" pos="0 -{wall} -.03" size="{gap} {half} .03" material="fixture"/>
<geom name="north" type="box" pos="0 {wall} -.03" size="{gap} {half} .03" material="fixture"/>
<geom name="seat" type="box" pos="0 0 -.0595" size="{gap} {gap} .001" material="goal"/>
<geom name="post" type="capsule" fromto="{post_x} 0 -.06 {post_x} 0 .09" size="{post_radius}"
  material="obstacle"/>
<body name="tool" pos="0 0 {wrist}">
  <joint name="x" type="slide" axis="1 0 0" damping="28"/>
  <joint name="y" type="slide" axis="0 1 0" damping="28"/>
  <joint name="z" type="slide" axis="0 0 1" damping="28"/>
  <geom name="flange" type="cylinder" size=".018 .008" pos="0 0 .022" mass=".3" material="dark"/>
  <body name="peg">
    <joint name="pitch" type="hinge" axis="0 1 0" stiffness="8" damping=".6" armature=".01"/>
    <joint name="roll" type="hinge" axis="1 0 0" stiffness="8" damping=".6" armature=".01"/>
    <geom name="wrist" type="capsule" fromto="0 0 .012 0 0 -.03" size=".007" mass=".1"
      material="steel"/>
    {peg}
  </body>
</body>
"""

_SQUARE = """
<geom name="peg" type="box" pos="0 0 -.055" size="{radius} {radius} .025" mass=".1"
  material="object"/>
"""

_ROUND = """
<geom name="peg" type="capsule" fromto="0 0 -.03 0 0 -{low}" size="{radius}" mass=".1"
  material="object"/>
"""

_CORNER = """
<geom name="{name}" type="sphere" pos="{x} {y} -{low}" size="{size}" mass="0" material="object"/>
"""

_PAIR = """<pair geom1="{one}" geom2="{other}" condim="3" friction="{mu} {mu} .005 .0001 .0001"/>"""

_ACTUATORS = "".join(f'<position joint="{axis}" kp="400"/>' for axis in "xyz")

_WALLS = ("west", "east", "south", "north")


def mjcf(config: Config) -> str:
    """The scene in metres."""
    radius = 0.0005 * config.width_mm
    gap, half = radius + 0.0005 * config.clearance_mm, 0.0125
    post_x, post_radius = (0.001 * x for x in config.post_mm)
    corners = _corners_mjcf(radius) if config.peg == "square" else {}
    shape = _SQUARE if config.peg == "square" else _ROUND
    touching = [(tip, wall) for tip in corners or ("peg",) for wall in _WALLS] + [("peg", "post")]
    pairs = [_PAIR.format(one=one, other=other, mu=config.friction) for one, other in touching]
    return scene(
        "peg_insert",
        world=_WORLD.format(
            gap=gap,
            half=half,
            wall=gap + half,
            span=gap + 2 * half,
            wrist=WRIST,
            peg=shape.format(radius=radius, low=WRIST - radius) + "".join(corners.values()),
            post_x=post_x,
            post_radius=post_radius,
        ),
        pairs="".join(pairs),
        actuators=_ACTUATORS,
        max_contact_points=8,
    )


def _corners_mjcf(radius: float, rounding: float = 0.001) -> dict[str, str]:
    """The four corners of a square tip by name, as balls.

    They meet the walls as a box does, at half the cost.
    """
    offset, low = radius - rounding, WRIST - rounding
    return {
        f"corner{i}": _CORNER.format(
            name=f"corner{i}", x=x * offset, y=y * offset, low=low, size=rounding
        )
        for i, (x, y) in enumerate(((1, 1), (1, -1), (-1, 1), (-1, -1)))
    }


def tip(body: Body) -> Array:
    """The middle of the tip, [3] metres from the mouth, for small deflections of the wrist."""
    pitch, roll = body.qpos[3], body.qpos[4]
    return body.qpos[:3] + WRIST * jnp.stack([-pitch, roll, jnp.zeros(())])


def observe(physics: Physics) -> Array:
    """The observation [13]; see the module."""
    body, command, seen = physics
    offset = tip(body).at[:2].add(-seen)
    parts = (
        offset / LENGTH,
        jnp.tanh(offset[:2] / FINE),
        body.qvel[:3] / SPEED,
        body.qpos[3:] / DEFLECTION,
        (command - body.qpos[:3]) / LEAD,
    )
    return jnp.concatenate(parts)


def make(config: Config, backend: Backend = "mjx") -> Env:
    """Build the task."""
    simulated = simulation(mjcf(config), backend=backend)
    middle, spread = 0.001 * np.asarray(config.start_mm), 0.001 * np.asarray(config.start_spread_mm)
    max_step = 0.001 * np.asarray(config.max_step_mm)

    def reset(key: Array) -> State:
        start_key, rest_key = jax.random.split(key)
        seen_key, state_key = jax.random.split(rest_key)
        start = jax.random.uniform(start_key, (3,), minval=middle - spread, maxval=middle + spread)
        physics = Physics(
            body=at_rest(jnp.concatenate([start, jnp.zeros(2)]), nv=5),
            command=start,
            seen=0.001 * config.hole_noise_mm * jax.random.normal(seen_key, (2,)),
        )
        return initial_state(physics, observe(physics), state_key)

    def step(state: State, action: Array) -> State:
        body, command, seen = state.physics
        command = integrate_command(
            command,
            action,
            max_step=max_step,
            low=LOW,
            high=HIGH,
            measured=body.qpos[:3],
            lead=LEAD,
        )
        physics = Physics(body=simulated.step(body, command), command=command, seen=seen)
        return next_state(
            state,
            physics=physics,
            obs=observe(physics),
            success=succeeded(config, physics),
            bonus=config.bonus,
        )

    specs = EnvSpecs(
        name="peg_insert",
        obs_dim=13,
        action_dim=3,
        horizon=config.horizon,
        control_dt=CONTROL_DT,
        success=f"the tip of the peg inside the hole, {config.depth_mm} mm below its mouth",
    )
    return Env(
        reset,
        step,
        specs,
        demonstrator=lambda noise: demonstrator(config, noise),
        scene=lambda: Scene(simulated.model, _pose, "main"),
    )


def _pose(state: State) -> dict[str, np.ndarray]:
    return {"qpos": state.physics.body.qpos}


def succeeded(config: Config, physics: Physics) -> Array:
    """[] bool: the tip is ``depth_mm`` below the mouth and within the hole's walls."""
    x, y, z = tip(physics.body)
    inside = jnp.maximum(jnp.abs(x), jnp.abs(y)) < 0.0005 * config.width_mm
    success: Array = inside & (z < -0.001 * config.depth_mm)
    return success


def demonstrator(config: Config, noise: float) -> Demonstrator:
    """Go round the post at a distance, to a point above the hole, then down.

    Noise misplaces the hole once per episode (1 mm std per unit) and disturbs every action (0.1 std
    per unit).
    """
    start_x, post_x = 0.001 * config.start_mm[0], 0.001 * config.post_mm[0]
    detour, clear, hover = 0.034, 0.026, 0.008

    def init(key: Array, state: State) -> Plan:
        side_key, error_key = jax.random.split(key)
        return Plan(
            side=jax.random.randint(side_key, (), 0, 2),
            error=0.001 * noise * jax.random.normal(error_key, (2,)),
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, command, seen = state.physics
        x, y, z = tip(body)
        side = 2.0 * plan.side - 1.0
        aside = jnp.stack([start_x, side * detour, hover])
        past = jnp.stack([post_x + 0.012, side * detour, hover])
        axis = seen + plan.error
        centred = jnp.hypot(x - axis[0], y - axis[1]) < 0.0005
        height = jnp.where(centred | (z < 0.0), -0.03, hover)
        hole = jnp.concatenate([axis, height[None]])
        before_post = jnp.where(side * y < clear, aside, past)
        aim = jnp.where(x < post_x, before_post, hole)
        action = clip_step_towards(aim - command, 0.001 * config.max_step_mm)
        return add_action_noise(action, key, 0.1 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.side, modes=2)

"""peg_insert: bring a peg round a post to a hole and push it in. Left or right of the post, never through it.

The tool moves on three slides and holds the peg by a wrist of two compliant hinges; it does not turn about the
vertical. The origin is the centre of the hole's mouth, z up. A square peg has no chamfer: beyond about 2 mm of offset
it jams on the rim. There is no gravity (the tool carries it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.physics.common import (
    add_action_noise,
    clip_step_towards,
    initial_state,
    integrate_command,
    next_state,
)
from gcp_jax.envs.physics.mjx import CONTROL_DT, Body, at_rest, scene, simulation
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.1, "poor": 1.7, "bad": 2.6}  # success 100 %, 65 %, 33 %, 9 %

LENGTH = 0.02  # metres of one unit of position in the observation
SPEED = 0.2  # m/s of one unit of velocity
FINE = 0.002  # metres over which the offset from the hole's axis is observed a second time, finely
DEFLECTION = 0.1  # radians of one unit of wrist deflection
LEAD = 0.01  # metres the commanded position may run ahead of the tool: bounds the force
WRIST = 0.08  # metres from the hinges down to the tip of the peg
LIMITS = np.array(
    [[-0.09, -0.06, -0.04], [0.05, 0.06, 0.04]]
)  # metres, commanded position of the tip


@dataclass(frozen=True)
class Config:
    """Lengths in millimetres, as the names say. The clearance is total: the hole's side minus the peg's."""

    peg: str = "square"  # or "round": a capsule, which centres itself
    clearance_mm: float = 1.0
    width_mm: float = 20.0  # side or diameter of the peg
    depth_mm: float = 20.0  # tip this far below the mouth: success
    speed_mm: float = 4.0  # the command moves this far per control step at action 1, per axis
    start_mm: tuple[float, float, float] = (-60.0, 0.0, 25.0)  # middle of the tip's starts
    spread_mm: tuple[float, float, float] = (10.0, 15.0, 6.0)  # half-widths of the starts
    post_mm: tuple[float, float] = (-30.0, 8.0)  # x and radius of the post
    hole_noise_mm: float = (
        0.0  # std, drawn once per episode, of where the hole is seen against where it is
    )
    friction: float = 0.3
    horizon: int = 80  # control steps
    bonus: float = 5.0  # reward on top of the −1 of the step of success


class Physics(NamedTuple):
    """body: the five joints (x, y, z of the tool, two hinges); target [3]: commanded position of the tip; seen [2]: where
    the hole seems to be; metres."""

    body: Body
    target: Array
    seen: Array


class Plan(NamedTuple):
    """What a demonstrator drew: side [] int32, 0 passes right and 1 left; error [2], metres, on top of where the hole is
    seen."""

    side: Array
    error: Array


_WORLD = """
<camera name="main" pos="-.025 -.36 .22" xyaxes="1 0 0 0 .47 .88" fovy="40"/>
<geom name="floor" type="plane" size="1 1 .1" pos="0 0 -.06" material="tiles"/>
<geom name="west" type="box" pos="-{wall} 0 -.03" size="{half} {span} .03" material="fixture"/>
<geom name="east" type="box" pos="{wall} 0 -.03" size="{half} {span} .03" material="fixture"/>
<geom name="south" type="box" pos="0 -{wall} -.03" size="{gap} {half} .03" material="fixture"/>
<geom name="north" type="box" pos="0 {wall} -.03" size="{gap} {half} .03" material="fixture"/>
<geom name="seat" type="box" pos="0 0 -.0595" size="{gap} {gap} .001" material="goal"/>
<geom name="post" type="capsule" fromto="{post_x} 0 -.06 {post_x} 0 .09" size="{post_radius}" material="obstacle"/>
<body name="tool" pos="0 0 {wrist}">
  <joint name="x" type="slide" axis="1 0 0" damping="28"/>
  <joint name="y" type="slide" axis="0 1 0" damping="28"/>
  <joint name="z" type="slide" axis="0 0 1" damping="28"/>
  <geom name="flange" type="cylinder" size=".018 .008" pos="0 0 .022" mass=".3" material="dark"/>
  <body name="peg">
    <joint name="pitch" type="hinge" axis="0 1 0" stiffness="8" damping=".6" armature=".01"/>
    <joint name="roll" type="hinge" axis="1 0 0" stiffness="8" damping=".6" armature=".01"/>
    <geom name="wrist" type="capsule" fromto="0 0 .012 0 0 -.03" size=".007" mass=".1" material="steel"/>
    {peg}
  </body>
</body>
"""

_PEGS = {
    "square": '<geom name="peg" type="box" pos="0 0 -.055" size="{radius} {radius} .025" mass=".1" {look}/>',
    "round": '<geom name="peg" type="capsule" fromto="0 0 -.03 0 0 -{low}" size="{radius}" mass=".1" {look}/>',
}

_CORNER = '<geom name="{name}" type="sphere" pos="{x} {y} -{low}" size="{size}" mass="0" material="object"/>'

_PAIR = '<pair geom1="{one}" geom2="{other}" condim="3" friction="{mu} {mu} .005 .0001 .0001"/>'

_ACTUATORS = "".join(f'<position joint="{axis}" kp="400"/>' for axis in "xyz")

_WALLS = ("west", "east", "south", "north")


def mjcf(config: Config) -> str:
    """The scene in metres."""
    if config.peg not in _PEGS:
        raise ValueError(f"peg_insert has no peg {config.peg!r}; allowed: {', '.join(_PEGS)}")
    radius = 0.0005 * config.width_mm
    gap, half = radius + 0.0005 * config.clearance_mm, 0.0125
    post_x, post_radius = (0.001 * x for x in config.post_mm)
    corners = _corners(radius) if config.peg == "square" else {}
    peg = _PEGS[config.peg].format(
        radius=radius, low=WRIST - radius, look='material="object"'
    ) + "".join(corners.values())
    sizes = dict(gap=gap, half=half, wall=gap + half, span=gap + 2 * half, wrist=WRIST)
    touching = [(one, wall) for one in corners or ("peg",) for wall in _WALLS] + [("peg", "post")]
    return scene(
        "peg_insert",
        world=_WORLD.format(**sizes, peg=peg, post_x=post_x, post_radius=post_radius),
        pairs="".join(
            _PAIR.format(one=one, other=other, mu=config.friction) for one, other in touching
        ),
        actuators=_ACTUATORS,
        max_contact_points=8,
    )


def _corners(radius: float, rounding: float = 0.001) -> dict[str, str]:
    """The four corners of a square tip by name, as balls: they meet the walls as a box does, at half the cost."""
    reach = radius - rounding
    return {
        f"corner{i}": _CORNER.format(
            name=f"corner{i}", x=x * reach, y=y * reach, low=WRIST - rounding, size=rounding
        )
        for i, (x, y) in enumerate(((1, 1), (1, -1), (-1, 1), (-1, -1)))
    }


def tip(body: Body) -> Array:
    """Where the middle of the peg's tip is, [3] metres from the mouth, for small deflections of the wrist."""
    pitch, roll = body.qpos[3], body.qpos[4]
    return body.qpos[:3] + WRIST * jnp.stack([-pitch, roll, jnp.zeros(())])


def observe(physics: Physics) -> Array:
    """[13]: tip from the mouth as seen, its sideways part again at the scale of the clearance, speed of the tool, deflection of
    the wrist, lead of the command; all of order one."""
    body, target, seen = physics
    where = tip(body).at[:2].add(-seen)
    fine = jnp.tanh(where[:2] / FINE)
    lead = (target - body.qpos[:3]) / LEAD
    return jnp.concatenate(
        [where / LENGTH, fine, body.qvel[:3] / SPEED, body.qpos[3:] / DEFLECTION, lead]
    )


def make(config: Config) -> Env:
    """action [3]: how the commanded position of the tip moves, in units of ``speed_mm``."""
    simulated = simulation(mjcf(config))
    middle, spread, speed = (
        0.001 * np.asarray(x) for x in (config.start_mm, config.spread_mm, config.speed_mm)
    )

    def reset(key: Array) -> State:
        start_key, rest_key = jax.random.split(key)
        seen_key, state_key = jax.random.split(rest_key)
        seen = 0.001 * config.hole_noise_mm * jax.random.normal(seen_key, (2,))
        start = jax.random.uniform(start_key, (3,), minval=middle - spread, maxval=middle + spread)
        physics = Physics(at_rest(jnp.concatenate([start, jnp.zeros(2)]), nv=5), start, seen)
        return initial_state(physics, observe(physics), state_key)

    def step(state: State, action: Array) -> State:
        body, target, seen = state.physics
        tool = body.qpos[:3]
        target = integrate_command(
            target, action, reach=speed, low=LIMITS[0], high=LIMITS[1], held=tool, lead=LEAD
        )
        physics = Physics(simulated.step(body, target), target, seen)
        return next_state(
            state,
            physics=physics,
            obs=observe(physics),
            success=inserted(config, physics),
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
        scene=lambda: Scene(
            simulated.model, lambda state: {"qpos": state.physics.body.qpos}, "main"
        ),
    )


def inserted(config: Config, physics: Physics) -> Array:
    """[] bool: the tip is ``depth_mm`` below the mouth and within the hole's walls."""
    x, y, z = tip(physics.body)
    inside = jnp.maximum(jnp.abs(x), jnp.abs(y)) < 0.0005 * config.width_mm
    return inside & (z < -0.001 * config.depth_mm)


def demonstrator(config: Config, noise: float) -> Demonstrator:
    """Round the post at a distance, to a point above the hole, then down.

    Noise misplaces the hole once per episode (1 mm std per unit) and shakes every action (0.1 std per unit).
    """
    post_x, detour, clear, hover = 0.001 * config.post_mm[0], 0.034, 0.026, 0.008

    def init(key: Array, state: State) -> Plan:
        side_key, error_key = jax.random.split(key)
        return Plan(
            jax.random.randint(side_key, (), 0, 2),
            0.001 * noise * jax.random.normal(error_key, (2,)),
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, target, seen = state.physics
        x, y, z = tip(body)
        way = 2.0 * plan.side - 1.0
        aside = jnp.stack([0.001 * config.start_mm[0], way * detour, hover])
        past = jnp.stack([post_x + 0.012, way * detour, hover])
        axis = seen + plan.error
        centred = jnp.hypot(x - axis[0], y - axis[1]) < 0.0005
        depth = jnp.where(centred | (z < 0.0), -0.03, hover)
        hole = jnp.concatenate([axis, depth[None]])
        before = jnp.where(way * y < clear, aside, past)
        aim = jnp.where(x < post_x, before, hole)
        return add_action_noise(
            clip_step_towards(aim - target, 0.001 * config.speed_mm), key, 0.1 * noise
        ), plan

    return Demonstrator(init, act, mode=lambda plan: plan.side, modes=2)

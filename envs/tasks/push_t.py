"""push_t: push a T over a table into a pose.

The pusher starts on the wrong side and goes round, either way. Planar: the T slides in x and y and
turns, slowed by viscous friction as heavy as itself, so it stops where it is left; the pusher is a
frictionless ball on two slides. The goal pose is the origin of the table, upright. The T's own
frame has its centre of mass as origin and its stem towards −y.

Observation [21], all of order one:

| index | content | unit |
|---|---|---|
| 0–9 | five keypoints of the T from their goals (x, y each) | 100 mm |
| 10–11 | position of the pusher | 100 mm |
| 12–13 | pusher in the T's frame | 50 mm |
| 14–15 | velocity of the T | 0.4 m/s |
| 16 | angular velocity of the T | 4 rad/s |
| 17–18 | velocity of the pusher | 0.4 m/s |
| 19–20 | lead of the commanded position over the pusher | 20 mm |

Action [2]: change of the commanded position of the pusher, in units of ``max_step_mm``.
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
    sample_box_mm,
)
from gcp_jax.envs.physics.mjx import CONTROL_DT, Backend, Body, at_rest, scene, simulation
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.6, "poor": 3.0, "bad": 5.0}  # success 99 %, 67 %, 33 %, 12 %

CENTRES = np.array([[0.0, 0.0257], [0.0, -0.0343]])  # metres, bar and stem in the T's frame
HALVES = np.array([[0.06, 0.015], [0.015, 0.045]])  # metres, half-sides of bar and stem
KEYPOINTS = np.array(
    [[-0.06, 0.0257], [0.0, 0.0257], [0.06, 0.0257], [0.0, -0.0343], [0.0, -0.0793]]
)  # metres
BALL = 0.01  # metres, radius of the pusher
LEAD = 0.02  # metres the commanded position may be ahead of the pusher: bounds the force
TABLE = 0.25  # metres, half-width of the table

FAR = 0.1  # metres of one unit of position in the observation
NEAR = 0.05  # metres of one unit of the pusher's place in the T's frame
SPEED = 0.4  # m/s of one unit of velocity
SPIN = 4.0  # rad/s of one unit of angular velocity


@dataclass(frozen=True)
class Config:
    """Starts are boxes, given by their middle and half-widths (spread)."""

    tolerance_mm: float = field(
        12.0, POSITIVE, "mm, mean distance of the keypoints from their goals that counts as success"
    )
    max_step_mm: float = field(
        12.0, POSITIVE, "mm per control step and axis of the commanded position at action 1"
    )
    block_mm: tuple[float, float] = field((-90.0, 0.0), FINITE, "mm, T's starts")
    block_spread_mm: tuple[float, float] = field(
        (20.0, 30.0), NON_NEGATIVE, "mm, half-widths of the T's starts"
    )
    yaw_spread: float = field(0.5, NON_NEGATIVE, "rad, the T starts turned by up to this")
    pusher_mm: tuple[float, float] = field((60.0, 0.0), FINITE, "mm, pusher's starts")
    pusher_spread_mm: tuple[float, float] = field(
        (20.0, 30.0), NON_NEGATIVE, "mm, half-widths of the pusher's starts"
    )
    horizon: int = field(120, POSITIVE_INT, "control steps of an episode")
    bonus: float = field(5.0, FINITE, "reward at success, on top of the -1 of every step")

    def __post_init__(self) -> None:
        config_fields.check(self, "env.")


class Physics(NamedTuple):
    """What the task carries."""

    body: Body  # x, y, angle of the T, x, y of the pusher
    command: Array  # [2] metres, commanded position of the pusher


class Plan(NamedTuple):
    """What a demonstrator drew."""

    way: Array  # [] int32: 0 goes round clockwise, 1 anticlockwise
    error: Array  # [3] of where it sees the goal: x, y in metres and the angle


_WORLD = """
<camera name="main" pos="-.02 -.30 .42" xyaxes="1 0 0 0 .82 .57" fovy="42"/>
<geom name="table" type="plane" size="1 1 .1" material="tiles"/>
<body name="goal" pos="0 0 .0005">{goal}</body>
<body name="t" pos="0 0 .015">
  <joint name="t_x" type="slide" axis="1 0 0" damping="8"/>
  <joint name="t_y" type="slide" axis="0 1 0" damping="8"/>
  <joint name="t_turn" type="hinge" axis="0 0 1" damping=".02"/>
  {block}
</body>
<body name="pusher" pos="0 0 .015">
  <joint name="x" type="slide" axis="1 0 0" damping="18"/>
  <joint name="y" type="slide" axis="0 1 0" damping="18"/>
  <geom name="stick" type="cylinder" fromto="0 0 0 0 0 .06" size=".006" mass="0" material="steel"/>
  <geom name="pusher" type="sphere" size="{ball}" mass=".2" material="fixture"/>
</body>
"""

_BOX = """
<geom name="{name}" type="box" pos="{x} {y} 0" size="{dx} {dy} {dz}" mass="{mass}"
  material="{material}"/>
"""


def mjcf() -> str:
    """The scene in metres."""
    pairs = [f'<pair geom1="pusher" geom2="{part}" condim="1"/>' for part in ("bar", "stem")]
    return scene(
        "push_t",
        world=_WORLD.format(
            goal=_tee_mjcf("goal_{}", height=0.0005, mass=0.0, material="goal"),
            block=_tee_mjcf("{}", height=0.015, mass=0.1, material="object"),
            ball=BALL,
        ),
        pairs="".join(pairs),
        actuators="".join(f'<position joint="{axis}" kp="400"/>' for axis in "xy"),
    )


def _tee_mjcf(name: str, *, height: float, mass: float, material: str) -> str:
    """Bar and stem, ``height`` metres to either side of the body's plane; ``mass`` kg each."""
    boxes = []
    for part, (x, y), (dx, dy) in zip(("bar", "stem"), CENTRES, HALVES, strict=True):
        name_of_part = name.format(part)
        boxes.append(
            _BOX.format(
                name=name_of_part, x=x, y=y, dx=dx, dy=dy, dz=height, mass=mass, material=material
            )
        )
    return "".join(boxes)


def turned(points: Array, angle: Array) -> Array:
    """``points`` [..., 2] turned anticlockwise about the origin by ``angle`` []."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = points[..., 0], points[..., 1]
    return jnp.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def keypoint_errors(body: Body) -> Array:
    """Keypoints of the T minus their goals, [5, 2] metres."""
    return turned(jnp.asarray(KEYPOINTS), body.qpos[2]) + body.qpos[None, :2] - KEYPOINTS


def observe(physics: Physics) -> Array:
    """The observation [21]; see the module."""
    body, command = physics
    pusher = body.qpos[3:]
    parts = (
        keypoint_errors(body).reshape(-1) / FAR,
        pusher / FAR,
        turned(pusher - body.qpos[:2], -body.qpos[2]) / NEAR,
        body.qvel[:2] / SPEED,
        body.qvel[2:3] / SPIN,
        body.qvel[3:] / SPEED,
        (command - pusher) / LEAD,
    )
    return jnp.concatenate(parts)


def make(config: Config, backend: Backend = "mjx") -> Env:
    """Build the task."""
    simulated = simulation(mjcf(), backend=backend)
    max_step = 0.001 * config.max_step_mm

    def reset(key: Array) -> State:
        block_key, yaw_key, pusher_key, state_key = jax.random.split(key, 4)
        block = sample_box_mm(block_key, config.block_mm, config.block_spread_mm)
        spread = config.yaw_spread
        yaw = jax.random.uniform(yaw_key, (1,), minval=-spread, maxval=spread)
        pusher = sample_box_mm(pusher_key, config.pusher_mm, config.pusher_spread_mm)
        body = at_rest(jnp.concatenate([block, yaw, pusher]), nv=5)
        physics = Physics(body=body, command=pusher)
        return initial_state(physics, observe(physics), state_key)

    def step(state: State, action: Array) -> State:
        body, command = state.physics
        command = integrate_command(
            command,
            action,
            max_step=max_step,
            low=-TABLE,
            high=TABLE,
            measured=body.qpos[3:],
            lead=LEAD,
        )
        physics = Physics(body=simulated.step(body, command), command=command)
        distance = jnp.mean(jnp.linalg.norm(keypoint_errors(physics.body), axis=-1))
        success = distance < 0.001 * config.tolerance_mm
        return next_state(
            state, physics=physics, obs=observe(physics), success=success, bonus=config.bonus
        )

    specs = EnvSpecs(
        name="push_t",
        obs_dim=21,
        action_dim=2,
        horizon=config.horizon,
        control_dt=CONTROL_DT,
        success=f"the T's five keypoints on average within {config.tolerance_mm} mm of their goals",
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


# Where the demonstrator pushes: points on the T's outline and directions into it, in its frame.
CONTACTS = np.array(
    [[side * 0.06, 0.0257] for side in (-1, 1)]
    + [[side * 0.015, y] for y in (-0.002, -0.03, -0.065) for side in (-1, 1)]
    + [[x, 0.0407] for x in (-0.045, 0.0, 0.045)]
    + [[x, 0.0107] for x in (-0.045, 0.045)]
    + [[0.0, -0.0793]]
)
INWARD = np.array(4 * [[1, 0], [-1, 0]] + 3 * [[0, -1]] + 3 * [[0, 1]], float)
ARM = 0.05  # metres: the T's turning over sliding friction, squared; makes angles lengths
WAY_COST = 0.15  # gain that a detour of one metre must be worth
ROUND = 0.105  # metres, radius of the way round the T


def distance_from_tee(point: Array) -> Array:
    """Distance [] of ``point`` [2], in the T's frame, from the T; negative inside."""
    beyond = jnp.abs(point[None] - CENTRES) - HALVES
    outside = jnp.linalg.norm(jnp.maximum(beyond, 0.0), axis=-1)
    return jnp.min(outside + jnp.minimum(jnp.max(beyond, axis=-1), 0.0))


def _is_free(start: Array, end: Array) -> Array:
    """[] bool: the ball can go straight from ``start`` [2] to ``end`` [2] without touching the T.

    Both are in the T's frame.
    """
    fractions = jnp.linspace(0.15, 1.0, 12)
    distances = jax.vmap(lambda part: distance_from_tee((1.0 - part) * start + part * end))(
        fractions
    )
    return jnp.min(distances) > BALL + 0.001


def _best_contact(pusher: Array, error: Array) -> tuple[Array, Array]:
    """The contact whose push undoes most of ``error`` for the least way there.

    Args:
      pusher: [2] in the T's frame.
      error: [3] (x, y, angle·ARM) in the T's frame.

    Returns:
      The point [2] and the direction [2] into the T.
    """
    levers = CONTACTS[:, 0] * INWARD[:, 1] - CONTACTS[:, 1] * INWARD[:, 0]
    twists = np.concatenate([INWARD, levers[:, None] / ARM], axis=1)
    twists = twists / np.linalg.norm(twists, axis=1, keepdims=True)
    gain = -twists @ error
    way = jnp.linalg.norm(CONTACTS - BALL * INWARD - pusher[None], axis=-1)
    best = jnp.argmax(gain - WAY_COST * jnp.minimum(way, 0.1))
    return jnp.asarray(CONTACTS)[best], jnp.asarray(INWARD)[best]


def _way_round_tee(pusher: Array, goal: Array, way: Array) -> Array:
    """The next point [2] from ``pusher`` [2] round the T to ``goal`` [2], in the T's frame.

    It takes the shorter way, or ``way`` [] (−1 clockwise, 1 anticlockwise) if they lie on opposite
    sides.
    """
    angle = jnp.arctan2(pusher[1], pusher[0])
    ahead = jnp.mod(jnp.arctan2(goal[1], goal[0]) - angle + jnp.pi, 2.0 * jnp.pi) - jnp.pi
    turn = jnp.where(jnp.abs(ahead) > 2.0, way, jnp.sign(ahead)) * jnp.minimum(jnp.abs(ahead), 0.5)
    along = ROUND * jnp.stack([jnp.cos(angle + turn), jnp.sin(angle + turn)])
    outwards = ROUND * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    detour = jnp.where(_is_free(pusher, along), along, outwards)
    return jnp.where(_is_free(pusher, goal), goal, detour)


def _next_point(pusher: Array, error: Array, way: Array) -> Array:
    """Where the pusher goes next, [2]: to a stand-off before the best contact, then through it.

    Everything is in the T's frame.
    """
    point, inward = _best_contact(pusher, error)
    behind = point - (BALL + 0.006) * inward
    aside = (pusher - point) @ jnp.stack([inward[1], -inward[0]])
    before = (pusher - point) @ inward
    ready = (jnp.abs(aside) < 0.006) & (before < -BALL + 0.004) & (before > -BALL - 0.012)
    depth = jnp.clip(jnp.linalg.norm(error), 0.003, 0.03)
    return jnp.where(ready, point + (depth - BALL) * inward, _way_round_tee(pusher, behind, way))


def demonstrator(config: Config, noise: float) -> Demonstrator:
    """Push where it undoes most of the error; change the place if another gains more.

    Noise misplaces the goal once per episode (5 mm and 0.1 rad std per unit) and disturbs every
    action (0.1 std per unit).
    """

    def init(key: Array, state: State) -> Plan:
        way_key, error_key = jax.random.split(key)
        error = noise * jnp.array([0.005, 0.005, 0.1]) * jax.random.normal(error_key, (3,))
        return Plan(way=jax.random.randint(way_key, (), 0, 2), error=error)

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, command = state.physics
        place, angle, pusher = body.qpos[:2], body.qpos[2], body.qpos[3:]
        place_error = turned(place - plan.error[:2], -angle)
        error = jnp.append(place_error, ARM * (angle - plan.error[2]))
        aim = _next_point(turned(pusher - place, -angle), error, 2.0 * plan.way - 1.0)
        delta = turned(aim, angle) + place - command
        action = clip_step_towards(delta, 0.001 * config.max_step_mm)
        return add_action_noise(action, key, 0.1 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.way, modes=2)

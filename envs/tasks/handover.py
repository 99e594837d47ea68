"""handover: pick up a bar on one side of a fence, pass it over to a second hand, lay it at a goal on the other side.

The giver reaches as far as the middle of the fence and the taker from there on: neither can do it alone. Each hand
moves on three slides and closes two fingers, each with a pad of two balls, along x, across the bar, which lies along y.
The giver takes the bar by its right or its left half and the taker by the other. Hands and fingers carry their own
weight; the bar does not. The floor is smooth and the bar is held back by drag. Of the fingers only the inner ones,
those towards the other side, meet the fence. The origin is the foot of the fence, z up, the giver's side at −x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.physics.common import (
    add_action_noise,
    box,
    clip_step_towards,
    initial_state,
    integrate_command,
    next_state,
    yaw_axes,
    yaw_quaternion,
)
from gcp_jax.envs.physics.mjx import CONTROL_DT, Body, at_rest, scene, simulation
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.2, "poor": 1.7, "bad": 2.3}  # success 100 %, 66 %, 34 %, 9 %

LENGTH, SIDE = 0.07, 0.012  # metres, half the length of the bar and half its thickness
GRASP = 0.03  # metres from the middle of the bar to where a hand holds it
FENCE = np.array([0.012, 0.14])  # metres, half the thickness and half the length of the fence
PAD = 0.006  # metres, radius of the balls of a pad
OPEN, CLOSED = 0.032, 0.008  # metres from the middle of the hand to a pad's centre, commanded
LEAD = 0.018  # metres the commanded position may run ahead of the hand
SQUEEZE = 0.01  # metres the commanded opening may run ahead of the fingers: bounds the grip force
LIMITS = np.array(
    [[-0.22, -0.12, 0.01], [0.008, 0.12, 0.2]]
)  # metres, commanded giver; the taker's x is mirrored

FAR = 0.1  # metres of one unit of position in the observation
SPEED = 0.3  # m/s of one unit of velocity
SPIN = 10.0  # rad/s of one unit of angular velocity


@dataclass(frozen=True)
class Config:
    """Lengths in millimetres, as the names say; boxes of starts and goals as their middle and half-widths."""

    tolerance_mm: float = (
        10.0  # distance of either end of the bar from its place that counts as there
    )
    still: float = 0.05  # m/s the bar may move when it is there
    clear_mm: float = (
        2.0  # each finger of the taker is opened this far beyond the bar when it is there
    )
    fence_mm: float = 60.0  # height of the fence
    speed_mm: float = (
        8.0  # the commanded positions move this far per control step at action 1, per axis
    )
    grip_mm: float = (
        4.0  # the commanded opening of each finger changes by this per control step at action 1
    )
    giver_mm: tuple[float, float, float] = (-130.0, 0.0, 110.0)
    taker_mm: tuple[float, float, float] = (130.0, 0.0, 110.0)
    hand_spread_mm: tuple[float, float, float] = (20.0, 25.0, 15.0)
    bar_mm: tuple[float, float] = (-130.0, 0.0)
    bar_spread_mm: tuple[float, float] = (20.0, 25.0)
    yaw: float = 0.12  # radians, the bar is turned by up to this
    goal_mm: tuple[float, float] = (130.0, 0.0)
    goal_spread_mm: tuple[float, float] = (20.0, 25.0)
    friction: float = 1.0
    drag: float = 0.5  # N s/m that holds the bar back
    horizon: int = 150  # control steps
    bonus: float = 5.0  # reward on top of the −1 of the step of success


class Physics(NamedTuple):
    """body: giver x, y, z and two fingers, taker likewise, the bar's pose; target [2, 4]: commanded position and
    opening of giver and taker; goal [3]: of the bar's middle; metres."""

    body: Body
    target: Array
    goal: Array


class Plan(NamedTuple):
    """What a demonstrator drew: way [] int32, the giver holds the bar's right half in 0 and its left half in 1; the
    errors [3] in metres of where it sees the giver's and the taker's grasp and the goal."""

    way: Array
    giver_error: Array
    taker_error: Array
    goal_error: Array


_WORLD = """
<camera name="main" pos="0 -.52 .4" xyaxes="1 0 0 0 .57 .82" fovy="44"/>
<geom name="floor" type="plane" size="1 1 .1" material="tiles"/>
<geom name="fence" type="box" pos="0 0 {half_height}" size="{thick} {long} {half_height}" material="obstacle"/>
<body name="goal" mocap="true"><geom type="box" size="{side} {length} {side}" material="goal"/></body>
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

_HAND = """
<body name="{hand}" gravcomp="1">
  <joint name="{hand}_x" type="slide" axis="1 0 0" damping="50"/>
  <joint name="{hand}_y" type="slide" axis="0 1 0" damping="50"/>
  <joint name="{hand}_z" type="slide" axis="0 0 1" damping="50"/>
  <geom name="{hand}" type="capsule" fromto="0 0 .065 0 0 .1" size=".018" mass=".5" material="dark"/>
  <geom type="box" pos="0 0 .055" size=".042 .01 .008" mass=".05" material="dark"/>
  <body name="{hand}_left" gravcomp="1">
    <joint name="{hand}_left" type="slide" axis="-1 0 0" damping="20" ref="{open}"/>
    {left}
  </body>
  <body name="{hand}_right" gravcomp="1">
    <joint name="{hand}_right" type="slide" axis="1 0 0" damping="20" ref="{open}"/>
    {right}
  </body>
</body>
"""

_FINGER = """
<geom type="box" pos="{x} 0 .027" size=".004 .012 .028" mass=".1" material="steel"/>
<geom name="{finger}_front" type="sphere" pos="{x} -.016 0" size="{pad}" mass=".005" material="steel"/>
<geom name="{finger}_back" type="sphere" pos="{x} .016 0" size="{pad}" mass=".005" material="steel"/>
"""

_SMOOTH = '<pair geom1="floor" geom2="bar" condim="1"/>'

_PAIR = """<pair geom1="{one}" geom2="{other}" condim="3" friction="{mu} {mu} .005 .0001 .0001"
  solref=".01 1" solimp=".99 .99 .001"/>"""  # hard: in soft pads the bar slowly turns under its weight

_HANDS, _SIDES = ("giver", "taker"), ("left", "right")
_TOUCHING = (
    *(
        (f"{hand}_{side}_{place}", "bar")
        for hand in _HANDS
        for side in _SIDES
        for place in ("front", "back")
    ),
    *((inner, "fence") for inner in ("giver_right_front", "taker_left_front", "head", "tail")),
    ("giver", "taker"),
)

_SOLVER = 4  # iterations: all of the demonstrator's clean episodes succeed, with 2 only 53 %, with 1 only 3 %
_CONTACTS = 8  # of each kind at once: as many as two hands have with the bar

_ACTUATORS = "".join(
    "".join(f'<position joint="{hand}_{axis}" kp="1000"/>' for axis in "xyz")
    + "".join(f'<position joint="{hand}_{side}" kp="600"/>' for side in _SIDES)
    for hand in _HANDS
)


def mjcf(config: Config) -> str:
    """The scene in metres."""
    thick, long = FENCE
    return scene(
        "handover",
        world=_WORLD.format(
            half_height=0.0005 * config.fence_mm,
            thick=thick,
            long=long,
            length=LENGTH,
            side=SIDE,
            end=LENGTH - SIDE,
            drag=config.drag,
            giver=_hand("giver"),
            taker=_hand("taker"),
        ),
        pairs=_SMOOTH
        + "".join(
            _PAIR.format(one=one, other=other, mu=config.friction) for one, other in _TOUCHING
        ),
        actuators=_ACTUATORS,
        gravity=9.81,
        max_contact_points=_CONTACTS,
        iterations=_SOLVER,
    )


def _hand(hand: str) -> str:
    left, right = (
        _FINGER.format(finger=f"{hand}_{side}", x=x, pad=PAD)
        for side, x in zip(_SIDES, (-OPEN, OPEN), strict=True)
    )
    return _HAND.format(hand=hand, open=OPEN, left=left, right=right)


def hands(body: Body) -> Array:
    """Giver and taker: position and opening, [2, 4] metres."""
    joints = body.qpos[:10].reshape(2, 5)
    return jnp.concatenate([joints[:, :3], jnp.mean(joints[:, 3:], axis=1, keepdims=True)], axis=1)


def bar(body: Body) -> Array:
    """The middle of the bar, [3] metres."""
    return body.qpos[10:13]


def along(body: Body, distance: Array | float) -> Array:
    """The point on the bar's axis ``distance`` [] metres from its middle towards its left end, [3] metres."""
    return bar(body) + distance * yaw_axes(body.qpos[13:17])[0]


def observe(physics: Physics) -> Array:
    """[48]: hands, bar from either hand, bar, goal from bar, the bar's x and z axes, velocity and angular velocity, the
    hands' velocities and lead of their commands, each finger's opening; all of order one."""
    body, target, goal = physics
    held = hands(body)
    parts = (
        held[:, :3] / FAR,
        (bar(body)[None] - held[:, :3]) / FAR,
        bar(body) / FAR,
        (goal - bar(body)) / FAR,
        *yaw_axes(body.qpos[13:17]),
        body.qvel[10:13] / SPEED,
        body.qvel[13:16] / SPIN,
        body.qvel[:10].reshape(2, 5)[:, :3] / SPEED,
        (target[:, :3] - held[:, :3]) / LEAD,
        (body.qpos[:10].reshape(2, 5)[:, 3:] - SIDE - PAD) / SQUEEZE,
        (target[:, 3] - held[:, 3]) / SQUEEZE,
    )
    return jnp.concatenate([jnp.ravel(part) for part in parts])


def make(config: Config) -> Env:
    """action [8]: how the commanded position and opening of the giver, then of the taker, change, in units of
    ``speed_mm`` and ``grip_mm``."""
    simulated = simulation(mjcf(config))
    speed = 0.001 * np.array([[config.speed_mm] * 3 + [config.grip_mm]])
    (west, south, floor), (east, north, top) = LIMITS
    low = np.array([[west, south, floor, CLOSED], [-east, south, floor, CLOSED]])
    high = np.array([[east, north, top, OPEN], [-west, north, top, OPEN]])
    ahead = np.array([[LEAD] * 3 + [SQUEEZE]])

    def reset(key: Array) -> State:
        giver_key, taker_key, bar_key, yaw_key, goal_key, state_key = jax.random.split(key, 6)
        giver = box(giver_key, config.giver_mm, config.hand_spread_mm)
        taker = box(taker_key, config.taker_mm, config.hand_spread_mm)
        place = box(bar_key, (*config.bar_mm, 1000.0 * SIDE), (*config.bar_spread_mm, 0.0))
        yaw = jnp.pi / 2 + jax.random.uniform(yaw_key, minval=-config.yaw, maxval=config.yaw)
        goal = box(goal_key, (*config.goal_mm, 1000.0 * SIDE), (*config.goal_spread_mm, 0.0))
        qpos = jnp.concatenate(
            [giver, jnp.full(2, OPEN), taker, jnp.full(2, OPEN), place, yaw_quaternion(yaw)]
        )
        target = jnp.stack([jnp.append(giver, OPEN), jnp.append(taker, OPEN)])
        physics = Physics(at_rest(qpos, nv=16), target, goal)
        return initial_state(physics, observe(physics), state_key)

    def step(state: State, action: Array) -> State:
        body, target, goal = state.physics
        move = action.reshape(2, 4)
        target = integrate_command(
            target, move, reach=speed, low=low, high=high, held=hands(body), lead=ahead
        )
        control = jnp.ravel(target[:, np.array([0, 1, 2, 3, 3])])
        physics = Physics(simulated.step(body, control), target, goal)
        return next_state(
            state,
            physics=physics,
            obs=observe(physics),
            success=laid(config, physics),
            bonus=config.bonus,
        )

    specs = EnvSpecs(
        name="handover",
        obs_dim=48,
        action_dim=8,
        horizon=config.horizon,
        control_dt=CONTROL_DT,
        success=(
            f"both ends of the bar within {config.tolerance_mm} mm of their places, slower than {config.still} m/s, "
            f"each finger of the taker opened {config.clear_mm} mm beyond it"
        ),
    )
    return Env(
        reset,
        step,
        specs,
        demonstrator=lambda noise: demonstrator(config, noise),
        scene=lambda: Scene(simulated.model, _pose, "main"),
    )


def _pose(state: State) -> dict[str, np.ndarray]:
    return {"qpos": state.physics.body.qpos, "mocap_pos": state.physics.goal[None]}


def laid(config: Config, physics: Physics) -> Array:
    """[] bool: the bar lies at the goal, let go and slow."""
    body, _, goal = physics
    end = jnp.array([0.0, LENGTH, 0.0])
    away = jnp.stack([along(body, LENGTH) - goal - end, along(body, -LENGTH) - goal + end])
    there = jnp.max(jnp.linalg.norm(away, axis=1)) < 0.001 * config.tolerance_mm
    free = jnp.min(body.qpos[8:10]) > SIDE + PAD + 0.001 * config.clear_mm
    return there & free & (jnp.linalg.norm(body.qvel[10:13]) < config.still)


def demonstrator(config: Config, noise: float) -> Demonstrator:
    """The giver grasps the bar and brings it over the fence; the taker comes down over the other half and closes; the
    giver opens and rises; the taker lays the bar at the goal and opens. A bar that was lost is picked up again.

    Noise misplaces both grasps and the goal once per episode (3 mm std per unit) and shakes every action (0.1 std per
    unit).
    """
    speed, grip = 0.001 * config.speed_mm, 0.001 * config.grip_mm

    def init(key: Array, state: State) -> Plan:
        way_key, *error_keys = jax.random.split(key, 4)
        way = jax.random.randint(way_key, (), 0, 2)
        return Plan(way, *(0.003 * noise * jax.random.normal(k, (3,)) for k in error_keys))

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, target, goal = state.physics
        reach = GRASP * (2.0 * plan.way - 1.0)
        grasps = along(body, reach) + plan.giver_error, along(body, -reach) + plan.taker_error
        giver, taker = (_grasp(*hand) for hand in zip(hands(body), target, grasps, strict=True))
        give, giver_opening = _give(config, bar(body), giver, taker)
        take, taker_opening = _take(config, bar(body), giver, taker, goal + plan.goal_error)
        moves = (
            clip_step_towards(give - target[0, :3], speed),
            clip_step_towards(giver_opening - target[0, 3:], grip),
            clip_step_towards(take - target[1, :3], speed),
            clip_step_towards(taker_opening - target[1, 3:], grip),
        )
        return add_action_noise(jnp.concatenate(moves), key, 0.1 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.way, modes=2)


class Grasp(NamedTuple):
    """A hand and the place where it is to grasp the bar."""

    hand: Array  # [3] metres, where it is
    around: Array  # [] bool: it is where it is to grasp
    holds: Array  # [] bool: and has closed on the bar
    opened: Array  # [] bool: its pads are off the bar
    approach: Array  # [3] metres, where it should go next to grasp: from above


def _grasp(hand: Array, target: Array, grasp: Array) -> Grasp:
    """``hand`` and ``target`` [4], position and opening, actual and commanded; ``grasp`` [3], where it is to grasp. A
    hand that has begun to close opens only when it is far off."""
    offset = grasp - hand[:3]
    away = jnp.hypot(offset[0], offset[1])
    near = jnp.where(target[3] < OPEN - 0.004, 0.015, 0.006)
    around = (jnp.abs(offset[2]) < near) & (away < near)
    holds = around & (hand[3] - target[3] > 0.5 * SQUEEZE)
    above = grasp.at[2].add(jnp.minimum(0.05, 4.0 * jnp.maximum(away - 0.003, 0.0)))
    return Grasp(hand[:3], around, holds, hand[3] > SIDE + PAD + 0.003, above)


def _give(config: Config, place: Array, giver: Grasp, taker: Grasp) -> tuple[Array, Array]:
    """Where the giver should go next, [3] metres, and its opening []; the bar is at ``place`` [3]."""
    passed = taker.holds | _across(place)
    bring = giver.hand + _over(config, place, jnp.zeros(2)) - place
    rise = giver.hand.at[2].add(jnp.where(giver.opened, 0.03, 0.0))
    leave = jnp.where(_beside(giver, place), rise, 0.001 * np.asarray(config.giver_mm))
    aim = jnp.where(passed, leave, jnp.where(giver.holds, bring, giver.approach))
    return aim, jnp.where(giver.around & ~passed, CLOSED, OPEN)


def _take(
    config: Config, place: Array, giver: Grasp, taker: Grasp, goal: Array
) -> tuple[Array, Array]:
    """Where the taker should go next, [3] metres, and its opening []; the bar is at ``place`` [3], ``goal`` [3]."""
    off = jnp.hypot(*(place - goal)[:2])
    lying = (off < 0.005) & (place[2] < SIDE + 0.003)
    offered = (place[2] > _height(config) - 0.015) & (jnp.abs(place[0]) < 0.01)
    wait = jnp.array([0.06, 0.0, _height(config) + 0.05])
    fetch = jnp.where(offered | _across(place), taker.approach, wait)
    way = jnp.where(off < 0.01, goal.at[2].set(SIDE - 0.003), _over(config, place, goal[:2]))
    bring = jnp.where(_beside(giver, place), 0.0, way - place)
    aim = jnp.where(taker.holds, taker.hand + bring, fetch)
    return jnp.where(lying, taker.hand, aim), jnp.where(taker.around & ~lying, CLOSED, OPEN)


def _height(config: Config) -> float:
    """The bar's height in the air, metres."""
    return 0.001 * config.fence_mm + 0.045


def _over(config: Config, place: Array, goal: Array) -> Array:
    """Where the bar at ``place`` [3] should go next on its way to the air above ``goal`` [2]: up, then there."""
    height = _height(config)
    return jnp.where(place[2] > height - 0.015, jnp.append(goal, height), place.at[2].set(height))


def _across(place: Array) -> Array:
    """[] bool: the bar at ``place`` [3] is on the taker's side."""
    return place[0] > 0.03


def _beside(giver: Grasp, place: Array) -> Array:
    """[] bool: the giver's fingers stand beside the bar at ``place`` [3]."""
    return (jnp.abs(giver.hand[0] - place[0]) < 0.05) & (giver.hand[2] < place[2] + 0.025)

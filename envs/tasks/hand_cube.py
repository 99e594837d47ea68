"""hand_cube: turn a cube on the palm to a goal yaw with sixteen joints. Either pair of opposite fingers can do it.

Four fingers of four hinges stand around an open palm, as in D'Claw, with links of Allegro's proportions: a vertical
hinge at the base, then three flexions. A finger reaches only part of a turn, so large turns take several grips. Only
the fingertips and the palm touch the cube. The origin is the middle of the palm, z up.
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
    yaw_axes,
    yaw_quaternion,
)
from gcp_jax.envs.physics.mjx import CONTROL_DT, Body, at_rest, scene, simulation
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.0, "poor": 2.0, "bad": 2.8}  # success 99 %, 65 %, 30 %, 11 %

FINGERS = 4
AROUND = np.pi / 2 * np.arange(FINGERS)  # radians, where on the palm's rim each finger stands
RIM = 0.095  # metres from the middle of the palm to a finger's base
BASE = 0.012  # metres, height of the first flexion
LINKS = np.array(
    [0.050, 0.040, 0.040]
)  # metres, proximal, middle, distal up to the middle of the tip
TIP = 0.008  # metres, radius of a fingertip
OPEN = np.tile(
    [0.0, -0.477, 2.032, 0.945], FINGERS
)  # radians, the hand that lets go: tips at AWAY and HEIGHT
LIMITS = np.array(
    [[-0.9, -0.9, 0.3, 0.3], [0.9, 0.9, 2.2, 1.9]]
)  # radians, commanded angles of one finger
ITERATIONS = (
    2  # of the solver: with one, the cube rocks twice as fast and some episodes fail (61 of 64)
)
LEAD = 0.2  # radians the commanded angles may run ahead of the joints: bounds the forces
PALM = 0.03  # metres from the middle of the palm within which the cube counts as on it
LIFT = 0.004  # metres the cube may be above its resting height when it counts as on the palm

AWAY = 0.054  # metres, half the distance of two opposite tips that clear the cube's corners
HEIGHT = 0.025  # metres, of the demonstrator's tips
SQUEEZE = 0.008  # metres, how far into the cube's faces it commands the tips
SWEEP = 0.6  # radians to either side of its base that a finger goes round the palm's middle
SLANT = 0.35  # radians between the line of the tips and the normal of the faces they press, at most
PACE = 0.06  # radians per control step, of turning
CLOSING, MOVING = (
    0.0035,
    0.004,
)  # metres per control step, of closing or opening and of the middle of the grip

BENT = 0.5  # radians of one unit of joint angle in the observation
NEAR = 0.03  # metres of one unit of position
SPEED = 0.1  # m/s of one unit of velocity
SPIN = 3.0  # rad/s of one unit of angular velocity


@dataclass(frozen=True)
class Config:
    """Lengths in millimetres and angles in radians, as the names say."""

    tolerance: float = 0.15  # radians of orientation error that counts as there
    still: float = 0.6  # rad/s the cube may turn when it is there
    turn: tuple[float, float] = (0.8, 2.1)  # radians from the start's yaw to the goal's, either way
    yaw: float = 0.5  # radians, the cube starts turned by up to this
    spread_mm: float = 5.0  # the cube starts up to this far from the middle of the palm, in x and y
    bend: float = 0.1  # radians, joints start up to this far from the open hand
    side_mm: float = 50.0  # of the cube
    step: float = 0.12  # radians a commanded angle moves per control step at action 1
    friction: float = 1.0  # of the fingertips
    palm_friction: float = 0.3
    horizon: int = 150  # control steps
    bonus: float = 5.0  # reward on top of the −1 of the step of success


class Physics(NamedTuple):
    """body: sixteen joints, finger by finger, and the cube's pose; command [16]: angles, radians; goal []: yaw."""

    body: Body
    command: Array
    goal: Array


class Grip(NamedTuple):
    """Where two opposite fingertips are: the middle between them [2] and half their distance [], metres; the angle [],
    radians, by which their line is turned from the fingers' bases."""

    middle: Array
    reach: Array
    angle: Array


class Plan(NamedTuple):
    """What a demonstrator drew: pair [] int32, 0 turns with fingers 0 and 2, and 1 with 1 and 3; the errors of where it
    sees the cube [2], metres, and the goal's yaw []; and its phase [] int32."""

    pair: Array
    error: Array
    goal_error: Array
    phase: Array


BACK, CLOSE, TURN, RELEASE = range(4)  # phases

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

_PAIR = '<pair geom1="{one}" geom2="{other}" condim="3" friction="{mu} {mu} .005 .0001 .0001" solimp=".5 .8 .002"/>'

_ACTUATORS = "".join(
    f'<position joint="{part}{i}" kp="1.5"/>'
    for i in range(FINGERS)
    for part in ("yaw", "proximal", "middle", "distal")
)


def mjcf(config: Config) -> str:
    """The scene in metres."""
    l0, l1, l2 = LINKS
    sizes = dict(base=BASE, l0=l0, l1=l1, l2=l2, tip=TIP, joint=_JOINT)
    fingers = "".join(
        _FINGER.format(i=i, x=RIM * np.cos(a), y=RIM * np.sin(a), inward=a + np.pi, **sizes)
        for i, a in enumerate(AROUND)
    )
    tips = [f"tip{i}" for i in range(FINGERS)]
    pairs = [(tip, "cube", config.friction) for tip in tips]
    pairs += [(one, "palm", config.palm_friction) for one in (*tips, "cube")]
    return scene(
        "hand_cube",
        world=_WORLD.format(half=0.0005 * config.side_mm, fingers=fingers),
        pairs="".join(_PAIR.format(one=one, other=other, mu=mu) for one, other, mu in pairs),
        actuators=_ACTUATORS,
        gravity=9.81,
        iterations=ITERATIONS,
    )


def fingertips(joints: Array) -> Array:
    """Where the middles of the tips are, [4, 3] metres, at joint angles [16]."""
    turned, *bends = joints.reshape(FINGERS, 4).T
    tilt = jnp.cumsum(jnp.stack(bends), axis=0)  # [3, 4] of the links from the vertical, inwards
    reach, height = LINKS @ jnp.sin(tilt), BASE + LINKS @ jnp.cos(tilt)
    heading = turned + AROUND + np.pi
    x = RIM * np.cos(AROUND) + reach * jnp.cos(heading)
    y = RIM * np.sin(AROUND) + reach * jnp.sin(heading)
    return jnp.stack([x, y, height], axis=-1)


def bent_to(tips: Array, tilt: float = 2.5) -> Array:
    """The joint angles [16] that bring the tips to [4, 3] metres, the distal links ``tilt`` from the vertical."""
    x, y, z = tips.T
    dx, dy = x - RIM * np.cos(AROUND), y - RIM * np.sin(AROUND)
    turned = _wrapped(jnp.arctan2(dy, dx) - AROUND - np.pi)
    along, up = jnp.hypot(dx, dy) - LINKS[2] * np.sin(tilt), z - BASE - LINKS[2] * np.cos(tilt)
    cosine = (along**2 + up**2 - LINKS[0] ** 2 - LINKS[1] ** 2) / (2.0 * LINKS[0] * LINKS[1])
    middle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    elbow = jnp.arctan2(LINKS[1] * jnp.sin(middle), LINKS[0] + LINKS[1] * jnp.cos(middle))
    proximal = jnp.arctan2(along, up) - elbow
    return jnp.stack([turned, proximal, middle, tilt - proximal - middle], axis=-1).reshape(-1)


def _wrapped(angle: Array, period: float = 2.0 * np.pi) -> Array:
    """``angle`` within half a period of zero."""
    return jnp.mod(angle + period / 2, period) - period / 2


def cube(body: Body) -> Array:
    """The middle of the cube, [3] metres."""
    return body.qpos[16:19]


def remaining(physics: Physics) -> Array:
    """[] radians in [−π, π): yaw from the cube to the goal."""
    first, _ = yaw_axes(physics.body.qpos[19:23])
    return _wrapped(physics.goal - jnp.arctan2(first[1], first[0]))


def observe(physics: Physics) -> Array:
    """[62]: joints and lead of their commands, fingertips from the cube, the cube's middle, x and z axes and velocities,
    the yaw to go with its sine and cosine; all of order one."""
    body, command, _ = physics
    joints, where = body.qpos[:16], cube(body)
    go = remaining(physics)
    parts = (
        (joints - OPEN) / BENT,
        (command - joints) / LEAD,
        (fingertips(joints) - where[None]).reshape(-1) / NEAR,
        where / NEAR,
        *yaw_axes(body.qpos[19:23]),
        body.qvel[16:19] / SPEED,
        body.qvel[19:22] / SPIN,
        jnp.stack([go, jnp.sin(go), jnp.cos(go)]),
    )
    return jnp.concatenate(parts)


def make(config: Config) -> Env:
    """action [16]: how the commanded joint angles move, in units of ``step``."""
    simulated = simulation(mjcf(config))
    low, high = (np.tile(limit, FINGERS) for limit in LIMITS)

    def reset(key: Array) -> State:
        bend_key, place_key, yaw_key, side_key, turn_key, state_key = jax.random.split(key, 6)
        joints = config.bend * jax.random.uniform(bend_key, (16,), minval=-1.0, maxval=1.0) + OPEN
        place = (
            0.001 * config.spread_mm * jax.random.uniform(place_key, (2,), minval=-1.0, maxval=1.0)
        )
        yaw = jax.random.uniform(yaw_key, minval=-config.yaw, maxval=config.yaw)
        way = jnp.where(jax.random.bernoulli(side_key), 1.0, -1.0)
        goal = yaw + way * jax.random.uniform(
            turn_key, minval=config.turn[0], maxval=config.turn[1]
        )
        height = jnp.full(1, 0.0005 * config.side_mm)
        qpos = jnp.concatenate([joints, place, height, yaw_quaternion(yaw)])
        physics = Physics(at_rest(qpos, nv=22), joints, goal)
        return initial_state(physics, observe(physics), state_key)

    def step(state: State, action: Array) -> State:
        body, target, goal = state.physics
        target = integrate_command(
            target, action, reach=config.step, low=low, high=high, held=body.qpos[:16], lead=LEAD
        )
        physics = Physics(simulated.step(body, target), target, goal)
        return next_state(
            state,
            physics=physics,
            obs=observe(physics),
            success=solved(config, physics),
            bonus=config.bonus,
        )

    specs = EnvSpecs(
        name="hand_cube",
        obs_dim=62,
        action_dim=16,
        horizon=config.horizon,
        control_dt=CONTROL_DT,
        success=f"the cube flat on the palm within {config.tolerance} rad of the goal, slower than {config.still} rad/s",
    )
    return Env(
        reset,
        step,
        specs,
        demonstrator=lambda noise: demonstrator(config, noise),
        scene=lambda: Scene(simulated.model, _pose, "main"),
    )


def _pose(state: State) -> dict[str, np.ndarray]:
    goal = state.physics.goal
    turned = np.array([[np.cos(goal / 2), 0.0, 0.0, np.sin(goal / 2)]])
    return {"qpos": state.physics.body.qpos, "mocap_quat": turned}


def solved(config: Config, physics: Physics) -> Array:
    """[] bool: the cube rests on the palm, within ``tolerance`` of the goal's orientation, and turns slowly."""
    body = physics.body
    x, y, z = cube(body)
    alike = jnp.abs(jnp.dot(body.qpos[19:23], yaw_quaternion(physics.goal)))
    aligned = alike > np.cos(config.tolerance / 2)
    resting = (jnp.hypot(x, y) < PALM) & (jnp.abs(z - 0.0005 * config.side_mm) < LIFT)
    return aligned & resting & (jnp.linalg.norm(body.qvel[19:22]) < config.still)


def grip_of(tips: Array, pair: Array) -> Grip:
    """How ``pair`` [] int32 stands, from all tips [4, 3]."""
    one, other = tips[pair, :2], tips[pair + 2, :2]
    x, y = (one - other) / 2
    return Grip(
        (one + other) / 2, jnp.hypot(x, y), _wrapped(jnp.arctan2(y, x) - jnp.asarray(AROUND)[pair])
    )


def tips_of(grip: Grip) -> Array:
    """The tips [4, 3] of both pairs standing like ``grip``, each from its own bases, at ``HEIGHT``."""
    heading = AROUND + grip.angle
    x = grip.middle[0] + grip.reach * jnp.cos(heading)
    y = grip.middle[1] + grip.reach * jnp.sin(heading)
    return jnp.stack([x, y, jnp.full(FINGERS, HEIGHT)], axis=-1)


def demonstrator(config: Config, noise: float) -> Demonstrator:
    """Pinches the cube between two opposite tips, turns it as far as they reach, lets go, goes back and grips again.

    Noise misplaces the cube (7 mm std per unit) and the goal's yaw (0.2 rad std per unit) once per episode, and shakes
    every action (0.15 std per unit).
    """
    half = 0.0005 * config.side_mm
    rates = Grip(*(jnp.asarray(rate) for rate in (MOVING, CLOSING, PACE)))

    def init(key: Array, state: State) -> Plan:
        pair_key, place_key, goal_key = jax.random.split(key, 3)
        pair = jax.random.randint(pair_key, (), 0, 2)
        error = 0.007 * noise * jax.random.normal(place_key, (2,))
        return Plan(pair, error, 0.2 * noise * jax.random.normal(goal_key), jnp.int32(BACK))

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, command, goal = state.physics
        now = grip_of(fingertips(command), plan.pair)
        go = remaining(state.physics) + plan.goal_error
        way = jnp.where(go > 0.0, 1.0, -1.0)
        yaw = goal - remaining(state.physics)
        seen = cube(body)[:2] + plan.error
        begin = _begin(yaw, way)
        closed = (half + TIP) / jnp.cos(_wrapped(now.angle - yaw, np.pi / 2)) - SQUEEZE

        there = (jnp.abs(now.angle - begin) < 0.03) & (jnp.linalg.norm(now.middle - seen) < 0.002)
        clear = now.reach > AWAY - 0.002
        gripped = now.reach < closed + 0.002
        spent = (way * now.angle > SWEEP - 0.01) & (jnp.abs(go) > 0.03)
        over = jnp.stack([there & clear, gripped, spent, clear])[plan.phase]
        phase = jnp.where(over, (plan.phase + 1) % 4, plan.phase)

        aims = (
            Grip(seen, jnp.asarray(AWAY), begin),
            Grip(seen, closed - 0.001, begin),
            Grip(jnp.zeros(2), closed, now.angle + 0.5 * go),
            Grip(now.middle, jnp.asarray(AWAY), now.angle),
        )
        aim = jax.tree.map(lambda *options: jnp.stack(options)[phase], *aims)
        moved = jax.tree.map(lambda a, b, rate: a + jnp.clip(b - a, -rate, rate), now, aim, rates)
        turning = np.arange(FINGERS) % 2 == plan.pair
        joints = jnp.where(jnp.repeat(turning, 4), bent_to(tips_of(moved)), OPEN)
        return add_action_noise(
            clip_step_towards(joints - command, config.step), key, 0.15 * noise
        ), plan._replace(phase=phase)

    return Demonstrator(init, act, mode=lambda plan: plan.pair, modes=2)


def _begin(yaw: Array, way: Array) -> Array:
    """The angle [] at which to grip a cube at ``yaw`` [] that leaves the longest turn in direction ``way`` [], ±1."""
    furthest = SWEEP + SLANT  # a face whose normal is further back than this is out of reach
    face = jnp.mod(way * yaw + furthest, np.pi / 2) - furthest
    return way * jnp.maximum(face - SLANT, -SWEEP)

"""adroit_relocate: grasp a ball on a table with the Adroit hand and move it to a target in the air.

The model, targets, actions and observation are those of AdroitHandRelocate in gymnasium-robotics. What differs: a
control step is 32 ms instead of 10, the ball has a free joint, its places end 40 mm earlier (the arm's rail is too
short), the observation also has velocities, and the tolerance is half as wide. The table has no edge. The origin is
the middle of its top, y away from the arm, z up. The scripted grasp comes from the left or the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from gcp_jax.envs.physics.common import add_action_noise, box, initial_state, next_state
from gcp_jax.envs.physics.mjx import Body, at_rest, simulation
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State
from gcp_jax.envs.robots import adroit

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 0.5, "poor": 0.85, "bad": 1.1}  # success 100 %, 66 %, 29 %, 12 %

ARM, HAND = 6, 30  # joints of the arm; of arm and hand together, all actuated
RADIUS = 0.035  # metres, of the ball
LIFTED = 0.01  # metres the ball must be off the table

NEAR = 0.1  # metres of one unit of the ball from the palm in the observation
FAR = 0.2  # metres of one unit of palm and ball from the target
SPEED = 0.5  # m/s or rad/s of one unit of velocity


@dataclass(frozen=True)
class Config:
    """Lengths in millimetres, as the names say; boxes of starts and targets as their middle and half-widths."""

    tolerance_mm: float = (
        50.0  # distance of the ball from the target that counts as there; the original's is 100
    )
    still: float = 0.5  # m/s the ball may move when it is there
    ball_mm: tuple[float, float] = (0.0, 55.0)
    ball_spread_mm: tuple[float, float] = (150.0, 205.0)
    target_mm: tuple[float, float, float] = (0.0, 0.0, 250.0)
    target_spread_mm: tuple[float, float, float] = (200.0, 200.0, 100.0)
    friction: float = 1.0
    horizon: int = 100  # control steps
    bonus: float = 5.0  # reward on top of the −1 of the step of success


class Physics(NamedTuple):
    """body: arm and hand [30], then the ball's pose [7]; target [3] and palm [3] (its grasp site), metres."""

    body: Body
    target: Array
    palm: Array


class Plan(NamedTuple):
    """What a demonstrator drew: side [] int32, 0 comes from the left and 1 from the right; the errors, metres, of where
    it sees ball [2] and target [3]."""

    side: Array
    ball_error: Array
    target_error: Array


_GRIPPING = ("C_palm0", *(f"C_{digit}distal" for digit in (*adroit.FINGERS, "th")))
# These touch the ball without friction: a quarter of the solver's rows.
_GUARDING = tuple(f"C_{digit}middle" for digit in (*adroit.FINGERS, "th"))


def _edit(friction: float, spec: mujoco.MjSpec) -> None:
    """The ball on a free joint, a table that is a plane, a target that moves, and what may touch."""
    plane, sphere = mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_SPHERE
    spec.worldbody.add_geom(
        name="table", type=plane, size=[0.45, 0.45, 0.1], contype=0, conaffinity=0, group=4
    )
    spec.delete(spec.site("target"))
    target = spec.worldbody.add_body(name="target", mocap=True)
    target.add_geom(
        type=sphere, size=[0.07, 0.0, 0.0], rgba=[0.0, 1.0, 0.0, 0.2], contype=0, conaffinity=0
    )
    ball = spec.body("Object")
    for joint in list(ball.joints):
        spec.delete(joint)
    ball.add_freejoint(name="ball")
    adroit.touching(spec, "table", adroit.feelers(spec))
    adroit.touching(spec, "sphere", ("table", *_GRIPPING), friction)
    adroit.touching(spec, "sphere", _GUARDING)


def ball(body: Body) -> Array:
    """The middle of the ball, [3] metres."""
    return body.qpos[HAND : HAND + 3]


def make(config: Config) -> Env:
    """action [30]: the commands of the position actuators, each range mapped to [-1, 1] as in the original.

    Absolute commands carry no state of their own, and errors of a chunk do not add up.
    """
    models = adroit.models("relocate", lambda spec, _: _edit(config.friction, spec))
    simulated = simulation(models.simulated, adroit.SUBSTEPS)
    commands = adroit.ranged(models.simulated.actuator_ctrlrange)
    joints = adroit.ranged(models.simulated.jnt_range[:HAND])
    grasp = models.simulated.site("S_grasp").id

    def sensed(body: Body, target: Array) -> Physics:
        return Physics(body, target, simulated.frames(body).site_xpos[grasp])

    def observe(physics: Physics) -> Array:
        """[48]: joints, palm from ball, palm from target, ball from target, velocities of arm and ball."""
        body, target, palm = physics
        parts = (
            joints.unit(body.qpos[:HAND]),
            (palm - ball(body)) / NEAR,
            (palm - target) / FAR,
            (ball(body) - target) / FAR,
            body.qvel[:ARM] / SPEED,
            body.qvel[HAND : HAND + 3] / SPEED,
        )
        return jnp.concatenate(parts)

    def reset(key: Array) -> State:
        ball_key, target_key, state_key = jax.random.split(key, 3)
        place = box(ball_key, config.ball_mm, config.ball_spread_mm)
        upright = jnp.array([RADIUS, 1.0, 0.0, 0.0, 0.0])
        body = at_rest(jnp.concatenate([jnp.zeros(HAND), place, upright]), nv=HAND + 6)
        physics = sensed(body, box(target_key, config.target_mm, config.target_spread_mm))
        return initial_state(physics, observe(physics), state_key)

    def step(state: State, action: Array) -> State:
        body, target, _ = state.physics
        physics = sensed(simulated.step(body, commands.value(action)), target)
        return next_state(
            state,
            physics=physics,
            obs=observe(physics),
            success=relocated(config, physics),
            bonus=config.bonus,
        )

    specs = EnvSpecs(
        name="adroit_relocate",
        obs_dim=48,
        action_dim=HAND,
        horizon=config.horizon,
        control_dt=simulated.dt,
        success=f"the ball off the table, within {config.tolerance_mm} mm of the target, slower than {config.still} m/s",
    )
    return Env(
        reset,
        step,
        specs,
        demonstrator=lambda noise: demonstrator(commands, noise),
        scene=lambda: Scene(models.drawn, _pose, "vil_camera"),
    )


def _pose(state: State) -> dict[str, np.ndarray]:
    return {"qpos": state.physics.body.qpos, "mocap_pos": state.physics.target[None]}


def relocated(config: Config, physics: Physics) -> Array:
    """[] bool: the ball is off the table, at the target and slow."""
    body, target, _ = physics
    away = jnp.linalg.norm(ball(body) - target)
    speed = jnp.linalg.norm(body.qvel[HAND : HAND + 3])
    lifted = ball(body)[2] > RADIUS + LIFTED
    return lifted & (away < 0.001 * config.tolerance_mm) & (speed < config.still)


# The scripted grasp: where the palm's site is from the ball, in the turned hand's frame, and the fingers' commands.
_OFFSET = np.array([0.005, -0.022, -0.004])  # metres
_HOVER = 0.06  # metres above that until the hand is over the ball
_CLEAR = 0.08  # metres the ball is lifted before it is carried at full speed
_LOST = 0.055  # metres from palm to ball beyond which it is no longer held
_YAW = 0.25  # radians the hand is turned, less where the arm would leave its rails
_RAIL = 0.24  # metres the arm's base may be off the middle
_LEVER = 0.5  # metres from the arm's base to the palm's site
_LAG = 0.2  # seconds by which the arm's slides follow a moving aim
_GRAVITY = 15.6  # N·m about the base, of arm and hand held level
_REACH = np.array(
    [0.09, 0.1, 0.1, 0.18, 0.1, 0.1]
)  # metres and radians: bounds the pull of each joint of the arm


# Commands of the joints, radians: first, middle, ring, little finger from the knuckle out, then the thumb.
_OPEN = np.concatenate(
    [
        (-0.25, 0.42, 0.21, 0.0),
        (0.0, 0.42, 0.21, 0.0),
        (0.13, 0.42, 0.21, 0.0),
        (0.1, 0.25, 0.42, 0.21, 0.0),
        (-1.0, 0.59, 0.2, -0.43, -0.19),
    ]
)
_CLOSED = np.concatenate(
    [
        (0.09, 0.44, 1.26, 0.97),
        (0.0, 0.56, 1.26, 0.97),
        (0.02, 0.56, 1.26, 0.97),
        (0.05, -0.09, 0.85, 1.46, 0.97),
        (-0.12, 1.3, 0.2, -0.35, -1.51),
    ]
)
_CURLED = 14  # the ring finger's second joint


def demonstrator(commands: adroit.JointRange, noise: float) -> Demonstrator:
    """Comes down over the ball, closes, carries it to the target; starts over when it loses the ball.

    Noise misplaces ball and target once per episode (8 mm std per unit) and shakes every action (0.03 std per unit).
    """

    def init(key: Array, state: State) -> Plan:
        side_key, ball_key, target_key = jax.random.split(key, 3)
        errors = (
            0.008 * noise * jax.random.normal(k, (n,)) for k, n in ((ball_key, 2), (target_key, 3))
        )
        return Plan(jax.random.randint(side_key, (), 0, 2), *errors)

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, target, palm = state.physics
        seen = ball(body).at[:2].add(plan.ball_error)
        pose = seen + _turned(_OFFSET, body.qpos[4])
        beside = jnp.linalg.norm(palm[:2] - pose[:2])
        closed = body.qpos[_CURLED] > 0.75
        over = (jnp.linalg.norm(palm[:2] - seen[:2]) < 0.045) & (jnp.abs(palm[2] - seen[2]) < 0.014)
        around = over | (closed & (jnp.linalg.norm(palm - ball(body)) < _LOST))
        hover = jnp.minimum(_HOVER, 4.0 * jnp.maximum(beside - 0.01, 0.0))
        above = pose + _LAG * body.qvel[HAND : HAND + 3] + hover * np.array([0.0, 0.0, 1.0])
        off = target + plan.target_error - ball(body)
        carried = palm + off.at[:2].multiply(jnp.clip((seen[2] - RADIUS) / _CLEAR, 0.0, 1.0))
        arm = _arm(body, palm, jnp.where(around & closed, carried, above), 2.0 * plan.side - 1.0)
        fingers = jnp.where(around, _CLOSED, _OPEN)
        action = commands.unit(jnp.concatenate([arm, fingers]))
        return add_action_noise(action, key, 0.03 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.side, modes=2)


def _turned(offset: np.ndarray, yaw: Array) -> Array:
    """``offset`` [3] turned about the vertical by ``yaw`` [] radians."""
    c, s = jnp.cos(yaw), jnp.sin(yaw)
    return jnp.stack(
        [c * offset[0] - s * offset[1], s * offset[0] + c * offset[1], jnp.float32(offset[2])]
    )


def _arm(body: Body, palm: Array, aim: Array, way: Array) -> Array:
    """Commands [8] of arm and wrist that bring the ``palm`` [3] to ``aim`` [3], level, turned to the side ``way``."""
    q, v = body.qpos[:ARM], body.qvel[:ARM]
    yaw = jnp.clip(way * _YAW, (-_RAIL - aim[0]) / _LEVER, (_RAIL - aim[0]) / _LEVER)
    off = aim - palm
    none = jnp.zeros(())
    swing = _LEVER * (
        jnp.sin(yaw) - jnp.sin(q[4])
    )  # metres the palm will still move aside as the arm turns
    wanted = jnp.stack(
        [q[0] - off[0] - swing, none, q[2] + off[1], q[3] - off[2] / _LEVER, yaw, none]
    )
    load = jnp.zeros(ARM).at[3].set(-_GRAVITY * jnp.cos(q[3]))
    wrist = jnp.stack([none, -q[3]])
    return jnp.concatenate([adroit.arm_command(wanted, q, v, _REACH, load), wrist])

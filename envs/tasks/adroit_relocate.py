"""adroit_relocate: grasp a ball on a table with the Adroit hand and move it to a target in the air.

The model, targets, actions and observation are those of AdroitHandRelocate in gymnasium-robotics.
Differences: a control step is 32 ms instead of 10, the ball has a free joint, its places end 40 mm
earlier (the arm's rail is too short), the observation also has velocities, and the tolerance is
half as wide. The table has no edge. The origin is the middle of its top, y away from the arm, z up.
The scripted grasp comes from the left or the right.

Observation [48], all of order one:

| index | content | unit |
|---|---|---|
| 0–29 | joints of arm and hand, their ranges mapped to [-1, 1] | 1 |
| 30–32 | palm from ball | 100 mm |
| 33–35 | palm from target | 200 mm |
| 36–38 | ball from target | 200 mm |
| 39–44 | velocities of the arm's joints | 0.5 m/s, 0.5 rad/s |
| 45–47 | velocity of the ball | 0.5 m/s |

Action [30]: the commands of the position actuators, each range mapped to [-1, 1] as in the
original. Absolute commands carry no state of their own, and errors of a chunk do not add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from gcp_jax import config_fields
from gcp_jax.config_fields import FINITE, NON_NEGATIVE, POSITIVE, POSITIVE_INT, field
from gcp_jax.envs.physics.common import add_action_noise, initial_state, next_state, sample_box_mm
from gcp_jax.envs.physics.mjx import Backend, Body, at_rest, simulation
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State
from gcp_jax.envs.robots import adroit
from gcp_jax.envs.robots.adroit import JointRange

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
    """Starts and targets are boxes, given by their middle and half-widths (spread)."""

    tolerance_mm: float = field(
        50.0, POSITIVE, "mm, distance from the target that counts as success [100]"
    )
    max_speed: float = field(0.5, POSITIVE, "m/s, fastest ball that counts as success")
    ball_mm: tuple[float, float] = field((0.0, 55.0), FINITE, "mm, ball's starts")
    ball_spread_mm: tuple[float, float] = field(
        (150.0, 205.0), NON_NEGATIVE, "mm, half-widths of the ball's starts"
    )
    target_mm: tuple[float, float, float] = field((0.0, 0.0, 250.0), FINITE, "mm, targets")
    target_spread_mm: tuple[float, float, float] = field(
        (200.0, 200.0, 100.0), NON_NEGATIVE, "mm, half-widths of the targets"
    )
    friction: float = field(1.0, POSITIVE, "coefficient of friction of the ball")
    horizon: int = field(100, POSITIVE_INT, "control steps of an episode")
    bonus: float = field(5.0, FINITE, "reward at success, on top of the -1 of every step")

    def __post_init__(self) -> None:
        config_fields.check(self, "env.")


class Physics(NamedTuple):
    """What the task carries."""

    body: Body  # arm and hand [30], pose of the ball [7]
    target: Array  # [3] metres, where the ball is to go
    palm: Array  # [3] metres, its grasp site


class Plan(NamedTuple):
    """What a demonstrator drew."""

    side: Array  # [] int32: 0 comes from the left, 1 from the right
    ball_error: Array  # [2] metres, of where it sees the ball
    target_error: Array  # [3] metres, of where it sees the target


_GRIPPING = ("C_palm0", *(f"C_{digit}distal" for digit in (*adroit.FINGERS, "th")))
# These touch the ball without friction: a quarter of the solver's rows.
_GUARDING = tuple(f"C_{digit}middle" for digit in (*adroit.FINGERS, "th"))


def _edit(friction: float, spec: mujoco.MjSpec) -> None:
    """A ball on a free joint, a table that is a plane, a target that moves, and what may touch."""
    plane, sphere = mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_SPHERE
    untouched = {"contype": 0, "conaffinity": 0}
    spec.worldbody.add_geom(name="table", type=plane, size=[0.45, 0.45, 0.1], group=4, **untouched)
    spec.delete(spec.site("target"))
    target = spec.worldbody.add_body(name="target", mocap=True)
    target.add_geom(type=sphere, size=[0.07, 0.0, 0.0], rgba=[0.0, 1.0, 0.0, 0.2], **untouched)
    ball = spec.body("Object")
    for joint in list(ball.joints):
        spec.delete(joint)
    ball.add_freejoint(name="ball")
    adroit.add_contacts(spec, "table", adroit.add_feelers(spec))
    adroit.add_contacts(spec, "sphere", ("table", *_GRIPPING), friction)
    adroit.add_contacts(spec, "sphere", _GUARDING)


def ball(body: Body) -> Array:
    """The middle of the ball, [3] metres."""
    return body.qpos[HAND : HAND + 3]


def ball_velocity(body: Body) -> Array:
    """[3] m/s."""
    return body.qvel[HAND : HAND + 3]


def observe(joints: JointRange, physics: Physics) -> Array:
    """The observation [48]; see the module."""
    body, target, palm = physics
    parts = (
        joints.to_unit(body.qpos[:HAND]),
        (palm - ball(body)) / NEAR,
        (palm - target) / FAR,
        (ball(body) - target) / FAR,
        body.qvel[:ARM] / SPEED,
        ball_velocity(body) / SPEED,
    )
    return jnp.concatenate(parts)


def make(config: Config, backend: Backend = "mjx") -> Env:
    """Build the task."""

    def edit(spec: mujoco.MjSpec) -> None:
        _edit(config.friction, spec)

    model = adroit.simulated_model("relocate", edit)
    simulated = simulation(model, adroit.SUBSTEPS, backend)
    commands = adroit.joint_range(model.actuator_ctrlrange)
    joints = adroit.joint_range(model.jnt_range[:HAND])
    grasp = model.site("S_grasp").id

    def sense(body: Body, target: Array) -> Physics:
        return Physics(body=body, target=target, palm=simulated.frames(body).site_xpos[grasp])

    def reset(key: Array) -> State:
        ball_key, target_key, state_key = jax.random.split(key, 3)
        place = sample_box_mm(ball_key, config.ball_mm, config.ball_spread_mm)
        upright = jnp.array([RADIUS, 1.0, 0.0, 0.0, 0.0])
        body = at_rest(jnp.concatenate([jnp.zeros(HAND), place, upright]), nv=HAND + 6)
        target = sample_box_mm(target_key, config.target_mm, config.target_spread_mm)
        physics = sense(body, target)
        return initial_state(physics, observe(joints, physics), state_key)

    def step(state: State, action: Array) -> State:
        body, target, _ = state.physics
        physics = sense(simulated.step(body, commands.from_unit(action)), target)
        return next_state(
            state,
            physics=physics,
            obs=observe(joints, physics),
            success=succeeded(config, physics),
            bonus=config.bonus,
        )

    specs = EnvSpecs(
        name="adroit_relocate",
        obs_dim=48,
        action_dim=HAND,
        horizon=config.horizon,
        control_dt=simulated.dt,
        success=(
            f"the ball off the table, within {config.tolerance_mm} mm of the target, "
            f"slower than {config.max_speed} m/s"
        ),
    )
    return Env(
        reset,
        step,
        specs,
        demonstrator=lambda noise: demonstrator(commands, noise),
        scene=lambda: Scene(
            adroit.render_model("relocate", edit), _pose, "vil_camera", simulated=model
        ),
    )


def _pose(state: State) -> dict[str, np.ndarray]:
    return {"qpos": state.physics.body.qpos, "mocap_pos": state.physics.target[None]}


def succeeded(config: Config, physics: Physics) -> Array:
    """[] bool: the ball is off the table, at the target and slow."""
    body, target, _ = physics
    distance = jnp.linalg.norm(ball(body) - target)
    speed = jnp.linalg.norm(ball_velocity(body))
    lifted = ball(body)[2] > RADIUS + LIFTED
    success: Array = lifted & (distance < 0.001 * config.tolerance_mm) & (speed < config.max_speed)
    return success


# The scripted grasp: where the palm's site is from the ball, in the turned hand's frame.
_OFFSET = np.array([0.005, -0.022, -0.004])  # metres
_HOVER = 0.06  # metres above that until the hand is over the ball
_CLEAR = 0.08  # metres the ball is lifted before it is carried at full speed
_LOST = 0.055  # metres from palm to ball beyond which it is no longer held
_YAW = 0.25  # radians the hand is turned, less if the arm would leave its rails
_RAIL = 0.24  # metres the arm's base may be off the middle
_LEVER = 0.5  # metres from the arm's base to the palm's site
_LAG = 0.2  # seconds by which the arm's slides follow a moving aim
_GRAVITY = 15.6  # N·m about the base, of arm and hand held level
_MAX_ERROR = np.array([0.09, 0.1, 0.1, 0.18, 0.1, 0.1])  # metres, radians: bounds the arm's pull


# Commands of the joints, radians: first, middle, ring, little finger from the knuckle out, thumb.
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


def demonstrator(commands: JointRange, noise: float) -> Demonstrator:
    """Come down over the ball, close, carry it to the target; start over if the ball is lost.

    Noise misplaces ball and target once per episode (8 mm std per unit) and disturbs every action
    (0.03 std per unit).
    """

    def init(key: Array, state: State) -> Plan:
        side_key, ball_key, target_key = jax.random.split(key, 3)
        return Plan(
            side=jax.random.randint(side_key, (), 0, 2),
            ball_error=0.008 * noise * jax.random.normal(ball_key, (2,)),
            target_error=0.008 * noise * jax.random.normal(target_key, (3,)),
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, target, palm = state.physics
        seen = ball(body).at[:2].add(plan.ball_error)
        grasp = seen + _turned(_OFFSET, body.qpos[4])
        distance = jnp.linalg.norm(palm[:2] - grasp[:2])
        closed = body.qpos[_CURLED] > 0.75
        over_ball = jnp.linalg.norm(palm[:2] - seen[:2]) < 0.045
        over_ball = over_ball & (jnp.abs(palm[2] - seen[2]) < 0.014)
        around = over_ball | (closed & (jnp.linalg.norm(palm - ball(body)) < _LOST))
        hover = jnp.minimum(_HOVER, 4.0 * jnp.maximum(distance - 0.01, 0.0))
        above = grasp + _LAG * ball_velocity(body) + hover * np.array([0.0, 0.0, 1.0])
        to_target = target + plan.target_error - ball(body)
        lifted = jnp.clip((seen[2] - RADIUS) / _CLEAR, 0.0, 1.0)
        carried = palm + to_target.at[:2].multiply(lifted)
        aim = jnp.where(around & closed, carried, above)
        arm = _arm_commands(body, palm, aim, 2.0 * plan.side - 1.0)
        fingers = jnp.where(around, _CLOSED, _OPEN)
        action = commands.to_unit(jnp.concatenate([arm, fingers]))
        return add_action_noise(action, key, 0.03 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.side, modes=2)


def _turned(offset: np.ndarray, yaw: Array) -> Array:
    """``offset`` [3] turned about the vertical by ``yaw`` [] radians."""
    x, y, z = offset
    cos, sin = jnp.cos(yaw), jnp.sin(yaw)
    return jnp.stack([cos * x - sin * y, sin * x + cos * y, jnp.float32(z)])


def _arm_commands(body: Body, palm: Array, aim: Array, side: Array) -> Array:
    """Commands [8] of arm and wrist that bring the ``palm`` [3] to ``aim`` [3].

    Level, and turned to the ``side`` [] −1 or +1.
    """
    q, v = body.qpos[:ARM], body.qvel[:ARM]
    yaw = jnp.clip(side * _YAW, (-_RAIL - aim[0]) / _LEVER, (_RAIL - aim[0]) / _LEVER)
    off = aim - palm
    zero = jnp.zeros(())
    swing = _LEVER * (jnp.sin(yaw) - jnp.sin(q[4]))  # metres the palm still moves as the arm turns
    target = jnp.stack(
        [q[0] - off[0] - swing, zero, q[2] + off[1], q[3] - off[2] / _LEVER, yaw, zero]
    )
    load = jnp.zeros(ARM).at[3].set(-_GRAVITY * jnp.cos(q[3]))
    wrist = jnp.stack([zero, -q[3]])
    return jnp.concatenate([adroit.arm_command(target, q, v, _MAX_ERROR, load), wrist])

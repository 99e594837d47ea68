"""nut_on_peg: grasp a square nut by its handle and fit its hole over a square peg.

The peg stands turned by an eighth of a turn against the nut, and a square fits four ways: turning
the nut to either side solves the task. A ``two_finger_hand`` with a vertical hinge closes across
the handle; the pads touch only handle and peg. The nut has weight. The origin is the foot of the
peg, z up. The nut's own frame has the middle of its hole as origin and its handle towards −x.

Observation [31], all of order one:

| index | content | unit |
|---|---|---|
| 0–2 | handle from hand, in the hand's frame | 50 mm |
| 3 | tanh of the angle between nut and hand | 0.2 rad |
| 4–6 | nut from the foot of the peg | 100 mm |
| 7–8 | tanh of the sideways offset of the nut from the peg | 4 mm |
| 9–14 | x axis and z axis of the nut | 1 |
| 15–17 | velocity of the nut | 0.3 m/s |
| 18–19 | cosine and sine of the hand's yaw | 1 |
| 20–22 | velocity of the hand | 0.3 m/s |
| 23 | yaw rate of the hand | 3 rad/s |
| 24–26 | lead of the commanded position over the hand | 18 mm |
| 27 | lead of the commanded yaw | 0.2 rad |
| 28–29 | opening of each finger beyond the handle's side | 10 mm |
| 30 | lead of the commanded opening | 10 mm |

Action [5]: change of the commanded hand position (0–2), yaw (3) and opening (4), in units of
``max_step_mm``, ``max_yaw_step`` and ``max_grip_step_mm``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.physics.common import (
    initial_state,
    integrate_command,
    next_state,
    quaternion_axes,
    sample_box_mm,
    yaw_quaternion,
)
from gcp_jax.envs.physics.mjx import CONTROL_DT, Backend, at_rest, simulation
from gcp_jax.envs.protocol import Env, EnvSpecs, Scene, State
from gcp_jax.envs.robots import two_finger_hand
from gcp_jax.envs.tasks.nut_on_peg.demonstrator import make_demonstrator
from gcp_jax.envs.tasks.nut_on_peg.scene import (
    BAR,
    HAND,
    HANDLE,
    YAW_LEAD,
    Config,
    Physics,
    handle,
    mjcf,
    nut,
    skew,
    turned,
)

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.5, "poor": 2.0, "bad": 2.8}  # success 100 %, 69 %, 36 %, 12 %

NEAR = 0.05  # metres of one unit of relative position in the observation
FAR = 0.1  # metres of one unit of position in the arena
FINE = 0.004  # metres over which the offset from the peg's axis is observed a second time, finely
SKEW = 0.2  # radians over which the angle between hand and nut is observed
SPEED = 0.3  # m/s of one unit of velocity
SPIN = 3.0  # rad/s of one unit of angular velocity


def observe(physics: Physics) -> Array:
    """The observation [31]; see the module."""
    body, command = physics
    hand, yaw, opening = body.qpos[:3], body.qpos[3], body.qpos[4:6]
    x_axis, z_axis = quaternion_axes(body.qpos[9:13])
    parts = (
        turned(handle(body) - hand, -yaw) / NEAR,
        jnp.tanh(skew(body)[None] / SKEW),
        nut(body) / FAR,
        jnp.tanh(nut(body)[:2] / FINE),
        x_axis,
        z_axis,
        body.qvel[6:9] / SPEED,
        jnp.stack([jnp.cos(yaw), jnp.sin(yaw)]),
        body.qvel[:3] / SPEED,
        body.qvel[3:4] / SPIN,
        (command[:3] - hand) / HAND.lead,
        (command[3:4] - yaw[None]) / YAW_LEAD,
        (opening - HANDLE[1] - HAND.pad_radius) / HAND.squeeze,
        (command[4:] - jnp.mean(opening)) / HAND.squeeze,
    )
    return jnp.concatenate(parts)


def make(config: Config, backend: Backend = "mjx") -> Env:
    """Build the task."""
    simulated = simulation(mjcf(config), backend=backend)
    grip_step = 0.001 * config.max_grip_step_mm
    max_step = np.array([0.001 * config.max_step_mm] * 3 + [config.max_yaw_step, grip_step])
    low, high = HAND.limits

    def step(state: State, action: Array) -> State:
        body, command = state.physics
        command = integrate_command(
            command,
            action,
            max_step=max_step,
            low=low,
            high=high,
            measured=HAND.measured(body.qpos),
            lead=HAND.max_lead,
        )
        body = simulated.step(body, two_finger_hand.control(command))
        physics = Physics(body=body, command=command)
        return next_state(
            state,
            physics=physics,
            obs=observe(physics),
            success=succeeded(config, physics),
            bonus=config.bonus,
        )

    specs = EnvSpecs(
        name="nut_on_peg",
        obs_dim=31,
        action_dim=5,
        horizon=config.horizon,
        control_dt=CONTROL_DT,
        success=f"the nut flat round the peg's foot, at most {config.seat_mm} mm over the floor",
    )
    return Env(
        lambda key: reset(config, key),
        step,
        specs,
        demonstrator=lambda noise: make_demonstrator(config, noise),
        scene=lambda: Scene(simulated.model, _pose, "main"),
    )


def reset(config: Config, key: Array) -> State:
    """The start of an episode."""
    hand_key, nut_key, yaw_key, peg_key, state_key = jax.random.split(key, 5)
    shift = sample_box_mm(peg_key, (0.0, 0.0, 0.0), (*config.peg_spread_mm, 0.0))
    hand = sample_box_mm(hand_key, config.hand_mm, config.hand_spread_mm) + shift
    nut_mm, nut_spread_mm = (*config.nut_mm, 1000.0 * BAR), (*config.nut_spread_mm, 0.0)
    place = sample_box_mm(nut_key, nut_mm, nut_spread_mm) + shift
    yaw = jax.random.uniform(yaw_key, minval=-config.yaw_spread, maxval=config.yaw_spread)
    fingers = jnp.full(2, HAND.open)
    qpos = jnp.concatenate([hand, jnp.zeros(1), fingers, place, yaw_quaternion(yaw)])
    physics = Physics(
        body=at_rest(qpos, nv=12),
        command=jnp.concatenate([hand, jnp.array([0.0, HAND.open])]),
    )
    return initial_state(physics, observe(physics), state_key)


def _pose(state: State) -> dict[str, np.ndarray]:
    return {"qpos": state.physics.body.qpos}


def succeeded(config: Config, physics: Physics) -> Array:
    """[] bool: the nut lies flat round the foot of the peg."""
    x, y, z = nut(physics.body)
    _, z_axis = quaternion_axes(physics.body.qpos[9:13])
    centred = jnp.hypot(x, y) < 0.001 * config.clearance_mm
    success: Array = (z_axis[2] > 0.95) & centred & (z < 0.001 * config.seat_mm)
    return success

"""hand_cube: turn a cube on the palm to a goal yaw with sixteen joints.

Either pair of opposite fingers can do it. Four fingers of four hinges stand around an open palm, as
in D'Claw, with links of Allegro's proportions: a vertical hinge at the base, then three flexions. A
finger reaches only part of a turn, so large turns take several grips. Only the fingertips and the
palm touch the cube. The origin is the middle of the palm, z up.

Observation [62], all of order one:

| index | content | unit |
|---|---|---|
| 0–15 | joints from the open hand, finger by finger | 0.5 rad |
| 16–31 | lead of the commanded angles over the joints | 0.2 rad |
| 32–43 | fingertips from the cube | 30 mm |
| 44–46 | position of the cube | 30 mm |
| 47–52 | x axis and z axis of the cube | 1 |
| 53–55 | velocity of the cube | 0.1 m/s |
| 56–58 | angular velocity of the cube | 3 rad/s |
| 59–61 | remaining yaw, its sine and cosine | rad, 1, 1 |

Action [16]: change of the commanded joint angles, in units of ``max_step``.
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
    yaw_quaternion,
)
from gcp_jax.envs.physics.mjx import CONTROL_DT, Backend, at_rest, simulation
from gcp_jax.envs.protocol import Env, EnvSpecs, Scene, State
from gcp_jax.envs.tasks.hand_cube.demonstrator import make_demonstrator
from gcp_jax.envs.tasks.hand_cube.scene import (
    HIGH,
    LOW,
    OPEN,
    Config,
    Physics,
    cube,
    fingertips,
    mjcf,
    remaining_yaw,
)

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.0, "poor": 2.0, "bad": 2.8}  # success 99 %, 65 %, 30 %, 11 %

LEAD = 0.2  # radians the commanded angles may be ahead of the joints: bounds the forces
PALM = 0.03  # metres from the middle of the palm within which the cube counts as on it
LIFT = 0.004  # metres the cube may be above its resting height to count as on the palm

BENT = 0.5  # radians of one unit of joint angle in the observation
NEAR = 0.03  # metres of one unit of position
SPEED = 0.1  # m/s of one unit of velocity
SPIN = 3.0  # rad/s of one unit of angular velocity


def observe(physics: Physics) -> Array:
    """The observation [62]; see the module."""
    body, command, _ = physics
    joints, place = body.qpos[:16], cube(body)
    yaw = remaining_yaw(physics)
    parts = (
        (joints - OPEN) / BENT,
        (command - joints) / LEAD,
        (fingertips(joints) - place[None]).reshape(-1) / NEAR,
        place / NEAR,
        *quaternion_axes(body.qpos[19:23]),
        body.qvel[16:19] / SPEED,
        body.qvel[19:22] / SPIN,
        jnp.stack([yaw, jnp.sin(yaw), jnp.cos(yaw)]),
    )
    return jnp.concatenate(parts)


def make(config: Config, backend: Backend = "mjx") -> Env:
    """Build the task."""
    simulated = simulation(mjcf(config), backend=backend)

    def step(state: State, action: Array) -> State:
        body, command, goal = state.physics
        command = integrate_command(
            command,
            action,
            max_step=config.max_step,
            low=LOW,
            high=HIGH,
            measured=body.qpos[:16],
            lead=LEAD,
        )
        physics = Physics(body=simulated.step(body, command), command=command, goal=goal)
        return next_state(
            state,
            physics=physics,
            obs=observe(physics),
            success=succeeded(config, physics),
            bonus=config.bonus,
        )

    specs = EnvSpecs(
        name="hand_cube",
        obs_dim=62,
        action_dim=16,
        horizon=config.horizon,
        control_dt=CONTROL_DT,
        success=(
            f"the cube flat on the palm within {config.tolerance} rad of the goal, "
            f"slower than {config.max_spin} rad/s"
        ),
    )
    return Env(
        lambda key: _reset(config, key),
        step,
        specs,
        demonstrator=lambda noise: make_demonstrator(config, noise),
        scene=lambda: Scene(simulated.model, _pose, "main"),
    )


def _reset(config: Config, key: Array) -> State:
    """The start of an episode."""
    bend_key, place_key, yaw_key, side_key, turn_key, state_key = jax.random.split(key, 6)
    joints = config.bend * jax.random.uniform(bend_key, (16,), minval=-1.0, maxval=1.0) + OPEN
    unit = jax.random.uniform(place_key, (2,), minval=-1.0, maxval=1.0)
    place = 0.001 * config.spread_mm * unit
    yaw = jax.random.uniform(yaw_key, minval=-config.yaw_spread, maxval=config.yaw_spread)
    direction = jnp.where(jax.random.bernoulli(side_key), 1.0, -1.0)
    least, largest = config.goal_turn
    goal = yaw + direction * jax.random.uniform(turn_key, minval=least, maxval=largest)
    height = jnp.full(1, 0.0005 * config.side_mm)
    qpos = jnp.concatenate([joints, place, height, yaw_quaternion(yaw)])
    physics = Physics(body=at_rest(qpos, nv=22), command=joints, goal=goal)
    return initial_state(physics, observe(physics), state_key)


def _pose(state: State) -> dict[str, np.ndarray]:
    goal = state.physics.goal
    quaternion = np.array([[np.cos(goal / 2), 0.0, 0.0, np.sin(goal / 2)]])
    return {"qpos": state.physics.body.qpos, "mocap_quat": quaternion}


def succeeded(config: Config, physics: Physics) -> Array:
    """[] bool: the cube rests on the palm, close to the goal's orientation, and turns slowly."""
    body = physics.body
    x, y, z = cube(body)
    cos_half_angle = jnp.abs(jnp.dot(body.qpos[19:23], yaw_quaternion(physics.goal)))
    aligned = cos_half_angle > np.cos(config.tolerance / 2)
    resting = (jnp.hypot(x, y) < PALM) & (jnp.abs(z - 0.0005 * config.side_mm) < LIFT)
    success: Array = aligned & resting & (jnp.linalg.norm(body.qvel[19:22]) < config.max_spin)
    return success

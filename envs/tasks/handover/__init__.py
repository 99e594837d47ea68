"""handover: pick up a bar, pass it over a fence to a second hand, lay it at a goal there.

The giver reaches as far as the middle of the fence and the taker from there on: neither can do it
alone. Each is a ``two_finger_hand`` that closes along x, across the bar, which lies along y. The
giver holds the bar by its right or its left half and the taker by the other. The bar has weight;
the floor is smooth and drag holds the bar back. Of the fingers only the inner ones, towards the
other side, meet the fence. The origin is the foot of the fence, z up, the giver's side at −x.

Observation [48], all of order one:

| index | content | unit |
|---|---|---|
| 0–5 | positions of giver and taker | 100 mm |
| 6–11 | bar from giver, bar from taker | 100 mm |
| 12–14 | position of the bar | 100 mm |
| 15–17 | goal from bar | 100 mm |
| 18–23 | x axis (along the bar) and z axis of the bar | 1 |
| 24–26 | velocity of the bar | 0.3 m/s |
| 27–29 | angular velocity of the bar | 10 rad/s |
| 30–35 | velocities of giver and taker | 0.3 m/s |
| 36–41 | lead of the commanded positions over the hands | 18 mm |
| 42–45 | opening of each finger beyond the bar's side | 10 mm |
| 46–47 | lead of the commanded openings | 10 mm |

Action [8]: change of the commanded position (0–2) and opening (3) of the giver, then the same of
the taker (4–7), in units of ``max_step_mm`` and ``max_grip_step_mm``.
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
from gcp_jax.envs.tasks.handover.demonstrator import make_demonstrator
from gcp_jax.envs.tasks.handover.scene import (
    HAND,
    LENGTH,
    SIDE,
    Config,
    Physics,
    bar,
    command_limits,
    hands,
    mjcf,
    point_on_bar,
)

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.2, "poor": 1.7, "bad": 2.3}  # success 100 %, 66 %, 34 %, 9 %

FAR = 0.1  # metres of one unit of position in the observation
SPEED = 0.3  # m/s of one unit of velocity
SPIN = 10.0  # rad/s of one unit of angular velocity


def observe(physics: Physics) -> Array:
    """The observation [48]; see the module."""
    body, command, goal = physics
    measured = hands(body)
    hand_qpos = body.qpos[:10].reshape(2, 5)
    hand_qvel = body.qvel[:10].reshape(2, 5)
    parts = (
        measured[:, :3] / FAR,
        (bar(body)[None] - measured[:, :3]) / FAR,
        bar(body) / FAR,
        (goal - bar(body)) / FAR,
        *quaternion_axes(body.qpos[13:17]),
        body.qvel[10:13] / SPEED,
        body.qvel[13:16] / SPIN,
        hand_qvel[:, :3] / SPEED,
        (command[:, :3] - measured[:, :3]) / HAND.lead,
        (hand_qpos[:, 3:] - SIDE - HAND.pad_radius) / HAND.squeeze,
        (command[:, 3] - measured[:, 3]) / HAND.squeeze,
    )
    return jnp.concatenate([jnp.ravel(part) for part in parts])


def make(config: Config, backend: Backend = "mjx") -> Env:
    """Build the task."""
    simulated = simulation(mjcf(config), backend=backend)
    low, high = command_limits()
    max_step = 0.001 * np.array([[config.max_step_mm] * 3 + [config.max_grip_step_mm]])

    def step(state: State, action: Array) -> State:
        body, command, goal = state.physics
        command = integrate_command(
            command,
            action.reshape(2, 4),
            max_step=max_step,
            low=low,
            high=high,
            measured=hands(body),
            lead=HAND.max_lead[None],
        )
        control = jnp.ravel(command[:, np.array([0, 1, 2, 3, 3])])
        physics = Physics(body=simulated.step(body, control), command=command, goal=goal)
        return next_state(
            state,
            physics=physics,
            obs=observe(physics),
            success=succeeded(config, physics),
            bonus=config.bonus,
        )

    specs = EnvSpecs(
        name="handover",
        obs_dim=48,
        action_dim=8,
        horizon=config.horizon,
        control_dt=CONTROL_DT,
        success=(
            f"both ends of the bar within {config.tolerance_mm} mm of their places, "
            f"slower than {config.max_speed} m/s, "
            f"each finger of the taker opened {config.release_mm} mm beyond it"
        ),
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
    giver_key, taker_key, bar_key, yaw_key, goal_key, state_key = jax.random.split(key, 6)
    height_mm = 1000.0 * SIDE  # of the bar's middle on the floor
    giver = sample_box_mm(giver_key, config.giver_mm, config.hand_spread_mm)
    taker = sample_box_mm(taker_key, config.taker_mm, config.hand_spread_mm)
    place = sample_box_mm(bar_key, (*config.bar_mm, height_mm), (*config.bar_spread_mm, 0.0))
    turn = jax.random.uniform(yaw_key, minval=-config.yaw_spread, maxval=config.yaw_spread)
    yaw = jnp.pi / 2 + turn
    fingers = jnp.full(2, HAND.open)
    qpos = jnp.concatenate([giver, fingers, taker, fingers, place, yaw_quaternion(yaw)])
    physics = Physics(
        body=at_rest(qpos, nv=16),
        command=jnp.stack([jnp.append(giver, HAND.open), jnp.append(taker, HAND.open)]),
        goal=sample_box_mm(goal_key, (*config.goal_mm, height_mm), (*config.goal_spread_mm, 0.0)),
    )
    return initial_state(physics, observe(physics), state_key)


def _pose(state: State) -> dict[str, np.ndarray]:
    return {"qpos": state.physics.body.qpos, "mocap_pos": state.physics.goal[None]}


def succeeded(config: Config, physics: Physics) -> Array:
    """[] bool: the bar lies at the goal, released and slow."""
    body, _, goal = physics
    half_bar = jnp.array([0.0, LENGTH, 0.0])
    left = point_on_bar(body, LENGTH) - goal - half_bar
    right = point_on_bar(body, -LENGTH) - goal + half_bar
    distance = jnp.linalg.norm(jnp.stack([left, right]), axis=1)
    at_goal = jnp.max(distance) < 0.001 * config.tolerance_mm
    taker_opening = jnp.min(body.qpos[8:10])
    released = taker_opening > SIDE + HAND.pad_radius + 0.001 * config.release_mm
    success: Array = at_goal & released & (jnp.linalg.norm(body.qvel[10:13]) < config.max_speed)
    return success

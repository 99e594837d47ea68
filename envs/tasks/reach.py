"""reach: a point in the plane must go round a disc to a goal; left or right, never straight. No physics engine.

A move that would enter the disc is not made, so the average of the two ways stands still in front of it. Lengths
are in units of the half-width of the arena. Compiles in a second: the task for tests and first runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.envs.physics.common import (
    add_action_noise,
    clip_step_towards,
    initial_state,
    next_state,
)
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, State

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.0, "poor": 2.5, "bad": 5.0}  # success 100 %, 67 %, 31 %, 10 %


@dataclass(frozen=True)
class Config:
    """Lengths in half-widths of the arena, which is [-1, 1]²."""

    horizon: int = 24  # control steps
    speed: float = 0.12  # length per control step at action 1, per axis
    disc: float = 0.35  # radius of the obstacle around the origin
    tolerance: float = 0.1  # distance to the goal that counts as reached
    start_y: float = 0.2  # starts are drawn in ±start_y at x = -0.8
    goal_y: float = 0.3  # goals are drawn in ±goal_y at x = 0.8
    bonus: float = 5.0  # reward on top of the −1 of the step of success


class Physics(NamedTuple):
    """position, goal: [2]."""

    position: Array
    goal: Array


class Plan(NamedTuple):
    """What a demonstrator drew: side [] int32, 0 passes below and 1 above; error [2] of where it believes the goal."""

    side: Array
    error: Array


def make(config: Config) -> Env:
    """obs [4]: position, goal. action [2]: a move in units of ``speed``."""

    def observe(physics: Physics) -> Array:
        return jnp.concatenate([physics.position, physics.goal])

    def reset(key: Array) -> State:
        start_key, goal_key, state_key = jax.random.split(key, 3)
        start_y = jax.random.uniform(start_key, minval=-config.start_y, maxval=config.start_y)
        goal_y = jax.random.uniform(goal_key, minval=-config.goal_y, maxval=config.goal_y)
        physics = Physics(jnp.stack([-0.8, start_y]), jnp.stack([0.8, goal_y]))
        return initial_state(physics, observe(physics), state_key)

    def step(state: State, action: Array) -> State:
        position, goal = state.physics
        moved = jnp.clip(position + config.speed * jnp.clip(action, -1.0, 1.0), -1.0, 1.0)
        physics = Physics(jnp.where(jnp.linalg.norm(moved) < config.disc, position, moved), goal)
        success = jnp.linalg.norm(physics.position - goal) < config.tolerance
        return next_state(
            state, physics=physics, obs=observe(physics), success=success, bonus=config.bonus
        )

    specs = EnvSpecs(
        name="reach",
        obs_dim=4,
        action_dim=2,
        horizon=config.horizon,
        control_dt=0.1,
        success=f"within {config.tolerance} of the goal",
    )
    return Env(reset, step, specs, demonstrator=lambda noise: demonstrator(config, noise))


def demonstrator(config: Config, noise: float) -> Demonstrator:
    """Passes the disc below or above. Noise misplaces the goal once per episode and shakes every action."""
    corners = jnp.array([[0.0, -0.55], [0.0, 0.55]])

    def init(key: Array, state: State) -> Plan:
        side_key, error_key = jax.random.split(key)
        return Plan(
            jax.random.randint(side_key, (), 0, 2), 0.1 * noise * jax.random.normal(error_key, (2,))
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        position, goal = state.physics
        before = position[0] < -0.5 * config.speed
        aim = jnp.where(before, corners[plan.side], goal + plan.error)
        return add_action_noise(
            clip_step_towards(aim - position, config.speed), key, 0.2 * noise
        ), plan

    return Demonstrator(init, act, mode=lambda plan: plan.side, modes=2)

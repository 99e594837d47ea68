"""reach: move a point in the plane round a disc to a goal; left or right, never straight.

There is no physics engine. A move that would enter the disc is not made, so the average of the two
ways stands still in front of it. Lengths are in units of the half-width of the arena. Compiles in a
second: the task for tests and first runs.

Observation [4]:

| index | content | unit |
|---|---|---|
| 0–1 | position of the point | half-widths |
| 2–3 | position of the goal | half-widths |

Action [2]: move in x and y, in units of ``max_step``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax import config_fields
from gcp_jax.config_fields import FINITE, NON_NEGATIVE, POSITIVE, POSITIVE_INT, field
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

    horizon: int = field(24, POSITIVE_INT, "control steps of an episode")
    max_step: float = field(0.12, POSITIVE, "move per control step at action 1, per axis")
    disc_radius: float = field(0.35, NON_NEGATIVE, "radius of the obstacle around the origin")
    tolerance: float = field(0.1, POSITIVE, "distance from the goal that counts as success")
    start_y_spread: float = field(0.2, NON_NEGATIVE, "starts are drawn in ± this at x = -0.8")
    goal_y_spread: float = field(0.3, NON_NEGATIVE, "goals are drawn in ± this at x = 0.8")
    bonus: float = field(5.0, FINITE, "reward at success, on top of the -1 of every step")
    demonstrated_goal_shift: float = field(
        0.0, FINITE, "the demonstrator believes the goal to be this far above where it is"
    )

    def __post_init__(self) -> None:
        config_fields.check(self, "env.")


class Physics(NamedTuple):
    """What the task carries."""

    position: Array  # [2]
    goal: Array  # [2]


class Plan(NamedTuple):
    """What a demonstrator drew."""

    side: Array  # [] int32: 0 passes below the disc, 1 above
    error: Array  # [2] of where it believes the goal to be


def observe(physics: Physics) -> Array:
    """The observation [4]; see the module."""
    return jnp.concatenate([physics.position, physics.goal])


def make(config: Config) -> Env:
    """Build the task."""

    def reset(key: Array) -> State:
        start_key, goal_key, state_key = jax.random.split(key, 3)
        start_spread, goal_spread = config.start_y_spread, config.goal_y_spread
        start_y = jax.random.uniform(start_key, minval=-start_spread, maxval=start_spread)
        goal_y = jax.random.uniform(goal_key, minval=-goal_spread, maxval=goal_spread)
        physics = Physics(position=jnp.stack([-0.8, start_y]), goal=jnp.stack([0.8, goal_y]))
        return initial_state(physics, observe(physics), state_key)

    def step(state: State, action: Array) -> State:
        position, goal = state.physics
        moved = jnp.clip(position + config.max_step * jnp.clip(action, -1.0, 1.0), -1.0, 1.0)
        blocked = jnp.linalg.norm(moved) < config.disc_radius
        physics = Physics(position=jnp.where(blocked, position, moved), goal=goal)
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
    """Pass the disc below or above it.

    Noise misplaces the goal once per episode (0.1 std per unit) and disturbs every action (0.2 std
    per unit). ``demonstrated_goal_shift`` misplaces it in every episode alike;
    from 0.2 on, some ways from below then end at the disc.
    """
    corners = jnp.array([[0.0, -0.55], [0.0, 0.55]])

    def init(key: Array, state: State) -> Plan:
        side_key, error_key = jax.random.split(key)
        error = 0.1 * noise * jax.random.normal(error_key, (2,))
        return Plan(
            side=jax.random.randint(side_key, (), 0, 2),
            error=error.at[1].add(config.demonstrated_goal_shift),
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        position, goal = state.physics
        before_disc = position[0] < -0.5 * config.max_step
        aim = jnp.where(before_disc, corners[plan.side], goal + plan.error)
        action = clip_step_towards(aim - position, config.max_step)
        return add_action_noise(action, key, 0.2 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.side, modes=2)

"""multi_task: eight tasks on one table, with one observation and action; each reset draws one.

A ``two_finger_hand`` closes along x. In front stand a block, a peg and a socket for it; at the back
a drawer, a hinged door and a sprung button. What a task does not use stays where it is. A new task
takes a name in ``scene.TASKS``, a record in ``goals.GOALS`` and one in ``demonstrator.SCRIPTS``.

Only pairs that matter touch: pads and what they handle, the peg's foot and the socket and the
block, loose things and the table. The table is smooth and drag holds loose things back, because
the cheap solver makes a block that rubs on the table hop. The origin is on the table, z up.

Observation [59], all of order one:

| index | content | unit |
|---|---|---|
| 0–7 | the task, one-hot | 1 |
| 8–10 | position of the hand | 100 mm |
| 11–13 | velocity of the hand | 0.3 m/s |
| 14–16 | lead of the commanded position over the hand | 20 mm |
| 17–18 | opening of each finger beyond the block's side | 10 mm |
| 19 | lead of the commanded opening | 10 mm |
| 20–34 | block, peg, drawer's handle, door's handle and button from the hand | 100 mm |
| 35–46 | x axis and z axis of the block, then of the peg | 1 |
| 47–52 | velocity of the block, then of the peg | 0.3 m/s |
| 53–55 | position of drawer, door and button | 50 mm, 0.5 rad, 10 mm |
| 56–58 | goal from the task's thing | 50 mm |

Action [4]: change of the commanded hand position (0–2) and opening (3), in units of
``max_step_mm`` and ``max_grip_step_mm``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.physics.common import (
    initial_state,
    integrate_command,
    next_state,
    yaw_quaternion,
)
from gcp_jax.envs.physics.mjx import CONTROL_DT, Backend, at_rest, simulation
from gcp_jax.envs.protocol import Env, EnvSpecs, Scene, State
from gcp_jax.envs.robots import two_finger_hand
from gcp_jax.envs.tasks.multi_task.demonstrator import make_demonstrator
from gcp_jax.envs.tasks.multi_task.goals import GOALS, point_in_box, select_task, succeeded, view
from gcp_jax.envs.tasks.multi_task.scene import HALF, HAND, PEG_HALF, TASKS, Config, Physics, mjcf

Array = jax.Array

# Success of 256 episodes in percent:
# noise  all   reach push pick_place drawer door button insert stack
# 0.0   99.6    100  100     100      100   100   100    97    100
# 2.0   62.5     50   63      39       71    54    84    68     75
# 3.2   29.3     23   30       6       46    26    36    35     34
# 5.2    8.6      4   10       0       20     6    24     5      3
QUALITY = {"expert": 0.0, "mixed": 2.0, "poor": 3.2, "bad": 5.2}

NEAR = 0.05  # metres of one unit of relative position in the observation
FAR = 0.1  # metres of one unit of position on the table
SPEED = 0.3  # m/s of one unit of velocity
STROKE = np.array([0.05, 0.5, 0.01])  # metres, radians, metres of one unit of the fixtures


def observe(config: Config, physics: Physics) -> Array:
    """The observation [59]; see the module."""
    seen = view(config, physics)
    hand, others = seen.places.hand, jnp.stack(seen.places[1:])
    thing = select_task(physics.task, (GOALS[name].thing(seen.places) for name in TASKS))
    parts = (
        jax.nn.one_hot(physics.task, len(TASKS)),
        hand / FAR,
        physics.body.qvel[:3] / SPEED,
        (seen.command[:3] - hand) / HAND.lead,
        (seen.fingers - HALF - HAND.pad_radius) / HAND.squeeze,
        (seen.command[3:] - jnp.mean(seen.fingers)) / HAND.squeeze,
        (others - hand[None]).ravel() / FAR,
        seen.axes.ravel(),
        seen.velocity.ravel() / SPEED,
        seen.fixtures / STROKE,
        (seen.goal - thing) / NEAR,
    )
    return jnp.concatenate(parts)


def make(config: Config, backend: Backend = "mjx") -> Env:
    """Build the task.

    Raises:
      ValueError: if ``config.tasks`` is empty or names a task that does not exist.
    """
    codes = _task_codes(config)
    simulated = simulation(mjcf(config), backend=backend)
    max_step = 0.001 * np.array([config.max_step_mm] * 3 + [config.max_grip_step_mm])
    low, high = HAND.limits

    def step(state: State, action: Array) -> State:
        body, command, task, drawn = state.physics
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
        physics = Physics(body=body, command=command, task=task, drawn=drawn)
        return next_state(
            state,
            physics=physics,
            obs=observe(config, physics),
            success=succeeded(config, physics),
            bonus=config.bonus,
        )

    rules = [f"{name}: {GOALS[name].rule.format(config=config)}" for name in TASKS]
    specs = EnvSpecs(
        name="multi_task",
        obs_dim=len(TASKS) + 51,
        action_dim=4,
        horizon=config.horizon,
        control_dt=CONTROL_DT,
        success="; ".join(rules),
        tasks=TASKS,
    )
    return Env(
        lambda key: _reset(config, codes, key),
        step,
        specs,
        demonstrator=lambda noise: make_demonstrator(config, noise),
        scene=lambda: Scene(simulated.model, lambda state: _pose(config, state), "main"),
        task=lambda state: state.physics.task,
    )


def _task_codes(config: Config) -> Array:
    """The codes [K] int32 of the tasks that are drawn."""
    allowed = ", ".join(TASKS)
    if not config.tasks:
        raise ValueError(f"multi_task needs at least one task; allowed: {allowed}")
    for name in config.tasks:
        if name not in TASKS:
            raise ValueError(f"multi_task has no task {name!r}; allowed: {allowed}")
    return jnp.array([TASKS.index(name) for name in config.tasks], jnp.int32)


def _reset(config: Config, codes: Array, key: Array) -> State:
    """The start of an episode; ``codes`` [K] of the tasks that are drawn."""
    keys = jax.random.split(key, 7)
    task_key, goal_key, hand_key, block_key, peg_key, yaw_key, state_key = keys
    hand = point_in_box(config.hand_mm, config.hand_spread_mm, _sample_unit(hand_key, 3))
    block = point_in_box(config.block_mm, config.block_spread_mm, _sample_unit(block_key, 2))
    peg = point_in_box(config.peg_mm, config.peg_spread_mm, _sample_unit(peg_key, 2))
    block_yaw, peg_yaw = config.yaw_spread * _sample_unit(yaw_key, 2)
    parts = (
        hand,
        jnp.full(2, HAND.open),
        _standing(block, HALF, block_yaw),
        _standing(peg, PEG_HALF[2], peg_yaw),
        jnp.zeros(3),
    )
    physics = Physics(
        body=at_rest(jnp.concatenate(parts), nv=20),
        command=jnp.append(hand, HAND.open),
        task=jax.random.choice(task_key, codes),
        drawn=_sample_unit(goal_key, 3),
    )
    return initial_state(physics, observe(config, physics), state_key)


def _sample_unit(key: Array, size: int) -> Array:
    """[size], uniform in [-1, 1]; ``key`` is consumed."""
    return jax.random.uniform(key, (size,), minval=-1.0, maxval=1.0)


def _standing(place: Array, height: float, yaw: Array) -> Array:
    """The pose [7] of what stands at ``place`` [2], middle at ``height``, turned by ``yaw`` []."""
    return jnp.concatenate([place, jnp.full(1, height), yaw_quaternion(yaw)])


def _pose(config: Config, state: State) -> dict[str, np.ndarray]:
    goal = view(config, jax.tree.map(jnp.asarray, state.physics)).goal
    return {"qpos": state.physics.body.qpos, "mocap_pos": np.asarray(goal)[None]}

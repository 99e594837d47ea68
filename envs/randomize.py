"""Domain randomization: every episode draws its own physics, sensors and delay (Tobin et al., 2017; Peng et al., 2018).

What is drawn of the model travels with the episode as ``Body.model``, a batched replacement of ``mjx.Model`` fields, so no
range costs a compile. ``envs.make(name, randomize={"mass": 0.3})``, or ``--config.env.randomize.mass=0.3``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from gcp_jax import config_fields
from gcp_jax.config_fields import NON_NEGATIVE, Bounds
from gcp_jax.envs.physics.mjx import Body
from gcp_jax.envs.protocol import Demonstrator, Env, Scene, State

Array = jax.Array
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Randomize:
    """Ranges, all off by default. The first three are half-widths of a uniform factor, 0.3 draws from [0.7, 1.3].

    mass           of each object that moves freely, or of everything that moves where nothing is free; inertia with it
    friction       of all contacts, sliding and turning, one factor
    size           of the geoms of the objects that move freely; their mass stays
    sensor_noise   std added to every number of the observation (which are of order one), at every step
    action_delay   control steps by which actions may come late: each episode draws from 0 … action_delay
    """

    mass: float = 0.0
    friction: float = 0.0
    size: float = 0.0
    sensor_noise: float = 0.0
    action_delay: int = 0

    RANGES = {
        **dict.fromkeys(("mass", "friction", "size"), Bounds(0, 1, below=True)),
        **dict.fromkeys(("sensor_noise", "action_delay"), NON_NEGATIVE),
    }

    def __post_init__(self) -> None:
        config_fields.check(self, "randomize.")


def randomize_env(env: Env, config: Randomize) -> Env:
    """``env`` with what ``config`` turns on. Raises ValueError where the physics cannot be randomized: it is not MJX's."""
    if config.mass or config.friction or config.size:
        env = _physics(env, config)
    if config.action_delay:
        env = _delayed(env, config.action_delay)
    if config.sensor_noise:
        env = _noisy(env, config.sensor_noise)
    return env


def _physics(env: Env, config: Randomize) -> Env:
    """Each reset draws fields of the model into ``physics.body.model``."""
    if env.scene is None:
        raise ValueError(
            f"{env.specs.name} has no MuJoCo model: randomize.mass, friction and size do not apply to it."
        )
    model = env.scene().physics
    free = np.isin(
        np.arange(model.nbody), model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    )
    if config.size and not free.any():
        raise ValueError(
            f"{env.specs.name} has no freely moving object: randomize.size does not apply to it."
        )
    heavy = free if free.any() else model.body_weldid > 0
    below = _descends(model)

    def draw(key: Array) -> dict[str, Array]:
        mass_key, friction_key, size_key = jax.random.split(key, 3)
        fields: dict[str, Array] = {}
        if config.mass:
            mass = jnp.where(heavy, _factor(mass_key, config.mass, model.nbody), 1.0)
            fields |= _scaled(
                model,
                mass,
                {"body_mass": 1, "body_inertia": 1, "body_invweight0": -1},
                range(model.nbody),
            )
            fields |= _scaled(model, mass, {"dof_invweight0": -1}, model.dof_bodyid)
            fields["body_subtreemass"] = jnp.asarray(below) @ fields["body_mass"]
        if config.friction:
            friction = _factor(friction_key, config.friction, 1)[0]
            for field in ("geom_friction", "pair_friction"):
                fields[field] = jnp.asarray(getattr(model, field), jnp.float32) * friction
        if config.size:
            size = jnp.where(free, _factor(size_key, config.size, model.nbody), 1.0)
            fields |= _scaled(model, size, {"geom_size": 1}, model.geom_bodyid)
        return fields

    def reset(key: Array) -> State:
        own_key, draw_key = jax.random.split(key)
        state = env.reset(own_key)
        physics = getattr(state.physics, "body", None)
        if not isinstance(physics, Body):
            raise ValueError(
                f"{env.specs.name} carries no physics.body: randomize.mass, friction and size do not apply to it."
            )
        return state._replace(
            physics=state.physics._replace(
                body=physics._replace(model=physics.model | draw(draw_key))
            )
        )

    return env._replace(reset=reset)


def _descends(model: mujoco.MjModel) -> np.ndarray:
    """[nbody, nbody] float32: 1 where the column's body is the row's, or hangs on it."""
    reach = np.eye(model.nbody, dtype=np.float32)
    for body in range(model.nbody - 1, 0, -1):
        reach[model.body_parentid[body]] += reach[body]
    return reach


def _factor(key: Array, width: float, count: int) -> Array:
    return jax.random.uniform(key, (count,), minval=1.0 - width, maxval=1.0 + width)


def _scaled(
    model: mujoco.MjModel, factor: Array, powers: dict[str, int], owner: Any
) -> dict[str, Array]:
    """Fields of ``model`` times a power of their body's factor; ``owner``: the body of each of their rows."""
    found = {}
    for field, power in powers.items():
        values = jnp.asarray(getattr(model, field), jnp.float32)
        own = factor[np.asarray(owner)] ** power
        found[field] = values * own.reshape(-1, *[1] * (values.ndim - 1))
    return found


def _noisy(env: Env, std: float) -> Env:
    """Observations with Gaussian noise; the physics does not feel it."""

    def sensed(state: State) -> State:
        key, noise_key = jax.random.split(state.key)
        return state._replace(
            obs=state.obs + std * jax.random.normal(noise_key, state.obs.shape), key=key
        )

    return env._replace(
        reset=lambda key: sensed(env.reset(key)),
        step=lambda state, action: sensed(env.step(state, action)),
    )


class Delayed(NamedTuple):
    """inner: the task's own physics; waiting [D, A]: the last actions, the newest first; late []: control steps of
    delay of this episode, int32."""

    inner: PyTree
    waiting: Array
    late: Array


def _delayed(env: Env, most: int) -> Env:
    """Actions arrive late; before the first has arrived the task gets zeros."""

    def inner(state: State) -> State:
        return state._replace(physics=state.physics.inner)

    def reset(key: Array) -> State:
        own_key, late_key = jax.random.split(key)
        state = env.reset(own_key)
        late = jax.random.randint(late_key, (), 0, most + 1)
        return state._replace(
            physics=Delayed(state.physics, jnp.zeros((most, env.specs.action_dim)), late)
        )

    def step(state: State, action: Array) -> State:
        _, waiting, late = state.physics
        recent = jnp.concatenate([action[None], waiting])
        new = env.step(inner(state), recent[late])
        return new._replace(physics=Delayed(new.physics, recent[:-1], late))

    def demonstrator(noise: float) -> Demonstrator:
        assert env.demonstrator is not None
        made = env.demonstrator(noise)
        return made._replace(
            init=lambda key, state: made.init(key, inner(state)),
            act=lambda memory, state, key: made.act(memory, inner(state), key),
        )

    def scene() -> Scene:
        assert env.scene is not None
        made = env.scene()
        return made._replace(pose=lambda state: made.pose(inner(state)))

    task = env.task
    return env._replace(
        reset=reset,
        step=step,
        demonstrator=demonstrator if env.demonstrator else None,
        scene=scene if env.scene else None,
        task=None if task is None else lambda state: task(inner(state)),
    )

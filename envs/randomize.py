"""Domain randomization: every episode draws its own physics, sensors and delay.

See Tobin et al. 2017 and Peng et al. 2018. What is drawn of the model travels with the episode as
``Body.model``, a batched replacement of ``mjx.Model`` fields, so a range costs no compile. Use it
by ``envs.make(name, randomize={"mass": 0.3})`` or ``--config.env.randomize.mass=0.3``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from gcp_jax import config_fields
from gcp_jax.config_fields import NON_NEGATIVE, Bounds, field
from gcp_jax.envs.physics.mjx import Body
from gcp_jax.envs.protocol import Demonstrator, Env, Scene, State

Array = jax.Array
PyTree = Any

_HALF_WIDTH = Bounds(0, 1, high_open=True)
_SENSOR_NOISE = Bounds(0, 1e6)


@dataclasses.dataclass(frozen=True)
class Randomize:
    """Ranges, all off by default.

    The first three are half-widths of a uniform factor: 0.3 draws from [0.7, 1.3].
    """

    mass: float = field(
        0.0,
        _HALF_WIDTH,
        "factor of the mass and inertia of each free object, or of all that moves if none is free",
    )
    friction: float = field(0.0, _HALF_WIDTH, "one factor of the friction of all contacts")
    size: float = field(0.0, _HALF_WIDTH, "factor of the size of each free object; its mass stays")
    sensor_noise: float = field(
        0.0, _SENSOR_NOISE, "std of noise on every number of the observation, at every step"
    )
    action_delay: int = field(
        0, NON_NEGATIVE, "control steps; each episode draws its delay from 0 ... this"
    )

    def __post_init__(self) -> None:
        config_fields.check(self, "randomize.")


def randomize_env(env: Env, config: Randomize) -> Env:
    """``env`` with what ``config`` turns on.

    Raises:
      ValueError: if the physics cannot be randomized, because it is not MJX's, or if no action
        would arrive within an episode.
    """
    if config.mass or config.friction or config.size:
        env = _with_random_physics(env, config)
    if config.action_delay >= env.specs.horizon:
        raise ValueError(
            f"env.randomize.action_delay is {config.action_delay}; it must be below the "
            f"{env.specs.horizon} steps of an episode."
        )
    if config.action_delay:
        env = _with_delay(env, config.action_delay)
    if config.sensor_noise:
        env = _with_sensor_noise(env, config.sensor_noise)
    return env


class PhysicsRange(NamedTuple):
    """What is drawn of a model."""

    config: Randomize
    model: mujoco.MjModel
    is_free: np.ndarray  # [nbody] bool: moves freely
    descendants: np.ndarray  # [nbody, nbody] float32, as ``_descendants`` returns it

    def sample(self, key: Array) -> dict[str, Array]:
        """Fields of ``mjx.Model`` of one episode; ``key`` is consumed."""
        mass_key, friction_key, size_key = jax.random.split(key, 3)
        fields: dict[str, Array] = {}
        if self.config.mass:
            fields |= self._masses(mass_key)
        if self.config.friction:
            factor = _sample_factor(friction_key, self.config.friction, 1)[0]
            for name in ("geom_friction", "pair_friction"):
                fields[name] = jnp.asarray(getattr(self.model, name), jnp.float32) * factor
        if self.config.size:
            factors = _sample_factor(size_key, self.config.size, self.model.nbody)
            factors = jnp.where(self.is_free, factors, 1.0)
            fields |= _scaled(self.model, factors, {"geom_size": 1}, self.model.geom_bodyid)
        return fields

    def _masses(self, key: Array) -> dict[str, Array]:
        """Masses and inertias, and what MuJoCo derives from them."""
        model = self.model
        is_heavy = self.is_free if self.is_free.any() else model.body_weldid > 0
        factors = _sample_factor(key, self.config.mass, model.nbody)
        factors = jnp.where(is_heavy, factors, 1.0)
        powers = {"body_mass": 1, "body_inertia": 1, "body_invweight0": -1}
        fields = _scaled(model, factors, powers, range(model.nbody))
        fields |= _scaled(model, factors, {"dof_invweight0": -1}, model.dof_bodyid)
        fields["body_subtreemass"] = jnp.asarray(self.descendants) @ fields["body_mass"]
        return fields


def _with_random_physics(env: Env, config: Randomize) -> Env:
    """Each reset draws fields of the model into ``physics.body.model``."""
    name = env.specs.name
    if env.scene is None:
        raise ValueError(
            f"{name} has no MuJoCo model: randomize.mass, friction and size do not apply to it."
        )
    model = env.scene().physics
    free_bodies = model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    is_free = np.isin(np.arange(model.nbody), free_bodies)
    if config.size and not is_free.any():
        raise ValueError(
            f"{name} has no freely moving object: randomize.size does not apply to it."
        )
    ranges = PhysicsRange(config, model, is_free, _descendants(model))

    def reset(key: Array) -> State:
        task_key, model_key = jax.random.split(key)
        state = env.reset(task_key)
        body = getattr(state.physics, "body", None)
        if not isinstance(body, Body):
            raise ValueError(
                f"{name} carries no physics.body: "
                "randomize.mass, friction and size do not apply to it."
            )
        body = body._replace(model=body.model | ranges.sample(model_key))
        return state._replace(physics=state.physics._replace(body=body))

    return env._replace(reset=reset)


def _descendants(model: mujoco.MjModel) -> np.ndarray:
    """[nbody, nbody] float32: 1 if the column's body is the row's, or hangs on it."""
    hangs_on = np.eye(model.nbody, dtype=np.float32)
    for body in range(model.nbody - 1, 0, -1):
        hangs_on[model.body_parentid[body]] += hangs_on[body]
    return hangs_on


def _sample_factor(key: Array, half_width: float, count: int) -> Array:
    return jax.random.uniform(key, (count,), minval=1.0 - half_width, maxval=1.0 + half_width)


def _scaled(
    model: mujoco.MjModel, factors: Array, powers: dict[str, int], bodies: Any
) -> dict[str, Array]:
    """Fields of ``model`` times a power of their body's factor.

    Args:
      model: the model.
      factors: [nbody].
      powers: by the field's name.
      bodies: the body of each row of the fields.
    """
    scaled = {}
    for name, power in powers.items():
        values = jnp.asarray(getattr(model, name), jnp.float32)
        row_factors = factors[np.asarray(bodies)] ** power
        scaled[name] = values * row_factors.reshape(-1, *[1] * (values.ndim - 1))
    return scaled


def _with_sensor_noise(env: Env, std: float) -> Env:
    """Observations with Gaussian noise; the physics does not feel it."""

    def with_noise(state: State) -> State:
        key, noise_key = jax.random.split(state.key)
        noise = std * jax.random.normal(noise_key, state.obs.shape)
        return state._replace(obs=state.obs + noise, key=key)

    return env._replace(
        reset=lambda key: with_noise(env.reset(key)),
        step=lambda state, action: with_noise(env.step(state, action)),
    )


class Delayed(NamedTuple):
    """What a task with delayed actions carries."""

    inner: PyTree  # the task's own physics
    waiting: Array  # [D, A] the last actions, the newest first
    delay: Array  # [] int32 control steps, of this episode


def _inner(state: State) -> State:
    """The state of the task inside."""
    return state._replace(physics=state.physics.inner)


def _with_delay(env: Env, max_delay: int) -> Env:
    """Actions arrive late; before the first has arrived the task gets zeros."""

    def reset(key: Array) -> State:
        task_key, delay_key = jax.random.split(key)
        state = env.reset(task_key)
        physics = Delayed(
            inner=state.physics,
            waiting=jnp.zeros((max_delay, env.specs.action_dim)),
            delay=jax.random.randint(delay_key, (), 0, max_delay + 1),
        )
        return state._replace(physics=physics)

    def step(state: State, action: Array) -> State:
        _, waiting, delay = state.physics
        recent = jnp.concatenate([action[None], waiting])
        new = env.step(_inner(state), recent[delay])
        return new._replace(physics=Delayed(inner=new.physics, waiting=recent[:-1], delay=delay))

    def demonstrator(noise: float) -> Demonstrator:
        assert env.demonstrator is not None
        task_demonstrator = env.demonstrator(noise)
        return task_demonstrator._replace(
            init=lambda key, state: task_demonstrator.init(key, _inner(state)),
            act=lambda memory, state, key: task_demonstrator.act(memory, _inner(state), key),
        )

    def scene() -> Scene:
        assert env.scene is not None
        task_scene = env.scene()
        return task_scene._replace(pose=lambda state: task_scene.pose(_inner(state)))

    task = env.task
    return env._replace(
        reset=reset,
        step=step,
        demonstrator=demonstrator if env.demonstrator else None,
        scene=scene if env.scene else None,
        task=None if task is None else lambda state: task(_inner(state)),
    )

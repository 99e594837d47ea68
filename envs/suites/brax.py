"""brax's tasks on MJX by the prefix ``brax:``, e.g. ``brax:ant``, with DPPO's locomotion tasks.

A demonstrator is a policy that brax's own PPO trained (``experiments.brax_demonstrators``); its
parameters are in ``envs/assets``.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from gcp_jax import config_fields
from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE_INT, field
from gcp_jax.envs import TaskDefinition
from gcp_jax.envs.physics.common import add_action_noise
from gcp_jax.envs.physics.mjx import load_mjx
from gcp_jax.envs.protocol import Demonstrator, Env, State
from gcp_jax.envs.suites.adapter import adapt

Array = jax.Array

QUALITY = {
    "ant": {"expert": 0.0, "mixed": 0.1, "poor": 0.25},
    "halfcheetah": {"expert": 0.0, "mixed": 0.3, "poor": 0.45},
    "hopper": {"expert": 0.0, "mixed": 0.5, "poor": 0.8},
    "walker2d": {"expert": 0.0, "mixed": 1.0, "poor": 1.4},
}
"""Tasks with a demonstrator: std of the noise on every action, by level.

About two thirds of the return are left at "mixed" and a third at "poor".
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of any task of brax."""

    horizon: int = field(1000, POSITIVE_INT, "control steps of an episode")
    iterations: int = field(0, NON_NEGATIVE, "solver iterations; 0 keeps the task's own")
    ls_iterations: int = field(0, NON_NEGATIVE, "line-search iterations; 0 keeps the task's own")

    def __post_init__(self) -> None:
        config_fields.check(self, "env.")


def _brax() -> Any:
    load_mjx()  # else brax would import it, with Warp
    try:
        import brax.envs
    except ImportError as error:
        raise ImportError('brax: tasks need brax: pip install "gcp-jax[brax]".') from error
    return brax.envs


def names() -> tuple[str, ...]:
    """brax's tasks that run on MJX."""
    return tuple(sorted(name for name in _brax()._envs if name not in ("fast", "pusher")))


def definition(name: str) -> TaskDefinition:
    """The task of brax called ``name``.

    Raises:
      ValueError: if there is none.
      ImportError: if brax is not installed.
    """
    if name not in names():
        raise ValueError(f"brax has no environment {name!r}; allowed: {', '.join(names())}.")
    return TaskDefinition(
        config=Config, make=functools.partial(_make, name), quality=QUALITY.get(name, {})
    )


@functools.lru_cache
def _default_env(name: str) -> Any:
    """brax's own environment; brax takes 20–40 seconds to make one."""
    return _brax().get_environment(name, backend="mjx")


def brax_env(name: str, config: Config) -> Any:
    """brax's own environment with the configured solver."""
    env = copy.copy(_default_env(name))
    options = env.sys.opt
    options = options.replace(
        iterations=config.iterations or options.iterations,
        ls_iterations=config.ls_iterations or options.ls_iterations,
    )
    env.sys = env.sys.replace(opt=options)
    return env


def _make(name: str, config: Config) -> Env:
    env = brax_env(name, config)
    return adapt(
        env,
        name=f"brax:{name}",
        model_field="sys",
        horizon=config.horizon,
        model=_simulated_model(env.sys),
        qpos=lambda state: state.pipeline_state.q,
        demonstrator=functools.partial(demonstrator, name) if name in QUALITY else None,
    )


def _simulated_model(sys: Any) -> mujoco.MjModel:
    """The model with the options that it is simulated with.

    brax sets those of some tasks in MJX's copy alone.
    """
    model = copy.copy(sys.mj_model)
    for name in ("solver", "disableflags", "iterations", "ls_iterations"):
        kind = type(getattr(model.opt, name))
        setattr(model.opt, name, kind(getattr(sys.opt, name)))
    return model


def parameters_file(name: str) -> Path:
    """The file of a demonstrator's parameters.

    A numpy archive of ``mean`` and ``std`` [O] of the observations, and ``kernel_i`` [in, out] and
    ``bias_i`` [out] of its layers.
    """
    return Path(__file__).parents[1] / "assets" / f"brax_{name}.npz"


def demonstrator(name: str, noise: float) -> Demonstrator:
    """The trained policy's most likely action, plus normal noise of this std at every step."""
    with np.load(parameters_file(name), allow_pickle=False) as archive:
        parameters = dict(archive)

    def init(key: Array, state: State) -> Array:
        return jnp.zeros((), jnp.int32)

    def step(memory: Array, state: State, key: Array) -> tuple[Array, Array]:
        return add_action_noise(act(parameters, state.obs), key, noise), memory

    return Demonstrator(init, step, mode=lambda memory: memory, modes=1)


def act(parameters: Mapping[str, np.ndarray], obs: Array) -> Array:
    """The mode [A] of brax's tanh-normal policy at ``obs`` [O].

    Layers with swish between them; the mean is squashed.
    """
    hidden = (obs - parameters["mean"]) / parameters["std"]
    last = len(parameters) // 2 - 2
    for layer in range(last + 1):
        hidden = hidden @ parameters[f"kernel_{layer}"] + parameters[f"bias_{layer}"]
        if layer < last:
            hidden = jax.nn.swish(hidden)
    return jnp.tanh(jnp.split(hidden, 2)[0])

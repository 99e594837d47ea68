"""brax's tasks on MJX by the prefix ``brax:``, e.g. ``brax:ant``: DPPO's locomotion tasks among them.

A demonstrator is a policy that brax's own PPO trained (``experiments.brax_demonstrators``), its parameters in ``envs/assets``.
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

from gcp_jax.envs import Definition
from gcp_jax.envs.physics.common import add_action_noise
from gcp_jax.envs.protocol import Demonstrator, Env, State
from gcp_jax.envs.suites.adapter import adapt

Array = jax.Array

QUALITY = {
    "ant": {"expert": 0.0, "mixed": 0.1, "poor": 0.25},
    "halfcheetah": {"expert": 0.0, "mixed": 0.3, "poor": 0.45},
    "hopper": {"expert": 0.0, "mixed": 0.5, "poor": 0.8},
    "walker2d": {"expert": 0.0, "mixed": 1.0, "poor": 1.4},
}
"""Tasks with a demonstrator: std of the noise on every action, by level, so that about two thirds and a third of the return are left."""


@dataclasses.dataclass(frozen=True)
class Config:
    """horizon: control steps of an episode. iterations, ls_iterations: of MJX's solver; 0 keeps the task's own."""

    horizon: int = 1000
    iterations: int = 0
    ls_iterations: int = 0


def _brax() -> Any:
    try:
        import brax.envs
    except ImportError as error:
        raise ImportError('brax: tasks need brax: pip install "gcp-jax[brax]".') from error
    return brax.envs


def names() -> tuple[str, ...]:
    """brax's tasks that run on MJX."""
    return tuple(sorted(name for name in _brax()._envs if name not in ("fast", "pusher")))


def definition(name: str) -> Definition:
    """The task of brax called ``name``. Raises ValueError where it has none, ImportError without brax."""
    if name not in names():
        raise ValueError(f"brax has no environment {name!r}; allowed: {', '.join(names())}.")
    return Definition(Config, functools.partial(_make, name), QUALITY.get(name, {}))


@functools.lru_cache
def _made(name: str) -> Any:
    """brax takes 20–40 seconds to make one."""
    return _brax().get_environment(name, backend="mjx")


def task(name: str, config: Config) -> Any:
    """brax's own environment with the configured solver."""
    made = copy.copy(_made(name))
    options = made.sys.opt
    made.sys = made.sys.replace(
        opt=options.replace(
            iterations=config.iterations or options.iterations,
            ls_iterations=config.ls_iterations or options.ls_iterations,
        )
    )
    return made


def _make(name: str, config: Config) -> Env:
    made = task(name, config)
    return adapt(
        made,
        name=f"brax:{name}",
        model_field="sys",
        horizon=config.horizon,
        model=_simulated(made.sys),
        qpos=lambda state: state.pipeline_state.q,
        demonstrator=functools.partial(demonstrator, name) if name in QUALITY else None,
    )


def _simulated(sys: Any) -> mujoco.MjModel:
    """The model with the options that it is simulated with: brax sets those of some tasks in MJX's copy alone."""
    model = copy.copy(sys.mj_model)
    for name in ("solver", "disableflags", "iterations", "ls_iterations"):
        own = getattr(model.opt, name)
        setattr(model.opt, name, type(own)(getattr(sys.opt, name)))
    return model


def parameters_file(name: str) -> Path:
    """Where the demonstrator's parameters are: a numpy archive of ``mean`` and ``std`` [O] of the observations, and
    ``kernel_i`` [in, out] and ``bias_i`` [out] of its layers."""
    return Path(__file__).with_name("assets") / f"brax_{name}.npz"


def demonstrator(name: str, noise: float) -> Demonstrator:
    """The trained policy's most likely action, shaken in every step by normal noise of this std."""
    with np.load(parameters_file(name), allow_pickle=False) as archive:
        parameters = dict(archive)

    def step(memory: Array, state: State, key: Array) -> tuple[Array, Array]:
        return add_action_noise(act(parameters, state.obs), key, noise), memory

    return Demonstrator(
        lambda key, state: jnp.zeros((), jnp.int32), step, mode=lambda memory: memory, modes=1
    )


def act(parameters: Mapping[str, np.ndarray], obs: Array) -> Array:
    """The mode [A] of brax's tanh-normal policy: obs [O], layers with swish between them, the mean squashed."""
    hidden = (obs - parameters["mean"]) / parameters["std"]
    last = len(parameters) // 2 - 2
    for layer in range(last + 1):
        hidden = hidden @ parameters[f"kernel_{layer}"] + parameters[f"bias_{layer}"]
        hidden = jax.nn.swish(hidden) if layer < last else hidden
    return jnp.tanh(jnp.split(hidden, 2)[0])

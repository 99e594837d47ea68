"""brax's tasks on MJX by the prefix ``brax:``, e.g. ``brax:ant``: DPPO's locomotion tasks among them."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

from envs import Definition
from envs.protocol import Env
from envs.suite import adapt


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
    return Definition(Config, functools.partial(_make, name), {})


@functools.lru_cache
def _made(name: str) -> Any:
    """brax takes 20–40 seconds to make one."""
    return _brax().get_environment(name, backend="mjx")


def _make(name: str, config: Config) -> Env:
    made = copy.copy(_made(name))
    options = made.sys.opt
    made.sys = made.sys.replace(
        opt=options.replace(
            iterations=config.iterations or options.iterations,
            ls_iterations=config.ls_iterations or options.ls_iterations,
        )
    )
    return adapt(
        made,
        name=f"brax:{name}",
        model_field="sys",
        horizon=config.horizon,
        model=made.sys.mj_model,
        qpos=lambda state: state.pipeline_state.q,
    )

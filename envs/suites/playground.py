"""MuJoCo Playground's dm_control suite by the prefix ``playground:``, e.g. ``playground:CheetahRun`` (arXiv 2502.08844).

Its locomotion and manipulation scenes want meshes that it downloads at first use; they are not offered here.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from gcp_jax.envs import Definition
from gcp_jax.envs.protocol import Env
from gcp_jax.envs.suites.adapter import adapt


@dataclasses.dataclass(frozen=True)
class Config:
    """horizon: control steps of an episode."""

    horizon: int = 1000


def _suite() -> Any:
    try:
        from mujoco_playground import dm_control_suite
    except ImportError as error:
        raise ImportError(
            'playground: tasks need playground: pip install "gcp-jax[playground]".'
        ) from error
    return dm_control_suite


def names() -> tuple[str, ...]:
    """The tasks of the suite."""
    return tuple(sorted(_suite().ALL_ENVS))


def definition(name: str) -> Definition:
    """The task called ``name``. Raises ValueError where there is none, ImportError without playground."""
    if name not in names():
        raise ValueError(
            f"playground's dm_control suite has no environment {name!r}; allowed: {', '.join(names())}."
        )
    return Definition(Config, functools.partial(_make, name), {})


def _make(name: str, config: Config) -> Env:
    try:
        made = _suite().load(name, config_overrides={"impl": "jax"})
    except AttributeError as error:  # it lags behind MuJoCo's own interface in a few tasks
        raise ValueError(
            f"this version of playground cannot make {name} with this version of MuJoCo: {error}"
        ) from error
    return adapt(
        made,
        name=f"playground:{name}",
        model_field="_mjx_model",
        horizon=config.horizon,
        model=made.mj_model,
        qpos=lambda state: state.data.qpos,
    )

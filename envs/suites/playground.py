"""MuJoCo Playground's dm_control suite by the prefix ``playground:``: ``playground:CheetahRun``.

See arXiv 2502.08844. Its locomotion and manipulation scenes need meshes that it downloads at first
use; they are not offered here.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from gcp_jax import config_fields
from gcp_jax.config_fields import POSITIVE_INT, field
from gcp_jax.envs import TaskDefinition
from gcp_jax.envs.physics.mjx import load_mjx
from gcp_jax.envs.protocol import Env
from gcp_jax.envs.suites.adapter import adapt


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of any task of the suite."""

    horizon: int = field(1000, POSITIVE_INT, "control steps of an episode")

    def __post_init__(self) -> None:
        config_fields.check(self, "env.")


def _suite() -> Any:
    load_mjx()  # else playground would import it, with Warp
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


def definition(name: str) -> TaskDefinition:
    """The task called ``name``.

    Raises:
      ValueError: if there is none.
      ImportError: if playground is not installed.
    """
    if name not in names():
        raise ValueError(
            f"playground's dm_control suite has no environment {name!r}; "
            f"allowed: {', '.join(names())}."
        )
    return TaskDefinition(config=Config, make=functools.partial(_make, name), quality={})


def _make(name: str, config: Config) -> Env:
    try:
        suite_env = _suite().load(name, config_overrides={"impl": "jax"})
    except AttributeError as error:  # it lags behind MuJoCo's own interface in a few tasks
        raise ValueError(
            f"this version of playground cannot make {name} with this version of MuJoCo: {error}"
        ) from error
    return adapt(
        suite_env,
        name=f"playground:{name}",
        model_field="_mjx_model",
        horizon=config.horizon,
        model=suite_env.mj_model,
        qpos=lambda state: state.data.qpos,
    )

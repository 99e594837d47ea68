"""Tasks by name: the project's own, other suites' by a prefix (``brax:ant``), a user's by module.

Here are the registry (``names``, ``load``, ``make``, ``build``), the protocol, the wrappers that
every run uses, the contracts and domain randomization. The tasks are in ``tasks`` and ``suites``,
what they share in ``physics`` and ``robots``, demonstrations in ``demos``, pictures in
``rendering``.

A task's module has a frozen dataclass ``Config``, ``make(config) -> Env`` and, if it has a
demonstrator, ``QUALITY``: noise levels by name. See ``docs/guides/add_an_environment.md``.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from gcp_jax import config_fields, user_code
from gcp_jax.config_fields import suggest
from gcp_jax.envs.physics.mjx import Backend
from gcp_jax.envs.protocol import Env
from gcp_jax.envs.randomize import Randomize, randomize_env

_NAMES = (
    "adroit_door",
    "adroit_relocate",
    "hand_cube",
    "handover",
    "multi_task",
    "nut_on_peg",
    "peg_insert",
    "pick_place",
    "push_t",
    "reach",
    "ur5e_insert",
    "ur5e_pick_place",
)

SUITES = {"brax": "gcp_jax.envs.suites.brax", "playground": "gcp_jax.envs.suites.playground"}
"""Adapters by prefix: each module has ``names()`` and ``definition(name) -> TaskDefinition``."""


class TaskDefinition(NamedTuple):
    """A task that can be made."""

    config: Callable[..., Any]  # its frozen dataclass of settings
    make: Callable[..., Env]  # config -> Env
    quality: Mapping[str, float]  # the demonstrator's noise by level


def names() -> tuple[str, ...]:
    """The project's own tasks."""
    return _NAMES


def load(name: str, module: str = "") -> TaskDefinition:
    """The task ``name``, or that of a user's own ``module``.

    Raises:
      ValueError: in one line, if there is no such task.
    """
    suite, colon, name_in_suite = name.partition(":")
    if module:
        return _definition_of(_import_module(module))
    if colon:
        if suite not in SUITES:
            raise ValueError(f"no suite is called {suite!r}; {suggest(suite, SUITES)}")
        definition: TaskDefinition = importlib.import_module(SUITES[suite]).definition(
            name_in_suite
        )
        return definition
    if name not in _NAMES:
        raise ValueError(
            f"no environment is called {name!r}; {suggest(name, _NAMES)}, "
            "or a suite's, e.g. brax:ant"
        )
    return _definition_of(importlib.import_module(f"gcp_jax.envs.tasks.{name}"))


def _import_module(module: str) -> ModuleType:
    try:
        return user_code.import_module(module, f"env.module={module!r}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"env.module={module!r} cannot be imported: no {module}.py in the working directory."
        ) from error


def _definition_of(module: ModuleType) -> TaskDefinition:
    for part in ("Config", "make"):
        if not hasattr(module, part):
            raise ValueError(
                f"{module.__name__} has no {part}; see docs/guides/add_an_environment.md."
            )
    config_fields.check_class(module.Config, f"{module.__name__}.Config")
    return TaskDefinition(
        config=module.Config, make=module.make, quality=getattr(module, "QUALITY", {})
    )


def settings(name: str, module: str = "") -> dict[str, Any]:
    """Every setting of a task with its default, as ``make`` takes them."""
    defaults = dataclasses.asdict(load(name, module).config())
    randomize = dataclasses.asdict(Randomize())
    return {"name": name, "module": module, **defaults, "randomize": randomize}


def make(
    name: str,
    *,
    module: str = "",
    randomize: Mapping[str, Any] | None = None,
    backend: Backend = "mjx",
    **settings: Any,
) -> Env:
    """The task ``name``.

    Args:
      name: of the task, or SUITE:NAME.
      module: an importable module with a task of your own; ``name`` is not used then.
      randomize: fields of ``randomize.Randomize``.
      backend: what simulates a task of the project: MJX, or plain MuJoCo as a reference.
      **settings: fields of the task's ``Config``; lists become tuples.

    Raises:
      ValueError: in one line, for a name or a setting that does not exist or a value that is not
        allowed.
    """
    definition = load(name, module)
    _check_names(settings, definition.config, f"environment {name!r} has no setting")
    _check_names(randomize or {}, Randomize, "there is no env.randomize field")
    fields = {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in settings.items()
    }
    return build(definition, definition.config(**fields), Randomize(**(randomize or {})), backend)


def build(
    definition: TaskDefinition, config: Any, randomize: Randomize, backend: Backend = "mjx"
) -> Env:
    """A task from instances of its ``Config`` and of ``Randomize``.

    Raises:
      ValueError: in one line, for a value that is not allowed, or if the task cannot be randomized
        so.
    """
    config_fields.check(config, "env.")
    if backend == "mjx":
        env = definition.make(config)
    else:
        env = definition.make(config, backend=backend)
    if env.specs.horizon < 1:
        raise ValueError(f"env.horizon is {env.specs.horizon}; it must be at least 1.")
    return randomize_env(env, randomize)


def _check_names(fields: Mapping[str, Any], config: Any, complaint: str) -> None:
    """Raise ValueError if one of ``fields`` is not a field of ``config``."""
    allowed = [field.name for field in dataclasses.fields(config)]
    for name in fields:
        if name not in allowed:
            raise ValueError(f"{complaint} {name!r}; {suggest(name, allowed)}")

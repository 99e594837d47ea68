"""Tasks by name: the project's own, those of other suites by a prefix (``brax:ant``), a user's own by its module.

A task's module holds a frozen ``Config``, ``make(config) -> Env`` and, where it has a demonstrator, ``QUALITY``: its noise
levels by name. See ``docs/add_an_environment.md``.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gcp_jax import config_fields
from gcp_jax.config_fields import FINITE, NON_NEGATIVE, POSITIVE, POSITIVE_INT, Bounds
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
"""Adapters by prefix: each module has ``names()`` and ``definition(name) -> Definition``."""


_POSITIVE = ("tolerance", "speed", "step", "grip", "width", "depth", "side", "still", "friction")
_NOT_NEGATIVE = (
    "clearance",
    "clear",
    "noise",
    "drag",
    "yaw",
    "turn",
    "disc",
    "iterations",
    "start_y",
    "goal_y",
)


class Definition(NamedTuple):
    """A task that can be made. config: its frozen dataclass of settings; quality: the demonstrator's noise by level."""

    config: Callable[..., Any]
    make: Callable[[Any], Env]
    quality: Mapping[str, float]


def names() -> tuple[str, ...]:
    """The project's own tasks."""
    return _NAMES


def load(name: str, module: str = "") -> Definition:
    """The task ``name``, or that of a user's own ``module``. Raises ValueError, in one line, where there is none."""
    suite, colon, own = name.partition(":")
    if module:
        return _of_module(_imported(module))
    if colon:
        if suite not in SUITES:
            raise ValueError(f"no suite is called {suite!r}; {_allowed(suite, tuple(SUITES))}")
        found: Definition = importlib.import_module(SUITES[suite]).definition(own)
        return found
    if name not in _NAMES:
        raise ValueError(
            f"no environment is called {name!r}; {_allowed(name, _NAMES)}, or a suite's, e.g. brax:ant"
        )
    return _of_module(importlib.import_module(f"gcp_jax.envs.tasks.{name}"))


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ValueError(
            f"env.module={module!r} cannot be imported: no {module}.py in the working directory."
        ) from error


def _of_module(module: Any) -> Definition:
    for part in ("Config", "make"):
        if not hasattr(module, part):
            raise ValueError(f"{module.__name__} has no {part}; see docs/add_an_environment.md.")
    return Definition(module.Config, module.make, getattr(module, "QUALITY", {}))


def settings(name: str, module: str = "") -> dict[str, Any]:
    """Every setting of a task with its default, as ``make`` takes them."""
    own = dataclasses.asdict(load(name, module).config())
    return {"name": name, "module": module, **own, "randomize": dataclasses.asdict(Randomize())}


def make(
    name: str, *, module: str = "", randomize: Mapping[str, Any] | None = None, **settings: Any
) -> Env:
    """The task ``name``; ``settings`` replace fields of its ``Config`` (JSON's lists are tuples there), ``randomize`` those of
    ``envs.randomize.Randomize``.

    Raises ValueError, in one line, for a name or a setting that does not exist, or a number out of its range.
    """
    task = load(name, module)
    given = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    config = task.config(**_checked(given, task.config, f"environment {name!r} has no setting"))
    config_fields.check(
        config,
        "env.",
        {
            field.name: _range(field.name)
            for field in dataclasses.fields(config)
            if _numeric(config, field.name)
        },
    )
    drawn = Randomize(**_checked(randomize or {}, Randomize, "there is no env.randomize field"))
    return randomize_env(task.make(config), drawn)


def _checked(given: Mapping[str, Any], config: Any, complaint: str) -> Mapping[str, Any]:
    fields = tuple(field.name for field in dataclasses.fields(config))
    for name in given:
        if name not in fields:
            raise ValueError(f"{complaint} {name!r}; {_allowed(name, fields)}")
    return given


def _numeric(config: Any, name: str) -> bool:
    value = getattr(config, name)
    return not any(
        isinstance(part, (str, bool)) for part in (value if isinstance(value, tuple) else (value,))
    )


def _range(name: str) -> Bounds:
    """What a task's number may be, by what its name says: tasks share their words, and a user's own are finite."""
    words = name.removesuffix("_mm").removesuffix("_rad")
    if name == "horizon":
        return POSITIVE_INT
    if any(words == word or words.endswith("_" + word) for word in _POSITIVE):
        return POSITIVE
    return NON_NEGATIVE if words.endswith(("spread", *_NOT_NEGATIVE)) else FINITE


def _allowed(wrong: str, allowed: tuple[str, ...]) -> str:
    """The end of an error message: the likely meaning, if any, then everything that is allowed."""
    close = difflib.get_close_matches(wrong, allowed, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(allowed)}"

"""Tasks by name. Each module named in ``names()`` holds a frozen ``Config`` and ``make(config) -> Env``."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from typing import Any

from envs.protocol import Env

_NAMES = ("peg_insert", "pick_place", "push_t", "reach")


def names() -> tuple[str, ...]:
    """The tasks ``make`` knows."""
    return _NAMES


def make(name: str, **settings: Any) -> Env:
    """The task ``name``; ``settings`` replace fields of its ``Config``.

    Raises ValueError, in one line, for a name or a setting that does not exist.
    """
    if name not in _NAMES:
        raise ValueError(f"no environment is called {name!r}; {_allowed(name, _NAMES)}")
    module = importlib.import_module(f"envs.{name}")
    fields = tuple(field.name for field in dataclasses.fields(module.Config))
    for setting in settings:
        if setting not in fields:
            raise ValueError(f"environment {name!r} has no setting {setting!r}; {_allowed(setting, fields)}")
    return module.make(module.Config(**settings))


def _allowed(wrong: str, allowed: tuple[str, ...]) -> str:
    """The end of an error message: the likely meaning, if any, then everything that is allowed."""
    close = difflib.get_close_matches(wrong, allowed, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(allowed)}"

"""Methods by name. Each module holds a frozen ``Config`` and ``make(config, policy, source) -> Algorithm``.

``replay_needs(config)`` of an off-policy module says what its replay must carry, as keywords of ``sources.replay``.
"""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

_NAMES = ("ogpo",)


def names() -> tuple[str, ...]:
    """The finetuning methods ``load`` knows."""
    return _NAMES


def load(name: str) -> ModuleType:
    """The module of a method. Raises ValueError, in one line, for a name that does not exist."""
    if name not in _NAMES:
        close = difflib.get_close_matches(name, _NAMES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no algorithm is called {name!r}; {hint}allowed: {', '.join(_NAMES)}.")
    return importlib.import_module(f"gcp_jax.algorithms.{name}")

"""Methods by name, or from a module of the user's own (``algorithm.module``).

A module holds a frozen ``Config`` with a field ``gamma`` and ``make(config, policy, source) -> Algorithm``, and where it wants other than
plain replayed transitions one of

    replay_needs(config)   off-policy: what its replay must carry, as keywords of ``sources.replay``, ``gamma`` among them
    rollout_needs(config)  on-policy: keywords of ``sources.rollout``: ``gamma``, ``epochs``, ``minibatches``
"""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType
from typing import Any

_NAMES = ("ogpo", "dppo", "dsrl", "residual", "expo", "qc", "fql")
_PARTS = ("Config", "make")


def names() -> tuple[str, ...]:
    """The finetuning methods ``load`` knows."""
    return _NAMES


def load(name: str, module: str = "") -> ModuleType:
    """The module of a method: one of ours by its name, or the importable ``module`` whatever its name.

    Raises ValueError, in one line, for a name that does not exist or a module that is not a method.
    """
    if module:
        return _own(module)
    if name not in _NAMES:
        close = difflib.get_close_matches(name, _NAMES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"no algorithm is called {name!r}; {hint}allowed: {', '.join(_NAMES)}, "
            "or a module of your own by --config.algorithm.module=NAME."
        )
    return importlib.import_module(f"gcp_jax.algorithms.{name}")


def on_policy(module: ModuleType) -> bool:
    """Does the method learn from each segment only once?"""
    return hasattr(module, "rollout_needs")


def replay_needs(module: ModuleType, config: Any) -> dict[str, Any]:
    """Keywords of ``sources.replay`` for an off-policy method."""
    return (
        dict(module.replay_needs(config))
        if hasattr(module, "replay_needs")
        else {"gamma": config.gamma}
    )


def _own(module: str) -> ModuleType:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0] and error.name != module:
            raise
        raise ValueError(
            f"algorithm.module is {module!r}, which cannot be imported; put {module.split('.')[0]}.py in the current folder or on PYTHONPATH."
        ) from error
    missing = [part for part in _PARTS if not hasattr(found, part)]
    if missing:
        raise ValueError(
            f"algorithm.module {module!r} is not a method: it lacks {', '.join(missing)} (see docs/add_an_algorithm.md)."
        )
    return found

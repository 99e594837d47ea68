"""The finetuning methods, by name or from a user's own module, and behavior cloning.

A file here holds the equations of one method, with its settings beside them; the loop that runs
them is ``gcp_jax.learner``. What several methods share is in ``gcp_jax.core``.

Every method is a module with

    Config                          a frozen dataclass of its settings; ``gamma`` is one of them
    make(config, policy, source)    builds its ``Algorithm``

and, if it needs them,

    replay_needs(config)    off-policy: what its replay must carry besides plain transitions, as
                            keywords of ``batch_sources.replay``, ``gamma`` among them
    rollout_needs(config)   on-policy: keywords of ``batch_sources.on_policy``: ``gamma``,
                            ``epochs`` and ``minibatches``
    RUN_DEFAULTS            {dotted field: value} of the run's defaults that this method changes

``load`` finds the module by the method's name, or any importable module with these parts
(``algorithm.module`` of a run's configuration).
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from gcp_jax import config_fields, user_code
from gcp_jax.config_fields import suggest

_NAMES = ("ogpo", "dppo", "dsrl", "residual", "expo", "qc", "fql")
_REQUIRED = ("Config", "make")


def names() -> tuple[str, ...]:
    """The names of the finetuning methods of this library."""
    return _NAMES


def load(name: str, module: str = "") -> ModuleType:
    """Return the module of a method.

    Args:
      name: one of ``names()``; not used if ``module`` is given.
      module: the importable name of a user's own module, or "".

    Raises:
      ValueError: in one line, if there is no such method or the module is not one.
    """
    if module:
        return _load_user_module(module)
    if name not in _NAMES:
        raise ValueError(
            f"no algorithm is called {name!r}; {suggest(name, _NAMES)}, "
            "or a module of your own by --config.algorithm.module=NAME."
        )
    return importlib.import_module(f"gcp_jax.algorithms.{name}")


def on_policy(module: ModuleType) -> bool:
    """Whether a method learns from each segment only once."""
    return hasattr(module, "rollout_needs")


def replay_needs(module: ModuleType, config: Any) -> dict[str, Any]:
    """The keywords of ``batch_sources.replay`` for an off-policy method."""
    if hasattr(module, "replay_needs"):
        return dict(module.replay_needs(config))
    return {"gamma": config.gamma}


def run_defaults(module: ModuleType) -> dict[str, Any]:
    """The defaults of a run that a method changes: {dotted field: value}."""
    return dict(getattr(module, "RUN_DEFAULTS", {}))


def _load_user_module(module: str) -> ModuleType:
    root = module.split(".")[0]
    try:
        loaded = user_code.import_module(module, f"algorithm.module={module!r}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"algorithm.module is {module!r}, which cannot be imported; put {root}.py in the "
            "current folder or on PYTHONPATH."
        ) from error
    missing = [part for part in _REQUIRED if not hasattr(loaded, part)]
    if missing:
        raise ValueError(
            f"algorithm.module {module!r} is not a method: it lacks {', '.join(missing)} "
            "(see docs/guides/add_a_method.md)."
        )
    config_fields.check_class(loaded.Config, f"{module}.Config", needs=("gamma",))
    return loaded

"""Python files that a user gives on the command line: benchmarks, sweeps."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from gcp_jax.config import ConfigError


def call_user_file(path: str, function: str, *, named: str, example: str) -> Any:
    """What ``function`` of a Python file returns.

    Args:
      path: the file.
      function: the name of a function without arguments.
      named: the file as the user gave it, for messages.
      example: a file of that kind, for messages.

    Raises:
      ConfigError: if there is no such file or function.
    """
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if not Path(path).is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{named} is not a Python file; give one such as {example}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise ConfigError(f"{named} has no {function}(); see {example}.")
    return getattr(module, function)()

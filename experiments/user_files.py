"""Python files that a user gives on the command line: configurations, benchmarks, sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gcp_jax import user_code
from gcp_jax.config import ConfigError


def call_user_file(
    path: str, function: str, *, named: str, example: str, arguments: tuple[Any, ...] = ()
) -> Any:
    """What ``function`` of a Python file returns.

    Args:
      path: the file.
      function: the name of a function.
      named: the file as the user gave it, for messages.
      example: a file of that kind, for messages.
      arguments: of the function.

    Raises:
      ConfigError: if there is no such file or function, or it raises an error.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{named} is not a Python file; give one such as {example}.")
    module = user_code.load_file(path, named)
    if not callable(getattr(module, function, None)):
        raise ConfigError(f"{named}: there is no {function}() in it; see {example}.")
    return user_code.call(module, function, *arguments, named=named)

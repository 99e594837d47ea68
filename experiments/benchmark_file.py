"""Reading a benchmark file: what its ``get_config()`` returns, checked."""

from __future__ import annotations

from typing import Any

from gcp_jax.config import ConfigError
from gcp_jax.experiments import user_files
from gcp_jax.json_files import DictOf, Maybe, problem_of

EXAMPLE = "experiments/comparisons/clones.py"
DECLARATION = {  # what get_config() returns
    "tasks": Maybe(DictOf({"config": str})),
    "methods": Maybe(DictOf({"algorithm": str, "module": Maybe(str)})),
    "seeds": Maybe(int),
    "steps": Maybe(int),
    "clones": Maybe(int),
    "common": Maybe(dict),
}


def read_declaration(file: str) -> dict[str, Any]:
    """What ``get_config()`` of a benchmark file returns, without the keys that are None.

    Raises:
      ConfigError: in one line, if it is no benchmark.
    """
    named = f"--file={file}"
    declared = user_files.call_user_file(file, "get_config", named=named, example=EXAMPLE)
    problem = problem_of(declared, DECLARATION)
    if problem:
        raise ConfigError(
            f"{named}: get_config() returns something else: {problem}; see {EXAMPLE}."
        )
    for key in ("tasks", "methods", "common"):
        wrong = [name for name in declared.get(key) or {} if not isinstance(name, str) or not name]
        if wrong:
            raise ConfigError(f"{named}: {wrong[0]!r} in {key!r} is no name; see {EXAMPLE}.")
    return {key: value for key, value in declared.items() if value is not None}

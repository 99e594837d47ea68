"""Running Python files of a user, whose errors are lines about the user's file.

A configuration, a sweep, a benchmark, a task or a method may raise anything, or end the program.
Whatever it raises becomes one line with the file, the line and the user's own error.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import linecache
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from gcp_jax.config_fields import ConfigError

_files: set[str] = set()  # files of the user that were loaded, as their frames name them


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Reads a file's source each time.

    Cached bytecode is recognized by the second and the size of the source: a file that was edited
    twice within a second, to the same length, would be the older one.
    """

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def load_file(path: str | Path, named: str) -> ModuleType:
    """The module of a Python file, as the file is now.

    Args:
      path: the file, which exists.
      named: the file as the user gave it, for messages.

    Raises:
      ConfigError: it is no Python file, or raises an error.
    """
    path = Path(path).absolute()
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:10]
    if path.suffix != ".py":
        raise ConfigError(f"{named} is not a Python file; its name must end in .py.")
    name = f"gcp_jax_user_file_{digest}"
    loader = _SourceLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None  # a loader was given
    _files.add(str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    with user_errors(named):
        loader.exec_module(module)
    return module


def module_name(text: str, named: str) -> str:
    """The importable name of a module that is given by its name or its file.

    ``my_env.py`` is ``my_env`` and ``tasks/my_env.py`` is ``tasks.my_env``.

    Args:
      text: a name, or a path that ends in ``.py``.
      named: the module as the user gave it, for messages.

    Raises:
      ConfigError: there is no such file below the working directory.
    """
    if not text.endswith(".py"):
        return text
    path = Path(text).absolute()
    if not path.is_file():
        raise ConfigError(f"{named}: there is no such file in the working directory.")
    if not path.is_relative_to(Path.cwd()):
        raise ConfigError(
            f"{named} is not in {Path.cwd()}; run the command in a folder above the file, or put "
            f"the file's folder on PYTHONPATH and give {path.stem}."
        )
    parts = path.relative_to(Path.cwd()).with_suffix("").parts
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(
            f"{named}: {'.'.join(parts)} is no module; rename it to letters, digits and _."
        )
    return ".".join(parts)


def import_module(name: str, named: str) -> ModuleType:
    """An importable module of the user.

    Args:
      name: the module.
      named: the module as the user gave it, for messages.

    Raises:
      ModuleNotFoundError: there is no such module.
      ConfigError: it raises an error.
    """
    with user_errors(named, unknown=name):
        loaded = sys.modules.get(name)
        if loaded is not None and loaded.__spec__ is None:  # made by code, without a file
            return loaded
        spec = importlib.util.find_spec(name)
        is_pythons = name.partition(".")[0] in sys.stdlib_module_names
        if spec is not None and spec.origin and not is_pythons:
            _files.add(spec.origin)
        return importlib.import_module(name)


def call(module: ModuleType, function: str, *arguments: Any, named: str) -> Any:
    """What a function of a user's file returns.

    Raises:
      ConfigError: it raises an error.
    """
    with user_errors(named):
        return getattr(module, function)(*arguments)


@contextlib.contextmanager
def user_errors(named: str, unknown: str = "") -> Iterator[None]:
    """Turn whatever a user's code raises into a ConfigError; a ConfigError stays as it is.

    Args:
      named: the file as the user gave it.
      unknown: a module whose absence remains a ModuleNotFoundError.
    """
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and _is_part_of(error.name, unknown):
            raise
        raise ConfigError(f"{named}: {describe(error)}") from error


def _is_part_of(name: str | None, module: str) -> bool:
    """Whether a name is the module, or a package that it is in."""
    return name is not None and f"{module}.".startswith(f"{name}.")


def place_of(error: BaseException) -> str:
    """Where a user's file raised an error; "" if none of them did.

    Returns:
      ``FILE, line 3, in get_config (lr = 1 / 0)``.
    """
    if isinstance(error, SyntaxError) and error.filename:
        source = (error.text or "").strip()
        return f"{error.filename}, line {error.lineno}" + (f" ({source})" if source else "")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame)]
    if not frames:
        return ""
    last = frames[-1]
    function = "" if last.name == "<module>" else f", in {last.name}"
    source = linecache.getline(last.filename, last.lineno or 0).strip()
    return f"{last.filename}, line {last.lineno}{function} ({source})"


def _is_users(frame: traceback.FrameSummary) -> bool:
    return frame.filename in _files


def split_name(section: Any, where: str) -> tuple[str, str, dict[str, Any]]:
    """Split {"name": …, "module": …, **fields} into these three.

    Raises:
      ConfigError: if the name is missing or the module is not a string.
    """
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where} is {section!r}; a section with {where}.name is expected.")
    fields = dict(section)
    module = fields.pop("module", "")
    if not isinstance(module, str):
        expected = "the name of an importable module is expected"
        raise ConfigError(f"{where}.module is {module!r}; {expected}.")
    module = module_name(module, f"{where}.module={module!r}")
    name = fields.pop("name", None)
    if not isinstance(name, str) or not name:
        example = {"env": "reach", "algorithm": "ogpo"}[where]
        raise ConfigError(f"{where}.name is missing; e.g. {where}.name={example!r}.")
    return name, module, fields


def describe(error: BaseException) -> str:
    """An error of a user's code in one line: where it was raised, its type, its message."""
    message = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        message = error.msg
    if isinstance(error, SystemExit):
        message = f"{message or None}; it must return instead of ending the program"
    text = f"{type(error).__name__}: {message}".removesuffix(": ")
    place = place_of(error)
    return f"{place}: {text}" if place else text

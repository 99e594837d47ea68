"""Reading the JSON files that this project writes; anything else in them is an error of one line.

A *shape* describes what a value must be::

    {"config": {"finetune": {"env_steps": int}}, "versions": DictOf(str), "commit": Maybe(str)}

- a mapping: an object with these keys; further keys are allowed. A key whose shape is ``Maybe`` may
  be absent or null.
- ``ListOf(shape)``: a list of such values; ``DictOf(shape)``: an object of them.
- ``OneOf(values)``: one of these strings.
- a type: a value of that type. ``float`` is any number, ``object`` any value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

REMEDY = "restore the file as it was written"
_SHOWN = 60  # characters of a wrong value

Shape = Any  # a type, a mapping of shapes, ListOf, DictOf, OneOf or Maybe

_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


class JsonError(ValueError):
    """A JSON file that is damaged: its path, the key, and what was expected, in one line."""


class Maybe(NamedTuple):
    """A value that may be null; as the value of a key, one that may be absent."""

    shape: Shape


class ListOf(NamedTuple):
    """A list whose items have one shape."""

    shape: Shape


class DictOf(NamedTuple):
    """An object whose values have one shape."""

    shape: Shape


class OneOf(NamedTuple):
    """One of some strings."""

    values: tuple[str, ...]


def read_json(
    path: Path,
    shape: Shape = dict,
    *,
    error: type[Exception] = JsonError,
    remedy: str = REMEDY,
) -> Any:
    """The content of a JSON file.

    Args:
      path: the file.
      shape: what it must hold.
      error: what is raised if it does not.
      remedy: the end of the message.

    Raises:
      FileNotFoundError: there is no such file.
      JsonError: or ``error``, in one line, if it cannot be read or holds something else.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as failure:
        raise error(f"{path} cannot be read ({failure.strerror}).") from failure
    except ValueError as failure:
        raise error(f"{path} is not JSON ({failure}); {remedy}.") from failure
    problem = problem_of(content, shape)
    if problem:
        raise error(f"{path}: {problem}; {remedy}.")
    return content


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: in one line, if it is none.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too deeply nested") from None


def problem_of(value: Any, shape: Shape, where: str = "") -> str:
    """What is wrong with a value, in a few words; "" if it has the shape.

    Args:
      value: as ``json`` reads it.
      shape: what it must be.
      where: its dotted key.
    """
    return next(_problems(value, shape, where), "")


def _problems(value: Any, shape: Shape, where: str) -> Iterator[str]:
    if isinstance(shape, Maybe):
        if value is not None:
            yield from _problems(value, shape.shape, where)
    elif isinstance(shape, Mapping):
        yield from _problems_of_keys(value, shape, where)
    elif isinstance(shape, (ListOf, DictOf)):
        yield from _problems_of_items(value, shape, where)
    elif isinstance(shape, OneOf):
        if value not in shape.values:
            yield _mismatch(value, where, f"one of {', '.join(shape.values)}")
    elif not _has_type(value, shape):
        yield _mismatch(value, where, _NAMES[shape])


def _mismatch(value: Any, where: str, expected: str) -> str:
    named = f"'{where}'" if where else "the content"
    shown = repr(value)
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}…"
    return f"{named} is {shown}; {expected} is expected"


def _problems_of_keys(value: Any, shape: Mapping[str, Shape], where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield from _problems(value, dict, where)
        return
    for key, of_key in shape.items():
        place = f"{where}.{key}" if where else key
        if key in value:
            yield from _problems(value[key], of_key, place)
        elif not isinstance(of_key, Maybe):
            yield f"'{place}' is missing"


def _problems_of_items(value: Any, shape: ListOf | DictOf, where: str) -> Iterator[str]:
    kind = list if isinstance(shape, ListOf) else dict
    if not isinstance(value, kind):
        yield from _problems(value, kind, where)
        return
    items = value if isinstance(value, dict) else dict(enumerate(value))
    for key, item in items.items():
        yield from _problems(item, shape.shape, f"{where}.{key}" if where else str(key))


def _has_type(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, (int, float) if kind is float else kind)

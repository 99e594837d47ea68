"""Fields of a configuration: a default, the allowed values, and a line of documentation.

A frozen dataclass declares each of its fields with ``field`` and calls ``check`` when it is made::

    @dataclasses.dataclass(frozen=True)
    class Config:
        samples: int = field(8, POSITIVE_INT, "N: base samples per decision")
        mode: str = field("sac", ("sac", "td3"), "how the residual learns")

        def __post_init__(self) -> None:
            config_fields.check(self, "algorithm.")

Command-line help, ``gcp-jax algorithms``, ``gcp-jax envs`` and the reference in the documentation
are made from these declarations by ``describe``. ``build_config`` makes such a configuration from
a plain mapping, for example from JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeGuard


class ConfigError(ValueError):
    """A field that cannot be used: which one, its value, and what is allowed, in one line."""


class Bounds(NamedTuple):
    """Finite numbers from low to high; an end is excluded if it is open."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        if math.isinf(self.low) and math.isinf(self.high):
            return "finite"
        if math.isinf(self.low):
            return f"{'below' if self.high_open else 'at most'} {_text(self.high)}"
        if math.isinf(self.high):
            if self.low_open:
                return f"above {_text(self.low)}" if self.low else "positive"
            return f"at least {_text(self.low)}"
        left = "(" if self.low_open else "["
        right = ")" if self.high_open else "]"
        return f"in {left}{_text(self.low)}, {_text(self.high)}{right}"


def _text(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


FINITE = Bounds()
POSITIVE_INT = Bounds(1)
NON_NEGATIVE = Bounds(0)
POSITIVE = Bounds(0, low_open=True)
UNIT = Bounds(0, 1)
UNIT_POSITIVE = Bounds(0, 1, low_open=True)

MAX_COUNT = 2**31 - 1  # of every whole number: seeds, sizes and counters have 32 bits on devices
MAX_NUMBER = 1e30  # of the magnitude of every other number, which float32 holds with room to spare

Choices = tuple[str, ...]


def field(default: Any, allowed: Bounds | Choices | None = None, doc: str = "") -> Any:
    """Declare a field of a configuration.

    Args:
      default: the field's default value. Every instance gets its own copy of a dict.
      allowed: ``Bounds`` of a number, or of every number in a tuple; the choices of a string, as a
        tuple of strings; of every string in a tuple. A tuple may be empty if its default is. None
        allows every value of the field's type, but of numbers only finite ones. None as a value is
        allowed if it is the default or if the type hint allows it. No number may exceed
        ``MAX_COUNT``, or ``MAX_NUMBER`` if it is not whole.
      doc: what the field is, in one line: symbol, unit, the authors' value in brackets.
    """
    metadata = {"allowed": allowed, "doc": doc}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class FieldDescription(NamedTuple):
    """One row of a reference of fields."""

    name: str
    default: Any
    allowed: str  # "" if any value of the field's type is allowed
    doc: str


def describe(config: type | object) -> list[FieldDescription]:
    """Every field of a configuration class as it is declared, those of its bases first."""
    rows = []
    for declared in dataclasses.fields(config):  # type: ignore[arg-type]
        allowed = declared.metadata.get("allowed")
        text = ", ".join(allowed) if _is_choices(allowed) else str(allowed or "")
        doc = declared.metadata.get("doc", "")
        rows.append(FieldDescription(declared.name, default_of(declared), text, doc))
    return rows


def default_of(declared: dataclasses.Field[Any]) -> Any:
    """The default value of a field; ``dataclasses.MISSING`` if it has none."""
    if declared.default_factory is not dataclasses.MISSING:
        return declared.default_factory()
    return declared.default


def check_class(config: Any, name: str, needs: tuple[str, ...] = ()) -> None:
    """Check that a user's own class can be a configuration.

    Args:
      config: the class.
      name: what it is called in messages.
      needs: fields that it must have.

    Raises:
      ConfigError: in one line, if it is no frozen dataclass, or if a field is missing or has no
        default.
    """
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise ConfigError(f"{name} is no dataclass; write @dataclass(frozen=True) above it.")
    if not config.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(f"{name} is not frozen; write @dataclass(frozen=True) above it.")
    rows = {declared.name: declared for declared in dataclasses.fields(config)}
    for field_name in needs:
        if field_name not in rows:
            raise ConfigError(f"{name} has no field {field_name!r}, which every run needs.")
    for field_name, declared in rows.items():
        if default_of(declared) is dataclasses.MISSING:
            raise ConfigError(f"{name}.{field_name} has no default; give every field one.")


def _may_be_none(config: type, name: str) -> bool:
    """Whether the type hint of a field allows None: ``float | None``."""
    return types.NoneType in typing.get_args(typing.get_type_hints(config)[name])


def allowed_values(config: type | object, name: str) -> Bounds | Choices | None:
    """What ``field`` declared as allowed for a field of a configuration or of its class."""
    declared = {each.name: each for each in dataclasses.fields(config)}  # type: ignore[arg-type]
    allowed: Bounds | Choices | None = declared[name].metadata.get("allowed")
    return allowed


def _is_choices(allowed: Bounds | Choices | None) -> TypeGuard[Choices]:
    return isinstance(allowed, tuple) and not isinstance(allowed, Bounds)


def check(config: Any, section: str) -> None:
    """Check every field of a configuration against what its declaration allows.

    Args:
      config: an instance of a dataclass whose fields were declared by ``field``.
      section: what precedes a field's name in the message, e.g. ``"algorithm."``.

    Raises:
      ConfigError: in one line, for the first field whose value is not allowed.
    """
    for declared in dataclasses.fields(config):
        value = getattr(config, declared.name)
        default = default_of(declared)
        allowed = declared.metadata.get("allowed")
        if value is None and (default is None or _may_be_none(type(config), declared.name)):
            continue
        if isinstance(value, tuple) and not value and default and allowed is not None:
            raise ConfigError(
                f"{section}{declared.name} is (); give at least one value, e.g. {default}."
            )
        if _is_choices(allowed):
            for item in value if isinstance(value, tuple) else (value,):
                if item not in allowed:
                    raise ConfigError(
                        f"{section}{declared.name} is {item!r}; allowed: {', '.join(allowed)}."
                    )
            continue
        if allowed is None and _holds_numbers(value):
            allowed = FINITE
        if allowed is not None and not _inside(value, allowed):
            raise ConfigError(
                f"{section}{declared.name} is {value}; it must be {allowed} (default: {default})."
            )
        check_magnitude(value, f"{section}{declared.name}", f" (default: {default})")


def check_bounds(config: Any, section: str, bounds: Mapping[str, Bounds]) -> None:
    """Check fields against bounds that depend on other fields of the same configuration.

    Raises:
      ConfigError: in one line, for the first field outside its bounds.
    """
    for name, allowed in bounds.items():
        value = getattr(config, name)
        if not _inside(value, allowed):
            raise ConfigError(f"{section}{name} is {value}; it must be {allowed}.")


def check_magnitude(value: Any, where: str, note: str = "") -> None:
    """Check that no number exceeds ``MAX_COUNT``, or ``MAX_NUMBER`` if it is not whole.

    Args:
      value: a number, a tuple of them, or something else, which passes.
      where: what it is, for the message.
      note: the end of the message.

    Raises:
      ConfigError: in one line.
    """
    for number in value if isinstance(value, tuple) else (value,):
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        most = MAX_COUNT if isinstance(number, int) else MAX_NUMBER
        if is_number and abs(number) > most:
            raise ConfigError(f"{where} is {value}; it must be at most {_text(most)}{note}.")


def check_count(name: str, value: int, *, low: int) -> None:
    """Check an argument of a function that is a seed or a count.

    Raises:
      ConfigError: in one line, if it is below ``low`` or above ``MAX_COUNT``.
    """
    if value not in Bounds(low, MAX_COUNT):
        raise ConfigError(f"{name} is {value}; it must be {Bounds(low, MAX_COUNT)}.")


def _holds_numbers(value: Any) -> bool:
    """True for a float or a non-empty tuple of them."""
    numbers = value if isinstance(value, tuple) else (value,)
    return bool(numbers) and all(isinstance(number, float) for number in numbers)


def _inside(value: Any, allowed: Bounds) -> bool:
    numbers = value if isinstance(value, tuple) else (value,)
    return all(number in allowed for number in numbers)


def suggest(name: str, allowed: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest allowed name, then all of them."""
    names = list(allowed)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(names)}"


def refuse_fields(fields: Iterable[str], instead: Mapping[str, str], where: str) -> None:
    """Refuse fields that the caller sets itself, so that none is overridden without a word.

    Args:
      fields: dotted names.
      instead: what to use instead of each field that is refused; a name that ends in "." stands
        for a whole section.
      where: what the fields are, for the message, e.g. ``"--config."`` before a name.

    Raises:
      ConfigError: for the first field in ``instead``.
    """
    for field in fields:
        section = f"{field.split('.')[0]}."
        remedy = instead.get(field) or instead.get(section)
        if remedy:
            raise ConfigError(f"{where}{field} cannot be used here; {remedy}.")


def build_config(cls: type, values: Mapping[str, Any], section: str = "") -> Any:
    """A frozen dataclass from a plain mapping; sections that are dataclasses are built as well.

    Args:
      cls: the configuration's class.
      values: field: value. Lists become tuples and whole numbers become floats where the field
        says so; fields that are absent have their defaults.
      section: what precedes a field's name in the message, e.g. ``"algorithm."``.

    Raises:
      ConfigError: in one line, for an unknown field or a value that is not allowed.
    """
    fields = [declared.name for declared in dataclasses.fields(cls)]
    hints = typing.get_type_hints(cls)
    if not isinstance(values, Mapping):
        expected = f"a section with some of {', '.join(fields)} is expected"
        raise ConfigError(
            f"{section.rstrip('.') or 'the configuration'} is {values!r}; {expected}."
        )
    for name in values:
        if name not in fields:
            unknown = f"{section}{name}"
            raise ConfigError(f"there is no field {unknown!r}; {suggest(str(name), fields)}.")
    converted = {name: convert(hints[name], x, f"{section}{name}") for name, x in values.items()}
    try:
        return cls(**converted)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def convert(hint: Any, value: Any, where: str) -> Any:
    """A value as a field's type hint wants it.

    Raises:
      ConfigError: in one line, for a value of another type. ``where`` is the field's dotted name.
    """
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build_config(hint, value, f"{where}.")
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, where)
    if origin is tuple:
        return _convert_tuple(typing.get_args(hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return _to_float(value, where)
    if hint not in (int, float, bool, str):
        return value
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        expected = f"a value of type {hint.__name__} is expected"
        raise ConfigError(f"{where} is {value!r}; {expected}.")
    return value


def _convert_union(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    """A value as the first of several types that accepts it."""
    if value is None and types.NoneType in hints:
        return None
    kinds = [kind for kind in hints if kind is not types.NoneType]
    for kind in kinds:
        with contextlib.suppress(ConfigError):
            return convert(kind, value, where)
    return convert(kinds[0], value, where)  # raises


def _convert_tuple(hints: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f"{where} is {value!r}; a tuple is expected, e.g. (128, 128).")
    items = tuple(value)
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(items)
    if len(hints) != len(items):
        raise ConfigError(f"{where} is {items!r}; a tuple of {len(hints)} is expected.")
    return tuple(convert(hint, item, where) for hint, item in zip(hints, items, strict=True))


def _to_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ConfigError(f"{where} is {value}; it is too large for a float.") from error


def shortest(value: float) -> str:
    """A number as text: in six digits if they are exact, otherwise in all that it needs."""
    text = f"{value:g}"
    return text if float(text) == value else repr(value)

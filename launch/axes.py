"""The axes of a sweep.

Each gives a list of points, and a point sets fields of a configuration by their dotted names::

    grid("finetune.utd", (0.0625, 0.125))
    zipped({"policy.steps": (5, 10), "policy.sigma": (0.1, 0.05)})  # both together
    drawn({"algorithm.critic_lr": log_uniform(1e-4, 1e-2)}, count=8)  # random search
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from gcp_jax.config import ConfigError

Point = dict[str, Any]
Axis = list[Point]


@dataclasses.dataclass(frozen=True)
class UniformRange:
    """Numbers in [low, high]. log: uniform in the logarithm; whole: integers, both ends included."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or not math.isfinite(self.high - self.low):
            raise ConfigError(
                f"a range from {self.low} to {self.high} is empty; give a finite low below high."
            )
        if self.log and not self.low > 0:
            raise ConfigError(
                f"a logarithmic range from {self.low} to {self.high}: low must be positive, 1e-5 say."
            )

    @property
    def middle(self) -> float:
        """What stands for all of it."""
        value = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return int(value) if self.whole else value

    def draw(self, source: random.Random) -> float:
        """One number; six digits, so that a command that repeats it is readable."""
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        drawn = source.uniform(low, high + self.whole)
        value = math.exp(drawn) if self.log else drawn
        return min(math.floor(value), int(self.high)) if self.whole else float(f"{value:.6g}")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError("a choice of no values; give at least one.")

    @property
    def middle(self) -> Any:
        """What stands for all of them."""
        return self.values[0]

    def draw(self, source: random.Random) -> Any:
        """One of them."""
        return source.choice(self.values)


def uniform(low: float, high: float) -> UniformRange:
    """Numbers in [low, high]."""
    return UniformRange(low, high)


def log_uniform(low: float, high: float) -> UniformRange:
    """Positive numbers in [low, high], uniform in their logarithm."""
    return UniformRange(low, high, log=True)


def integers(low: int, high: int) -> UniformRange:
    """Whole numbers from low to high."""
    return UniformRange(low, high, whole=True)


def choice(*values: Any) -> Choice:
    """One of ``values``."""
    return Choice(values)


def grid(field: str, values: Sequence[Any]) -> Axis:
    """One point for each value of ``field``. Raises ConfigError for none, or one twice."""
    return zipped({field: values})


def zipped(fields: Mapping[str, Sequence[Any]]) -> Axis:
    """Fields that vary together: the first value of each, the second of each, … Raises ConfigError where they are not as many,
    none, or a point twice."""
    names, columns = ", ".join(fields), [list(values) for values in fields.values()]
    if not columns or not all(columns):
        raise ConfigError(
            f"the axis of {names or 'no field'} is empty; give it at least one value."
        )
    if len({len(column) for column in columns}) > 1:
        sizes = ", ".join(
            f"{name} has {len(column)}" for name, column in zip(fields, columns, strict=True)
        )
        raise ConfigError(f"zipped fields need as many values as each other, but {sizes}.")
    points = [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True)]
    if any(point in points[:i] for i, point in enumerate(points)):
        raise ConfigError(f"the axis of {names} has the same point twice; give each once.")
    return points


def drawn(fields: Mapping[str, UniformRange | Choice], *, count: int, seed: int = 0) -> Axis:
    """``count`` random points, the same for the same ``seed``; the first ones stay when ``count`` grows."""
    if count < 1 or not fields:
        raise ConfigError(
            f"the axis drawn from {', '.join(fields) or 'no field'} has count={count}; it is empty."
        )
    source = random.Random(seed)
    return [{name: kind.draw(source) for name, kind in fields.items()} for _ in range(count)]

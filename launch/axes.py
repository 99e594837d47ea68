"""The axes of a sweep.

Each function returns a list of points. A point sets fields of a configuration by dotted name::

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
    """Numbers in [low, high]."""

    low: float
    high: float
    log: bool = False  # uniform in the logarithm
    whole: bool = False  # integers, both ends included

    def __post_init__(self) -> None:
        if not self.low < self.high or not math.isfinite(self.high - self.low):
            raise ConfigError(
                f"a range from {self.low} to {self.high} is empty; give a finite low below high."
            )
        if self.log and not self.low > 0:
            raise ConfigError(
                f"a logarithmic range from {self.low} to {self.high}: "
                "low must be positive, e.g. 1e-5."
            )

    @property
    def middle(self) -> float:
        """The middle of the range, in the logarithm if ``log``."""
        if self.log:
            value = math.sqrt(self.low * self.high)
        else:
            value = (self.low + self.high) / 2
        return int(value) if self.whole else value

    def sample(self, rng: random.Random) -> float:
        """Return one number, with six digits: commands that repeat it stay readable."""
        low = math.log(self.low) if self.log else self.low
        high = math.log(self.high) if self.log else self.high
        sampled = rng.uniform(low, high + self.whole)
        value = math.exp(sampled) if self.log else sampled
        if self.whole:
            return min(math.floor(value), int(self.high))
        return float(f"{value:.6g}")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError("a choice of no values; give at least one.")

    @property
    def middle(self) -> Any:
        """The first value, which stands for all of them in a dry run."""
        return self.values[0]

    def sample(self, rng: random.Random) -> Any:
        """Return one of the values."""
        return rng.choice(self.values)


def uniform(low: float, high: float) -> UniformRange:
    """Return a range of numbers in [low, high]."""
    return UniformRange(low, high)


def log_uniform(low: float, high: float) -> UniformRange:
    """Return a range of positive numbers in [low, high], uniform in their logarithm."""
    return UniformRange(low, high, log=True)


def integers(low: int, high: int) -> UniformRange:
    """Return a range of whole numbers from low to high, both included."""
    return UniformRange(low, high, whole=True)


def choice(*values: Any) -> Choice:
    """Return a choice among ``values``."""
    return Choice(values)


def grid(field: str, values: Sequence[Any]) -> Axis:
    """Return one point for each value of ``field``.

    Raises:
      ConfigError: if there are no values, or one occurs twice.
    """
    return zipped({field: values})


def zipped(fields: Mapping[str, Sequence[Any]]) -> Axis:
    """Vary fields together: the first value of each, then the second of each, and so on.

    Raises:
      ConfigError: if the fields have different numbers of values, none, or a point twice.
    """
    names = ", ".join(fields)
    columns = [list(values) for values in fields.values()]
    if not columns or not all(columns):
        raise ConfigError(
            f"the axis of {names or 'no field'} is empty; give it at least one value."
        )
    if len({len(column) for column in columns}) > 1:
        sizes = [f"{name} has {len(values)}" for name, values in fields.items()]
        raise ConfigError(
            f"zipped fields need as many values as each other, but {', '.join(sizes)}."
        )
    points = [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True)]
    if any(point in points[:i] for i, point in enumerate(points)):
        raise ConfigError(f"the axis of {names} has the same point twice; give each once.")
    return points


def drawn(fields: Mapping[str, UniformRange | Choice], *, count: int, seed: int = 0) -> Axis:
    """Return ``count`` random points.

    The same ``seed`` gives the same points, and the first points stay when ``count`` grows.

    Raises:
      ConfigError: if ``fields`` is empty or ``count`` is below 1.
    """
    if count < 1 or not fields:
        raise ConfigError(
            f"the axis drawn from {', '.join(fields) or 'no field'} has count={count}; it is empty."
        )
    rng = random.Random(seed)
    return [{name: kind.sample(rng) for name, kind in fields.items()} for _ in range(count)]

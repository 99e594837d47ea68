"""What the numbers of a configuration may be.

A frozen dataclass names the range of each of its numeric fields in ``RANGES``, to which those of its bases belong, and calls ``check`` in
its ``__post_init__``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Bounds(NamedTuple):
    """Finite numbers from low to high, without the ends that are open."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # low is open
    below: bool = False  # high is open

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or value - value != 0:  # inf and NaN
            return False
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if math.isinf(self.low):
            return (
                "finite"
                if math.isinf(self.high)
                else f"{'below' if self.below else 'at most'} {self.high:g}"
            )
        if math.isinf(self.high):
            if self.above:
                return f"above {self.low:g}" if self.low else "positive"
            return f"at least {self.low:g}"
        return f"in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"


FINITE = Bounds()
POSITIVE_INT = Bounds(1)
NON_NEGATIVE = Bounds(0)
POSITIVE = Bounds(0, above=True)
UNIT = Bounds(0, 1)
UNIT_POSITIVE = Bounds(0, 1, above=True)


def of(config: Any) -> dict[str, Bounds]:
    """The range of every field of a dataclass or of one of its instances."""
    cls = config if isinstance(config, type) else type(config)
    found: dict[str, Bounds] = {}
    for base in reversed(cls.__mro__):
        found |= vars(base).get("RANGES", {})
    return found


def check(config: Any, section: str, among: Mapping[str, Bounds] | None = None) -> None:
    """Raise ValueError, in one line, for the first field outside its range; of a tuple every number must be inside. among: ranges
    to go by instead of the class's own."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, allowed in (of(config) if among is None else among).items():
        value = getattr(config, name)
        if any(
            number not in allowed for number in (value if isinstance(value, tuple) else (value,))
        ):
            hint = f" (default: {defaults[name]})" if among is None else ""
            raise ValueError(f"{section}{name} is {value}; it must be {allowed}{hint}.")

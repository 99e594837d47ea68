"""Populations: members of one program that differ in numeric fields of their method, which the program takes as data.

A method is made anew inside the compiled loop from its Config with traced values in it (``learner.Vary``). Arithmetic on a field
needs nothing for that; a field that shapes the program, a number of chains say, is refused.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from gcp_jax.config import ConfigError, RunConfig
from gcp_jax.types import Array, PyTree


class TracedHyperparameter:
    """A field's value in one member: an array in arithmetic and comparisons, and in nothing else (``jnp.minimum`` of it is a
    TypeError). As a condition ("is this term on?") it is what all members have in common; where they have nothing in
    common, ConfigError is raised."""

    def __init__(self, name: str, value: Array, given: tuple[float, ...]) -> None:
        self.name, self.value, self.given = name, value, given

    def __bool__(self) -> bool:
        found = {bool(value) for value in self.given}
        if len(found) > 1:
            raise ConfigError(
                f"population.{self.name} is {self.given}, but 0 leaves a part of the method out, and members share one program; "
                "give 0 a run of its own."
            )
        return found.pop()


def _operator(name: str, *, swapped: bool = False) -> Callable[..., Any]:
    apply = getattr(operator, name)

    def applied(self: TracedHyperparameter, *others: Any) -> Any:
        operands = [x.value if isinstance(x, TracedHyperparameter) else x for x in (self, *others)]
        return apply(*reversed(operands) if swapped else operands)

    return applied


for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(TracedHyperparameter, f"__{_name}__", _operator(_name))
    setattr(TracedHyperparameter, f"__r{_name}__", _operator(_name, swapped=True))
for _name in ("neg", "lt", "le", "gt", "ge"):
    setattr(TracedHyperparameter, f"__{_name}__", _operator(_name))


def config_of_member(run: RunConfig, values: Mapping[str, Array]) -> Any:
    """The method's Config with the traced ``values`` of one member; its own checks were asked of every point by ``resolve``."""
    config = copy.copy(run.algorithm_config)
    for name, value in values.items():
        object.__setattr__(config, name, TracedHyperparameter(name, value, run.population[name]))
    return config


def member_values(run: RunConfig) -> dict[str, np.ndarray]:
    """{field: [S]} of a run's members, as a ``Train`` carries them; {} where nothing varies."""
    kinds = {float: np.float32, int: np.int32}
    return {
        name: np.asarray([member.values[name] for member in run.members], kinds[type(given[0])])
        for name, given in run.population.items()
    }


def check_population(run: RunConfig, program: Callable[[], PyTree]) -> None:
    """Trace ``program``; nothing is compiled. Raises ConfigError where a field of the population shapes it."""
    try:
        jax.eval_shape(program)
    except (TypeError, jax.errors.JAXTypeError) as error:
        names = ", ".join(run.population)
        raise ConfigError(
            f"population: {names} cannot vary in one program: {run.algorithm['name']} needs its number while it compiles "
            f"({type(error).__name__}); give each value a run of its own."
        ) from error

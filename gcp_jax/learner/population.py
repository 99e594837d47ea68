"""Populations: members of one program that differ in numeric hyper-parameters of their method.

The program takes these hyper-parameters as arrays, and the method is built inside it, from a config
that holds traced values (``loop.MemberFn``). Arithmetic on a hyper-parameter works unchanged. One
that determines the program's shapes, e.g. a number of chains, gives an error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from gcp_jax.config import ConfigError, RunConfig
from gcp_jax.types import Array, PyTree

Config = TypeVar("Config")

DTYPES = {float: np.float32, int: np.int32}


class TracedHyperparameter:
    """A hyper-parameter of one member, traced.

    In arithmetic and comparisons it is an array, and nowhere else: ``jnp.minimum`` of it raises
    TypeError. As a condition ("is this term used?") it is the truth value that all members have in
    common.
    """

    def __init__(self, name: str, value: Array, all_values: tuple[float, ...]) -> None:
        """Wrap one member's value.

        Args:
          name: the field of the method's config.
          value: the member's value, [].
          all_values: the values of all members.
        """
        self.name = name
        self.value = value
        self.all_values = all_values

    def __bool__(self) -> bool:
        truths = {bool(value) for value in self.all_values}
        if len(truths) > 1:
            raise ConfigError(
                f"population.{self.name} is {self.all_values}, but 0 leaves a part of the method "
                "out, and members share one program; give 0 a run of its own."
            )
        return truths.pop()

    def __neg__(self) -> Array:
        return -self.value

    def __add__(self, other: Operand) -> Array:
        return self.value + _array(other)

    def __radd__(self, other: Operand) -> Array:
        return _array(other) + self.value

    def __sub__(self, other: Operand) -> Array:
        return self.value - _array(other)

    def __rsub__(self, other: Operand) -> Array:
        return _array(other) - self.value

    def __mul__(self, other: Operand) -> Array:
        return self.value * _array(other)

    def __rmul__(self, other: Operand) -> Array:
        return _array(other) * self.value

    def __truediv__(self, other: Operand) -> Array:
        return self.value / _array(other)

    def __rtruediv__(self, other: Operand) -> Array:
        return _array(other) / self.value

    def __pow__(self, other: Operand) -> Array:
        return self.value ** _array(other)

    def __rpow__(self, other: Operand) -> Array:
        return _array(other) ** self.value

    def __lt__(self, other: Operand) -> Array:
        return self.value < _array(other)

    def __le__(self, other: Operand) -> Array:
        return self.value <= _array(other)

    def __gt__(self, other: Operand) -> Array:
        return self.value > _array(other)

    def __ge__(self, other: Operand) -> Array:
        return self.value >= _array(other)


Operand = Array | float | TracedHyperparameter


def _array(operand: Operand) -> Array | float:
    """The value of a TracedHyperparameter; any other operand as it is."""
    if isinstance(operand, TracedHyperparameter):
        return operand.value
    return operand


def config_of_member(run: RunConfig, values: Mapping[str, Array]) -> Any:
    """The method's config with one member's hyper-parameters.

    Args:
      run: the run.
      values: {field: traced value []}; {} gives the run's own config.
    """
    traced = {
        name: TracedHyperparameter(name, value, run.population[name])
        for name, value in values.items()
    }
    return _replace_unchecked(run.algorithm.settings, traced)


def _replace_unchecked(config: Config, changes: Mapping[str, Any]) -> Config:
    """``dataclasses.replace`` without ``__post_init__``.

    The checks there need numbers. They have passed for every member's numbers when the run's
    configuration was built.
    """
    replaced = copy.copy(config)
    vars(replaced).update(changes)
    return replaced


def member_values(run: RunConfig) -> dict[str, np.ndarray]:
    """The members' hyper-parameters, {field: [S]}, as ``LearnerState.values`` has them."""
    return {
        name: np.asarray(
            [member.values[name] for member in run.members], DTYPES[type(field_values[0])]
        )
        for name, field_values in run.population.items()
    }


def check_population(run: RunConfig, program: Callable[[], PyTree]) -> None:
    """Trace a program, without compiling it.

    Raises:
      ConfigError: a field of the population determines the program's shapes.
    """
    try:
        jax.eval_shape(program)
    except (TypeError, jax.errors.JAXTypeError) as error:
        names = ", ".join(run.population)
        raise ConfigError(
            f"population: {names} cannot vary in one program: {run.algorithm.name} needs its "
            f"number while it compiles ({type(error).__name__}); give each value a run of its own."
        ) from error

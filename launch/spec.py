"""Declarations of a sweep: what a sweep file returns from ``get_sweep()``.

``gcp_jax.launch.expand`` turns a ``Sweep`` into the configurations of its runs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from gcp_jax.config import ConfigError
from gcp_jax.config_fields import refuse_fields
from gcp_jax.launch.axes import Axis, Choice, UniformRange

SAMPLERS = ("tpe", "gp", "random")
TRAIN = "gcp_jax.launch.worker:train"


SET_HERE = {  # fields that a sweep sets itself, and what sets them
    "seeds": "use Sweep(seeds=…), or --config.seeds",
    "run_dir": "use --run_dir, the folder of the whole sweep",
    "population.": "name the varied fields in Sweep(pack=…)",
}


@dataclasses.dataclass(frozen=True)
class Search:
    """Points proposed by Optuna. A trial's score is the mean final score of its seeds."""

    space: Mapping[str, UniformRange | Choice]  # by dotted field name
    trials: int
    parallel: int = 4  # trials that are open at the same time
    sampler: str = "tpe"  # "tpe" (Bayesian), "gp" (Gaussian process) or "random"
    seed: int = 0  # of the sampler

    def __post_init__(self) -> None:
        if not self.space:
            raise ConfigError("a search over no field; give its space at least one.")
        if self.trials < 1 or self.parallel < 1:
            raise ConfigError(
                f"a search of {self.trials} trials, {self.parallel} at a time; "
                "both must be positive."
            )
        if self.sampler not in SAMPLERS:
            raise ConfigError(
                f"the search's sampler is {self.sampler!r}; allowed: {', '.join(SAMPLERS)}."
            )


@dataclasses.dataclass(frozen=True)
class Halving:
    """Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943).

    Every run pauses at the first rung. The best 1/``keep`` of them continue to the next rung, and
    so on; the runs kept at the last rung train to their end. Runs are ranked by their score at the
    first evaluation at or after the rung.
    """

    rungs: tuple[int, ...]  # environment steps, increasing
    keep: int = 3  # one in this many continues

    def __post_init__(self) -> None:
        steps = (0, *self.rungs)
        increasing = all(low < high for low, high in itertools.pairwise(steps))
        if not self.rungs or not increasing:
            raise ConfigError(
                f"halving at rungs {self.rungs}; give increasing numbers of environment steps."
            )
        if self.keep < 2:
            raise ConfigError(f"halving keeps 1 of {self.keep}; it must be 2 or more.")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A set of runs: the product of ``axes``, or the points of ``search``, each with all seeds.

    Raises:
      ConfigError: in one line, if the parts contradict each other.
    """

    config: str  # a configuration file, as --config takes it
    axes: tuple[Axis, ...] = ()  # see gcp_jax.launch.axes
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # set in every run
    seeds: int = 1  # of every point
    pack: tuple[str, ...] = ()  # fields algorithm.* whose values are trained in one program
    spread_seeds: bool = False  # one run per seed, instead of all seeds in one program
    search: Search | None = None  # propose points instead of listing them
    halving: Halving | None = None  # stop the worst runs early
    entry_point: str = TRAIN  # "module:function" that executes a Job (gcp_jax.launch.worker)

    def __post_init__(self) -> None:
        self._check_kinds()
        for axis in self.axes:
            _check_axis(axis)
        self._check_fields()
        if self.search and self.pack:
            raise ConfigError(
                "a search proposes one point at a time, so it packs nothing but seeds; "
                "leave pack out."
            )
        if self.search and self.halving:
            raise ConfigError("a search and halving cannot be combined; choose one.")
        if self.seeds < 1:
            raise ConfigError(f"the sweep's seeds is {self.seeds}; it must be at least 1.")

    def _check_kinds(self) -> None:
        """Every part is of its kind."""
        kinds: dict[str, tuple[Any, str]] = {
            "config": (str, "a configuration file, e.g. 'experiments/configs/reach.py'"),
            "axes": ((tuple, list), "a tuple of axes, e.g. (grid('finetune.utd', (0.1, 0.2)),)"),
            "fields": (Mapping, "{'FIELD': value}"),
            "seeds": (int, "a whole number"),
            "pack": ((tuple, list), "a tuple of fields, e.g. ('algorithm.critic_lr',)"),
            "entry_point": (str, "'module:function'"),
        }
        for name, (kind, expected) in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise ConfigError(f"the sweep's {name} is {value!r}; {expected} is expected.")

    def _check_fields(self) -> None:
        """Each field is set once, and a packed field is a varied field of the method."""
        names = [name for axis in self.axes for name in axis[0]]
        names += self.fields
        if self.search:
            names += self.search.space
        repeated = {name for name in names if names.count(name) > 1}
        set_here = dict(SET_HERE)
        if self.spread_seeds:
            set_here["seed"] = "spread_seeds gives each run its own seed"
        refuse_fields(names, set_here, "the sweep's ")
        if repeated:
            raise ConfigError(
                f"{', '.join(sorted(repeated))} is set twice by the sweep; set each field once."
            )
        for name in self.pack:
            if name not in names or not name.startswith("algorithm."):
                raise ConfigError(
                    f"pack names {name!r}, but no axis varies it or it is not a field of the "
                    "method (algorithm.FIELD)."
                )


def _check_axis(axis: Any) -> None:
    """Raise ConfigError unless an axis is a list of points that set the same fields."""
    if isinstance(axis, Mapping):
        raise ConfigError(
            "the sweep's axes are points; give a tuple of axes, e.g. "
            "axes=(grid('finetune.utd', (0.1, 0.2)),)."
        )
    if not isinstance(axis, (list, tuple)) or not all(map(_is_point, axis)):
        raise ConfigError(
            f"an axis of the sweep is {axis!r:.60}; a list of points {{'FIELD': value}} is "
            "expected, as grid, zipped and drawn return it."
        )
    if not axis:
        raise ConfigError(
            "an axis of the sweep is empty; give it at least one point, or leave it out."
        )
    for point in axis:
        if point.keys() != axis[0].keys():
            raise ConfigError(
                f"points of an axis set different fields ({', '.join(axis[0])} and "
                f"{', '.join(point)}); all points of an axis set the same."
            )


def _is_point(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(field, str) for field in value)

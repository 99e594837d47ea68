"""A sweep: the configurations of many runs, from one Python file.

The file has ``get_sweep() -> Sweep``. Its points are the product of its axes; those that differ only in packed fields become one
program (``config.population``), as do the seeds, unless ``spread_seeds`` gives each its own run. A run is known by the hash of its
configuration, so that a sweep that is launched again, or grown, finds what is there.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from gcp_jax.config import ConfigError, RunConfig
from gcp_jax.experiments import assemble
from gcp_jax.launch.axes import Axis, Choice, Point, UniformRange
from gcp_jax.run.training import config_hash


@dataclasses.dataclass(frozen=True)
class Search:
    """Points asked of Optuna instead of listed: ``trials`` of them, ``parallel`` at a time, each score_name by the mean score of its
    seeds at the end. sampler: "tpe" (Bayesian), "gp" (Gaussian process), "random"."""

    space: Mapping[str, UniformRange | Choice]
    trials: int
    parallel: int = 4
    sampler: str = "tpe"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.space:
            raise ConfigError("a search over no field; give its space at least one.")
        if self.trials < 1 or self.parallel < 1:
            raise ConfigError(
                f"a search of {self.trials} trials, {self.parallel} at a time; both must be positive."
            )
        if self.sampler not in SAMPLERS:
            raise ConfigError(
                f"the search's sampler is {self.sampler!r}; allowed: {', '.join(SAMPLERS)}."
            )


SAMPLERS = ("tpe", "gp", "random")


@dataclasses.dataclass(frozen=True)
class Halving:
    """Successive halving (Jamieson & Talwalkar 2016): every run pauses at the first of ``rungs`` (environment steps), the best
    1/``keep`` of them go on to the next, and so on; the last ones to their end. Runs are compared by their last evaluation."""

    rungs: tuple[int, ...]
    keep: int = 3

    def __post_init__(self) -> None:
        if not self.rungs or any(
            low >= high for low, high in zip((0, *self.rungs), self.rungs, strict=False)
        ):
            raise ConfigError(
                f"halving at rungs {self.rungs}; give increasing numbers of environment steps."
            )
        if self.keep < 2:
            raise ConfigError(f"halving keeps 1 of {self.keep}; it must be 2 or more.")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What ``get_sweep`` returns.

    config: a configuration file as ``--config`` takes it; fields: values of every run; axes: see ``launch.axes``; seeds: of every
    point; pack: fields of the method whose values share one program; spread_seeds: a run for each seed; search, halving: instead of,
    and on top of, running all of it; work: ``module:function`` that does a run (``launch.work``).
    """

    config: str
    axes: tuple[Axis, ...] = ()
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: int = 1
    pack: tuple[str, ...] = ()
    spread_seeds: bool = False
    search: Search | None = None
    halving: Halving | None = None
    work: str = "gcp_jax.launch.worker:train"

    def __post_init__(self) -> None:
        names = [name for axis in self.axes for name in (axis[0] if axis else ())]
        names += [*self.fields, *(self.search.space if self.search else ())]
        if any(not axis for axis in self.axes):
            raise ConfigError(
                "an axis of the sweep is empty; give it at least one point, or leave it out."
            )
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ConfigError(
                f"{', '.join(sorted(twice))} is set twice by the sweep; each field once."
            )
        for name in self.pack:
            if name not in names or not name.startswith("algorithm."):
                raise ConfigError(
                    f"pack names {name!r}, which no axis varies or is no field of the method (algorithm.FIELD)."
                )
        if self.search and self.pack:
            raise ConfigError(
                "a search asks for one point at a time, so it packs nothing but seeds; leave pack out."
            )
        if self.search and self.halving:
            raise ConfigError("a search and halving cannot be had at once; choose one.")
        if self.seeds < 1:
            raise ConfigError(f"the sweep's seeds is {self.seeds}; it must be at least 1.")


class RunSpec(NamedTuple):
    """One run of a sweep. values: what tells it from the others, by dotted field, those that share its program as
    {"packed": (…)}; command: what repeats it alone."""

    id: str
    values: Point
    config: RunConfig
    command: str


def load(path: str) -> Sweep:
    """The sweep of a file. Raises ConfigError in one line."""
    found = assemble.call_user_file(
        path, "get_sweep", named=path, example="experiments/sweeps/learning_rates.py"
    )
    if not isinstance(found, Sweep):
        raise ConfigError(
            f"get_sweep() of {path} returns {type(found).__name__}; it must return a launch.Sweep."
        )
    return found


def runs(sweep: Sweep, point: Point | None = None) -> list[RunSpec]:
    """Every run of the sweep, or those of one ``point`` that a search asks for. Raises ConfigError in one line."""
    wanted = [point] if point is not None else points(sweep)
    planned = [
        *itertools.chain.from_iterable(_of_group(sweep, group) for group in _groups(sweep, wanted))
    ]
    if len({run.id for run in planned}) < len(planned):
        raise ConfigError(
            "two runs of the sweep have the same configuration; give each combination once."
        )
    return planned


def points(sweep: Sweep) -> list[Point]:
    """The product of its axes."""
    return [
        {k: v for part in parts for k, v in part.items()}
        for parts in itertools.product(*sweep.axes)
    ]


def _groups(sweep: Sweep, points: list[Point]) -> Iterator[list[Point]]:
    """Points that share a program."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        apart = {name: value for name, value in point.items() if name not in sweep.pack}
        groups.setdefault(json.dumps(apart, sort_keys=True, default=str), []).append(point)
    yield from groups.values()


def _of_group(sweep: Sweep, group: list[Point]) -> Iterator[RunSpec]:
    """The runs of points that share a program: one, or one for each seed."""
    common = {name: value for name, value in group[0].items() if name not in sweep.pack}
    packed = {name: tuple(point[name] for point in group) for name in sweep.pack}
    for seed in range(sweep.seeds) if sweep.spread_seeds else (None,):
        counts = {"seed": seed, "seeds": 1} if seed is not None else {"seeds": sweep.seeds}
        given = {**sweep.fields, **common, **counts}
        members = {name.removeprefix("algorithm."): values for name, values in packed.items()}
        config = configured(sweep.config, given, members)
        together = {name: {"packed": values} for name, values in packed.items()}
        values = {**common, **together, **({"seed": seed} if seed is not None else {})}
        yield RunSpec(config_hash(config), values, config, _command(sweep.config, given, members))


def configured(
    file: str, fields: Mapping[str, Any], population: Mapping[str, tuple[float, ...]]
) -> RunConfig:
    """The configuration of ``file`` with other ``fields``; a task and a method bring their own fields with them. Raises ConfigError."""
    config, fields = _read(file), dict(fields)
    names = [
        fields.pop(f"{part}.{key}", "")
        for part in ("env", "algorithm")
        for key in ("name", "module")
    ]
    env, env_module, algorithm, module = names
    if env or env_module:
        assemble.set_env(config, env or env_module, env_module)
    if algorithm or module:
        assemble.set_algorithm(config, algorithm or module, module)
    assemble.override(config, {**fields, "run_dir": ""})
    with config.unlocked():
        config.population = ml_collections.ConfigDict(dict(population))
    return assemble.frozen_config(config)


def _read(file: str) -> ml_collections.ConfigDict:
    values, words = flags.FlagValues(), ["sweep", f"--config={file}"]
    try:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
        values(words)
        found: ml_collections.ConfigDict = values["config"].value
        _ = found.env  # a file that is not there fails only now
    except (OSError, AttributeError, KeyError, TypeError, flags.Error) as error:
        raise ConfigError(
            f"cannot read the sweep's config={file}: {' '.join(str(error).split())}"
        ) from error
    return found


def _command(
    file: str, fields: Mapping[str, Any], population: Mapping[str, tuple[float, ...]]
) -> str:
    """``gcp-jax train …`` for one run by itself."""
    words = [f"--config.{name}={_word(value)}" for name, value in fields.items()]
    words += [
        f"--config.population.{name}={','.join(map(repr, values))}"
        for name, values in population.items()
    ]
    return shlex.join(["gcp-jax", "train", f"--config={file}", *words])


def _word(value: Any) -> str:
    return f"({','.join(map(str, value))},)" if isinstance(value, (tuple, list)) else str(value)

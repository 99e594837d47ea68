"""From a ``Sweep`` to its runs.

Points that differ only in packed fields share one program (``RunConfig.population``), as do the
seeds, unless ``spread_seeds`` gives each seed its own run. A run's id is the hash of its
configuration: launching a sweep again, or after it has grown, finds the runs that exist.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from gcp_jax.config import ConfigError, RunConfig
from gcp_jax.experiments import run_config, user_files
from gcp_jax.launch.axes import Point
from gcp_jax.launch.spec import Sweep
from gcp_jax.run import packaged_policies
from gcp_jax.run.adopted_policy import adopt_policy
from gcp_jax.run.folder import config_hash

EXAMPLE = "experiments/sweeps/learning_rates.py"


class RunSpec(NamedTuple):
    """One run of a sweep."""

    id: str  # hash of the configuration
    values: Point  # what distinguishes it, by dotted field; packed fields as {"packed": (...)}
    config: RunConfig
    command: str  # ``gcp-jax train ...`` that repeats this run alone


def load_sweep(path: str) -> Sweep:
    """Return what ``get_sweep()`` of a Python file returns.

    Raises:
      ConfigError: in one line, if there is no such file, function or sweep.
    """
    sweep = user_files.call_user_file(path, "get_sweep", named=path, example=EXAMPLE)
    if not isinstance(sweep, Sweep):
        raise ConfigError(
            f"get_sweep() of {path} returns {type(sweep).__name__}; "
            "it must return a gcp_jax.launch.Sweep."
        )
    return sweep


def expand(sweep: Sweep, point: Point | None = None) -> list[RunSpec]:
    """Return all runs of the sweep, or those of one ``point`` that a search proposes.

    Raises:
      ConfigError: in one line, if a configuration is invalid or occurs twice.
    """
    points = list_points(sweep) if point is None else [point]
    runs: list[RunSpec] = []
    for group in _groups_sharing_a_program(sweep, points):
        runs += _runs_of_group(sweep, group)
    if len({run.id for run in runs}) < len(runs):
        raise ConfigError(
            "two runs of the sweep have the same configuration; give each combination once."
        )
    return runs


def list_points(sweep: Sweep) -> list[Point]:
    """Return the product of the sweep's axes."""
    points: list[Point] = []
    for parts in itertools.product(*sweep.axes):
        point: Point = {}
        for part in parts:
            point |= part
        points.append(point)
    return points


def configure(
    file: str, fields: Mapping[str, Any], population: Mapping[str, tuple[float, ...]]
) -> RunConfig:
    """Return the configuration of ``file`` with some fields changed.

    Args:
      file: a configuration file, as ``--config`` takes it.
      fields: values by dotted name. A task or a method (``env.name``, ``algorithm.name``, or
        ``.module``) replaces its section by its own fields before the others are set.
      population: numeric fields of the method and the values they take in one program.

    Raises:
      ConfigError: in one line.
    """
    config = run_config.read_config_file(file, named=f"the sweep's config={file}")
    run_config.select(config, run_config.Selection.of(fields))
    _refuse_overridden(file, config, fields)
    remaining = {name: x for name, x in fields.items() if name not in run_config.SELECTORS}
    run_config.override(config, {**remaining, "run_dir": ""})
    with config.unlocked():
        config.population = ml_collections.ConfigDict(dict(population))
    frozen = run_config.frozen_config(config)
    saved_policy = packaged_policies.locate(frozen.pretrain.saved_policy)
    if not saved_policy.exists():  # the run says what is wrong
        return frozen
    return adopt_policy(frozen, fields.keys(), Path())


def _refuse_overridden(
    file: str, config: ml_collections.ConfigDict, fields: Mapping[str, Any]
) -> None:
    """Raise ConfigError for what the file sets and every run of a sweep sets otherwise."""
    if config.population:
        raise ConfigError(
            f"the sweep's config={file} sets population; name the varied fields in Sweep(pack=…)."
        )
    seeds = fields.get("seeds", 1)
    if config.seeds not in (1, seeds):
        raise ConfigError(
            f"the sweep's config={file} sets seeds={config.seeds}, but the sweep runs {seeds}; use "
            "Sweep(seeds=…)."
        )


def _groups_sharing_a_program(sweep: Sweep, points: list[Point]) -> Iterator[list[Point]]:
    """Yield lists of points that differ in packed fields only."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        unpacked = {name: value for name, value in point.items() if name not in sweep.pack}
        key = json.dumps(unpacked, sort_keys=True, default=str)
        groups.setdefault(key, []).append(point)
    yield from groups.values()


def _runs_of_group(sweep: Sweep, group: list[Point]) -> Iterator[RunSpec]:
    """Yield the runs of points that share a program: one run, or one for each seed."""
    common = {name: value for name, value in group[0].items() if name not in sweep.pack}
    packed = {name: tuple(point[name] for point in group) for name in sweep.pack}
    population = {name.removeprefix("algorithm."): values for name, values in packed.items()}
    values = common | {name: {"packed": members} for name, members in packed.items()}
    if not sweep.spread_seeds:
        fields = {**sweep.fields, **common, "seeds": sweep.seeds}
        yield _run_spec(sweep.config, fields, population, values)
        return
    for seed in range(sweep.seeds):
        fields = {**sweep.fields, **common, "seed": seed, "seeds": 1}
        yield _run_spec(sweep.config, fields, population, {**values, "seed": seed})


def _run_spec(
    file: str,
    fields: Mapping[str, Any],
    population: Mapping[str, tuple[float, ...]],
    values: Point,
) -> RunSpec:
    config = configure(file, fields, population)
    return RunSpec(
        id=config_hash(config),
        values=values,
        config=config,
        command=_train_command(file, fields, population),
    )


def _train_command(
    file: str, fields: Mapping[str, Any], population: Mapping[str, tuple[float, ...]]
) -> str:
    """Return ``gcp-jax train ...`` for one run alone."""
    words = ["gcp-jax", "train", f"--config={file}"]
    for name, value in fields.items():
        words.append(f"--config.{name}={_flag_value(value)}")
    for name, values in population.items():
        words.append(f"--config.population.{name}={','.join(map(repr, values))}")
    return shlex.join(words)


def _flag_value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({','.join(map(str, value))},)"
    return str(value)

"""The results of a sweep, from the files of its runs.

A *setting* is what the sweep gave a training besides its seed; the members of a population are
settings of their own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gcp_jax.config import Member
from gcp_jax.launch import status
from gcp_jax.launch.axes import Point
from gcp_jax.launch.launcher import run_folder
from gcp_jax.launch.manifest import read_manifest
from gcp_jax.report.read import ReportError, Row, eval_rows, is_number
from gcp_jax.report.tables import csv_of_records
from gcp_jax.stats.eval_rows import CLONE, last_rows, pooled_score, score, score_name_of
from gcp_jax.stats.intervals import Interval


class Setting(NamedTuple):
    """One setting, over all its seeds."""

    values: Point
    rows: list[Row]  # evaluations of all its seeds, those of the base policy included
    commands: list[str]  # one a run
    done: bool  # every one of its runs is finished

    @property
    def final(self) -> list[Row]:
        """The latest evaluation of each seed in finetuning."""
        return [dict(row) for row in last_rows(self.rows).after.values()]

    @property
    def scores(self) -> list[float]:
        """[S] the latest score of each seed."""
        return [score(row) for row in self.final]

    @property
    def after(self) -> Interval | None:
        """The latest score over all seeds."""
        return pooled_score(self.final)

    @property
    def before(self) -> Interval | None:
        """The score of the base policies over all seeds, which may have cloned one each."""
        return pooled_score(list(last_rows(self.rows).before.values()))


class SweepResults(NamedTuple):
    """A sweep as read from its folder."""

    folder: Path
    about: dict[str, Any]  # sweep.json
    settings: list[Setting]  # the best first, those without a score last
    runs: list[status.RunStatus]
    score_name: str  # "success" or "return"

    @property
    def scored(self) -> list[Setting]:
        """The settings with a score."""
        return [setting for setting in self.settings if setting.scores]

    @property
    def fields(self) -> list[str]:
        """The fields that vary."""
        names: dict[str, set[str]] = {}
        for setting in self.settings:
            for name in setting.values:
                names.setdefault(name, set())
        for name, values in names.items():
            values.update(_key(setting.values.get(name)) for setting in self.settings)
        return [name for name, values in names.items() if len(values) > 1]

    @property
    def scale(self) -> float:
        """Success rates are shown in percent."""
        return 100.0 if self.score_name == "success" else 1.0

    @property
    def score_label(self) -> str:
        """The score with its unit, as the label of an axis."""
        return "success (%)" if self.score_name == "success" else "return"

    def scores_by_value(self, field: str) -> dict[Any, list[list[float]]]:
        """The scores of every setting at each value of a field; numbers in ascending order.

        Values that are not numbers are given by their text.
        """
        by_value: dict[Any, list[list[float]]] = {}
        for setting in self.scored:
            if field in setting.values:
                value = setting.values[field]
                key = value if is_number(value) else str(value)
                by_value.setdefault(key, []).append(setting.scores)
        if all(is_number(value) for value in by_value):
            return dict(sorted(by_value.items()))
        return by_value


def read_sweep(folder: Path) -> SweepResults:
    """The settings of a sweep, ranked by their mean score.

    Raises:
        ReportError: some tasks are scored by success and some by return.
        ConfigError: the folder holds no sweep.
    """
    about = read_manifest(folder)
    runs = status.sweep_status(folder)
    settings: dict[str, Setting] = {}
    for run in runs:
        evals = _evaluations(run_folder(folder, run.id))
        for point, rows in _members(run.values, evals):
            key = _key(point)
            setting = settings.get(key) or Setting(values=point, rows=[], commands=[], done=True)
            setting.rows.extend(rows)
            setting.commands.append(about["runs"][run.id]["command"])
            settings[key] = setting._replace(done=setting.done and run.state == "finished")
    names = {score_name_of(row) for setting in settings.values() for row in setting.rows}
    if len(names) > 1:
        raise ReportError(
            f"{folder}: some tasks are scored by success and some by return; sweep them separately"
        )
    return SweepResults(
        folder=folder,
        about=about,
        settings=sorted(settings.values(), key=_rank),
        runs=runs,
        score_name=names.pop() if names else "success",
    )


def settings_csv(results: SweepResults) -> str:
    """A row a setting; rates are fractions, and a number that is not known is empty."""
    score_name = results.score_name
    measured = (score_name, f"{score_name}_low", f"{score_name}_high")
    heads = [*results.fields, "finished", "seeds", "before", *measured, "env_steps", "command"]
    records = []
    for setting in results.settings:
        record = {name: setting.values.get(name) for name in results.fields}
        record["finished"] = setting.done
        record["seeds"] = len(setting.scores)
        record["before"] = setting.before.estimate if setting.before else None
        record.update(zip(measured, setting.after or (None, None, None), strict=True))
        record["env_steps"] = max((row["env_steps"] for row in setting.final), default=None)
        record["command"] = setting.commands[0]
        records.append(record)
    return csv_of_records(heads, records)


def _rank(setting: Setting) -> float:
    return -float(np.mean(setting.scores)) if setting.scores else math.inf


def _evaluations(folder: Path) -> list[Row]:
    """The evaluations of a run's finetuning; those of the base policy say which clone it is."""
    clone = {CLONE: _clone_of(folder)}
    return [
        row | clone if row["stage"] == "base" else row
        for row in eval_rows(folder / "eval.jsonl")
        if row["stage"] in ("base", "finetune")
    ]


def _clone_of(folder: Path) -> str:
    """A name of a run's base policy: runs that share a clone have copies of the same file."""
    arrays = folder / "policy" / "base" / "arrays.npz"
    return hashlib.sha256(arrays.read_bytes()).hexdigest() if arrays.is_file() else folder.name


def _members(values: Mapping[str, Any], rows: list[Row]) -> Iterator[tuple[Point, list[Row]]]:
    """The settings of a run with their rows; rows of the base policy belong to all of them."""
    plain = {}
    packed = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and "packed" in value:
            packed[name] = value["packed"]
        elif name != "seed":
            plain[name] = value
    if not packed:
        yield plain, rows
        return
    for point in zip(*packed.values(), strict=True):
        own = dict(zip(packed, point, strict=True))
        label = Member(0, {name.removeprefix("algorithm."): own[name] for name in own}).label
        yield plain | own, [row for row in rows if _belongs_to(row, label)]


def _belongs_to(row: Row, member: str) -> bool:
    return row["stage"] == "base" or row.get("population") == member


def _key(values: Any) -> str:
    return json.dumps(values, sort_keys=True, default=str)

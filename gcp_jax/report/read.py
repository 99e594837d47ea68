"""Reading the files of a run folder, and checking them.

A run folder is read from ``config.json``, ``metrics.jsonl``, ``eval.jsonl`` and ``summary.json``.
Only the first must exist, so an unfinished run has a report too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from gcp_jax.run import metrics
from gcp_jax.stats.eval_rows import score_name_of

Row = dict[str, Any]

_COUNTERS = ("stage", "seed", "env_steps", "updates")  # every row has these


class ReportError(ValueError):
    """A folder that cannot be reported on; the message is one line that says how to mend it."""


class RunFiles(NamedTuple):
    """The files of one run, read and checked."""

    folder: Path
    label: str
    record: dict[str, Any]  # config.json
    metrics: list[Row]  # metrics.jsonl
    evals: list[Row]  # eval.jsonl
    summary: dict[str, Any]  # {} while the run is unfinished
    demonstrations: dict[str, Any]  # facts about the demonstrations; {} if not recorded

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration."""
        config: dict[str, Any] = self.record["config"]
        return config

    @property
    def finetune_evals(self) -> list[Row]:
        """Evaluations during finetuning; the base policy's are the point at zero steps."""
        return [row for row in self.evals if row["stage"] in ("base", "finetune")]

    @property
    def seeds(self) -> list[int]:
        """The seeds that have written a row."""
        return sorted({row["seed"] for row in (*self.metrics, *self.evals)})

    @property
    def score_name(self) -> str:
        """The name of the task's score: "success" or "return"."""
        return score_name_of(self.evals[0]) if self.evals else "success"

    @property
    def state(self) -> str:
        """``finished`` or ``unfinished``."""
        return "finished" if self.summary else "unfinished"


def read_run(folder: Path) -> RunFiles:
    """Read and check a run folder.

    Raises:
        ReportError: the folder is no run folder or of another format, or a file is malformed.
    """
    record_path = folder / "config.json"
    if not record_path.is_file():
        raise ReportError(
            f"{folder}: no config.json here; pass the folder of a run, as printed when it started"
        )
    record = read_json(record_path)
    if not isinstance(record.get("config"), dict):
        raise ReportError(f"{record_path}: no 'config' object; restore the file the run wrote")
    if record.get("format") != metrics.RUN_FORMAT:
        raise ReportError(
            f"{folder} holds a run of format {record.get('format')}, this version reads "
            f"{metrics.RUN_FORMAT}; report on it with the version that wrote it"
        )
    summary_path = folder / "summary.json"
    run = RunFiles(
        folder=folder,
        label=str(record["config"].get("label") or folder.name),
        record=record,
        metrics=_read_rows(folder / "metrics.jsonl", _COUNTERS),
        evals=_read_rows(folder / "eval.jsonl", (*_COUNTERS, "eval/episodes")),
        summary=read_json(summary_path) if summary_path.exists() else {},
        demonstrations=_read_demonstrations(folder / "policy" / "base" / "policy.json"),
    )
    for number, row in enumerate(run.evals, start=1):
        _check_eval_row(row, number, folder / "eval.jsonl", run.score_name)
    return run


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ReportError: the file is not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path}: not JSON ({error}); restore the file the run wrote") from None
    if not isinstance(value, dict):
        raise ReportError(f"{path}: not a JSON object; restore the file the run wrote")
    return value


def is_number(value: object) -> TypeGuard[float]:
    """True for a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def population_points(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The points of a population in the order of its rows; empty if the run has no population."""
    return list(dict.fromkeys(str(row["population"]) for row in rows if "population" in row))


def rows_of_point(rows: Iterable[Row], point: str) -> list[Row]:
    """The rows of one point of a population, and the rows that all points share."""
    return [row for row in rows if row.get("population", point) == point]


def split_population(run: RunFiles, *, only_run: bool) -> list[RunFiles]:
    """A population as one run for each of its points.

    Args:
        run: the run; one without a population is returned as it is.
        only_run: the page reports on no other run, so the point alone is label enough.
    """
    points = population_points((*run.metrics, *run.evals))
    if not points:
        return [run]
    return [
        run._replace(
            label=point if only_run else f"{run.label} · {point}",
            metrics=rows_of_point(run.metrics, point),
            evals=rows_of_point(run.evals, point),
        )
        for point in points
    ]


def with_unique_labels(runs: list[RunFiles]) -> list[RunFiles]:
    """Add the folder to every label if two runs have the same one."""
    if len({run.label for run in runs}) == len(runs):
        return runs
    return [
        run._replace(label=f"{run.label} · {run.folder.parent.name}/{run.folder.name}")
        for run in runs
    ]


def shared_score_name(runs: Sequence[RunFiles]) -> str:
    """The score that all runs have in common: "success" or "return".

    Raises:
        ReportError: some runs are scored by success and some by return.
    """
    labels = {run.score_name: run.label for run in runs if run.evals}
    if len(labels) > 1:
        raise ReportError(
            f"{labels['success']} is scored by success and {labels['return']} by return; "
            "report them separately"
        )
    return next(iter(labels), "success")


def check_same_task(runs: Sequence[RunFiles]) -> None:
    """Raise ReportError if the runs are of different tasks; one that names no task fits to all."""
    known: dict[str, str] = {}  # label by task
    for run in runs:
        env = run.config.get("env")
        name = env.get("name") if isinstance(env, Mapping) else env
        if name:
            known.setdefault(str(name), run.label)
    if len(known) > 1:
        (first, first_label), (second, second_label) = list(known.items())[:2]
        raise ReportError(
            f"{first_label} is on {first} and {second_label} on {second}; different tasks are not "
            "compared: report the runs of each task separately"
        )


def _read_demonstrations(path: Path) -> dict[str, Any]:
    """Facts about the demonstrations that a run's base policy was cloned from."""
    if not path.exists():
        return {}
    facts = read_json(path).get("demonstrations")
    return facts if isinstance(facts, dict) else {}


def _read_rows(path: Path, needed: Iterable[str]) -> list[Row]:
    try:
        rows = metrics.rows(path)
    except ValueError as error:
        raise ReportError(str(error)) from None
    for number, row in enumerate(rows, start=1):
        for key in needed:
            problem = _problem_of(key, row.get(key))
            if problem:
                raise ReportError(f"{path}, row {number}: {problem}; mend or delete the row")
    return rows


def _problem_of(key: str, value: object) -> str:
    """What is wrong with a value of a row; empty if nothing is."""
    if key == "stage":
        known = value in metrics.STAGES
        return "" if known else f"'stage' must be one of {', '.join(metrics.STAGES)}"
    return "" if is_number(value) else f"{key!r} must be a number"


def _check_eval_row(row: Row, number: int, path: Path, score_name: str) -> None:
    if score_name == "success":
        needed = ("eval/success", "eval/successes")
    else:
        needed = ("eval/return", "eval/return_std")
    for key in needed:
        problem = _problem_of(key, row.get(key))
        if problem:
            raise ReportError(f"{path}, row {number}: {problem}; mend or delete the row")
    successes = row.get("eval/successes", 0)
    episodes = row["eval/episodes"]
    if not 0 <= successes <= episodes or episodes == 0:
        raise ReportError(
            f"{path}: seed {row['seed']} has {successes} successes of {episodes} episodes; "
            "mend or delete that row"
        )

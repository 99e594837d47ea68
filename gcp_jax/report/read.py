"""Reading the files of a run folder, and checking them.

A run folder is read from ``config.json``, ``metrics.jsonl``, ``eval.jsonl`` and ``summary.json``.
Only the first must exist, so an unfinished run has a report too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from gcp_jax import json_files
from gcp_jax.json_files import DictOf, ListOf, Maybe
from gcp_jax.run import metrics
from gcp_jax.run.run_policies import STOP_FILE
from gcp_jax.stats.eval_rows import score_name_of

Row = dict[str, Any]

_REMEDY = "restore the file the run wrote"
_RECORD = {"config": dict, "command": Maybe(str), "versions": Maybe(DictOf(str))}  # config.json
_BEST = {  # of a member, in summary.json
    "seed": int,
    "env_steps": int,
    "is_base": bool,
    "evaluations": int,
    "selected": float,
    "fresh": float,
    "fresh_low": float,
    "fresh_high": float,
}
_SUMMARY = {  # summary.json
    "seconds": Maybe(float),
    "compile_seconds": Maybe(float),
    "best": Maybe({"members": ListOf(_BEST)}),
}


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
    stopped: str = ""  # why it ended before its end

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
    def best(self) -> list[dict[str, Any]]:
        """What the summary says of each seed's best policy; empty if it says nothing."""
        best = self.summary.get("best") or {}
        found: list[dict[str, Any]] = best.get("members", [])
        return found

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
        """``finished``, ``unfinished`` or ``stopped``."""
        if self.summary:
            return "finished"
        return "stopped" if self.stopped else "unfinished"


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
    if record.get("format") != metrics.RUN_FORMAT:
        raise ReportError(
            f"{folder} holds a run of format {record.get('format')!r}, this version reads "
            f"{metrics.RUN_FORMAT}; report on it with the version that wrote it"
        )
    check_shape(record_path, record, _RECORD)
    summary_path = folder / "summary.json"
    return RunFiles(
        folder=folder,
        label=str(record["config"].get("label") or folder.name),
        record=record,
        metrics=_read_rows(folder / "metrics.jsonl"),
        evals=eval_rows(folder / "eval.jsonl"),
        summary=read_json(summary_path, _SUMMARY) if summary_path.exists() else {},
        demonstrations=_read_demonstrations(folder / "policy" / "base" / "policy.json"),
        stopped=_read_stop(folder / STOP_FILE),
    )


def read_json(path: Path, shape: json_files.Shape = dict) -> dict[str, Any]:
    """Read a JSON object of some shape (``json_files``) from a file.

    Raises:
        ReportError: the file is not JSON, or of another shape.
    """
    content: dict[str, Any] = json_files.read_json(path, shape, error=ReportError, remedy=_REMEDY)
    return content


def check_shape(path: Path, content: Any, shape: json_files.Shape) -> None:
    """Raise ReportError if what was read from a file has another shape."""
    problem = json_files.problem_of(content, shape)
    if problem:
        raise ReportError(f"{path}: {problem}; {_REMEDY}.")


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
            summary=_summary_of_point(run.summary, point),
        )
        for point in points
    ]


def _summary_of_point(summary: dict[str, Any], point: str) -> dict[str, Any]:
    """A population's summary with the best policies of one point."""
    if not summary.get("best"):
        return summary
    best = summary["best"]
    return {**summary, "best": {**best, "members": rows_of_point(best["members"], point)}}


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


def _read_stop(path: Path) -> str:
    """Why a run ended before its end; "" if it did not."""
    if not path.exists():
        return ""
    reason: str = read_json(path, {"reason": str})["reason"]
    return reason


def eval_rows(path: Path) -> list[Row]:
    """The rows of ``eval.jsonl``; none if there is no file.

    Raises:
        ReportError: a row is malformed, or its score is not finite.
    """
    try:
        rows = metrics.eval_rows(path)
    except ValueError as error:
        raise ReportError(str(error)) from None
    for number, row in enumerate(rows, start=1):
        key = f"eval/{score_name_of(row)}"
        if not is_number(row[key]):
            raise ReportError(
                f"{path}, row {number}: {key!r} must be a finite number; mend or delete the row"
            )
    return rows


def _read_rows(path: Path) -> list[Row]:
    try:
        return metrics.rows(path, metrics.ROW)
    except ValueError as error:
        raise ReportError(str(error)) from None

"""Reading the folder of a benchmark: algorithms × tasks × seeds.

    DIR/benchmark.json      the plan: command, versions, commit, seeds, steps, tasks, methods
    DIR/<task>/<method>/    a run folder; ``failed.txt`` gives the error of a run that failed

All methods of a task start from one cloned policy, with the same seeds and start states. A run has
finished when its summary exists and every seed was evaluated; a ``failed.txt`` of an earlier
attempt no longer counts then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gcp_jax.json_files import DictOf, ListOf, Maybe
from gcp_jax.report.read import ReportError, Row, RunFiles, is_number, read_json, read_run
from gcp_jax.report.run_numbers import final_scores, train_seconds
from gcp_jax.stats.eval_rows import score_curve, unpack_success_bits
from gcp_jax.stats.intervals import MISSING, Interval

PLAN = {  # benchmark.json
    "seeds": int,
    "steps": Maybe(int),
    "tasks": ListOf({"label": str, "env": Maybe(str)}),
    "methods": ListOf({"label": str, "algorithm": Maybe(str)}),
    "command": Maybe(str),
    "versions": Maybe(DictOf(str)),
}


class Method(NamedTuple):
    """A column of the benchmark's plan."""

    label: str
    algorithm: str


class EvalPoint(NamedTuple):
    """One evaluation, all seeds pooled."""

    env_steps: int
    seconds: float  # of training, all seeds together; NaN if the run did not write it
    success: Interval


class Entry(NamedTuple):
    """One method on one task, as far as it has come."""

    run: RunFiles | None
    state: str  # "finished", "running", "not run yet", or "failed: …"
    points: tuple[EvalPoint, ...]  # the base policy first, at zero steps
    scores: tuple[float, ...]  # [S] final success of each seed; () until finished
    outcomes: NDArray[np.bool_] | None = None  # [S·E] last evaluation; None until finished

    @property
    def base(self) -> Interval | None:
        """Success of the base policy; None if it was not evaluated."""
        if not self.points or self.points[0].env_steps != 0:
            return None
        return self.points[0].success

    @property
    def episodes(self) -> int:
        """Episodes of one seed's last evaluation; 0 without any."""
        rows = self.run.finetune_evals if self.run else []
        return int(rows[-1]["eval/episodes"]) if rows else 0

    @property
    def seconds(self) -> float | None:
        """Training seconds so far; None if the run did not write them."""
        if not self.points or not is_number(self.points[-1].seconds):
            return None
        return self.points[-1].seconds

    @property
    def pending(self) -> bool:
        """True if the run may still change."""
        return self.state in ("running", "not run yet")


class Benchmark(NamedTuple):
    """The files of a benchmark, read and checked."""

    folder: Path
    plan: dict[str, Any]  # benchmark.json
    tasks: tuple[str, ...]
    methods: tuple[Method, ...]
    entries: dict[tuple[str, int], Entry]  # by task and index of the method

    @property
    def seeds(self) -> int:
        """Seeds of every run."""
        return int(self.plan["seeds"])

    def entries_of(self, task: str) -> list[Entry]:
        """The entries of a task in the order of the methods."""
        return [self.entries[task, index] for index in range(len(self.methods))]

    def equal_compute_seconds(self, task: str) -> float:
        """T*: the median training time of the task's finished methods; NaN without any."""
        times = []
        for entry in self.entries_of(task):
            if entry.scores and entry.seconds is not None:
                times.append(entry.seconds)
        return float(np.median(times)) if times else math.nan

    def base_success(self, task: str) -> float | None:
        """The base policy's success on a task, averaged over the methods that evaluated it."""
        bases = [entry.base.estimate for entry in self.entries_of(task) if entry.base]
        return float(np.mean(bases)) if bases else None


def read_benchmark(folder: Path) -> Benchmark:
    """Read and check the folder of a benchmark.

    Raises:
        ReportError: the folder holds no benchmark, or one of its files is malformed.
    """
    path = folder / "benchmark.json"
    if not path.is_file():
        raise ReportError(
            f"{folder}: no benchmark.json here; pass the folder that gcp-jax benchmark wrote"
        )
    plan = read_json(path, PLAN)
    seeds = plan["seeds"]
    if seeds < 1:
        raise ReportError(
            f"{path}: 'seeds' is {seeds!r}, not a positive whole number; restore the file"
        )
    tasks = tuple(item["label"] for item in _labelled_items(path, plan, "tasks"))
    methods = tuple(
        Method(label=item["label"], algorithm=str(item.get("algorithm", MISSING)))
        for item in _labelled_items(path, plan, "methods")
    )
    entries = {}
    for task in tasks:
        for index, method in enumerate(methods):
            entries[task, index] = _read_entry(folder / task / method.label, seeds)
    return Benchmark(folder=folder, plan=plan, tasks=tasks, methods=methods, entries=entries)


def _labelled_items(path: Path, plan: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = plan[key]
    if not items:
        raise ReportError(f"{path}: {key!r} is empty; restore the file")
    labels = [item["label"] for item in items]
    for label in labels:
        if labels.count(label) > 1:
            raise ReportError(
                f"{path}: the label {label!r} is given twice in {key!r}; name each once"
            )
    return items


def _read_entry(folder: Path, seeds: int) -> Entry:
    if not (folder / "config.json").is_file():
        return Entry(run=None, state=_state(folder, None, 0, seeds), points=(), scores=())
    run = read_run(folder)._replace(label=folder.name)
    points = _eval_points(run)
    scores: tuple[float, ...] = ()
    if run.summary and points and points[-1].env_steps:
        scores = tuple(final_scores(run))
    state = _state(folder, run, len(scores), seeds)
    if len(scores) != seeds:
        return Entry(run=run, state=state, points=points, scores=())
    outcomes = _last_outcomes(run, points[-1].env_steps)
    return Entry(run=run, state=state, points=points, scores=scores, outcomes=outcomes)


def _state(folder: Path, run: RunFiles | None, evaluated: int, seeds: int) -> str:
    if run and run.summary:
        if evaluated == seeds:
            return "finished"
        return f"failed: {evaluated} of {seeds} seeds were evaluated"
    failure = folder / "failed.txt"
    if failure.is_file():
        words = failure.read_text(encoding="utf-8", errors="replace").split()
        return f"failed: {' '.join(words) or 'failed.txt is empty'}"
    return "running" if run else "not run yet"


def _eval_points(run: RunFiles) -> tuple[EvalPoint, ...]:
    seconds = {row["env_steps"]: _seconds_or_nan(row) for row in run.finetune_evals}
    return tuple(
        EvalPoint(env_steps=at.env_steps, seconds=seconds[at.env_steps], success=at.score)
        for at in score_curve(run.evals)
    )


def _seconds_or_nan(row: Row) -> float:
    seconds = train_seconds(row)
    return math.nan if seconds is None else seconds


def _last_outcomes(run: RunFiles, env_steps: int) -> NDArray[np.bool_] | None:
    """Success flags of the evaluation after ``env_steps``, seed after seed; None if not stored."""
    rows = [row for row in run.finetune_evals if row["env_steps"] == env_steps]
    flags = []
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        of_seed = unpack_success_bits(row)
        if of_seed is None:
            return None
        flags.append(of_seed)
    return np.concatenate(flags)

"""Reading the folder of a benchmark: algorithms × tasks × clones × seeds.

    DIR/benchmark.json      the plan: command, versions, seeds, steps, clones, tasks, methods, …
    DIR/<task>/<method>/    a run folder; ``failed.txt`` gives the error of a run that failed
    DIR/<task>/clone_1/<method>/    the same from the second clone of the task, and so on

All methods of a task start from the same cloned policies, with the same seeds and start states. A
run has finished when its summary exists and every seed was evaluated; a ``failed.txt`` of an
earlier attempt no longer counts then.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gcp_jax.json_files import DictOf, ListOf, Maybe
from gcp_jax.report.read import ReportError, Row, RunFiles, is_number, read_json, read_run
from gcp_jax.report.run_numbers import final_scores, train_seconds
from gcp_jax.report.text import plural
from gcp_jax.stats.eval_rows import CLONE, score_curve, unpack_success_bits
from gcp_jax.stats.intervals import MISSING, Interval

MANIFEST = "benchmark.json"
PLAN = {  # its content
    "seeds": int,
    "steps": Maybe(int),
    "clones": Maybe(int),
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
    """One evaluation, all seeds, and all clones, pooled."""

    env_steps: int
    seconds: float  # of training, all seeds of a clone together; NaN if a run did not write it
    success: Interval


class Entry(NamedTuple):
    """One method on one task, as far as it has come, from all clones or from one."""

    run: RunFiles | None  # the rows of all clones
    state: str  # "finished", "running…", "not run yet", or "failed: …"
    points: tuple[EvalPoint, ...]  # the base policy first, at zero steps
    scores: tuple[tuple[float, ...], ...]  # [C, S] final success of each seed; () until finished
    outcomes: NDArray[np.bool_] | None = None  # [C·S·E] last evaluation; None until finished
    clones: tuple[Entry, ...] = ()  # the same from each clone, if there are several

    @property
    def single(self) -> tuple[Entry, ...]:
        """An entry for each clone."""
        return self.clones or (self,)

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
        """True if a run may still change."""
        return any(entry.state in ("running", "not run yet") for entry in self.single)


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

    @property
    def clones(self) -> int:
        """Clones of every task."""
        return int(self.plan.get("clones") or 1)

    @property
    def trainings(self) -> int:
        """Trainings of each method on each task."""
        return self.clones * self.seeds

    @property
    def single_entries(self) -> list[Entry]:
        """An entry for each run."""
        return [single for entry in self.entries.values() for single in entry.single]

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
        return _mean_base(self.entries_of(task))

    def clone_success(self, task: str) -> list[float | None]:
        """The same of each clone of a task."""
        entries = [entry.single for entry in self.entries_of(task)]
        return [_mean_base(of_clone) for of_clone in zip(*entries, strict=True)]


def read_benchmark(folder: Path) -> Benchmark:
    """Read and check the folder of a benchmark.

    Raises:
        ReportError: the folder holds no benchmark, or one of its files is malformed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ReportError(
            f"{folder}: no {MANIFEST} here; pass the folder that gcp-jax benchmark wrote"
        )
    plan = read_json(path, PLAN)
    seeds = plan["seeds"]
    clones = plan.get("clones")
    for key, count in (("seeds", seeds), ("clones", 1 if clones is None else clones)):
        if count < 1:
            raise ReportError(
                f"{path}: {key!r} is {count!r}, not a positive whole number; restore the file"
            )
    tasks = tuple(item["label"] for item in _labelled_items(path, plan, "tasks"))
    methods = tuple(
        Method(label=item["label"], algorithm=str(item.get("algorithm", MISSING)))
        for item in _labelled_items(path, plan, "methods")
    )
    entries = {}
    for task in tasks:
        for index, method in enumerate(methods):
            of_clones = [
                _read_entry(clone_folder(folder / task, clone) / method.label, seeds)
                for clone in range(clones or 1)
            ]
            entries[task, index] = _joined(of_clones)
    return Benchmark(folder=folder, plan=plan, tasks=tasks, methods=methods, entries=entries)


def clone_folder(task_folder: Path, index: int) -> Path:
    """The folder of the runs of one clone: that of the task itself for the first."""
    return task_folder / f"clone_{index}" if index else task_folder


def is_clone_folder(name: str) -> bool:
    """Whether a folder in that of a task is of a clone."""
    return re.fullmatch(r"clone_\d+", name) is not None


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
    return Entry(run=run, state=state, points=points, scores=(scores,), outcomes=outcomes)


def _joined(clones: Sequence[Entry]) -> Entry:
    """One method on one task from all clones.

    It has a point where it was evaluated from every clone, and scores once all runs are finished.
    """
    if len(clones) == 1:
        return clones[0]
    run = _joined_run(clones)
    scores: tuple[tuple[float, ...], ...] = ()
    outcomes = None
    if all(entry.scores for entry in clones):
        scores = tuple(entry.scores[0] for entry in clones)
        flags = [entry.outcomes for entry in clones if entry.outcomes is not None]
        outcomes = np.concatenate(flags) if len(flags) == len(clones) else None
    return Entry(
        run=run,
        state=_joined_state(clones),
        points=_eval_points(run) if run and all(entry.points for entry in clones) else (),
        scores=scores,
        outcomes=outcomes,
        clones=tuple(clones),
    )


def _joined_run(clones: Sequence[Entry]) -> RunFiles | None:
    """The rows of all clones' runs as those of one run, marked by their clone."""
    runs = {index: entry.run for index, entry in enumerate(clones) if entry.run}
    if not runs:
        return None
    first = next(iter(runs.values()))
    return first._replace(
        metrics=[row for run in runs.values() for row in run.metrics],
        evals=[row | {CLONE: index} for index, run in runs.items() for row in run.evals],
    )


def _joined_state(clones: Sequence[Entry]) -> str:
    states = [entry.state for entry in clones]
    if len(set(states)) == 1:
        return states[0]
    if any(entry.pending for entry in clones):
        finished = sum(bool(entry.scores) for entry in clones)
        return f"running: {finished} of {plural(len(clones), 'clone')} finished"
    index = next(index for index, state in enumerate(states) if state.startswith("failed"))
    return f"failed: clone {index}{states[index].removeprefix('failed')}"


def _mean_base(entries: Sequence[Entry]) -> float | None:
    bases = [entry.base.estimate for entry in entries if entry.base]
    return float(np.mean(bases)) if bases else None


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
    seconds: dict[int, dict[Any, float]] = {}  # by environment steps, by clone
    for row in run.finetune_evals:
        seconds.setdefault(row["env_steps"], {})[row.get(CLONE)] = _seconds_or_nan(row)
    return tuple(
        EvalPoint(
            env_steps=at.env_steps,
            seconds=float(np.mean([*seconds[at.env_steps].values()])),
            success=at.score,
        )
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

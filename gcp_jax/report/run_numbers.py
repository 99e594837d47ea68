"""The numbers of one run that a page shows, from the rows it has written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gcp_jax.report.read import Row, RunFiles, is_number
from gcp_jax.stats.eval_rows import BeforeAfter, before_after, pooled_score, score
from gcp_jax.stats.intervals import Floats, Interval


class Curve(NamedTuple):
    """One metric of one run."""

    x: Floats  # [P] environment steps or updates
    y: Floats  # [S, P]; NaN if a seed has no value there

    @property
    def mean(self) -> Floats:
        """[P] over the seeds that have a value."""
        filled: Floats = np.ma.masked_invalid(self.y).mean(axis=0).filled(np.nan)
        return filled


class ScorePoint(NamedTuple):
    """The score over all seeds after a number of environment steps."""

    env_steps: int
    score: Interval


def metric_curve(rows: Iterable[Mapping[str, Any]], key: str, axis: str) -> Curve | None:
    """A metric against ``env_steps`` or ``updates``; None if no row has it.

    Args:
        rows: rows of all seeds.
        key: the metric; values that are no finite number are left out.
        axis: the counter of the horizontal axis.
    """
    values = {(row["seed"], row[axis]): row[key] for row in rows if is_number(row.get(key))}
    if not values:
        return None
    seeds = sorted({seed for seed, _ in values})
    x = sorted({at for _, at in values})
    y = [[values.get((seed, at), math.nan) for at in x] for seed in seeds]
    return Curve(x=np.asarray(x, np.float64), y=np.asarray(y, np.float64))


def score_curve(run: RunFiles) -> list[ScorePoint]:
    """The pooled score after each number of environment steps at which every seed was evaluated."""
    by_steps: dict[int, dict[int, Row]] = {}
    for row in run.finetune_evals:
        by_steps.setdefault(row["env_steps"], {})[row["seed"]] = row
    seeds = max((len(rows) for rows in by_steps.values()), default=0)
    curve = []
    for steps, rows in sorted(by_steps.items()):
        interval = pooled_score(list(rows.values()))
        if interval is not None and len(rows) == seeds:
            curve.append(ScorePoint(env_steps=steps, score=interval))
    return curve


def steps_to(run: RunFiles, threshold: float) -> str:
    """Environment steps at the first evaluation whose pooled score reaches ``threshold``."""
    for point in score_curve(run):
        if point.score.estimate >= threshold:
            return f"{point.env_steps:,}"
    return "not reached"


def final_scores(run: RunFiles) -> list[float]:
    """The last score of each seed in finetuning."""
    last = {row["seed"]: score(row) for row in run.evals if row["stage"] == "finetune"}
    return list(last.values())


def pooled_line(run: RunFiles) -> BeforeAfter:
    """The score before and after finetuning over all seeds."""
    lines = before_after(run.evals)
    return lines[-1] if lines else BeforeAfter(label="pooled", before=None, after=None)


def last_counter(run: RunFiles, key: str) -> float | None:
    """The largest value of a counter in the latest stage; None if it has none."""
    values = _latest_values(run, key)
    return max(values, default=None)


def median(run: RunFiles, key: str) -> float | None:
    """The median of a metric in the latest stage; None if it has none."""
    values = _latest_values(run, key)
    return float(np.median(values)) if values else None


def wall_seconds(run: RunFiles) -> float | None:
    """Wall time of the run so far."""
    seconds: float | None = run.summary.get("seconds", last_counter(run, "seconds"))
    return seconds


def speed_metrics(runs: Iterable[RunFiles]) -> list[str]:
    """The names of all ``time/`` metrics that the runs have written."""
    names = {key for run in runs for row in run.metrics for key in row if key.startswith("time/")}
    return sorted(names)


def _latest_values(run: RunFiles, key: str) -> list[float]:
    return [row[key] for row in _latest_stage(run) if is_number(row.get(key))]


def _latest_stage(run: RunFiles) -> list[Row]:
    """The rows of finetuning, or those of pretraining if the run has not reached finetuning."""
    rows = [*run.metrics, *run.evals]
    finetune = [row for row in rows if row["stage"] == "finetune"]
    return finetune or [row for row in rows if row["stage"] == "pretrain"]

"""The numbers of one run that a page shows, from the rows it has written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gcp_jax.report.read import Row, RunFiles, is_number
from gcp_jax.stats.bootstrap import steps_to_threshold
from gcp_jax.stats.eval_rows import BeforeAfter, before_after, last_rows, score
from gcp_jax.stats.intervals import Floats

NEVER = "not reached"


class Curve(NamedTuple):
    """One metric of one run."""

    x: Floats  # [P] environment steps or updates
    y: Floats  # [S, P]; NaN if a seed has no value there

    @property
    def mean(self) -> Floats:
        """[P] over the seeds that have a value."""
        filled: Floats = np.ma.masked_invalid(self.y).mean(axis=0).filled(np.nan)
        return filled


class EpisodeCurve(NamedTuple):
    """One metric of training episodes, over all seeds."""

    x: Floats  # [P] environment steps
    y: Floats  # [P] the mean over the episodes of a point
    episodes: Floats  # [P] how many they are


class Throughput(NamedTuple):
    """Medians over the segments of a stage, all members together; None if it has no such segment.

    Segments before learning starts only collect and are much faster, so they are apart.
    """

    warmup_env_steps: float | None  # per second, before learning starts
    env_steps: float | None  # per second, while learning
    updates: float | None  # per second, while learning


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


def episode_curve(run: RunFiles, key: str, at_least: int) -> EpisodeCurve | None:
    """An ``episode/`` mean of finetuning over all seeds; None if no row has it.

    Consecutive segments are joined until a point has ``at_least`` so many episodes, because a
    segment alone may have one.
    """
    sums: dict[int, list[float]] = {}  # by environment steps: episodes, and the sum of the metric
    for row in run.metrics:
        if row["stage"] == "finetune" and is_number(row.get(key)):
            count = row.get("episode/episodes", 0)
            at = sums.setdefault(row["env_steps"], [0.0, 0.0])
            at[0] += count
            at[1] += count * row[key]
    points: list[tuple[int, float, float]] = []  # environment steps, episodes, sum
    for steps, (count, total) in sorted(sums.items()):
        if points and points[-1][1] < at_least:
            _, joined, joined_total = points.pop()
            points.append((steps, joined + count, joined_total + total))
        elif count:
            points.append((steps, count, total))
    if len(points) > 1 and points[-1][1] < at_least:
        steps, count, total = points.pop()
        _, joined, joined_total = points.pop()
        points.append((steps, joined + count, joined_total + total))
    if not points:
        return None
    x, episodes, totals = np.asarray(points, np.float64).T
    return EpisodeCurve(x=x, y=totals / episodes, episodes=episodes)


def cost_to(
    costs: Sequence[float], rates: Sequence[float], threshold: float, *, finished: bool
) -> float | str | None:
    """The cost at the first evaluation whose pooled success reaches ``threshold``.

    Args:
        costs: environment steps or seconds of every evaluation.
        rates: the pooled success at each.
        threshold: success to reach.
        finished: False if the threshold may still be reached.

    Returns:
        The cost, ``NEVER``, or None if it is not known (yet).
    """
    cost = steps_to_threshold(costs, rates, threshold)
    if cost is None:
        return NEVER if finished else None
    if cost.is_integer():
        return int(cost)
    return cost if is_number(cost) else None


def final_scores(run: RunFiles) -> list[float]:
    """The last score of each seed in finetuning."""
    return [score(row) for row in last_rows(run.evals).after.values()]


def pooled_line(run: RunFiles) -> BeforeAfter:
    """The score before and after finetuning over all seeds."""
    lines = before_after(run.evals)
    return lines[-1] if lines else BeforeAfter(label="pooled", before=None, after=None)


def last_counter(run: RunFiles, key: str) -> float | None:
    """The largest value of a counter in the latest stage; None if it has none."""
    values = _latest_values(run, key)
    return max(values, default=None)


def throughput(run: RunFiles) -> Throughput:
    """The speed of finetuning, or of pretraining if the run has not reached finetuning."""
    rows = _latest_stage(run)
    learning = [row for row in rows if row["updates"]]
    warmup = [row for row in rows if not row["updates"]]
    return Throughput(
        warmup_env_steps=_median_of(warmup, "time/env_steps_per_s"),
        env_steps=_median_of(learning, "time/env_steps_per_s"),
        updates=_median_of(learning, "time/updates_per_s"),
    )


def train_seconds(row: Row) -> float | None:
    """Seconds that the compiled segments took up to a row; None if the run did not write them."""
    value = row.get("train_seconds")
    if is_number(value):
        return float(value)
    return 0.0 if row["stage"] == "base" else None


def training_seconds(run: RunFiles) -> float | None:
    """Seconds that the compiled segments of finetuning took up to the last evaluation."""
    rows = run.finetune_evals
    return train_seconds(rows[-1]) if rows else None


def wall_seconds(run: RunFiles) -> float | None:
    """Wall time of the run so far."""
    seconds: float | None = run.summary.get("seconds", last_counter(run, "seconds"))
    return seconds


def _median_of(rows: Iterable[Row], key: str) -> float | None:
    """The median of a speed; None without rows, or if nothing of its kind was done."""
    values = [row[key] for row in rows if is_number(row.get(key)) and row[key] > 0]
    return float(np.median(values)) if values else None


def _latest_values(run: RunFiles, key: str) -> list[float]:
    return [row[key] for row in _latest_stage(run) if is_number(row.get(key))]


def _latest_stage(run: RunFiles) -> list[Row]:
    """The rows of finetuning, or those of pretraining if the run has not reached finetuning."""
    rows = [*run.metrics, *run.evals]
    finetune = [row for row in rows if row["stage"] == "finetune"]
    return finetune or [row for row in rows if row["stage"] == "pretrain"]

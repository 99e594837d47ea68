"""The numbers of a benchmark: one method on one task, and all methods over all tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, permutations
from typing import Any, NamedTuple

import numpy as np

from gcp_jax.report.benchmark_read import Benchmark, Entry
from gcp_jax.report.read import is_number
from gcp_jax.report.run_numbers import cost_to, last_counter, throughput
from gcp_jax.report.tables import csv_of_records
from gcp_jax.report.text import plural
from gcp_jax.stats.bootstrap import (
    Profile,
    interquartile_mean,
    mean_score,
    paired_difference,
    performance_profile,
    probability_of_improvement,
)
from gcp_jax.stats.intervals import Floats, Interval
from gcp_jax.stats.paired import DiscordantPairs, grouping_letters, holm
from gcp_jax.stats.spread import Spread, spread_of

THRESHOLDS = (0.5, 0.8, 0.9)  # success rates whose first crossing is reported
PROFILE_THRESHOLDS = np.linspace(0.0, 1.0, 201)  # τ of the performance profile
SIGNIFICANCE = 0.05  # over all pairs of a task together


class Aggregate(NamedTuple):
    """The methods that finished all compared tasks, over these tasks."""

    tasks: tuple[str, ...]
    iqm: dict[int, Interval]  # by index of the method
    mean: dict[int, Interval]
    profile: dict[int, Profile]
    better: dict[tuple[int, int], Interval]  # P(a run of the first beats one of the second)
    difference: dict[tuple[int, int], Interval]  # mean of the first − second; of several clones
    base: float  # interquartile mean of the clones' success; NaN if not evaluated


def aggregate_of(benchmark: Benchmark) -> Aggregate | None:
    """Aggregates over the compared tasks; None while no method has finished all of them.

    With one seed of one clone the intervals are those of its episodes, and P(better) is left out.
    """
    tasks = _compared_tasks(benchmark)
    scores: dict[int, Floats] = {}  # [C, S, M]
    for index in range(len(benchmark.methods)):
        of_tasks = [benchmark.entries[task, index].scores for task in tasks]
        if of_tasks and all(of_tasks):
            scores[index] = np.stack([np.asarray(each, np.float64) for each in of_tasks], axis=-1)
    if not scores:
        return None
    episodes_of = {
        index: [benchmark.entries[task, index].episodes for task in tasks] for index in scores
    }
    iqm = {}
    mean = {}
    profiles = {}
    for index, table in scores.items():
        episodes = episodes_of[index]
        iqm[index] = interquartile_mean(table, episodes=episodes)
        mean[index] = mean_score(table, episodes=episodes)
        profiles[index] = performance_profile(table, PROFILE_THRESHOLDS)
    return Aggregate(
        tasks=tasks,
        iqm=iqm,
        mean=mean,
        profile=profiles,
        better=_all_pairs(scores) if benchmark.trainings > 1 else {},
        difference=_all_differences(scores, episodes_of) if benchmark.clones > 1 else {},
        base=_base_score(benchmark, tasks),
    )


def task_record(entry: Entry, equal_compute_seconds: float) -> dict[str, Any]:
    """The measured columns of ``table.csv`` of one method on one task.

    A number that is not known is None. An unfinished run has only the numbers that can no longer
    change. With several clones there are also the standard deviations between them and between the
    seeds of one.
    """
    finished = bool(entry.scores)
    rates = [point.success.estimate for point in entry.points]
    record: dict[str, Any] = {"base": entry.base.estimate if entry.base else None}
    record |= _bounded("final", entry.points[-1].success if finished else None)
    record["best"] = max(rates) if finished else None
    record |= _equal_compute(entry, equal_compute_seconds if finished else math.nan)
    iqm = None
    if finished:
        table = np.asarray(entry.scores, np.float64)[..., None]
        iqm = interquartile_mean(table, episodes=entry.episodes)
    record |= _bounded("iqm", iqm)
    if entry.clones:
        record |= _spread_columns(entry)
    steps = [float(point.env_steps) for point in entry.points]
    seconds = [point.seconds for point in entry.points]
    for name, costs in (("steps", steps), ("seconds", seconds)):
        for threshold in THRESHOLDS:
            key = f"{name}_to_{100 * threshold:.0f}"
            record[key] = cost_to(costs, rates, threshold, finished=finished)
    record["env_steps"] = last_counter(entry.run, "env_steps") if entry.run else None
    record["updates"] = last_counter(entry.run, "updates") if entry.run else None
    speed = throughput(entry.run) if entry.run else None
    record["updates_per_s"] = speed.updates if speed else None
    record["env_steps_per_s"] = speed.env_steps if speed else None
    record["train_seconds"] = entry.seconds
    return record


def overall_record(benchmark: Benchmark, aggregate: Aggregate | None, index: int) -> dict[str, Any]:
    """The row of ``table.csv`` of one method over all compared tasks.

    Rates and their spreads are means over the tasks, the training seconds their sum.
    """
    if aggregate is None or index not in aggregate.iqm:
        return {"state": "not finished on every task"}
    records = []
    for task in aggregate.tasks:
        seconds = benchmark.equal_compute_seconds(task)
        records.append(task_record(benchmark.entries[task, index], seconds))
    overall: dict[str, Any] = {"state": tasks_text(benchmark, aggregate)}
    spreads = Spread._fields if benchmark.clones > 1 else ()
    for name in ("base", "best", "equal_compute", *spreads):
        overall[name] = _reduce([record[name] for record in records], np.mean)
    interpolated = [record["equal_compute_interpolated"] for record in records]
    overall["equal_compute_interpolated"] = None if None in interpolated else any(interpolated)
    overall |= _bounded("final", aggregate.mean[index])
    overall |= _bounded("iqm", aggregate.iqm[index])
    seconds_of_tasks = [record["train_seconds"] for record in records]
    overall["train_seconds"] = _reduce(seconds_of_tasks, np.sum)
    return overall


def tasks_text(benchmark: Benchmark, aggregate: Aggregate) -> str:
    """``over 2 of 3 tasks``."""
    return f"over {len(aggregate.tasks)} of {plural(len(benchmark.tasks), 'task')}"


def task_letters(benchmark: Benchmark, task: str) -> dict[int, str]:
    """Grouping letters of a task's methods, by index.

    Two methods without a letter in common differ significantly on the same start states. Empty if
    fewer than two methods stored the outcomes of the same episodes.
    """
    outcomes = {}
    for index, entry in enumerate(benchmark.entries_of(task)):
        if entry.outcomes is not None:
            outcomes[index] = entry.outcomes
    if len(outcomes) < 2 or len({flags.size for flags in outcomes.values()}) > 1:
        return {}
    order = sorted(outcomes, key=lambda index: -float(outcomes[index].mean()))
    p_values = {}
    for first, second in combinations(order, 2):
        pairs = DiscordantPairs.from_outcomes(outcomes[first], outcomes[second])
        p_values[first, second] = pairs.p_value()
    adjusted = holm(p_values)
    different = [pair for pair in p_values if adjusted[pair] <= SIGNIFICANCE]
    return grouping_letters(order, different)


def task_csv(benchmark: Benchmark, task: str) -> str:
    """The rows of ``table.csv`` of one task."""
    records = _records_of_task(benchmark, task)
    return csv_of_records(list(records[0]), records)


def overall_csv(benchmark: Benchmark, aggregate: Aggregate | None) -> str:
    """The rows of ``table.csv`` over all tasks."""
    records = _overall_records(benchmark, aggregate)
    heads = list(dict.fromkeys(name for record in records for name in record))
    return csv_of_records(heads, records)


def clone_records(benchmark: Benchmark, task: str) -> list[dict[str, Any]]:
    """The rows of ``clones.csv`` of one task: each method from each clone by itself.

    A number that is not known is None.
    """
    bases = benchmark.clone_success(task)
    records = []
    for index, method in enumerate(benchmark.methods):
        for clone, entry in enumerate(benchmark.entries[task, index].single):
            record: dict[str, Any] = {
                "task": task,
                "method": method.label,
                "algorithm": method.algorithm,
                "clone": clone,
                "state": entry.state,
                "base": bases[clone],
            }
            seeds = entry.scores[0] if entry.scores else ()
            record["final"] = float(np.mean(seeds)) if seeds else None
            record["lowest_seed"] = min(seeds, default=None)
            record["highest_seed"] = max(seeds, default=None)
            records.append(record)
    return records


def clones_csv(benchmark: Benchmark) -> str:
    """``clones.csv``: every method from every clone; rates are fractions."""
    records = [record for task in benchmark.tasks for record in clone_records(benchmark, task)]
    return csv_of_records(list(records[0]), records)


def base_spread(benchmark: Benchmark, task: str) -> float | None:
    """The standard deviation of the clones' success before finetuning; None if not known (yet)."""
    rates = [rate for rate in benchmark.clone_success(task) if rate is not None]
    if len(rates) < benchmark.clones:
        return None
    return _known(spread_of([[rate] for rate in rates]).between_clones)


def summary(benchmark: Benchmark, aggregate: Aggregate | None) -> dict[str, Any]:
    """``summary.json``: success of every method with both its spreads, and of every clone.

    A number that is not known is None.
    """
    tasks = {}
    for task in benchmark.tasks:
        seconds = benchmark.equal_compute_seconds(task)
        clones = clone_records(benchmark, task)
        methods = {}
        for index, method in enumerate(benchmark.methods):
            entry = benchmark.entries[task, index]
            record = task_record(entry, seconds)
            kept = ("final", "final_low", "final_high", "iqm", "iqm_low", "iqm_high")
            methods[method.label] = {
                "state": entry.state,
                **{name: _known(record[name]) for name in kept},
                **_spread_columns(entry),
                "final_of_clones": [
                    record["final"] for record in clones if record["method"] == method.label
                ],
            }
        tasks[task] = {
            "base_of_clones": benchmark.clone_success(task),
            "base_between_clones": base_spread(benchmark, task),
            "methods": methods,
        }
    compared: list[str] = []
    overall = {}
    if aggregate is not None:
        compared.extend(aggregate.tasks)
        for index, iqm in aggregate.iqm.items():
            mean = aggregate.mean[index]
            named = {"iqm": _bounds_list(iqm), "mean": _bounds_list(mean)}
            overall[benchmark.methods[index].label] = named
    return {
        "clones": benchmark.clones,
        "seeds": benchmark.seeds,
        "tasks": tasks,
        "all_tasks": {"tasks": compared, "methods": overall},
    }


def full_csv(benchmark: Benchmark, aggregate: Aggregate | None) -> str:
    """``table.csv``: rates are fractions, times seconds; a number that is not known is empty."""
    records: list[dict[str, Any]] = []
    for task in benchmark.tasks:
        records.extend(_records_of_task(benchmark, task))
    heads = list(records[0])
    records.extend(_overall_records(benchmark, aggregate))
    return csv_of_records(heads, records)


def _records_of_task(benchmark: Benchmark, task: str) -> list[dict[str, Any]]:
    letters = task_letters(benchmark, task)
    seconds = benchmark.equal_compute_seconds(task)
    records = []
    for index, method in enumerate(benchmark.methods):
        entry = benchmark.entries[task, index]
        record: dict[str, Any] = {
            "task": task,
            "method": method.label,
            "algorithm": method.algorithm,
            "state": entry.state,
        }
        record |= task_record(entry, seconds)
        record["group"] = letters.get(index)
        records.append(record)
    return records


def _overall_records(benchmark: Benchmark, aggregate: Aggregate | None) -> list[dict[str, Any]]:
    records = []
    for index, method in enumerate(benchmark.methods):
        record = {"task": "all", "method": method.label, "algorithm": method.algorithm}
        records.append(record | overall_record(benchmark, aggregate, index))
    return records


def _bounded(name: str, interval: Interval | None) -> dict[str, float | None]:
    """An interval as three columns."""
    return {
        name: interval.estimate if interval else None,
        f"{name}_low": interval.low if interval else None,
        f"{name}_high": interval.high if interval else None,
    }


def _bounds_list(interval: Interval) -> list[float | None]:
    return [_known(value) for value in interval]


def _spread_columns(entry: Entry) -> dict[str, float | None]:
    """Both spreads of the final success; None if not known."""
    if not entry.scores:
        return dict.fromkeys(Spread._fields)
    spread = spread_of(entry.scores)
    return {name: _known(value) for name, value in spread._asdict().items()}


def _known(value: float | None) -> float | None:
    return value if is_number(value) else None


def _equal_compute(entry: Entry, seconds: float) -> dict[str, Any]:
    """Success after so many training seconds, on the line between two evaluations.

    A method that had finished by then is read at its end. All are None if a time is not known.
    """
    times = [point.seconds for point in entry.points]
    rates = [point.success.estimate for point in entry.points]
    if not times or not math.isfinite(seconds + sum(times)):
        return {"equal_compute": None, "equal_compute_interpolated": None}
    return {
        "equal_compute": float(np.interp(seconds, times, rates)),
        "equal_compute_interpolated": seconds < times[-1] and seconds not in times,
    }


def _all_pairs(scores: Mapping[int, Floats]) -> dict[tuple[int, int], Interval]:
    """P(a run of one method beats one of the other) for all pairs, from scores [C, S, M]."""
    return {
        (first, second): probability_of_improvement(scores[first], scores[second])
        for first, second in permutations(scores, 2)
    }


def _all_differences(
    scores: Mapping[int, Floats], episodes: Mapping[int, list[int]]
) -> dict[tuple[int, int], Interval]:
    """Mean of one method − mean of the other for all pairs, from scores [C, S, M]."""
    return {
        (first, second): paired_difference(scores[first], scores[second], episodes=episodes[first])
        for first, second in permutations(scores, 2)
    }


def _compared_tasks(benchmark: Benchmark) -> tuple[str, ...]:
    """The tasks with nothing left to run; if there are none, those that some method finished."""
    begun = []
    settled = []
    for task in benchmark.tasks:
        entries = benchmark.entries_of(task)
        if not any(entry.scores for entry in entries):
            continue
        begun.append(task)
        if not any(entry.pending for entry in entries):
            settled.append(task)
    return tuple(settled or begun)


def _base_score(benchmark: Benchmark, tasks: Sequence[str]) -> float:
    known = [rate for task in tasks for rate in benchmark.clone_success(task)]
    rates = [rate for rate in known if rate is not None]
    return interquartile_mean(rates).estimate if rates else math.nan


def _reduce(values: Sequence[float | None], reduce: Callable[..., Any]) -> float | None:
    """The mean or sum of the values; None if one of them is not known."""
    known = [value for value in values if value is not None]
    return float(reduce(known)) if len(known) == len(values) else None

"""The page of a benchmark: algorithms × tasks × clones × seeds, side by side.

Written are ``report.html``, which holds its figures and the CSV of every table, and beside it
``curves.png``, ``curves_time.png``, ``profile.png``, ``intervals.png``, ``table.csv``,
``clones.csv``, ``table.tex`` and ``summary.json``. An unfinished benchmark, or one with failed
runs, has a report too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gcp_jax.atomic_files import write_bytes, write_json, write_text
from gcp_jax.report import benchmark_numbers as numbers
from gcp_jax.report import benchmark_plots, html, latex, run_plots
from gcp_jax.report.benchmark_numbers import Aggregate
from gcp_jax.report.benchmark_read import Benchmark, Entry, read_benchmark
from gcp_jax.report.plots import Chart, series_color
from gcp_jax.report.read import RunFiles, is_number
from gcp_jax.report.run_warnings import run_warnings
from gcp_jax.report.tables import Cell, Table, csv_of_records, fact_table, make_table
from gcp_jax.report.text import (
    format_count,
    format_duration,
    format_episodes,
    format_percent,
    format_versions,
    known,
    plural,
)
from gcp_jax.stats.intervals import MISSING, Interval
from gcp_jax.stats.spread import Spread

SPREAD_HEADS = ("± clones", "± seeds")  # standard deviations between them, in points


class TaskSection(NamedTuple):
    """What the page shows of one task."""

    name: str
    scores: Table
    clones: Table | None  # if there are several
    costs: Table
    diagnostics: Chart | None
    configs: list[ConfigSection]


class ConfigSection(NamedTuple):
    """The configuration of one run."""

    title: str
    differs: Table | None  # the fields that differ between the methods of the task
    text: str  # JSON


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write ``report.html``, its four PNG files, and the numbers as CSV, LaTeX and JSON.

    Args:
        folder: the folder that ``gcp-jax benchmark`` wrote.
        out: folder of the report; by default ``report`` in ``folder``.

    Returns:
        The path of the page.

    Raises:
        ReportError: the folder holds no benchmark, or one of its files is malformed.
    """
    benchmark = read_benchmark(Path(folder).resolve())
    aggregate = numbers.aggregate_of(benchmark)
    target = Path(folder) / "report" if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    charts = {
        "intervals": benchmark_plots.intervals(benchmark, aggregate),
        "profile": benchmark_plots.profile(benchmark, aggregate),
        "curves": benchmark_plots.success_curves(benchmark, "env_steps"),
        "curves_time": benchmark_plots.success_curves(benchmark, "seconds"),
    }
    for name, chart in charts.items():
        write_bytes(target / f"{name}.png", chart.png())
    write_text(target / "table.csv", numbers.full_csv(benchmark, aggregate))
    write_text(target / "clones.csv", numbers.clones_csv(benchmark))
    write_text(target / "table.tex", latex.latex_table(benchmark, aggregate))
    write_json(target / "summary.json", numbers.summary(benchmark, aggregate))
    page = target / "report.html"
    content = html.render("benchmark.html", **charts, **_context(benchmark, aggregate))
    write_text(page, content)
    return page


def _context(benchmark: Benchmark, aggregate: Aggregate | None) -> dict[str, Any]:
    """What ``benchmark.html`` refers to."""
    methods = plural(len(benchmark.methods), "method")
    tasks = plural(len(benchmark.tasks), "task")
    keys = [benchmark_plots.method_key(benchmark, i) for i in range(len(benchmark.methods))]
    from_clones = f" from {benchmark.clones} clones each" if benchmark.clones > 1 else ""
    return {
        "title": f"{methods} on {tasks}{from_clones}",
        "clones": benchmark.clones,
        "seeds": benchmark.seeds,
        "subtitle": benchmark.folder.name,
        "state": _progress(benchmark),
        "provenance": fact_table("what_was_run", _provenance(benchmark)),
        "overall": _overall_table(benchmark, aggregate),
        "matrix": _matrix_table(benchmark, aggregate),
        "differences": _differences_table(benchmark, aggregate),
        "tasks": [_task_section(benchmark, task) for task in benchmark.tasks],
        "keys": keys,
        "warnings": run_warnings(each.run for each in benchmark.single_entries if each.run),
    }


def _progress(benchmark: Benchmark) -> str:
    entries = benchmark.single_entries
    finished = sum(bool(entry.scores) for entry in entries)
    failed = sum(entry.state.startswith("failed") for entry in entries)
    text = f"{finished} of {len(entries)} runs finished"
    return f"{text}, {failed} failed" if failed else text


def _provenance(benchmark: Benchmark) -> dict[str, list[str]]:
    plan = benchmark.plan
    tasks = [_with_aside(item["label"], item.get("env")) for item in plan["tasks"]]
    methods = [_with_aside(method.label, method.algorithm) for method in benchmark.methods]
    rows = [row for entry in benchmark.single_entries if entry.run for row in entry.run.evals]
    facts = {
        "Command": plan.get("command"),
        "Tasks": ", ".join(tasks),
        "Clones of each task": benchmark.clones,
        "Methods": ", ".join(methods),
        "Seeds": benchmark.seeds,
        "Environment steps per seed": format_count(plan.get("steps")),
        "Evaluation": format_episodes(rows),
        "Versions": format_versions(plan.get("versions")),
        "Commit": plan.get("commit"),
    }
    return {name: [known(value)] for name, value in facts.items()}


def _with_aside(label: str, name: object) -> str:
    """``label (name)``, or the label alone if the name adds nothing."""
    return label if name in (None, label, MISSING) else f"{label} ({name})"


def _method_cell(benchmark: Benchmark, index: int) -> Cell:
    key = benchmark_plots.method_key(benchmark, index)
    return Cell(text=key.label, key=key)


def _overall_table(benchmark: Benchmark, aggregate: Aggregate | None) -> Table:
    """All methods over all tasks, the best first, those without numbers last."""
    records = {}
    for index in range(len(benchmark.methods)):
        records[index] = numbers.overall_record(benchmark, aggregate, index)
    ranked = sorted(records, key=lambda index: -records[index].get("iqm", -1.0))
    heads = (
        *("", "interquartile mean", "mean", *_spread_heads(benchmark), "base", "best"),
        *("at equal compute", "training time", ""),
    )
    rows: list[list[Cell | str]] = []
    for index in ranked:
        record = records[index]
        rows.append(
            [
                _method_cell(benchmark, index),
                _format_interval(record, "iqm"),
                _format_interval(record, "final"),
                *_format_spreads(benchmark, record),
                format_percent(record.get("base")),
                format_percent(record.get("best")),
                _format_equal_compute(record),
                format_duration(record.get("train_seconds")),
                Cell(text=record["state"], style="state"),
            ]
        )
    csv = numbers.overall_csv(benchmark, aggregate)
    style = "results dense" if benchmark.clones > 1 else "results"
    return make_table("all_tasks", heads, rows, csv=csv, style=style)


def _matrix_table(benchmark: Benchmark, aggregate: Aggregate | None) -> Table | None:
    """P(row beats column) with its intervals; None with fewer than two methods."""
    if aggregate is None or not aggregate.better:
        return None
    texts = {pair: chance.percent() for pair, chance in aggregate.better.items()}
    head = "P(row beats column)"
    return _pairs_table(benchmark, list(aggregate.iqm), texts, "who_beats_whom", head)


def _differences_table(benchmark: Benchmark, aggregate: Aggregate | None) -> Table | None:
    """Row − column in percentage points; None with one clone, or fewer than two methods."""
    if aggregate is None or not aggregate.difference:
        return None
    texts = {pair: gap.points() for pair, gap in aggregate.difference.items()}
    head = "row − column, points"
    return _pairs_table(benchmark, list(aggregate.iqm), texts, "differences", head)


def _pairs_table(
    benchmark: Benchmark,
    members: Sequence[int],
    texts: Mapping[tuple[int, int], str],
    name: str,
    head: str,
) -> Table:
    """A text for every pair of methods."""
    rows: list[list[Cell | str]] = []
    for first in members:
        row: list[Cell | str] = [_method_cell(benchmark, first)]
        row.extend(Cell(text=texts.get((first, second), MISSING)) for second in members)
        rows.append(row)
    heads: list[Cell | str] = [head]
    heads.extend(_method_cell(benchmark, index) for index in members)
    return make_table(name, heads, rows, style="results dense matrix")


def _task_section(benchmark: Benchmark, task: str) -> TaskSection:
    entries = benchmark.entries_of(task)
    runs = [entry.run for entry in entries if entry.run]
    colors = [series_color(index) for index, entry in enumerate(entries) if entry.run]
    return TaskSection(
        name=task,
        scores=_scores_table(benchmark, task),
        clones=_clones_table(benchmark, task),
        costs=_costs_table(benchmark, task),
        diagnostics=run_plots.diagnostics(runs, "finetune", colors, task),
        configs=[_config_section(task, run, runs) for run in runs],
    )


def _scores_table(benchmark: Benchmark, task: str) -> Table:
    """Success of every method on a task; the CSV has all its columns of ``table.csv``."""
    budget = benchmark.equal_compute_seconds(task)
    equal = f"at T* = {format_duration(budget)}" if math.isfinite(budget) else "at T*"
    spreads = _spread_heads(benchmark)
    heads = ("", "", "base", "final", *spreads, "group", "best", equal, "IQM")
    letters = numbers.task_letters(benchmark, task)
    rows: list[list[Cell | str]] = []
    for index, entry in enumerate(benchmark.entries_of(task)):
        record = numbers.task_record(entry, budget)
        rows.append(
            [
                _method_cell(benchmark, index),
                Cell(text=entry.state, style="state"),
                format_percent(record["base"]),
                _format_interval(record, "final"),
                *_format_spreads(benchmark, record),
                letters.get(index, MISSING),
                format_percent(record["best"]),
                _format_equal_compute(record),
                _format_interval(record, "iqm"),
            ]
        )
    csv = numbers.task_csv(benchmark, task)
    return make_table(task, heads, rows, csv=csv, style="results dense")


def _clones_table(benchmark: Benchmark, task: str) -> Table | None:
    """Success of every clone, and of every method from it; None with one clone."""
    if benchmark.clones == 1:
        return None
    heads = ["", *(f"clone {clone}" for clone in range(benchmark.clones)), *SPREAD_HEADS]
    bases = benchmark.clone_success(task)
    between = numbers.base_spread(benchmark, task)
    rows: list[list[Cell | str]] = [
        ["base policy", *map(format_percent, bases), _format_points(between), MISSING]
    ]
    for index, entry in enumerate(benchmark.entries_of(task)):
        record = numbers.task_record(entry, math.nan)
        cells = [_clone_cell(clone) for clone in entry.clones]
        rows.append([_method_cell(benchmark, index), *cells, *_format_spreads(benchmark, record)])
    records = numbers.clone_records(benchmark, task)
    csv = csv_of_records(list(records[0]), records)
    return make_table(f"{task}_clones", heads, rows, csv=csv, style="results dense")


def _clone_cell(entry: Entry) -> str:
    """``95.0 % (90.0–100.0)``: mean, lowest and highest of the seeds, or why there is none."""
    if not entry.scores:
        return entry.state.partition(":")[0]
    seeds = entry.scores[0]
    mean = format_percent(float(np.mean(seeds)))
    return f"{mean} ({100 * min(seeds):.1f}–{100 * max(seeds):.1f})" if len(seeds) > 1 else mean


def _spread_heads(benchmark: Benchmark) -> tuple[str, ...]:
    return SPREAD_HEADS if benchmark.clones > 1 else ()


def _format_spreads(benchmark: Benchmark, record: Mapping[str, Any]) -> list[str]:
    """Both spreads of a row of ``table.csv``; nothing with one clone."""
    if benchmark.clones == 1:
        return []
    return [_format_points(record.get(name)) for name in Spread._fields]


def _format_points(rate: float | None) -> str:
    return f"{100 * rate:.1f}" if is_number(rate) else MISSING


def _costs_table(benchmark: Benchmark, task: str) -> Table:
    """What every method needed on a task: steps and time to each success rate, and its speed."""
    heads = [
        "",
        *(f"to {100 * threshold:.0f} %" for threshold in numbers.THRESHOLDS),
        *("updates", "updates/s", "env steps/s", "training"),
    ]
    rows: list[list[Cell | str]] = []
    for index, entry in enumerate(benchmark.entries_of(task)):
        record = numbers.task_record(entry, math.nan)
        rows.append(
            [
                _method_cell(benchmark, index),
                *(_format_cost(record, threshold) for threshold in numbers.THRESHOLDS),
                format_count(record["updates"]),
                format_count(record["updates_per_s"]),
                format_count(record["env_steps_per_s"]),
                format_duration(record["train_seconds"]),
            ]
        )
    return make_table(f"{task}_costs", heads, rows, style="results dense")


def _format_equal_compute(record: Mapping[str, Any]) -> str:
    """A rate; with ≈ if it lies between two evaluations."""
    text = format_percent(record.get("equal_compute"))
    return f"≈ {text}" if record.get("equal_compute_interpolated") else text


def _format_interval(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None:
        return MISSING
    return Interval(value, record[f"{name}_low"], record[f"{name}_high"]).percent()


def _format_cost(record: Mapping[str, Any], threshold: float) -> str:
    """``12,288 · 41.2 s``, or why there is none."""
    steps = record[f"steps_to_{100 * threshold:.0f}"]
    seconds = record[f"seconds_to_{100 * threshold:.0f}"]
    if not is_number(steps):
        return known(steps)
    if not is_number(seconds):
        return format_count(steps)
    return f"{format_count(steps)} · {format_duration(seconds)}"


def _config_section(task: str, run: RunFiles, runs: Sequence[RunFiles]) -> ConfigSection:
    fields = _flat(run.config)
    others = [_flat(other.config) for other in runs if other is not run]
    differs = {}
    for name, value in fields.items():
        if any(other.get(name) != value for other in others):
            differs[name] = [value]
    table = fact_table(f"{task}_{run.label}_differs", differs) if differs else None
    text = json.dumps(run.config, indent=2, ensure_ascii=False)
    return ConfigSection(title=f"{task} · {run.label}", differs=table, text=text)


def _flat(config: Mapping[str, Any]) -> dict[str, str]:
    """``{"algorithm.gamma": "0.99", …}``, the algorithm's fields first.

    Fields that name the run itself are left out.
    """
    sections = [name for name in config if name not in ("run_dir", "label")]
    flat: dict[str, str] = {}
    for section in sorted(sections, key=lambda name: name != "algorithm"):
        value = config[section]
        if not isinstance(value, Mapping):
            flat[section] = json.dumps(value, ensure_ascii=False)
            continue
        for field, content in value.items():
            flat[f"{section}.{field}"] = json.dumps(content, ensure_ascii=False)
    return flat

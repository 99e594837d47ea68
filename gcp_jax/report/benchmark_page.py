"""The page of a benchmark: algorithms × tasks × seeds, side by side.

Written are ``report.html``, which holds its figures and the CSV of every table, and beside it
``curves.png``, ``curves_time.png``, ``profile.png``, ``intervals.png``, ``table.csv`` and
``table.tex``. An unfinished benchmark, or one with failed runs, has a report too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gcp_jax.atomic_files import write_bytes, write_text
from gcp_jax.report import benchmark_numbers as numbers
from gcp_jax.report import benchmark_plots, html, latex, run_plots
from gcp_jax.report.benchmark_numbers import Aggregate
from gcp_jax.report.benchmark_read import Benchmark, read_benchmark
from gcp_jax.report.plots import Chart, series_color
from gcp_jax.report.read import RunFiles, is_number
from gcp_jax.report.run_warnings import run_warnings
from gcp_jax.report.tables import Cell, Table, fact_table, make_table
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


class TaskSection(NamedTuple):
    """What the page shows of one task."""

    name: str
    scores: Table
    diagnostics: Chart | None
    configs: list[ConfigSection]


class ConfigSection(NamedTuple):
    """The configuration of one run."""

    title: str
    differs: Table | None  # the fields that differ between the methods of the task
    text: str  # JSON


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write ``report.html``, its four PNG files, ``table.csv`` and ``table.tex``.

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
    write_text(target / "table.tex", latex.latex_table(benchmark, aggregate))
    page = target / "report.html"
    content = html.render("benchmark.html", **charts, **_context(benchmark, aggregate))
    write_text(page, content)
    return page


def _context(benchmark: Benchmark, aggregate: Aggregate | None) -> dict[str, Any]:
    """What ``benchmark.html`` refers to."""
    methods = plural(len(benchmark.methods), "method")
    tasks = plural(len(benchmark.tasks), "task")
    keys = [benchmark_plots.method_key(benchmark, i) for i in range(len(benchmark.methods))]
    return {
        "title": f"{methods} on {tasks}",
        "subtitle": benchmark.folder.name,
        "state": _progress(benchmark),
        "provenance": fact_table("what_was_run", _provenance(benchmark)),
        "overall": _overall_table(benchmark, aggregate),
        "matrix": _matrix_table(benchmark, aggregate),
        "tasks": [_task_section(benchmark, task) for task in benchmark.tasks],
        "keys": keys,
        "warnings": run_warnings(each.run for each in benchmark.entries.values() if each.run),
    }


def _progress(benchmark: Benchmark) -> str:
    entries = benchmark.entries.values()
    finished = sum(bool(entry.scores) for entry in entries)
    failed = sum(entry.state.startswith("failed") for entry in entries)
    text = f"{finished} of {len(entries)} runs finished"
    return f"{text}, {failed} failed" if failed else text


def _provenance(benchmark: Benchmark) -> dict[str, list[str]]:
    plan = benchmark.plan
    tasks = [_with_aside(item["label"], item.get("env")) for item in plan["tasks"]]
    methods = [_with_aside(method.label, method.algorithm) for method in benchmark.methods]
    rows = [row for entry in benchmark.entries.values() if entry.run for row in entry.run.evals]
    facts = {
        "Command": plan.get("command"),
        "Tasks": ", ".join(tasks),
        "Methods": ", ".join(methods),
        "Seeds": plan["seeds"],
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
        *("", "interquartile mean", "mean", "base", "best"),
        *("at equal compute", "training time", ""),
    )
    rows = []
    for index in ranked:
        record = records[index]
        rows.append(
            (
                _method_cell(benchmark, index),
                _format_interval(record, "iqm"),
                _format_interval(record, "final"),
                format_percent(record.get("base")),
                format_percent(record.get("best")),
                format_percent(record.get("equal_compute")),
                format_duration(record.get("train_seconds")),
                Cell(text=record["state"], style="state"),
            )
        )
    csv = numbers.overall_csv(benchmark, aggregate)
    return make_table("all_tasks", heads, rows, csv=csv)


def _matrix_table(benchmark: Benchmark, aggregate: Aggregate | None) -> Table | None:
    """P(row beats column) with its intervals; None with fewer than two methods."""
    if aggregate is None or not aggregate.better:
        return None
    members = list(aggregate.iqm)
    rows = []
    for first in members:
        row = [_method_cell(benchmark, first)]
        for second in members:
            chance = aggregate.better.get((first, second))
            row.append(Cell(text=chance.percent() if chance else MISSING))
        rows.append(row)
    heads: list[Cell | str] = ["P(row beats column)"]
    heads.extend(_method_cell(benchmark, index) for index in members)
    return make_table("who_beats_whom", heads, rows)


def _task_section(benchmark: Benchmark, task: str) -> TaskSection:
    entries = benchmark.entries_of(task)
    runs = [entry.run for entry in entries if entry.run]
    colors = [series_color(index) for index, entry in enumerate(entries) if entry.run]
    return TaskSection(
        name=task,
        scores=_task_table(benchmark, task),
        diagnostics=run_plots.diagnostics(runs, "finetune", colors, task),
        configs=[_config_section(task, run, runs) for run in runs],
    )


def _task_table(benchmark: Benchmark, task: str) -> Table:
    budget = benchmark.equal_compute_seconds(task)
    equal = f"at T* = {format_duration(budget)}" if math.isfinite(budget) else "at T*"
    heads = [
        *("", "", "base", "final", "group", "best", equal, "IQM"),
        *(f"to {100 * threshold:.0f} %" for threshold in numbers.THRESHOLDS),
        *("updates", "per s", "training"),
    ]
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
                letters.get(index, MISSING),
                format_percent(record["best"]),
                format_percent(record["equal_compute"]),
                _format_interval(record, "iqm"),
                *(_format_cost(record, threshold) for threshold in numbers.THRESHOLDS),
                format_count(record["updates"]),
                format_count(record["updates_per_s"]),
                format_duration(record["train_seconds"]),
            ]
        )
    csv = numbers.task_csv(benchmark, task)
    return make_table(task, heads, rows, csv=csv, style="results dense")


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

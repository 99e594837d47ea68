"""One HTML page from the folder of a benchmark: algorithms × tasks × seeds, side by side; nothing is run anew.

    DIR/benchmark.json                  what was planned: command, versions, commit, seeds, steps, tasks, methods
    DIR/<task>/<method>/                a run folder, as ``report`` reads it; ``failed.txt`` says why a run failed

All methods of a task start from one cloned policy, with the same seeds and start states. Beside the page are written
``curves.png``, ``curves_time.png``, ``profile.png``, ``intervals.png``, ``table.csv`` and ``table.tex``. A benchmark
that is unfinished, or failed in part, has a report too. A run has finished when its summary is there and every seed was
evaluated; a ``failed.txt`` left by an earlier try no longer counts then.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from gcp_jax.atomic_files import atomic_replacement, write_bytes, write_text
from gcp_jax.report import run_page
from gcp_jax.report.run_page import DARK, LIGHT, Panel, ReportError, RunFiles, Theme
from gcp_jax.stats.statistics import (
    MISSING,
    Discordant,
    Floats,
    Interval,
    Profile,
    holm,
    interquartile_mean,
    letters,
    mean_score,
    outcomes,
    performance_profile,
    probability_of_improvement,
    steps_to_threshold,
)

THRESHOLDS = (0.5, 0.8, 0.9)  # success rates whose first crossing is reported
LEVELS = np.linspace(0.0, 1.0, 201)  # τ of the performance profile
NEVER = "not reached"
LEVEL = 0.05  # of telling methods apart, over all pairs of a task together

DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (6, 1.5),
    (1.2, 1.2),
    (6, 1.5, 1.2, 1.5),
)  # in line widths
BASE: dict[str, Any] = {"color": "#8c959f", "linestyle": (0, (3, 3)), "linewidth": 1.3}
BAND = 0.15  # opacity


class Method(NamedTuple):
    """A column of the benchmark's plan."""

    label: str
    algorithm: str


class Point(NamedTuple):
    """One evaluation, all seeds pooled."""

    env_steps: int
    seconds: float  # of training, all seeds together; NaN where the run did not write it
    success: Interval


class Entry(NamedTuple):
    """One method on one task, as far as it has come."""

    run: RunFiles | None
    state: str  # "finished", "running", "not run yet", or how it failed
    points: tuple[Point, ...]  # the base policy first, at zero steps
    scores: tuple[float, ...]  # [S] final success of each seed; () until finished
    outcomes: NDArray[np.bool_] | None = (
        None  # [S·E] of the last evaluation; None until finished, or where not kept
    )

    @property
    def base(self) -> Interval | None:
        return self.points[0].success if self.points and self.points[0].env_steps == 0 else None

    @property
    def seconds(self) -> float | None:
        """Training seconds so far."""
        return _known(self.points[-1].seconds) if self.points else None

    @property
    def pending(self) -> bool:
        return self.state in ("running", "not run yet")


class Benchmark(NamedTuple):
    """The files of a benchmark, read and checked."""

    folder: Path
    plan: dict[str, Any]  # benchmark.json
    tasks: tuple[str, ...]
    methods: tuple[Method, ...]
    entries: dict[tuple[str, int], Entry]  # by task and index of the method

    def of(self, task: str) -> list[Entry]:
        return [self.entries[task, index] for index in range(len(self.methods))]

    def budget(self, task: str) -> float:
        """T*: the median training time of the task's finished methods; NaN without any."""
        times = [
            entry.seconds for entry in self.of(task) if entry.scores and entry.seconds is not None
        ]
        return float(np.median(times)) if times else math.nan


class Aggregate(NamedTuple):
    """Over the tasks that are compared, the methods that finished all of these."""

    tasks: tuple[str, ...]
    iqm: dict[int, Interval]  # by index of the method, as all below
    mean: dict[int, Interval]
    profile: dict[int, Profile]
    better: dict[tuple[int, int], Interval]  # P(a run of the first beats one of the second)
    base: float  # interquartile mean of the base policies' success; NaN where not evaluated


class Picture(NamedTuple):
    """A figure drawn for a light and for a dark page, as PNG."""

    light: bytes
    dark: bytes
    what: str

    @property
    def html(self) -> str:
        light, dark = (
            f"data:image/png;base64,{run_page.encoded(data)}" for data in (self.light, self.dark)
        )
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        return f'<picture>{source}<img alt="{escape(self.what)}" src="{light}"></picture>'


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes ``report.html``, its four pictures, ``table.csv`` and ``table.tex``; returns the path of the page.

    They go to the folder's own ``report`` unless ``out`` names another. Raises ReportError.
    """
    benchmark = _read(Path(folder).resolve())
    aggregate = _aggregate(benchmark)
    target = Path(folder) / "report" if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    pictures = {name: _picture(*figure) for name, figure in _figures(benchmark, aggregate).items()}
    for name, picture in pictures.items():
        write_bytes(target / f"{name}.png", picture.light)
    _write_csv(benchmark, aggregate, target / "table.csv")
    write_text(target / "table.tex", _latex(benchmark, aggregate))
    page = target / "report.html"
    write_text(page, _page(benchmark, aggregate, pictures))
    return page


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read(folder: Path) -> Benchmark:
    path = folder / "benchmark.json"
    if not path.is_file():
        raise ReportError(
            f"{folder}: no benchmark.json here; pass the folder that gcp-jax benchmark wrote"
        )
    plan = run_page.read_json(path)
    seeds = plan.get("seeds")
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise ReportError(
            f"{path}: 'seeds' is {seeds!r}, not a positive whole number; restore the file"
        )
    tasks = tuple(item["label"] for item in _labelled(path, plan, "tasks"))
    methods = tuple(
        Method(i["label"], str(i.get("algorithm", MISSING)))
        for i in _labelled(path, plan, "methods")
    )
    entries = {
        (task, index): _entry(folder / task / method.label, seeds)
        for task in tasks
        for index, method in enumerate(methods)
    }
    return Benchmark(folder, plan, tasks, methods, entries)


def _labelled(path: Path, plan: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    items = plan.get(key)
    fits = isinstance(items, list) and all(
        isinstance(i, dict) and isinstance(i.get("label"), str) for i in items
    )
    if not fits or not items:
        raise ReportError(
            f"{path}: {key!r} must be a list of objects with a 'label' each; restore the file"
        )
    labels = [item["label"] for item in items]
    for label in labels:
        if labels.count(label) > 1:
            raise ReportError(
                f"{path}: the label {label!r} is given twice in {key!r}; name each once"
            )
    return list(items)


def _entry(folder: Path, seeds: int) -> Entry:
    run = (
        run_page.read_run(folder)._replace(label=folder.name)
        if (folder / "config.json").is_file()
        else None
    )
    points = _points(run) if run else ()
    rates = (
        run_page.final_scores(run)
        if run and run.summary and points and points[-1].env_steps
        else []
    )
    scores = tuple(rates) if len(rates) == seeds else ()
    outcomes = _outcomes(run, points[-1].env_steps) if run and scores else None
    return Entry(run, _state(folder, run, len(rates), seeds), points, scores, outcomes)


def _outcomes(run: RunFiles, env_steps: int) -> NDArray[np.bool_] | None:
    """Every seed's episodes of the last evaluation, one seed after the other; None where a row does not have them."""
    last = sorted(
        (row for row in run.finetuned if row["env_steps"] == env_steps), key=lambda row: row["seed"]
    )
    found = [outcomes(row) for row in last]
    return (
        np.concatenate([each for each in found if each is not None])
        if all(x is not None for x in found)
        else None
    )


def _state(folder: Path, run: RunFiles | None, evaluated: int, seeds: int) -> str:
    if run and run.summary:
        return (
            "finished"
            if evaluated == seeds
            else f"failed: {evaluated} of {seeds} seeds were evaluated"
        )
    if (folder / "failed.txt").is_file():
        said = (folder / "failed.txt").read_text(encoding="utf-8", errors="replace").split()
        return f"failed: {' '.join(said) or 'failed.txt is empty'}"
    return "running" if run else "not run yet"


def _points(run: RunFiles) -> tuple[Point, ...]:
    seconds = {row["env_steps"]: _train_seconds(row) for row in run.finetuned}
    return tuple(
        Point(steps, seconds[steps], success) for steps, success in run_page.pooled_curve(run)
    )


def _train_seconds(row: Mapping[str, Any]) -> float:
    value = row.get("train_seconds")
    return (
        float(value) if run_page.is_number(value) else 0.0 if row["stage"] == "base" else math.nan
    )


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _known(value: float | None) -> float | None:
    return value if run_page.is_number(value) else None


def _row(entry: Entry, budget: float) -> dict[str, Any]:
    """The measured columns of ``table.csv`` of one method on one task; None where not known (yet).

    Only what no longer changes is told of a run that has not finished.
    """
    done = bool(entry.scores)
    rates = [point.success.estimate for point in entry.points]
    row: dict[str, Any] = {"base": entry.base.estimate if entry.base else None}
    row |= _columns_of("final", entry.points[-1].success if done else None)
    row["best"] = max(rates) if done else None
    row["equal_compute"] = _at_budget(entry, budget) if done else None
    row |= _columns_of("iqm", interquartile_mean(entry.scores) if done else None)
    for name, axis in (("steps", "env_steps"), ("seconds", "seconds")):
        costs = [getattr(point, axis) for point in entry.points]
        for threshold in THRESHOLDS:
            row[f"{name}_to_{100 * threshold:.0f}"] = _reached(costs, rates, threshold, done)
    row["env_steps"] = run_page.last_counter(entry.run, "env_steps") if entry.run else None
    row["updates"] = run_page.last_counter(entry.run, "updates") if entry.run else None
    row["updates_per_s"] = _speed(entry.run) if entry.run else None
    return row | {"train_seconds": entry.seconds}


def _groups(benchmark: Benchmark, task: str) -> dict[int, str]:
    """The grouping letters of a task's methods by index; {} where fewer than two kept the outcomes of the same episodes."""
    known = {
        i: entry.outcomes
        for i, entry in enumerate(benchmark.of(task))
        if entry.outcomes is not None
    }
    if len(known) < 2 or len({each.size for each in known.values()}) > 1:
        return {}
    order = sorted(known, key=lambda i: -known[i].mean())
    pairs = {(a, b): Discordant.of(known[a], known[b]) for a, b in combinations(order, 2)}
    adjusted = holm({pair: each.p_value() for pair, each in pairs.items()})
    return letters(order, [pair for pair in pairs if adjusted[pair] <= LEVEL])


def _columns_of(name: str, interval: Interval | None) -> dict[str, float | None]:
    return dict(
        zip((name, f"{name}_low", f"{name}_high"), interval or (None, None, None), strict=True)
    )


def _at_budget(entry: Entry, budget: float) -> float | None:
    """Success at the last evaluation within ``budget`` training seconds; None where the times are not known."""
    if not math.isfinite(budget) or entry.seconds is None:
        return None
    within = [point.success.estimate for point in entry.points if point.seconds <= budget]
    return within[-1] if within else None


def _reached(
    costs: list[float], rates: list[float], threshold: float, done: bool
) -> float | str | None:
    cost = steps_to_threshold(costs, rates, threshold)
    if cost is None:
        return NEVER if done else None
    return int(cost) if cost.is_integer() else _known(cost)


def _speed(run: RunFiles) -> float | None:
    """Median updates per second of the segments that trained: those that only collect are left out."""
    speeds = [row.get("time/updates_per_s") for row in run.metrics if row["stage"] == "finetune"]
    trained = [speed for speed in speeds if run_page.is_number(speed) and speed > 0]
    return float(np.median(trained)) if trained else None


def _aggregate(benchmark: Benchmark) -> Aggregate | None:
    """None while no method has finished every task that is compared."""
    tasks = _compared(benchmark)
    scores: dict[int, Floats] = {}  # [S, M]
    for index in range(len(benchmark.methods)):
        columns = [benchmark.entries[task, index].scores for task in tasks]
        if columns and all(columns):
            scores[index] = np.asarray(columns, np.float64).T
    if not scores:
        return None
    pairs = [(a, b) for a in scores for b in scores if a != b]
    return Aggregate(
        tasks=tasks,
        iqm={index: interquartile_mean(table) for index, table in scores.items()},
        mean={index: mean_score(table) for index, table in scores.items()},
        profile={index: performance_profile(table, LEVELS) for index, table in scores.items()},
        better={(a, b): probability_of_improvement(scores[a], scores[b]) for a, b in pairs},
        base=_base_score(benchmark, tasks, next(iter(scores))),
    )


def _compared(benchmark: Benchmark) -> tuple[str, ...]:
    """The tasks where nothing is left to run; while there is none, those that some method has finished."""
    begun = [task for task in benchmark.tasks if any(entry.scores for entry in benchmark.of(task))]
    settled = [task for task in begun if not any(entry.pending for entry in benchmark.of(task))]
    return tuple(settled or begun)


def _base_score(benchmark: Benchmark, tasks: Iterable[str], index: int) -> float:
    runs = [benchmark.entries[task, index].run for task in tasks]
    rates = [
        row["eval/success"] for run in runs if run for row in run.evals if row["stage"] == "base"
    ]
    return interquartile_mean(rates, resamples=1).estimate if rates else math.nan


def _task_base(benchmark: Benchmark, task: str) -> float | None:
    """The base policy's success on a task, of all methods' evaluations of it together."""
    bases = [entry.base.estimate for entry in benchmark.of(task) if entry.base]
    return float(np.mean(bases)) if bases else None


def _all_tasks(benchmark: Benchmark, aggregate: Aggregate | None, index: int) -> dict[str, Any]:
    """The row of ``table.csv`` of one method over all tasks: means, and the sum of the training seconds."""
    if aggregate is None or index not in aggregate.iqm:
        return {"state": "not finished on every task"}
    rows = [
        _row(benchmark.entries[task, index], benchmark.budget(task)) for task in aggregate.tasks
    ]
    means = {
        name: _over_tasks([row[name] for row in rows], np.mean)
        for name in ("base", "best", "equal_compute")
    }
    return {
        "state": _over(benchmark, aggregate),
        **means,
        **_columns_of("final", aggregate.mean[index]),
        **_columns_of("iqm", aggregate.iqm[index]),
        "train_seconds": _over_tasks([row["train_seconds"] for row in rows], np.sum),
    }


def _over(benchmark: Benchmark, aggregate: Aggregate) -> str:
    return f"over {len(aggregate.tasks)} of {_number(len(benchmark.tasks), 'task')}"


def _over_tasks(values: list[float | None], reduce: Callable[..., Any]) -> float | None:
    known = [value for value in values if value is not None]
    return float(reduce(known)) if len(known) == len(values) else None


def _write_csv(benchmark: Benchmark, aggregate: Aggregate | None, path: Path) -> None:
    """Rates are fractions, times seconds; a field is empty where its number is not known (yet)."""
    rows = [
        {"task": task, "method": method.label, "algorithm": method.algorithm, "state": entry.state}
        | _row(entry, benchmark.budget(task))
        | {"group": groups.get(index)}
        for task, groups in ((task, _groups(benchmark, task)) for task in benchmark.tasks)
        for index, (method, entry) in enumerate(
            zip(benchmark.methods, benchmark.of(task), strict=True)
        )
    ]
    header = list(rows[0])
    for index, method in enumerate(benchmark.methods):
        named = {"task": "all", "method": method.label, "algorithm": method.algorithm}
        rows.append(named | _all_tasks(benchmark, aggregate, index))
    with (
        atomic_replacement(path) as scratch,
        scratch.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, header, restval="")
        table.writeheader()
        table.writerows(rows)


def _latex(benchmark: Benchmark, aggregate: Aggregate | None) -> str:
    """A booktabs table of final success in percent, methods × tasks, and the interquartile mean over the tasks."""
    iqm = aggregate.iqm if aggregate else {}
    finals = [[_final(entry) for entry in benchmark.of(task)] for task in benchmark.tasks]
    columns = [
        *map(_tex_column, finals),
        _tex_column([iqm.get(i, MISSING) for i in range(len(benchmark.methods))]),
    ]
    bases = [
        *(_task_base(benchmark, task) for task in benchmark.tasks),
        aggregate.base if aggregate else None,
    ]
    names = [_tex(method.label) for method in benchmark.methods]
    lines = [
        rf"% Final success (%), {benchmark.plan['seeds']} seeds, 95 % intervals; needs \usepackage{{booktabs}}.",
        f"% IQM {_over(benchmark, aggregate) if aggregate else 'not known yet'}.",
        rf"\begin{{tabular}}{{l{'c' * len(columns)}}}",
        r"\toprule",
        _tex_line(["Method", *map(_tex, benchmark.tasks), "IQM"]),
        r"\midrule",
        _tex_line(
            [
                "base policy",
                *(f"{100 * base:.1f}" if run_page.is_number(base) else MISSING for base in bases),
            ]
        ),
        r"\midrule",
        *(_tex_line(cells) for cells in zip(names, *columns, strict=True)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines).replace(MISSING, "--") + "\n"


def _final(entry: Entry) -> Interval | str:
    """The pooled final success, or in a word why there is none."""
    return entry.points[-1].success if entry.scores else entry.state.partition(":")[0]


def _tex_column(column: Sequence[Interval | str]) -> list[str]:
    """A cell per method, the best as printed in bold; words stand where there is no number."""
    shown = [
        f"{100 * interval.estimate:.1f}" for interval in column if isinstance(interval, Interval)
    ]
    best = max(shown, key=float, default="")
    return [
        _tex_cell(item, best) if isinstance(item, Interval) else rf"\emph{{{item}}}"
        for item in column
    ]


def _tex_cell(interval: Interval, best: str) -> str:
    number = f"{100 * interval.estimate:.1f}"
    number = rf"\textbf{{{number}}}" if number == best else number
    return rf"{number} {{\scriptsize [{100 * interval.low:.1f}, {100 * interval.high:.1f}]}}"


def _tex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tex(text: str) -> str:
    """Escapes what LaTeX would read as a command."""
    words = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    words |= {"<": r"\textless{}", ">": r"\textgreater{}", "\n": " "}
    return "".join(
        words.get(letter, "\\" + letter if letter in "&%$#_{}" else letter) for letter in text
    )


# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _figures(
    benchmark: Benchmark, aggregate: Aggregate | None
) -> dict[str, tuple[Callable[[Theme], Figure], str]]:
    """How each picture is drawn and what it is called, by the name of its file."""
    return {
        "intervals": (
            lambda theme: _intervals(benchmark, aggregate, theme),
            "interquartile means, who beats whom",
        ),
        "profile": (lambda theme: _profile(benchmark, aggregate, theme), "performance profile"),
        "curves": (
            lambda theme: _curves(benchmark, "env_steps", theme),
            "success against environment steps",
        ),
        "curves_time": (
            lambda theme: _curves(benchmark, "seconds", theme),
            "success against training time",
        ),
    }


def _picture(draw: Callable[[Theme], Figure], what: str) -> Picture:
    light, dark = (run_page.png_bytes(draw(theme)) for theme in (LIGHT, DARK))
    return Picture(light, dark, what)


def _color(theme: Theme, index: int) -> str:
    return theme.palette[index % len(theme.palette)]


def _dashes(index: int) -> tuple[float, ...]:
    """Neighbours differ, and so do the methods that share a color."""
    return DASHES[(index + index // len(LIGHT.palette)) % len(DASHES)]


def _line(theme: Theme, index: int) -> dict[str, Any]:
    return {
        "color": _color(theme, index),
        "linestyle": (0, _dashes(index) or None),
        "linewidth": 2.0,
    }


def _curves(benchmark: Benchmark, axis: str, theme: Theme) -> Figure:
    """A panel per task: success against ``axis`` of Point."""
    columns = 2 if len(benchmark.tasks) in (2, 4) else min(3, len(benchmark.tasks))
    panels = [Panel("", task, "success (%)", lambda run: []) for task in benchmark.tasks]
    figure, axes = run_page.panel_grid(panels, columns, (5.0 if columns == 1 else 4.2, 3.2), theme)
    for task, ax in zip(benchmark.tasks, axes, strict=True):
        _curve_panel(ax, benchmark, task, axis, theme)
    extra = {
        "95 % interval": Patch(color=theme.ink, alpha=BAND, linewidth=0),
        "base policy": Line2D([], [], **BASE),
    }
    if axis == "seconds":
        extra["T*, equal training time"] = Line2D([], [], color=theme.ink, linewidth=0.8)
    _legend(figure, benchmark, theme, extra, columns=2 * columns)
    return figure


def _curve_panel(ax: Axes, benchmark: Benchmark, task: str, axis: str, theme: Theme) -> None:
    drawn = [
        _draw_curve(ax, entry, axis, theme, index) for index, entry in enumerate(benchmark.of(task))
    ]
    base, budget = _task_base(benchmark, task), benchmark.budget(task)
    if base is not None:
        ax.axhline(100 * base, **BASE)
    if axis == "seconds" and math.isfinite(budget):
        ax.axvline(budget, color=theme.ink, linewidth=0.8)
    if not any(drawn):
        _say(ax, "no data yet", theme)
    ax.set_ylim(-3, 103)
    xlabel = (
        "environment steps per seed"
        if axis == "env_steps"
        else "training time (s), all seeds together"
    )
    _name_axes(ax, task, xlabel, "success (%)", theme)


def _draw_curve(ax: Axes, entry: Entry, axis: str, theme: Theme, index: int) -> bool:
    """Whether there was anything to draw."""
    known = [
        (getattr(point, axis), *point.success)
        for point in entry.points
        if math.isfinite(getattr(point, axis))
    ]
    if not known:
        return False
    x, mean, low, high = np.asarray(known).T
    ax.plot(x, 100 * mean, **_line(theme, index), marker="o" if len(x) == 1 else None)
    ax.fill_between(x, 100 * low, 100 * high, color=_color(theme, index), alpha=BAND, linewidth=0)
    return True


def _profile(benchmark: Benchmark, aggregate: Aggregate | None, theme: Theme) -> Figure:
    figure, (ax,) = run_page.panel_grid([Panel("", "", "", lambda run: [])], 1, (6.4, 4.2), theme)
    for index, profile in (aggregate.profile if aggregate else {}).items():
        tau, fraction, low, high = (100 * part for part in profile)
        ax.plot(tau, fraction, drawstyle="steps-post", **_line(theme, index))
        ax.fill_between(
            tau, low, high, step="post", color=_color(theme, index), alpha=BAND, linewidth=0
        )
    if aggregate is None:
        _say(ax, "no method has finished every task yet", theme)
    ax.set_ylim(-3, 103)
    band = {"95 % bootstrap": Patch(color=theme.ink, alpha=BAND, linewidth=0)}
    _name_axes(
        ax, "Performance profile", "final success τ (%)", "runs with success above τ (%)", theme
    )
    _legend(figure, benchmark, theme, band, columns=3)
    return figure


def _intervals(benchmark: Benchmark, aggregate: Aggregate | None, theme: Theme) -> Figure:
    """Left the interquartile means, right the matrix of P(row beats column); the best method on top."""
    ranked = (
        sorted(aggregate.iqm, key=lambda index: -aggregate.iqm[index].estimate) if aggregate else []
    )
    side = max(3.4, 0.75 * len(ranked) + 1.2)
    figure = Figure(
        figsize=(5.4 + 1.25 * side, side), layout=ConstrainedLayoutEngine(), facecolor=theme.paper
    )
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(5.0, 1.25 * side))
    over = (
        f", {benchmark.plan['seeds']} seeds × {_number(len(aggregate.tasks), 'task')}"
        if aggregate
        else ""
    )
    _name_axes(left, f"Interquartile mean{over}", "final success (%)", "", theme)
    _name_axes(right, "P(row beats column), %", "", "", theme)
    if aggregate is None:
        _say(left, "no method has finished every task yet", theme)
        right.set_axis_off()
        return figure
    _draw_intervals(left, aggregate, ranked, theme)
    _draw_matrix(right, aggregate, ranked, theme)
    names = [benchmark.methods[index].label for index in ranked]
    for ax in (left, right):
        ax.set_yticks(range(len(ranked)), names, parse_math=False, fontsize=9)
        ax.set_ylim(len(ranked) - 0.5, -0.5)
    turned: dict[str, Any] = (
        {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        if len("".join(names)) > 40
        else {}
    )
    right.set_xticks(range(len(ranked)), names, parse_math=False, fontsize=9, **turned)
    return figure


def _draw_intervals(ax: Axes, aggregate: Aggregate, ranked: Sequence[int], theme: Theme) -> None:
    for place, index in enumerate(ranked):
        estimate, low, high = (100 * value for value in aggregate.iqm[index])
        ax.barh(place, high - low, 0.5, low, color=_color(theme, index), alpha=0.35, linewidth=0)
        ax.plot(
            [estimate] * 2, [place - 0.25, place + 0.25], color=_color(theme, index), linewidth=2.5
        )
        ax.annotate(
            f"{estimate:.1f}", (estimate, place - 0.3), ha="center", fontsize=8.5, color=theme.ink
        )
    if math.isfinite(aggregate.base):
        ax.axvline(100 * aggregate.base, **BASE)
        note: dict[str, Any] = {
            "textcoords": "offset points",
            "xytext": (3, 3),
            "fontsize": 8,
            "color": BASE["color"],
        }
        ax.annotate("base", (100 * aggregate.base, len(ranked) - 0.5), **note)
    ax.margins(x=0.12)


def _draw_matrix(ax: Axes, aggregate: Aggregate, ranked: Sequence[int], theme: Theme) -> None:
    """Blue where the row wins, orange where the column does; the range is widened to keep the numbers readable."""
    chances = np.full((len(ranked), len(ranked)), np.nan)
    for place in range(len(ranked)):
        ax.text(place, place, MISSING, ha="center", va="center", color=theme.ink, fontsize=9)
    for (first, second), interval in aggregate.better.items():
        row, column = ranked.index(first), ranked.index(second)
        chances[row, column] = interval.estimate
        text = (
            f"{100 * interval.estimate:.0f}\n[{100 * interval.low:.0f}, {100 * interval.high:.0f}]"
        )
        ax.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            color=theme.ink,
            fontsize=9,
            linespacing=1.3,
        )
    colors = LinearSegmentedColormap.from_list(
        "", [theme.palette[1], theme.paper, theme.palette[0]]
    )
    ax.imshow(np.ma.masked_invalid(chances), cmap=colors, vmin=-0.3, vmax=1.3, aspect="auto")
    ax.grid(visible=False)


def _name_axes(ax: Axes, title: str, xlabel: str, ylabel: str, theme: Theme) -> None:
    run_page.label_axes(ax, Panel("", title, ylabel, lambda run: []), theme, 9.5)
    ax.set_xlabel(xlabel, color=theme.ink, fontsize=9.5)


def _say(ax: Axes, text: str, theme: Theme) -> None:
    ax.text(
        0.5,
        0.5,
        text,
        transform=ax.transAxes,
        ha="center",
        va="center",
        color=theme.ink,
        fontsize=9,
    )


def _legend(
    figure: Figure, benchmark: Benchmark, theme: Theme, extra: Mapping[str, Any], *, columns: int
) -> None:
    lines = {
        method.label: Line2D([], [], **_line(theme, i))
        for i, method in enumerate(benchmark.methods)
    }
    labels = [
        f" {label}" for label in (*lines, *extra)
    ]  # a label that began with "_" would be left out
    handles = [*lines.values(), *extra.values()]
    style: dict[str, Any] = {"ncols": columns, "frameon": False, "fontsize": 9, "handlelength": 3.2}
    for text in figure.legend(handles, labels, loc="outside upper left", **style).get_texts():
        text.set(color=theme.ink, parse_math=False)


# ── the page ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _page(
    benchmark: Benchmark, aggregate: Aggregate | None, pictures: Mapping[str, Picture]
) -> str:
    sections = {
        "What was run": run_page.fact_table((), _provenance(benchmark)),
        "Over all tasks": _aggregate_table(benchmark, aggregate) + pictures["intervals"].html,
        "Who beats whom": _matrix_table(benchmark, aggregate),
        "Performance profile": f'<div class="narrow">{pictures["profile"].html}</div>',
        "Task by task": "".join(_task_table(benchmark, task) for task in benchmark.tasks),
        "Success against environment steps": pictures["curves"].html,
        "Success at equal compute": f"<p>{_EQUAL}</p>{pictures['curves_time'].html}",
        "Finetuning diagnostics": "".join(
            _diagnostics(benchmark, task) for task in benchmark.tasks
        ),
        "Configuration": "".join(_configurations(benchmark, task) for task in benchmark.tasks),
    }
    body = "".join(run_page.html_section(title, text) for title, text in sections.items() if text)
    title = (
        f"{_number(len(benchmark.methods), 'method')} on {_number(len(benchmark.tasks), 'task')}"
    )
    header = f"<header><h1>{title}</h1><p>{escape(benchmark.folder.name)} <span>{_progress(benchmark)}</span></p></header>"
    return run_page.SHELL.format(
        title=title, css=run_page.CSS + _css(), body=f"{header}\n{body}<footer>{_METHODS}</footer>"
    )


def _progress(benchmark: Benchmark) -> str:
    entries = benchmark.entries.values()
    finished, failed = (
        sum(bool(e.scores) for e in entries),
        sum(e.state.startswith("failed") for e in entries),
    )
    return f"{finished} of {len(entries)} runs finished{f', {failed} failed' if failed else ''}"


def _provenance(benchmark: Benchmark) -> dict[str, list[str]]:
    plan, runs = benchmark.plan, [entry.run for entry in benchmark.entries.values() if entry.run]
    episodes = sorted({row["eval/episodes"] for run in runs for row in run.evals})
    facts = {
        "Command": plan.get("command"),
        "Tasks": ", ".join(_aside(item["label"], item.get("env")) for item in plan["tasks"]),
        "Methods": ", ".join(_aside(label, algorithm) for label, algorithm in benchmark.methods),
        "Seeds": plan["seeds"],
        "Environment steps per seed": run_page.count_text(plan.get("steps")),
        "Evaluation": f"{' or '.join(map(str, episodes))} episodes per seed from fixed start states"
        if episodes
        else "",
        "Versions": run_page.versions_text(plan.get("versions")),
        "Commit": plan.get("commit"),
    }
    return {name: [str(value or MISSING)] for name, value in facts.items()}


def _aside(label: str, name: object) -> str:
    return label if name in (None, label, MISSING) else f"{label} ({name})"


def _aggregate_table(benchmark: Benchmark, aggregate: Aggregate | None) -> str:
    """The best method first, those without numbers last."""
    rows = {
        index: _all_tasks(benchmark, aggregate, index) for index in range(len(benchmark.methods))
    }
    ranked = sorted(rows, key=lambda index: -rows[index].get("iqm", -1.0))
    heads = (
        "",
        "interquartile mean",
        "mean",
        "base",
        "best",
        "at equal compute",
        "training time",
        "",
    )
    lines = [
        [_name(benchmark, index), *map(escape, _aggregate_cells(rows[index]))] for index in ranked
    ]
    return run_page.html_table(heads, lines)


def _aggregate_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        _interval(row, "iqm"),
        _interval(row, "final"),
        *(_percent(row.get(name)) for name in ("base", "best", "equal_compute")),
        run_page.duration_text(row.get("train_seconds")),
        row["state"],
    ]


def _matrix_table(benchmark: Benchmark, aggregate: Aggregate | None) -> str:
    """P(row beats column) with its intervals; nothing for fewer than two methods."""
    if aggregate is None or not aggregate.better:
        return ""
    members = list(aggregate.iqm)
    lines = [
        [
            _name(benchmark, a),
            *(aggregate.better[a, b].percent() if a != b else MISSING for b in members),
        ]
        for a in members
    ]
    return run_page.html_table(
        ["P(row beats column)", *(_name(benchmark, index) for index in members)], lines
    )


def _task_table(benchmark: Benchmark, task: str) -> str:
    budget = benchmark.budget(task)
    thresholds = [f"to {100 * threshold:.0f} %" for threshold in THRESHOLDS]
    equal = "at T*" + (f" = {run_page.duration_text(budget)}" if math.isfinite(budget) else "")
    heads = (
        "",
        "",
        "base",
        "final",
        "group",
        "best",
        equal,
        "IQM",
        *thresholds,
        "updates",
        "per s",
        "training",
    )
    groups = _groups(benchmark, task)
    lines = [
        [
            _name(benchmark, index),
            *_task_cells(entry.state, _row(entry, budget), groups.get(index, MISSING)),
        ]
        for index, entry in enumerate(benchmark.of(task))
    ]
    return f"<h3>{escape(task)}</h3>{run_page.html_table(heads, lines)}"


def _task_cells(state: str, row: Mapping[str, Any], group: str) -> list[str]:
    costs = [(row[f"steps_to_{100 * t:.0f}"], row[f"seconds_to_{100 * t:.0f}"]) for t in THRESHOLDS]
    cells = [
        _percent(row["base"]),
        _interval(row, "final"),
        group,
        *(_percent(row[name]) for name in ("best", "equal_compute")),
        _interval(row, "iqm"),
        *(_cost(steps, seconds) for steps, seconds in costs),
        *(run_page.count_text(row[name]) for name in ("updates", "updates_per_s")),
        run_page.duration_text(row["train_seconds"]),
    ]
    return [f'<span class="state">{escape(state)}</span>', *map(escape, cells)]


def _cost(steps: Any, seconds: Any) -> str:
    """``12,288 · 41.2 s``, or why there is none."""
    if not run_page.is_number(steps):
        return steps or MISSING
    return run_page.count_text(steps) + (
        f" · {run_page.duration_text(seconds)}" if run_page.is_number(seconds) else ""
    )


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _percent(rate: float | None) -> str:
    return MISSING if rate is None else f"{100 * rate:.1f} %"


def _interval(row: Mapping[str, Any], name: str) -> str:
    value: Any = row.get(name)
    return (
        MISSING
        if value is None
        else Interval(value, row[f"{name}_low"], row[f"{name}_high"]).percent()
    )


def _name(benchmark: Benchmark, index: int) -> str:
    """A method with its line as in the pictures."""
    dashes = " ".join(f"{2.5 * length:g}" for length in _dashes(index))
    style = f"stroke:var(--run{index % len(LIGHT.palette)});stroke-dasharray:{dashes or 'none'}"
    line = f'<line x2="30" y1="3" y2="3" style="{style}"/>'
    key = (
        f'<svg class="key" viewBox="0 0 30 6" width="30" height="6" aria-hidden="true">{line}</svg>'
    )
    return key + escape(benchmark.methods[index].label)


def _diagnostics(benchmark: Benchmark, task: str) -> str:
    """Every ``train/`` metric that a method logged, all methods in one panel; folded."""
    members = [index for index, entry in enumerate(benchmark.of(task)) if entry.run]
    runs = [entry.run for entry in benchmark.of(task) if entry.run]
    panels = run_page.diagnostic_panels(runs, "finetune")
    if not panels:
        return ""

    def draw(theme: Theme) -> Figure:
        own = theme._replace(palette=tuple(_color(theme, index) for index in members))
        return run_page.small_multiples(panels, runs, own)

    key = " ".join(f'<span class="state">{_name(benchmark, index)}</span>' for index in members)
    return _fold(task, f"<p>{key}</p>{_picture(draw, f'diagnostics of {task}').html}")


def _configurations(benchmark: Benchmark, task: str) -> str:
    runs = [entry.run for entry in benchmark.of(task) if entry.run]
    return "".join(_fold(f"{task} · {run.label}", _configuration(run, runs)) for run in runs)


def _configuration(run: RunFiles, runs: Sequence[RunFiles]) -> str:
    own, others = _flat(run.config), [_flat(other.config) for other in runs if other is not run]
    differs = {
        key: [value]
        for key, value in own.items()
        if any(other.get(key) != value for other in others)
    }
    first = (
        f"<p>Not the same in every method of this task:</p>{run_page.fact_table((), differs)}"
        if differs
        else ""
    )
    text = json.dumps(run.config, indent=2, ensure_ascii=False)
    return f"{first}<pre>{escape(text)}</pre>"


def _flat(config: Mapping[str, Any]) -> dict[str, str]:
    """``{"algorithm.gamma": "0.99", …}``, the algorithm's fields first; without those that name the run itself."""
    sections = {key: value for key, value in config.items() if key not in ("run_dir", "label")}
    flat: dict[str, str] = {}
    for section in sorted(sections, key=lambda key: key != "algorithm"):
        fields = (
            sections[section] if isinstance(sections[section], Mapping) else {"": sections[section]}
        )
        flat |= {
            f"{section}.{key}".rstrip("."): json.dumps(v, ensure_ascii=False)
            for key, v in fields.items()
        }
    return flat


def _fold(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _css() -> str:
    return (
        ".key { margin-right:.5rem; vertical-align:middle; } .key line { opacity:1; stroke-linecap:butt; }\n"
        ".success td .state { display:inline-block; max-width:18rem; white-space:normal; color:var(--soft); }\n"
        "body { max-width:88rem; } .narrow { max-width:44rem; } .wide + picture { display:block; margin-top:1.4rem; }\n"
        ".success th, .success td { padding-right:.9rem; font-size:.85rem; }\n"
        "p .state { margin-right:1.2rem; white-space:nowrap; } details { margin:.3rem 0; }\n"
    )


_EQUAL = (
    "The methods differ in what an environment step costs. T* is the median, over the methods of a task, of the training time that "
    "all steps took, all seeds together and without compiling and evaluating; each method is read at its last evaluation until "
    "then, one that was done earlier at its end."
)

_METHODS = (
    "Intervals are at 95 %. That of a final success is over all seeds and counts how much they differ (Wilson at the "
    "effective number of episodes, Korn &amp; Graubard 1998). Group: methods without a letter in common differ on the same start "
    "states (5 % over all pairs of a task, Holm 1979; each by a test that holds at whatever number of episodes one stops, "
    "Robbins 1970); it speaks of these trained policies, not of seeds not yet trained. Interquartile means (IQM), means, profiles and P(a run "
    "beats another, ties counting half) resample the seeds within each task (Agarwal et al. 2021), which is too narrow "
    "for few seeds. Over all tasks are compared the methods that finished every task on which nothing is left to run, "
    "or, while there is no such task, every task that some method has finished. Best is the highest point of the mean "
    "curve, the base included. To 50 %: environment steps per seed and training time at the first evaluation where the "
    "mean over the seeds is there. Updates per second are the median of the segments that trained. Every time is "
    "without compiling and evaluating, of all seeds together."
)

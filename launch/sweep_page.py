"""The page of a sweep: settings ranked, the effect of each field, and the commands of the best.

Written are ``report.html``, which holds its figures and the CSV of every table, and beside it
``marginals.png``, ``curves.png`` and ``table.csv``. Numbers come from the files of the runs; an
unfinished sweep has a report too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from gcp_jax.atomic_files import write_bytes, write_text
from gcp_jax.config_fields import shortest
from gcp_jax.launch import status
from gcp_jax.launch.sweep_results import Setting, SweepResults, read_sweep, settings_csv
from gcp_jax.report import html
from gcp_jax.report.plots import LIGHT, Chart, LegendItem, Panel, series_color, style_axes
from gcp_jax.report.read import is_number
from gcp_jax.report.tables import Cell, Table, fact_table, make_table
from gcp_jax.report.text import format_episodes, format_versions, known
from gcp_jax.stats.bootstrap import interquartile_mean, mean_score, probability_of_improvement
from gcp_jax.stats.eval_rows import score_curve
from gcp_jax.stats.intervals import MISSING, Interval

MAX_BARS = 8  # values of a field up to which their means are shown
CURVES = 6  # settings whose curves are drawn
COMMANDS = 5  # settings whose commands are shown
BAND = 0.15  # opacity of an interval
FONT = 9.5
TASK_FIELD = "env.name"


class Commands(NamedTuple):
    """How to repeat a setting."""

    setting: str
    text: str


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a sweep.

    Args:
        folder: the sweep's folder.
        out: folder of the report; by default ``report`` in ``folder``.

    Returns:
        The path of the page.

    Raises:
        ReportError: the sweep mixes tasks scored by success with tasks scored by return.
        ConfigError: the folder holds no sweep.
    """
    results = read_sweep(Path(folder).resolve())
    target = Path(folder) / "report" if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    curves = _curves_chart(results) if results.scored else None
    marginals = _marginals_chart(results) if results.scored and results.fields else None
    for name, chart in (("curves", curves), ("marginals", marginals)):
        if chart is not None:
            write_bytes(target / f"{name}.png", chart.png())
    write_text(target / "table.csv", settings_csv(results))
    page = target / "report.html"
    content = html.render("sweep.html", curves=curves, marginals=marginals, **_context(results))
    write_text(page, content)
    return page


def _context(results: SweepResults) -> dict[str, Any]:
    """What ``sweep.html`` refers to."""
    return {
        "title": f"Sweep of {len(results.settings)} settings",
        "subtitle": results.folder.name,
        "state": status.headline(results.runs),
        "provenance": fact_table("what_was_run", _provenance(results)),
        "ranking": _ranking_table(results),
        "fields": _fields_table(results),
        "commands": _commands(results),
        "failed": _failed_table(results),
    }


def _provenance(results: SweepResults) -> dict[str, list[str]]:
    about = results.about
    rows = [row for setting in results.settings for row in setting.rows]
    seeds = sorted({len(setting.scores) for setting in results.scored})
    facts = {
        "Sweep": about["file"],
        "Command": next(reversed(about["commands"]), None),
        "Fields that vary": ", ".join(results.fields),
        "Seeds per setting": ", ".join(map(str, seeds)),
        "Evaluation": format_episodes(rows),
        "Versions": format_versions(about.get("versions")),
        "Commit": about.get("commit"),
    }
    return {name: [known(value)] for name, value in facts.items()}


def _ranking_table(results: SweepResults) -> Table:
    best = results.scored[0] if results.scored else None
    rows = []
    for place, setting in enumerate(results.settings):
        rows.append(
            (
                Cell(text=status.values_label(setting.values), style="wrap"),
                str(len(setting.scores)),
                _format_score(setting.before, results.score_name),
                _format_score(setting.after, results.score_name),
                _chance_of_best(best, setting) if place else MISSING,
                "finished" if setting.done else "not finished",
            )
        )
    heads = (
        *("setting", "seeds", "before [95 %]", f"{results.score_name} [95 %]"),
        *("P(the best beats it)", ""),
    )
    return make_table("settings", heads, rows, csv=settings_csv(results), style="results dense")


def _format_score(interval: Interval | None, score_name: str) -> str:
    return interval.format(score_name) if interval else MISSING


def _chance_of_best(best: Setting | None, setting: Setting) -> str:
    """Left open if either has one seed, which says nothing about the next, or another task."""
    if best is None or min(len(best.scores), len(setting.scores)) < 2:
        return MISSING
    if best.values.get(TASK_FIELD) != setting.values.get(TASK_FIELD):
        return MISSING
    return f"{100 * probability_of_improvement(best.scores, setting.scores).estimate:.0f} %"


def _fields_table(results: SweepResults) -> Table:
    """Mean and interquartile mean over all trainings with a value."""
    rows = []
    for field in results.fields:
        by_value = results.scores_by_value(field)
        if len(by_value) > MAX_BARS:
            continue
        for value, of_settings in by_value.items():
            scores = _flatten(of_settings)
            mean = mean_score(scores).format(results.score_name)
            middle = interquartile_mean(scores).format(results.score_name)
            rows.append((field, _value_text(value), str(len(scores)), mean, middle))
    heads = ("field", "value", "trainings", "mean [95 %]", "interquartile mean [95 %]")
    return make_table("fields", heads, rows)


def _commands(results: SweepResults) -> list[Commands]:
    commands = []
    for setting in results.scored[:COMMANDS]:
        text = "\n".join(dict.fromkeys(setting.commands))
        commands.append(Commands(setting=status.values_label(setting.values), text=text))
    return commands


def _failed_table(results: SweepResults) -> Table | None:
    rows = []
    for run in results.runs:
        if run.state == "failed":
            label = Cell(text=status.values_label(run.values), style="wrap")
            rows.append((run.id, label, Cell(text=run.error, style="wrap")))
    return make_table("failed", ("run", "setting", "error"), rows) if rows else None


def _flatten(scores: Iterable[Sequence[float]]) -> list[float]:
    return [score for of_setting in scores for score in of_setting]


def _value_text(value: Any) -> str:
    return shortest(value) if is_number(value) else str(value)


def _marginals_chart(results: SweepResults) -> Chart:
    """A panel a field: settings as points, and the mean of all trainings at each value."""
    panels = []
    for field in results.fields:
        draw = partial(_draw_marginal, results=results, field=field)
        panels.append(Panel(label=f"score against {field}", draw=draw, size=(4.2, 3.2)))
    return Chart(panels=tuple(panels), columns=3)


def _draw_marginal(ax: Axes, *, results: SweepResults, field: str) -> None:
    style_axes(ax, field, f"final {results.score_label}", field.rpartition(".")[2], FONT)
    by_value = results.scores_by_value(field)
    values = list(by_value)
    numeric = all(is_number(value) for value in values)
    places = np.asarray(values if numeric else range(len(values)), np.float64)
    for place, of_settings in zip(places, by_value.values(), strict=True):
        means = [results.scale * float(np.mean(scores)) for scores in of_settings]
        style: dict[str, Any] = {"color": LIGHT.palette[0], "alpha": 0.45, "markersize": 4}
        ax.plot([place] * len(means), means, "o", **style)
    if numeric and places[0] > 0 and places[-1] >= 10 * places[0]:
        ax.set_xscale("log")
    if len(values) <= MAX_BARS:
        _draw_means(ax, results, by_value, places, "-" if numeric else "")
    if not numeric:
        ax.set_xlim(-0.5, len(values) - 0.5)


def _draw_means(
    ax: Axes,
    results: SweepResults,
    by_value: Mapping[Any, list[list[float]]],
    places: Any,
    linestyle: str,
) -> None:
    """The mean over all trainings at each value, with its interval."""
    intervals = [mean_score(_flatten(scores)) for scores in by_value.values()]
    means = results.scale * np.asarray(intervals)
    error = np.abs(means[:, 1:] - means[:, :1]).T
    style: dict[str, Any] = {"capsize": 3, "marker": "s", "markersize": 4}
    ax.errorbar(
        places,
        means[:, 0],
        error,
        color=LIGHT.palette[1],
        linestyle=linestyle,
        linewidth=1.6,
        elinewidth=1.6,
        **style,
    )
    ax.set_xticks(places, [_value_text(value) for value in by_value], fontsize=8.5)
    ax.xaxis.set_minor_locator(NullLocator())


def _curves_chart(results: SweepResults) -> Chart:
    """Score against environment steps, of the best settings."""
    legend = []
    for index, setting in enumerate(results.scored[:CURVES]):
        legend.append(
            LegendItem(label=status.values_label(setting.values), color=series_color(index))
        )
    draw = partial(_draw_curves, results=results)
    panel = Panel(label="learning curves of the best settings", draw=draw, size=(5.0, 3.4))
    return Chart(panels=(panel,), legend=tuple(legend), legend_columns=1)


def _draw_curves(ax: Axes, *, results: SweepResults) -> None:
    for index, setting in enumerate(results.scored[:CURVES]):
        color = series_color(index)
        curve = score_curve(setting.rows)
        steps = [at for at, _ in curve]
        mean, low, high = results.scale * np.asarray([interval for _, interval in curve]).T
        ax.plot(steps, mean, color=color, linewidth=2.0)
        ax.fill_between(steps, low, high, color=color, alpha=BAND, linewidth=0)
    style_axes(ax, "", results.score_label, "environment steps per seed", FONT)

"""The figures of a benchmark page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from gcp_jax.report.benchmark_numbers import Aggregate
from gcp_jax.report.benchmark_read import Benchmark, Entry
from gcp_jax.report.plots import (
    LIGHT,
    Chart,
    LegendItem,
    Panel,
    line_style,
    series_color,
    style_axes,
    write_centered,
)
from gcp_jax.report.text import plural
from gcp_jax.stats.intervals import MISSING, Floats

DASHES: tuple[tuple[float, ...], ...] = ((), (6, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5))
BASE_DASHES = (3.0, 3.0)
BAND = 0.15  # opacity of an interval
CLONE_ALPHA = 0.5  # opacity of one clone's line
CLONE_WIDTH = 0.8
FONT = 9.5
NARROWEST = 20.0  # percent that the axis of the interquartile means shows at least
WAITING = "no method has finished every task yet"

Cost = Literal["env_steps", "seconds"]
COSTS = {"env_steps": "environment steps", "seconds": "training time"}


def method_dashes(index: int) -> tuple[float, ...]:
    """The dashes of a method; neighbors differ, and so do methods that share a color."""
    return DASHES[(index + index // len(LIGHT.palette)) % len(DASHES)]


def method_key(benchmark: Benchmark, index: int) -> LegendItem:
    """The legend entry of a method."""
    return LegendItem(
        label=benchmark.methods[index].label,
        color=series_color(index),
        dashes=method_dashes(index),
    )


def success_curves(benchmark: Benchmark, cost: Cost) -> Chart:
    """A panel a task: success against environment steps, or against training seconds."""
    tasks = len(benchmark.tasks)
    columns = 2 if tasks in (2, 4) else min(3, tasks)
    size = (5.0 if columns == 1 else 4.2, 3.2)
    panels = []
    for task in benchmark.tasks:
        draw = partial(_draw_task, benchmark=benchmark, task=task, cost=cost)
        panels.append(Panel(label=f"success on {task} against {COSTS[cost]}", draw=draw, size=size))
    legend = [
        *_method_keys(benchmark),
        LegendItem(label="95 % interval", color=LIGHT.ink, kind="band", alpha=BAND),
        LegendItem(label="base policy", color=LIGHT.base, width=1.3, dashes=BASE_DASHES),
    ]
    if benchmark.clones > 1:
        one = LegendItem(label="one clone", color=LIGHT.ink, width=CLONE_WIDTH, alpha=CLONE_ALPHA)
        legend.append(one)
    if cost == "seconds":
        legend.append(LegendItem(label="T*, equal training time", color=LIGHT.ink, width=0.8))
    return Chart(
        panels=tuple(panels), legend=tuple(legend), columns=columns, legend_columns=2 * columns
    )


def profile(benchmark: Benchmark, aggregate: Aggregate | None) -> Chart:
    """The performance profile of every method that finished the compared tasks."""
    draw = partial(_draw_profile, aggregate=aggregate)
    legend = _method_keys(benchmark)
    if benchmark.trainings > 1:
        band = LegendItem(label="95 % bootstrap", color=LIGHT.ink, kind="band", alpha=BAND)
        legend.append(band)
    return Chart(
        panels=(Panel(label="performance profile", draw=draw, size=(4.8, 3.4)),),
        legend=tuple(legend),
        legend_columns=3,
    )


def intervals(benchmark: Benchmark, aggregate: Aggregate | None) -> Chart:
    """Left the interquartile means, right P(row beats column); the best method on top.

    With one seed of one clone, or one method, there is no right one.
    """
    ranked: list[int] = []
    if aggregate is not None:
        means = aggregate.iqm
        ranked = sorted(means, key=lambda index: -means[index].estimate)
    names = [benchmark.methods[index].label for index in ranked]
    side = max(3.4, 0.75 * len(ranked) + 1.2)
    title = "Interquartile mean"
    if aggregate is not None:
        tasks = plural(len(aggregate.tasks), "task")
        clones = f"{benchmark.clones} clones × " if benchmark.clones > 1 else ""
        title += f", {clones}{plural(benchmark.seeds, 'seed')} × {tasks}"
    draw_means = partial(_draw_means, aggregate=aggregate, ranked=ranked, names=names, title=title)
    panels = [Panel(label="interquartile means", draw=draw_means, size=(4.8, side))]
    if aggregate is not None and aggregate.better:
        draw_matrix = partial(_draw_matrix, aggregate=aggregate, ranked=ranked, names=names)
        panels.append(
            Panel(label="P(row beats column)", draw=draw_matrix, size=(1.25 * side, side))
        )
    return Chart(panels=tuple(panels))


def _method_keys(benchmark: Benchmark) -> list[LegendItem]:
    return [method_key(benchmark, index) for index in range(len(benchmark.methods))]


def _draw_task(ax: Axes, *, benchmark: Benchmark, task: str, cost: Cost) -> None:
    drawn = False
    for index, entry in enumerate(benchmark.entries_of(task)):
        drawn = _draw_clones(ax, entry, cost, index) or drawn
        drawn = _draw_curve(ax, entry, cost, index) or drawn
    base = benchmark.base_success(task)
    if base is not None:
        ax.axhline(100 * base, **line_style(LIGHT.base, BASE_DASHES, 1.3))
    budget = benchmark.equal_compute_seconds(task)
    xlabel = "environment steps per seed"
    if cost == "seconds":
        of_a_clone = " of a clone" if benchmark.clones > 1 else ""
        xlabel = f"training time (s), all seeds{of_a_clone} together"
        if math.isfinite(budget):
            ax.axvline(budget, color=LIGHT.ink, linewidth=0.8)
    if not drawn:
        write_centered(ax, "no data yet")
    ax.set_ylim(-3, 103)
    style_axes(ax, task, "success (%)", xlabel, FONT)


def _draw_clones(ax: Axes, entry: Entry, cost: Cost, index: int) -> bool:
    """Draw a thin line for each of several clones; returns whether there was one."""
    drawn = False
    for clone in entry.clones:
        x, mean, _, _ = _curve(clone, cost)
        style = line_style(series_color(index), method_dashes(index), CLONE_WIDTH)
        ax.plot(x, mean, alpha=CLONE_ALPHA, **style)
        drawn = drawn or len(x) > 0
    return drawn


def _curve(entry: Entry, cost: Cost) -> tuple[Floats, Floats, Floats, Floats]:
    """The cost of each evaluation, and success in percent with its bounds, each [P]."""
    points = [point for point in entry.points if math.isfinite(getattr(point, cost))]
    table = [(getattr(point, cost), *(100 * rate for rate in point.success)) for point in points]
    x, mean, low, high = np.reshape(np.asarray(table, np.float64), (-1, 4)).T
    return x, mean, low, high


def _draw_curve(ax: Axes, entry: Entry, cost: Cost, index: int) -> bool:
    """Draw a method's curve; returns whether there was one."""
    x, mean, low, high = _curve(entry, cost)
    if not len(x):
        return False
    color = series_color(index)
    marker = "o" if len(x) == 1 else None
    ax.plot(x, mean, marker=marker, **line_style(color, method_dashes(index)))
    ax.fill_between(x, low, high, color=color, alpha=BAND, linewidth=0)
    return True


def _draw_profile(ax: Axes, *, aggregate: Aggregate | None) -> None:
    if aggregate is None:
        write_centered(ax, WAITING)
    else:
        for index, curve in aggregate.profile.items():
            color = series_color(index)
            tau = 100 * curve.thresholds
            style = line_style(color, method_dashes(index))
            ax.plot(tau, 100 * curve.estimate, drawstyle="steps-post", **style)
            low = 100 * curve.low
            high = 100 * curve.high
            ax.fill_between(tau, low, high, step="post", color=color, alpha=BAND, linewidth=0)
    ax.set_ylim(-3, 103)
    ylabel = "runs with success above τ (%)"
    style_axes(ax, "Performance profile", ylabel, "final success τ (%)", FONT)


def _draw_means(
    ax: Axes,
    *,
    aggregate: Aggregate | None,
    ranked: Sequence[int],
    names: Sequence[str],
    title: str,
) -> None:
    style_axes(ax, title, "", "final success (%)", FONT)
    if aggregate is None:
        write_centered(ax, WAITING)
        return
    for place, index in enumerate(ranked):
        mean = aggregate.iqm[index]
        color = series_color(index)
        width = 100 * (mean.high - mean.low)
        ax.barh(place, width, 0.5, 100 * mean.low, color=color, alpha=0.35, linewidth=0)
        x = 100 * mean.estimate
        ax.plot([x, x], [place - 0.25, place + 0.25], color=color, linewidth=2.5)
        note: dict[str, Any] = {"ha": "center", "fontsize": 8.5, "color": LIGHT.ink}
        ax.annotate(f"{x:.1f}", (x, place - 0.3), **note)
    if math.isfinite(aggregate.base):
        base = 100 * aggregate.base
        ax.axvline(base, **line_style(LIGHT.base, BASE_DASHES, 1.3))
        offset: dict[str, Any] = {"textcoords": "offset points", "xytext": (3, 3)}
        ax.annotate("base", (base, len(ranked) - 0.5), fontsize=8, color=LIGHT.base, **offset)
    ax.margins(x=0.12)
    ax.set_xlim(*_at_least_wide(*ax.get_xlim()))
    _name_rows(ax, names)


def _at_least_wide(low: float, high: float) -> tuple[float, float]:
    """The range of an axis in percent, not narrower than ``NARROWEST``."""
    missing = NARROWEST - (high - low)
    if missing <= 0:
        return low, high
    low = min(max(low - missing / 2, -3.0), 103.0 - NARROWEST)
    return low, low + NARROWEST


def _draw_matrix(
    ax: Axes, *, aggregate: Aggregate, ranked: Sequence[int], names: Sequence[str]
) -> None:
    """Blue if the row wins, orange if the column does; light enough to read the numbers."""
    style_axes(ax, "P(row beats column), %", "", "", FONT)
    ax.grid(visible=False)
    text_style: dict[str, Any] = {
        "ha": "center", "va": "center", "color": LIGHT.ink, "fontsize": 9, "linespacing": 1.3
    }  # fmt: skip
    for place in range(len(ranked)):
        ax.text(place, place, MISSING, **text_style)
    for (first, second), chance in aggregate.better.items():
        row = ranked.index(first)
        column = ranked.index(second)
        strength = (chance.estimate - 0.5) / 0.8
        color = LIGHT.palette[0] if strength > 0 else LIGHT.palette[1]
        corner = (column - 0.5, row - 0.5)
        ax.add_patch(Rectangle(corner, 1, 1, color=color, alpha=abs(strength), linewidth=0))
        bounds = f"[{100 * chance.low:.0f}, {100 * chance.high:.0f}]"
        ax.text(column, row, f"{100 * chance.estimate:.0f}\n{bounds}", **text_style)
    ax.set_xlim(-0.5, len(ranked) - 0.5)
    _name_rows(ax, names)
    slant: dict[str, Any] = {}
    if len("".join(names)) > 40:
        slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(ranked)), names, parse_math=False, fontsize=9, **slant)


def _name_rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names, parse_math=False, fontsize=9)
    ax.set_ylim(len(names) - 0.5, -0.5)

"""The figures of a run page: learning curves, posteriors of the success rate, diagnostics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from gcp_jax.report.plots import (
    DASHED,
    LIGHT,
    XLABELS,
    Chart,
    LegendItem,
    Panel,
    line_style,
    series_color,
    show_constant,
    style_axes,
    write_aside,
    write_centered,
)
from gcp_jax.report.read import Row, RunFiles, is_number, shared_score_name
from gcp_jax.report.run_numbers import episode_curve, metric_curve
from gcp_jax.stats.eval_rows import last_rows, score_curve
from gcp_jax.stats.intervals import Floats, Success, posterior

SIZE = (4.8, 2.8)  # inches of a panel
SMALL_SIZE = (2.7, 2.0)
BAND = 0.18  # opacity of an interval
SEED = 0.35  # opacity of one seed's line
TRAINING_EPISODES = 100  # that a point of training episodes has at least, if there are so many


class MetricPlot(NamedTuple):
    """One metric of the runs: which rows have it, and how its plot is labelled."""

    key: str
    title: str
    ylabel: str
    source: Literal["evaluations", "episodes", "finetune", "pretrain"]
    scale: float = 1.0
    interval: bool = False  # draw the interval of the pooled score

    @property
    def axis(self) -> str:
        """The counter of the horizontal axis."""
        return "updates" if self.source == "pretrain" else "env_steps"

    def rows(self, run: RunFiles) -> list[Row]:
        """The rows that have the metric."""
        if self.source == "evaluations":
            return run.finetune_evals
        stage = "finetune" if self.source == "episodes" else self.source
        return [row for row in run.metrics if row["stage"] == stage]


_SUCCESS = (
    MetricPlot(
        key="eval/success",
        title="Evaluation success",
        ylabel="success (%)",
        source="evaluations",
        scale=100,
        interval=True,
    ),
    MetricPlot(
        key="episode/success",
        title="Success of training episodes",
        ylabel="success (%)",
        source="episodes",
        scale=100,
    ),
)
_EVAL_RETURN = MetricPlot(
    key="eval/return",
    title="Evaluation return",
    ylabel="return per episode",
    source="evaluations",
)
_EPISODE_RETURN = MetricPlot(
    key="episode/return",
    title="Return of training episodes",
    ylabel="return per episode",
    source="episodes",
)
_EVAL_LENGTH = MetricPlot(
    key="eval/length",
    title="Evaluation episode length",
    ylabel="environment steps",
    source="evaluations",
)
_EPISODE_LENGTH = MetricPlot(
    key="episode/length",
    title="Length of training episodes",
    ylabel="environment steps",
    source="episodes",
)


def learning_curves(runs: Sequence[RunFiles]) -> Chart:
    """Score, return and episode length against environment steps; four panels."""
    score_name = shared_score_name(runs)
    colors = _colors(runs)
    panels = []
    for plot in _learning_plots(score_name):
        draw = partial(_draw_metric, plot=plot, runs=runs, colors=colors)
        panels.append(Panel(label=plot.title, draw=draw, size=SIZE))
    return Chart(panels=tuple(panels), legend=_learning_legend(runs, colors, score_name))


def posteriors(runs: Sequence[RunFiles]) -> Chart:
    """A panel a run: the posterior of each seed's success rate before and after finetuning."""
    panels = []
    for run, color in zip(runs, _colors(runs), strict=True):
        title = run.label if len(runs) > 1 else ""
        draw = partial(_draw_posteriors, run=run, title=title, color=color)
        label = f"posterior of the success rate, {run.label}"
        panels.append(Panel(label=label, draw=draw, size=(4.8, 2.1)))
    return Chart(panels=tuple(panels))


def diagnostics(
    runs: Sequence[RunFiles],
    stage: Literal["finetune", "pretrain"],
    colors: Sequence[str] | None = None,
    task: str = "",
) -> Chart | None:
    """A small panel for every ``train/`` metric that a run has logged in this stage.

    Args:
        runs: the runs.
        stage: whose metrics are shown.
        colors: one of LIGHT for each run; by default the palette in its order.
        task: named in the labels of the panels, if the page has several.

    Returns:
        The chart; None if there is nothing to show.
    """
    keys: set[str] = set()
    for run in runs:
        for row in run.metrics:
            if row["stage"] == stage:
                keys.update(key for key in row if key.startswith("train/"))
    panels = []
    for key in sorted(keys):
        plot = MetricPlot(key=key, title=key.removeprefix("train/"), ylabel="", source=stage)
        if any(metric_curve(plot.rows(run), key, plot.axis) for run in runs):
            draw = partial(
                _draw_metric, plot=plot, runs=runs, colors=colors or _colors(runs), small=True
            )
            label = f"{plot.title} in {stage}, {task}" if task else f"{plot.title} in {stage}"
            panels.append(Panel(label=label, draw=draw, size=SMALL_SIZE))
    return Chart(panels=tuple(panels), columns=4) if panels else None


def _learning_plots(score_name: str) -> tuple[MetricPlot, ...]:
    if score_name == "success":
        return (*_SUCCESS, _EVAL_RETURN, _EVAL_LENGTH)
    eval_return = _EVAL_RETURN._replace(interval=True)
    return (eval_return, _EPISODE_RETURN, _EVAL_LENGTH, _EPISODE_LENGTH)


def _colors(runs: Sequence[RunFiles]) -> list[str]:
    return [series_color(index) for index in range(len(runs))]


def _draw_metric(
    ax: Axes,
    *,
    plot: MetricPlot,
    runs: Sequence[RunFiles],
    colors: Sequence[str],
    small: bool = False,
) -> None:
    """A thin line a seed, a thick one for their mean, a dashed one for the base policy.

    Of training episodes only the mean over all seeds is drawn. Beside the title of a mean over
    episodes stands how many a point has.
    """
    size = 7.0 if small else 9.0
    drawn: list[Floats] = []
    counts: list[Floats] = []
    for run, color in zip(runs, colors, strict=True):
        if plot.source == "episodes":
            found = _draw_episodes(ax, plot, run, color)
        else:
            found = _draw_seeds(ax, plot, run, color, small=small)
        if found is None:
            continue
        drawn.append(found.values)
        counts.append(found.episodes)
        _draw_base(ax, plot, run, color if len(runs) > 1 else LIGHT.ink)
        if plot.interval:
            _draw_interval(ax, plot, run, color)
    if not drawn:
        write_centered(ax, "no data yet", size)
    elif small and _spans_decades(drawn):
        ax.set_yscale("log")
    else:
        show_constant(ax, plot.scale * np.concatenate([values.ravel() for values in drawn]))
    if plot.key.endswith("/success"):
        ax.set_ylim(-3, 103)
    if drawn and not small:
        ax.set_xlim(left=0)
    style_axes(ax, plot.title, plot.ylabel, XLABELS[plot.axis], size)
    if counts and np.concatenate(counts).size:
        write_aside(ax, episodes_a_point(np.concatenate(counts)), size - 1)


class _Drawn(NamedTuple):
    """What was drawn of one run."""

    values: Floats  # of any shape
    episodes: Floats  # of each point; empty if it is no mean over episodes


def _draw_seeds(
    ax: Axes, plot: MetricPlot, run: RunFiles, color: str, *, small: bool
) -> _Drawn | None:
    rows = plot.rows(run)
    curve = metric_curve(rows, plot.key, plot.axis)
    if curve is None:
        return None
    marker = "o" if len(curve.x) == 1 else None
    for y in curve.y * plot.scale:
        known = np.isfinite(y)
        ax.plot(curve.x[known], y[known], color=color, alpha=SEED, linewidth=0.7, marker=marker)
    width = 1.3 if small else 2.0
    ax.plot(curve.x, curve.mean * plot.scale, color=color, linewidth=width, marker=marker)
    episodes: dict[int, float] = {}
    for row in rows if plot.source == "evaluations" else ():
        episodes[row["env_steps"]] = episodes.get(row["env_steps"], 0) + row["eval/episodes"]
    return _Drawn(values=curve.y, episodes=np.asarray([*episodes.values()], np.float64))


def _draw_episodes(ax: Axes, plot: MetricPlot, run: RunFiles, color: str) -> _Drawn | None:
    curve = episode_curve(run, plot.key, TRAINING_EPISODES)
    if curve is None:
        return None
    marker = "o" if len(curve.x) < 10 else None
    style = line_style(color, width=2.0)
    ax.plot(curve.x, curve.y * plot.scale, marker=marker, markersize=4, **style)
    return _Drawn(values=curve.y, episodes=curve.episodes)


def episodes_a_point(counts: Floats) -> str:
    """``256 episodes a point``, or ``101–340 episodes a point``."""
    low = int(counts.min())
    high = int(counts.max())
    span = f"{low:,}" if low == high else f"{low:,}–{high:,}"
    return f"{span} episodes a point"


def _draw_base(ax: Axes, plot: MetricPlot, run: RunFiles, color: str) -> None:
    values = [
        row[plot.key]
        for row in run.evals
        if row["stage"] == "base" and is_number(row.get(plot.key))
    ]
    if values:
        height = plot.scale * float(np.mean(values))
        ax.axhline(height, alpha=0.8, **line_style(color, DASHED, 1.1))


def _counts(row: Mapping[str, Any]) -> Success:
    return Success(int(row["eval/successes"]), int(row["eval/episodes"]))


def _draw_interval(ax: Axes, plot: MetricPlot, run: RunFiles, color: str) -> None:
    curve = score_curve(run.evals)
    if not curve:
        return
    steps = [point.env_steps for point in curve]
    low = [plot.scale * point.score.low for point in curve]
    high = [plot.scale * point.score.high for point in curve]
    ax.fill_between(steps, low, high, color=color, alpha=BAND, linewidth=0)


def _spans_decades(values: Sequence[Floats]) -> bool:
    flat = np.concatenate([value[np.isfinite(value)] for value in values])
    return bool(flat.min() > 0 and flat.max() > 100 * flat.min())


def _learning_legend(
    runs: Sequence[RunFiles], colors: Sequence[str], score_name: str
) -> tuple[LegendItem, ...]:
    if len(runs) == 1:
        shared = colors[0]
        means = [LegendItem(label="mean over seeds", color=shared)]
    else:
        shared = LIGHT.ink
        means = [
            LegendItem(label=run.label, color=color)
            for run, color in zip(runs, colors, strict=True)
        ]
    return (
        *means,
        LegendItem(label="one seed", color=shared, width=0.8, alpha=0.5),
        LegendItem(
            label=f"95 % interval of the pooled {score_name}",
            color=shared,
            kind="band",
            alpha=BAND,
        ),
        LegendItem(label="base policy", color=LIGHT.ink, width=1.1, dashes=DASHED),
    )


def _draw_posteriors(ax: Axes, *, run: RunFiles, title: str, color: str) -> None:
    rate = np.linspace(0, 1, 1001)[1:-1]
    last = last_rows(run.evals)
    before = [_counts(row) for row in last.before.values()]
    clone = [Success.merged(before)] if before else []
    after = [_counts(row) for row in last.after.values()]
    for policies, fill in ((clone, LIGHT.ink), (after, color)):
        for successes, episodes in policies:
            density = posterior(successes, episodes, rate)
            relative = density / density.max()
            ax.fill_between(100 * rate, relative, color=fill, alpha=0.25, linewidth=0.9)
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 1.05)
    ax.set_yticks([])
    style_axes(ax, title, "density over its peak", "success (%)")

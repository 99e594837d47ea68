"""One HTML page from the files of a run, or of several runs side by side; nothing is computed anew.

A run folder is read from ``config.json``, ``metrics.jsonl``, ``eval.jsonl``, ``summary.json`` and
``report/{before,after}.mp4``; only the first must exist, so an unfinished run has a report too. The page holds its
pictures and videos and opens without a network; ``curves.png`` and ``table.csv`` are written beside it.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from gcp_jax.atomic_files import atomic_replacement, write_bytes, write_text
from gcp_jax.run import metrics
from gcp_jax.stats.statistics import (
    MISSING,
    BeforeAfter,
    Floats,
    Interval,
    before_after,
    ends,
    interquartile_mean,
    jeffreys,
    pooled,
    posterior,
    probability_of_improvement,
    score,
    score_name_of,
)

THRESHOLDS = (0.5, 0.8, 0.9, 0.95)  # success rates whose first crossing is reported


class ReportError(ValueError):
    """A run folder that cannot be reported on; the message is one line that says what to mend."""


class RunFiles(NamedTuple):
    """The files of one run, read and checked."""

    folder: Path
    label: str
    record: dict[str, Any]  # config.json
    metrics: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    summary: dict[str, Any]  # {} while the run is unfinished
    demonstrations: dict[str, Any]  # what is known of those that were cloned; {} where nothing is

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.record["config"]
        return config

    @property
    def finetuned(self) -> list[dict[str, Any]]:
        """Evaluations along the finetuning, the base policy's as the point at zero steps."""
        return [row for row in self.evals if row["stage"] in ("base", "finetune")]

    @property
    def seeds(self) -> list[int]:
        return sorted({row["seed"] for row in (*self.metrics, *self.evals)})

    @property
    def score_name(self) -> str:
        """By "success" or by "return"."""
        return score_name_of(self.evals[0]) if self.evals else "success"


class Curve(NamedTuple):
    """One metric of one run."""

    x: Floats  # [P] environment steps or updates
    y: Floats  # [S, P]; NaN where a seed has no value

    @property
    def mean(self) -> Floats:
        """[P] over the seeds that have a value."""
        filled: Floats = np.ma.masked_invalid(self.y).mean(axis=0).filled(np.nan)
        return filled


class Panel(NamedTuple):
    """One small plot: where its rows come from and how its axes are named."""

    key: str
    title: str
    ylabel: str
    rows: Callable[[RunFiles], list[dict[str, Any]]]
    axis: str = "env_steps"
    scale: float = 1.0


class Theme(NamedTuple):
    """Colors of the figures on a light or a dark page; the palettes are those of Okabe & Ito
    (2008), black and yellow shifted to stand out from the paper and from each other."""

    paper: str
    ink: str
    faint: str
    palette: tuple[str, ...]


LIGHT = Theme(
    "#ffffff",
    "#1f2328",
    "#d0d7de",
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1f2328", "#a89f00"),
)
DARK = Theme(
    "#0d1117",
    "#e6edf3",
    "#3d444d",
    ("#56B4E9", "#E69F00", "#2AB58C", "#CC79A7", "#F0E442", "#D55E00", "#e6edf3", "#6f86ff"),
)

XLABEL = {
    "env_steps": "environment steps per seed",
    "updates": "gradient updates",
    "success": "success, %",
}


def write(run_dirs: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes ``report.html``, ``curves.png`` and ``table.csv``; returns the path of the page.

    One run is reported in its own ``report`` folder unless ``out`` names another; several need ``out``, and are told
    apart by ``label`` in their configuration or else by their folder's name. A population counts as a run for each of its
    points. Raises ReportError.
    """
    folders = (
        [Path(run_dirs)]
        if isinstance(run_dirs, (str, Path))
        else [Path(folder) for folder in run_dirs]
    )
    if not folders or (len(folders) > 1 and out is None):
        raise ReportError(
            f"report of {len(folders)} run folders: pass one folder, or several and an output folder"
        )
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ReportError("the same run folder is given twice; name each once")
    read = [read_run(folder.resolve()) for folder in folders]
    runs = _told_apart([point for run in read for point in _points(run, alone=len(read) == 1)])
    score_name = {run.score_name: run.label for run in runs if run.evals}
    if len(score_name) > 1:
        raise ReportError(
            f"{score_name['success']} is score_name by its success and {score_name['return']} by its return; report them apart"
        )
    target = folders[0] / "report" if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    write_bytes(target / "curves.png", png_bytes(_learning_curves(runs, LIGHT)))
    _write_csv(runs, target / "table.csv")
    page = target / "report.html"
    write_text(page, _page(runs))
    return page


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_run(folder: Path) -> RunFiles:
    """A run folder, checked. Raises ReportError."""
    if not (folder / "config.json").is_file():
        raise ReportError(
            f"{folder}: no config.json here; pass the folder of a run, as printed when it started"
        )
    record = read_json(folder / "config.json")
    if not isinstance(record.get("config"), dict):
        raise ReportError(
            f"{folder / 'config.json'}: no 'config' object; restore the file the run wrote"
        )
    needed = ("stage", "seed", "env_steps", "updates")
    run = RunFiles(
        folder=folder,
        label=str(record["config"].get("label") or folder.name),
        record=record,
        metrics=_rows(folder / "metrics.jsonl", needed),
        evals=_rows(folder / "eval.jsonl", (*needed, "eval/episodes")),
        summary=read_json(folder / "summary.json") if (folder / "summary.json").exists() else {},
        demonstrations=_demonstrations(folder / "policy" / "base" / "policy.json"),
    )
    for number, row in enumerate(run.evals, start=1):
        judging = (
            ("success", "successes") if run.score_name == "success" else ("return", "return_std")
        )
        for key in (f"eval/{name}" for name in judging):
            if not is_number(row.get(key)):
                raise ReportError(
                    f"{folder / 'eval.jsonl'}, row {number}: {key!r} must be a number; mend or delete the row"
                )
        successes = row.get("eval/successes", 0)
        if not 0 <= successes <= row["eval/episodes"] or row["eval/episodes"] == 0:
            counts = f"{successes} successes of {row['eval/episodes']} episodes"
            raise ReportError(
                f"{folder / 'eval.jsonl'}: seed {row['seed']} has {counts}; mend or delete that row"
            )
    return run


def _demonstrations(path: Path) -> dict[str, Any]:
    """Of what a run's base policy was cloned."""
    policy = read_json(path) if path.exists() else {}
    known = policy.get("demonstrations")
    return known if isinstance(known, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ReportError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path}: not JSON ({error}); restore the file the run wrote") from None
    if not isinstance(value, dict):
        raise ReportError(f"{path}: not a JSON object; restore the file the run wrote")
    return value


def _rows(path: Path, needed: Iterable[str]) -> list[dict[str, Any]]:
    try:
        rows = metrics.rows(path)
    except ValueError as error:
        raise ReportError(str(error)) from None
    for number, row in enumerate(rows, start=1):
        for key in needed:
            fits = row.get(key) in metrics.STAGES if key == "stage" else is_number(row.get(key))
            if not fits:
                allowed = f"one of {', '.join(metrics.STAGES)}" if key == "stage" else "a number"
                raise ReportError(
                    f"{path}, row {number}: {key!r} must be {allowed}; mend or delete the row"
                )
    return rows


def is_number(value: object) -> TypeGuard[float]:
    """Is this a finite number?"""
    return isinstance(value, (int, float)) and math.isfinite(value)


def points_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The points of a population that finetuning rows belong to; none where nothing varies."""
    return list(dict.fromkeys(str(row["population"]) for row in rows if "population" in row))


def of_point(rows: Iterable[dict[str, Any]], point: str) -> list[dict[str, Any]]:
    """The rows of one point, and those that all points share."""
    return [row for row in rows if row.get("population", point) == point]


def _points(run: RunFiles, *, alone: bool) -> list[RunFiles]:
    """A population as one run for each of its points."""
    points = points_of((*run.metrics, *run.evals))
    if not points:
        return [run]
    return [
        run._replace(
            label=point if alone else f"{run.label} · {point}",
            metrics=of_point(run.metrics, point),
            evals=of_point(run.evals, point),
        )
        for point in points
    ]


def _told_apart(runs: list[RunFiles]) -> list[RunFiles]:
    if len({run.label for run in runs}) == len(runs):
        return runs
    return [
        run._replace(label=f"{run.label} · {run.folder.parent.name}/{run.folder.name}")
        for run in runs
    ]


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _curve(rows: Iterable[Mapping[str, Any]], key: str, axis: str) -> Curve | None:
    points = {(row["seed"], row[axis]): row[key] for row in rows if is_number(row.get(key))}
    if not points:
        return None
    seeds, x = (sorted(set(part)) for part in zip(*points, strict=True))
    y = [[points.get((seed, at), math.nan) for at in x] for seed in seeds]
    return Curve(np.asarray(x, np.float64), np.asarray(y, np.float64))


def pooled_curve(run: RunFiles) -> list[tuple[int, Interval]]:
    """(environment steps, pooled success or return) wherever every seed was evaluated."""
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for row in run.finetuned:
        found.setdefault(row["env_steps"], {})[row["seed"]] = row
    seeds = max((len(at) for at in found.values()), default=0)
    complete = [
        (steps, pooled(list(at.values())))
        for steps, at in sorted(found.items())
        if len(at) == seeds
    ]
    return [(steps, interval) for steps, interval in complete if interval]


def _steps_to(run: RunFiles, threshold: float) -> str:
    reached = (steps for steps, success in pooled_curve(run) if success.estimate >= threshold)
    return next((f"{steps:,}" for steps in reached), "not reached")


def final_scores(run: RunFiles) -> list[float]:
    """The last finetuned success rate, or return, of each seed."""
    last = {row["seed"]: score(row) for row in run.evals if row["stage"] == "finetune"}
    return list(last.values())


def _latest_stage(run: RunFiles) -> list[dict[str, Any]]:
    """Every row of finetuning, or of pretraining where the run has come no further."""
    rows = [*run.metrics, *run.evals]
    return [row for row in rows if row["stage"] == "finetune"] or [
        row for row in rows if row["stage"] == "pretrain"
    ]


def last_counter(run: RunFiles, key: str) -> float | None:
    """The largest value of a counter that the latest stage has written."""
    return max((row[key] for row in _latest_stage(run) if is_number(row.get(key))), default=None)


def _median(run: RunFiles, key: str) -> float | None:
    values = [row[key] for row in _latest_stage(run) if is_number(row.get(key))]
    return float(np.median(values)) if values else None


def _write_csv(runs: Sequence[RunFiles], path: Path) -> None:
    bounds = ("", "_low", "_high")
    header = (
        "run",
        "seed",
        *(name + bound for name in ("before", "after", "change") for bound in bounds),
    )
    with (
        atomic_replacement(path) as scratch,
        scratch.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(header)
        for run in runs:
            for row in before_after(run.evals):
                intervals = (row.before, row.after, row.change)
                table.writerow(
                    [
                        run.label,
                        row.label,
                        *(value for i in intervals for value in i or ("", "", "")),
                    ]
                )


# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _stage_rows(stage: str) -> Callable[[RunFiles], list[dict[str, Any]]]:
    return lambda run: [row for row in run.metrics if row["stage"] == stage]


def _finetuned(run: RunFiles) -> list[dict[str, Any]]:
    return run.finetuned


SUCCESS = (
    Panel("eval/success", "Evaluation success", "success (%)", _finetuned, scale=100),
    Panel(
        "episode/success",
        "Success of training episodes",
        "success (%)",
        _stage_rows("finetune"),
        scale=100,
    ),
)
RETURN = (
    Panel("eval/return", "Evaluation return", "return per episode", _finetuned),
    Panel(
        "episode/return",
        "Return of training episodes",
        "return per episode",
        _stage_rows("finetune"),
    ),
)
LENGTH = (
    Panel("eval/length", "Evaluation episode length", "environment steps", _finetuned),
    Panel(
        "episode/length",
        "Length of training episodes",
        "environment steps",
        _stage_rows("finetune"),
    ),
)


def learning_panels(score_name: str) -> tuple[Panel, ...]:
    """The four panels of learning curves; the first has the pooled interval as a band."""
    return (*SUCCESS, RETURN[0], LENGTH[0]) if score_name == "success" else (*RETURN, *LENGTH)


def diagnostic_panels(runs: Sequence[RunFiles], stage: str) -> list[Panel]:
    """A panel for every ``train/`` key that any of the runs logged in this stage."""
    rows, axis = _stage_rows(stage), "updates" if stage == "pretrain" else "env_steps"
    keys = sorted(
        {key for run in runs for row in rows(run) for key in row if key.startswith("train/")}
    )
    return [
        Panel(key, key.removeprefix("train/"), "", rows, axis)
        for key in keys
        if any(_curve(rows(run), key, axis) for run in runs)
    ]


def _judged(runs: Sequence[RunFiles]) -> str:
    """What all the runs are score_name by."""
    return next((run.score_name for run in runs if run.evals), "success")


def _learning_curves(runs: Sequence[RunFiles], theme: Theme) -> Figure:
    panels = learning_panels(_judged(runs))
    figure, axes = panel_grid(panels, 2, (5.4, 3.0), theme)
    for panel, ax in zip(panels, axes, strict=True):
        _draw(ax, panel, runs, theme)
    scale = panels[0].scale
    for run, color in zip(runs, _colors(theme, runs), strict=True):
        curve = pooled_curve(run)
        bounds = np.asarray(
            [(steps, scale * interval.low, scale * interval.high) for steps, interval in curve]
        ).T
        if curve:
            axes[0].fill_between(*bounds, color=color, alpha=0.18, linewidth=0)
    for ax in axes[:2] if _judged(runs) == "success" else ():
        ax.set_ylim(-3, 103)
    _legend(figure, runs, theme)
    return figure


def _posteriors(runs: Sequence[RunFiles], theme: Theme) -> Figure:
    """Of each run a panel: what the last evaluations before and after finetuning say of each seed's success rate."""
    panels = [
        Panel(
            "success",
            run.label if len(runs) > 1 else "",
            "density over its peak",
            _finetuned,
            "success",
        )
        for run in runs
    ]
    figure, axes = panel_grid(panels, min(len(runs), 2), (5.4, 2.2), theme)
    rate = np.linspace(0, 1, 1001)[1:-1]
    for panel, ax, run, color in zip(panels, axes, runs, _colors(theme, runs), strict=True):
        for rows, ink in zip(ends(run.evals), (theme.ink, color), strict=True):
            for row in rows.values():
                density = posterior(int(row["eval/successes"]), int(row["eval/episodes"]), rate)
                ax.fill_between(
                    100 * rate, density / density.max(), color=ink, alpha=0.25, linewidth=0.9
                )
        ax.set_xlim(0, 100)
        ax.set_ylim(0, 1.05)
        ax.set_yticks([])
        label_axes(ax, panel, theme, size=9)
    return figure


def small_multiples(panels: Sequence[Panel], runs: Sequence[RunFiles], theme: Theme) -> Figure:
    """One small panel each, four in a row."""
    figure, axes = panel_grid(panels, 4, (2.7, 2.0), theme)
    for panel, ax in zip(panels, axes, strict=True):
        _draw(ax, panel, runs, theme, small=True)
    return figure


def panel_grid(
    panels: Sequence[Panel], columns: int, size: tuple[float, float], theme: Theme
) -> tuple[Figure, list[Axes]]:
    """A figure of ``columns`` panels a row, each ``size`` inches, drawn by Agg whatever the user's backend is."""
    lines = math.ceil(len(panels) / columns)
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.08)
    figure = Figure(
        figsize=(columns * size[0], lines * size[1]), layout=layout, facecolor=theme.paper
    )
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(lines, columns, index + 1) for index in range(len(panels))]


def _draw(
    ax: Axes, panel: Panel, runs: Sequence[RunFiles], theme: Theme, *, small: bool = False
) -> None:
    drawn = []
    for run, color in zip(runs, _colors(theme, runs), strict=True):
        curve = _curve(panel.rows(run), panel.key, panel.axis)
        if curve is None:
            continue
        drawn.append(curve.y)
        marker = "o" if len(curve.x) == 1 else None
        for y in curve.y * panel.scale:
            known = np.isfinite(y)
            ax.plot(curve.x[known], y[known], color=color, alpha=0.35, linewidth=0.7, marker=marker)
        ax.plot(
            curve.x,
            curve.mean * panel.scale,
            color=color,
            linewidth=1.3 if small else 2.0,
            marker=marker,
        )
        _draw_base(ax, panel, run, color if len(runs) > 1 else theme.ink)
    if not drawn:
        ax.text(
            0.5,
            0.5,
            "no data yet",
            transform=ax.transAxes,
            ha="center",
            va="center",
            color=theme.ink,
        )
    elif small and _spans_decades(drawn):
        ax.set_yscale("log")
    label_axes(ax, panel, theme, size=7 if small else 9)


def _draw_base(ax: Axes, panel: Panel, run: RunFiles, color: str) -> None:
    base = [
        row[panel.key]
        for row in run.evals
        if row["stage"] == "base" and is_number(row.get(panel.key))
    ]
    if base:
        ax.axhline(
            panel.scale * float(np.mean(base)),
            color=color,
            linestyle=(0, (4, 3)),
            linewidth=1.1,
            alpha=0.8,
        )


def _spans_decades(values: Sequence[Floats]) -> bool:
    flat = np.concatenate([value[np.isfinite(value)] for value in values])
    return bool(flat.min() > 0 and flat.max() > 100 * flat.min())


def label_axes(ax: Axes, panel: Panel, theme: Theme, size: float) -> None:
    """Title, axis labels, ticks and grid in the theme's colors."""
    ax.set_title(panel.title, color=theme.ink, fontsize=size + 1, loc="left", parse_math=False)
    ax.set_xlabel(XLABEL[panel.axis], color=theme.ink, fontsize=size)
    ax.set_ylabel(panel.ylabel, color=theme.ink, fontsize=size)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.tick_params(colors=theme.ink, labelsize=size - 0.5, length=0)
    ax.tick_params(which="minor", length=0, labelleft=False)
    ax.grid(color=theme.faint, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_facecolor(theme.paper)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.faint)


def _legend(figure: Figure, runs: Sequence[RunFiles], theme: Theme) -> None:
    colors = _colors(theme, runs)
    shared = colors[0] if len(runs) == 1 else theme.ink
    thick = [Line2D([], [], color=color, linewidth=2) for color in colors]
    names = [run.label for run in runs] if len(runs) > 1 else ["mean over seeds"]
    styles = {
        "one seed": Line2D([], [], color=shared, alpha=0.5, linewidth=0.8),
        f"95 % interval of the pooled {_judged(runs)}": Patch(
            color=shared, alpha=0.18, linewidth=0
        ),
        "base policy": Line2D([], [], color=theme.ink, linestyle=(0, (4, 3)), linewidth=1.1),
    }
    handles = [*thick, *styles.values()]
    names = [
        f" {name}" for name in (*names, *styles)
    ]  # a name that began with "_" would be left out
    legend = figure.legend(
        handles, names, loc="outside upper left", ncols=4, frameon=False, fontsize=8.5
    )
    for text in legend.get_texts():
        text.set_color(theme.ink)
        text.set_parse_math(False)


def _colors(theme: Theme, runs: Sequence[RunFiles]) -> list[str]:
    return [theme.palette[index % len(theme.palette)] for index in range(len(runs))]


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.set_dpi(150)
    FigureCanvasAgg(figure).print_png(buffer)  # savefig would draw it twice
    return buffer.getvalue()


# ── the page ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _page(runs: Sequence[RunFiles]) -> str:
    title = _title(runs)
    sections = [
        _tiles(runs[0])
        if len(runs) == 1
        else html_section("Comparison", fact_table(runs, _comparison(runs))),
        html_section("What was run", fact_table(runs, _provenance(runs))),
        _cloned(runs),
        html_section(
            f"{_judged(runs).capitalize()} before and after finetuning",
            "".join(_success_table(run, runs) for run in runs) + _posterior_section(runs),
        ),
        html_section(
            "Learning curves",
            _picture(lambda theme: _learning_curves(runs, theme), "learning curves"),
        ),
        html_section("Time and throughput", fact_table(runs, _timing(runs))),
        html_section("Videos", "".join(_videos(run, runs) for run in runs)),
        _diagnostic_section("Finetuning diagnostics", runs, "finetune"),
        _diagnostic_section("Pretraining diagnostics", runs, "pretrain"),
        html_section("Configuration", "".join(_configuration(run) for run in runs)),
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n<header><h1>{escape(title)}</h1>{_subtitle(runs)}</header>\n"
        f"{''.join(sections)}<footer>{_METHODS}</footer>\n</body>\n</html>\n"
    )


def _title(runs: Sequence[RunFiles]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs compared"
    algorithm, environment = _name(runs[0], "algorithm"), _name(runs[0], "env")
    return runs[0].label if MISSING in (algorithm, environment) else f"{algorithm} on {environment}"


def _subtitle(runs: Sequence[RunFiles]) -> str:
    return (
        "".join(f"<p>{escape(run.label)} <span>{_status(run)}</span></p>" for run in runs)
        if len(runs) == 1
        else ""
    )


def _status(run: RunFiles) -> str:
    return "finished" if run.summary else "unfinished"


def _name(run: RunFiles, key: str) -> str:
    """``config[key]``, or its ``name`` where it is a group of settings."""
    value = run.config.get(key)
    value = value.get("name") if isinstance(value, Mapping) else value
    return MISSING if value is None else str(value)


def html_section(title: str, body: str) -> str:
    """A section with its heading."""
    return f"<section><h2>{title}</h2>{body}</section>\n"


def html_table(heads: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    """From cells that are HTML already."""
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="wide"><table class="success"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _tiles(run: RunFiles) -> str:
    row = _pooled_row(run)
    _, before, after, change = (text.partition(" [")[0] for text in row.texts())
    tiles = {
        f"{row.score_name} before": before,
        f"{row.score_name} after": after,
        _change(row.score_name): change,
        "environment steps per seed": count_text(last_counter(run, "env_steps")),
        "wall time": duration_text(run.summary.get("seconds", last_counter(run, "seconds"))),
    }
    cells = (f"<div><b>{value}</b><span>{name}</span></div>" for name, value in tiles.items())
    return f'<section class="tiles">{"".join(cells)}</section>\n'


def _comparison(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    texts, score_name = [_pooled_row(run).texts() for run in runs], _judged(runs)
    finals = [final_scores(run) for run in runs]
    return {
        f"{score_name.capitalize()} before": [before for _, before, _, _ in texts],
        f"{score_name.capitalize()} after": [after for _, _, after, _ in texts],
        _change(score_name).capitalize(): [change for _, _, _, change in texts],
        "Interquartile mean of the seeds": [
            interquartile_mean(f).told(score_name) if f else MISSING for f in finals
        ],
        f"P(a seed beats one of {runs[0].label})": [
            MISSING,
            *(_superiority(f, finals[0]) for f in finals[1:]),
        ],
    }


def _superiority(rates: list[float], reference: list[float]) -> str:
    return (
        probability_of_improvement(rates, reference).percent() if rates and reference else MISSING
    )


def _pooled_row(run: RunFiles) -> BeforeAfter:
    return next(reversed(before_after(run.evals)), BeforeAfter("pooled", None, None))


def _change(score_name: str) -> str:
    return "change, points" if score_name == "success" else "change"


def _provenance(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    return {
        "Command": [str(run.record.get("command") or MISSING) for run in runs],
        "Environment": [_name(run, "env") for run in runs],
        "Algorithm": [_name(run, "algorithm") for run in runs],
        "Seeds": [", ".join(map(str, run.seeds)) or MISSING for run in runs],
        "Evaluation": [_evaluation(run) for run in runs],
        "Versions": [versions_text(run.record.get("versions")) for run in runs],
        "Commit": [str(run.record.get("commit") or MISSING) for run in runs],
    }


def _evaluation(run: RunFiles) -> str:
    episodes = sorted({row["eval/episodes"] for row in run.evals})
    diverged = sum(
        int(row["eval/diverged"]) for row in run.evals if is_number(row.get("eval/diverged"))
    )
    if not episodes:
        return "none yet"
    counts = " or ".join(map(str, episodes))
    return f"{counts} episodes per seed from fixed start states; {diverged} episodes diverged"


def versions_text(versions: object) -> str:
    """``jax 0.10.2, flax 0.12.8, …``"""
    return (
        ", ".join(f"{k} {v}" for k, v in versions.items())
        if isinstance(versions, Mapping)
        else MISSING
    )


def _cloned(runs: Sequence[RunFiles]) -> str:
    """What the demonstrations offered; nothing where no run knows."""
    if not any(run.demonstrations for run in runs):
        return ""
    facts = {
        "Episodes": [_fact(run, "episodes") for run in runs],
        "Episodes by the way they took": [_fact(run, "modes") for run in runs],
        "Success": [_fact(run, "success") for run in runs],
        "Mean return": [_fact(run, "return") for run in runs],
        "Trajectory quality (TQ)": [_fact(run, "trajectory_quality") for run in runs],
        "State-action coverage (SACo)": [_fact(run, "coverage") for run in runs],
    }
    return html_section("Demonstrations", fact_table(runs, facts) + f"<p>{_QUALITY}</p>")


def _fact(run: RunFiles, name: str) -> str:
    value = run.demonstrations.get(name)
    if isinstance(value, list):
        return " + ".join(str(part) for part in value)
    if name == "success" and is_number(value):
        return f"{100 * value:.1f} %"
    return f"{value:,}" if is_number(value) else MISSING


def _timing(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    speeds = sorted(
        {key for run in runs for row in run.metrics for key in row if key.startswith("time/")}
    )
    thresholds = THRESHOLDS if _judged(runs) == "success" else ()
    return {
        "State": [_status(run) for run in runs],
        "Environment steps per seed": [count_text(last_counter(run, "env_steps")) for run in runs],
        "Gradient updates per seed": [count_text(last_counter(run, "updates")) for run in runs],
        "Wall time": [
            duration_text(run.summary.get("seconds", last_counter(run, "seconds"))) for run in runs
        ],
        "of it compiling": [duration_text(run.summary.get("compile_seconds")) for run in runs],
        **{_speed_name(key): [count_text(_median(run, key)) for run in runs] for key in speeds},
        **{
            f"Environment steps to {100 * t:.0f} %": [_steps_to(run, t) for run in runs]
            for t in thresholds
        },
    }


def _speed_name(key: str) -> str:
    """``time/env_steps_per_s`` -> ``env steps/s, median``"""
    return key.removeprefix("time/").replace("_per_s", "/s").replace("_", " ") + ", median"


def fact_table(runs: Sequence[RunFiles], facts: Mapping[str, Sequence[str]]) -> str:
    """A table with a line per fact and a column per run."""
    heads = "".join(
        f'<th scope="col">{_swatch(i)}{escape(run.label)}</th>' for i, run in enumerate(runs)
    )
    head = f"<thead><tr><td></td>{heads}</tr></thead>" if len(runs) > 1 else ""
    lines = (
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(value)}</td>" for value in values)}</tr>'
        for name, values in facts.items()
    )
    return f'<div class="wide"><table class="facts">{head}<tbody>{"".join(lines)}</tbody></table></div>'


def _swatch(index: int) -> str:
    return f'<i style="background:var(--run{index % len(LIGHT.palette)})"></i>'


def _success_table(run: RunFiles, runs: Sequence[RunFiles]) -> str:
    table = before_after(run.evals)
    if not table:
        return _heading(run, runs) + "<p>No evaluation has been written yet.</p>"
    low, high = _span(table)
    scale = "0 to 100 %" if run.score_name == "success" else f"{low:,.0f} to {high:,.0f}"
    marks = (
        "",
        '<i class="before"></i>before',
        '<i class="after"></i>after',
        _change(run.score_name),
        scale,
    )
    head = "".join(f"<th>{mark}</th>" for mark in marks)
    lines = (
        f'<tr class="{"pooled" if row.label == "pooled" else "seed"}">'
        f"{''.join(f'<td>{escape(text)}</td>' for text in row.texts())}<td>{_interval_bar(row, low, high)}</td></tr>"
        for row in table
    )
    return (
        f'{_heading(run, runs)}<div class="wide"><table class="success"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _posterior_section(runs: Sequence[RunFiles]) -> str:
    """A picture of the posteriors; nothing where runs are score_name by their return or not evaluated yet."""
    if _judged(runs) != "success" or not any(run.evals for run in runs):
        return ""
    picture = _picture(lambda theme: _posteriors(runs, theme), "posterior of the success rate")
    credible = {
        "95 % of it after finetuning": ["; ".join(_credible(run)) or MISSING for run in runs]
    }
    return f"{picture}{fact_table(runs, credible)}<p>{_POSTERIOR}</p>"


def _credible(run: RunFiles) -> list[str]:
    """``seed 0: 98.4 % [96.3, 99.5]`` of each seed."""
    _, after = ends(run.evals)
    return [
        f"seed {seed}: {jeffreys(int(row['eval/successes']), int(row['eval/episodes'])).percent()}"
        for seed, row in sorted(after.items())
    ]


def _heading(run: RunFiles, runs: Sequence[RunFiles]) -> str:
    return f"<h3>{_swatch(runs.index(run))}{escape(run.label)}</h3>" if len(runs) > 1 else ""


def _span(table: Sequence[BeforeAfter]) -> tuple[float, float]:
    """From where to where intervals are drawn: all rates, or from the lowest return, at most 0, to the highest."""
    if table[0].score_name == "success":
        return 0.0, 1.0
    known = [
        value
        for row in table
        for interval in (row.before, row.after)
        if interval
        for value in interval
    ]
    low, high = min(0.0, *known), max(0.0, *known)
    return low, high if high > low else low + 1.0


def _interval_bar(row: BeforeAfter, low: float, high: float) -> str:
    """A picture of both intervals: before above, after below, the whole width being ``low`` to ``high``."""

    def at(value: float) -> str:
        return f"{200 * (value - low) / (high - low):.1f}"

    marks = "".join(
        f'<g class="{name}"><line x1="{at(i.low)}" x2="{at(i.high)}" y1="{y}" y2="{y}"/>'
        f'<circle cx="{at(i.estimate)}" cy="{y}" r="3.5"/></g>'
        for name, y, i in (("before", 6, row.before), ("after", 16, row.after))
        if i
    )
    scale = '<path d="M0 0V22M100 0V22M200 0V22"/>'
    return f'<svg viewBox="-5 0 210 22" width="210" height="22" aria-hidden="true">{scale}{marks}</svg>'


def _picture(draw: Callable[[Theme], Figure], what: str) -> str:
    light, dark = (
        f"data:image/png;base64,{encoded(png_bytes(draw(theme)))}" for theme in (LIGHT, DARK)
    )
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    return f'<picture>{source}<img alt="{what}" src="{light}"></picture>'


def _diagnostic_section(title: str, runs: Sequence[RunFiles], stage: str) -> str:
    panels = diagnostic_panels(runs, stage)
    if not panels:
        return ""
    return html_section(
        title, _picture(lambda theme: small_multiples(panels, runs, theme), title.lower())
    )


def _videos(run: RunFiles, runs: Sequence[RunFiles]) -> str:
    paths = {name: run.folder / "report" / f"{name}.mp4" for name in ("before", "after")}
    figures = "".join(_video(path, name) for name, path in paths.items() if path.is_file())
    return _heading(run, runs) + (
        f'<div class="videos">{figures}</div>' if figures else f"<p>{_no_video(run)}</p>"
    )


def _video(path: Path, name: str) -> str:
    source = f"data:video/mp4;base64,{encoded(path.read_bytes())}"
    return (
        f'<figure><video controls loop muted playsinline src="{source}"></video>'
        f"<figcaption>{name} finetuning</figcaption></figure>"
    )


def _no_video(run: RunFiles) -> str:
    reason = run.folder / "report" / "video.txt"
    said = reason.read_text(encoding="utf-8").strip() if reason.is_file() else ""
    return escape(said or "No video was recorded.")


def _configuration(run: RunFiles) -> str:
    text = json.dumps(run.config, indent=2, ensure_ascii=False)
    return f"<details><summary>{escape(run.label)}</summary><pre>{escape(text)}</pre></details>"


def count_text(value: float | None) -> str:
    """``12,345``, or a dash for what is not known."""
    return f"{value:,.0f}" if is_number(value) else MISSING


def duration_text(seconds: float | None) -> str:
    """``14.2 s``, ``2 min 12 s`` or ``3 h 07 min``."""
    if not is_number(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
    )


def encoded(data: bytes) -> str:
    """Base64 text."""
    return base64.b64encode(data).decode("ascii")


_QUALITY = (
    "TQ: mean return, where uniformly random actions have 0 and the task’s clean demonstrator has 1. SACo: distinct state-action pairs "
    "over those of as many steps of which half are random and half the clean demonstrator’s (Schweighofer et al. 2022; pairs are "
    "told apart by 16 random hyperplanes)."
)
_POSTERIOR = (
    "Posterior of each seed’s success rate by its last evaluation, from Jeffreys’ prior: Beta(k + ½, n − k + ½) after k successes in n "
    "episodes. Grey: before finetuning."
)
_METHODS = (
    "Intervals are at 95 %. Of a rate a seed’s is Wilson’s score interval over its episodes. The pooled one also counts how "
    "much the seeds differ (Wilson at the effective number of episodes, Korn &amp; Graubard 1998), so with few seeds it is "
    "wide. Of a mean return it is Student’s, over the seeds’ means or over the episodes of these seeds, whichever is wider. "
    "A change is that of two independent estimates (Newcombe 1998; Zou &amp; Donner 2008). The interquartile mean and "
    "P(a seed beats another) resample the seeds."
)

CSS = """
:root { --paper:#fff; --card:#f6f8fa; --ink:#1f2328; --soft:#59636e; --line:#d0d7de;
  --before:#8c959f; --after:#0072B2;
  --run0:#0072B2; --run1:#D55E00; --run2:#009E73; --run3:#CC79A7; --run4:#E69F00; --run5:#56B4E9; --run6:#1f2328; --run7:#a89f00; }
@media (prefers-color-scheme: dark) {
  :root { --paper:#0d1117; --card:#161b22; --ink:#e6edf3; --soft:#9198a1; --line:#3d444d;
    --before:#8c959f; --after:#56B4E9;
    --run0:#56B4E9; --run1:#E69F00; --run2:#2AB58C; --run3:#CC79A7; --run4:#F0E442; --run5:#D55E00;
    --run6:#e6edf3; --run7:#6f86ff; } }
* { box-sizing:border-box; }
body { margin:0 auto; padding:2.5rem 1.5rem; max-width:70rem; background:var(--paper); color:var(--ink);
  font:16px/1.5 system-ui, sans-serif; }
h1 { margin:0; font-size:1.9rem; letter-spacing:-0.01em; }
h2 { margin:0 0 .8rem; font-size:1.2rem; }
h3 { margin:1.2rem 0 .4rem; font-size:1rem; }
header p { margin:.3rem 0 0; color:var(--soft); }
header span { margin-left:.5rem; padding:.1rem .6rem; border:1px solid var(--line); border-radius:1rem;
  font-size:.85rem; }
section { margin-top:2.4rem; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit, minmax(10.5rem, 1fr)); gap:.8rem; }
.tiles div { padding:1rem 1.1rem; background:var(--card); border:1px solid var(--line); border-radius:.6rem; }
.tiles b { display:block; font-size:1.5rem; font-variant-numeric:tabular-nums; }
.tiles span { color:var(--soft); font-size:.85rem; }
.wide { overflow-x:auto; }
table { border-collapse:collapse; font-size:.92rem; font-variant-numeric:tabular-nums; }
th, td { padding:.4rem 1.4rem .4rem 0; border-bottom:1px solid var(--line); text-align:left; vertical-align:top; }
thead th, tbody th { color:var(--soft); font-weight:500; white-space:nowrap; }
.facts td { overflow-wrap:anywhere; min-width:9rem; }
.success td { white-space:nowrap; vertical-align:middle; }
.pooled td { font-weight:650; border-bottom:none; }
i { display:inline-block; width:.75rem; height:.75rem; margin-right:.45rem; border-radius:.2rem; }
i.before, i.after { border-radius:50%; width:.6rem; height:.6rem; background:var(--before); }
i.after { background:var(--after); }
svg path { stroke:var(--line); fill:none; }
svg line { stroke-width:3; stroke-linecap:round; opacity:.55; }
.before line { stroke:var(--before); } .before circle { fill:var(--before); }
.after line { stroke:var(--after); } .after circle { fill:var(--after); }
picture img { display:block; width:100%; }
.videos { display:grid; grid-template-columns:repeat(auto-fit, minmax(18rem, 1fr)); gap:1rem; }
figure { margin:0; } video { width:100%; border-radius:.6rem; background:#000; }
figcaption { margin-top:.3rem; color:var(--soft); font-size:.9rem; }
summary { cursor:pointer; }
pre { overflow-x:auto; padding:1rem; background:var(--card); border:1px solid var(--line); border-radius:.6rem;
  font-size:.85rem; }
footer { margin-top:3rem; padding-top:1rem; border-top:1px solid var(--line); color:var(--soft); font-size:.85rem; }
"""

SHELL = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<style>{css}</style></head>
<body>{body}</body></html>
"""

"""The page of one run, or of several runs side by side.

Written are ``report.html``, which holds its figures, videos and the CSV of every table, and beside
it ``curves.png`` and ``table.csv``. Numbers come from the run's files; nothing is run again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gcp_jax.atomic_files import write_bytes, write_text
from gcp_jax.report import html, run_facts, run_numbers, run_plots
from gcp_jax.report.plots import LIGHT, LegendItem, series_color
from gcp_jax.report.read import (
    ReportError,
    RunFiles,
    check_same_task,
    read_run,
    shared_score_name,
    split_population,
    with_unique_labels,
)
from gcp_jax.report.run_warnings import run_warnings
from gcp_jax.report.tables import Cell, IntervalBar, Table, csv_text, fact_table, make_table
from gcp_jax.report.text import (
    describe_intervals,
    format_count,
    format_duration,
)
from gcp_jax.stats.bootstrap import interquartile_mean, probability_of_improvement
from gcp_jax.stats.eval_rows import BeforeAfter, before_after, last_rows
from gcp_jax.stats.intervals import MISSING, Interval


class Tile(NamedTuple):
    """One number at the top of the page."""

    value: str
    name: str


class RunSection(NamedTuple):
    """What the page shows of one run apart from the others."""

    label: str
    key: LegendItem
    scores: Table | None  # None if nothing was evaluated
    intervals: list[str]  # what they cover, in sentences
    best: Table | None  # the best policies by evaluation; None if the run names none
    videos: list[tuple[str, str]]  # ("before" or "after", data URI)
    no_video: str  # why there is none
    config: str  # JSON


def write(run_dirs: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write ``report.html``, ``curves.png`` and ``table.csv``.

    Runs are labelled by ``label`` of their configuration, or else by their folder's name. A
    population counts as one run for each of its points.

    Args:
        run_dirs: one run folder, or several to compare.
        out: folder of the report; by default ``report`` in the run folder. Several runs need it.

    Returns:
        The path of the page.

    Raises:
        ReportError: a folder is no run folder, a file is malformed, or the runs cannot be compared.
    """
    folders = _as_folders(run_dirs)
    if not folders or (len(folders) > 1 and out is None):
        raise ReportError(
            f"report of {len(folders)} run folders: "
            "pass one folder, or several and an output folder"
        )
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ReportError("the same run folder is given twice; name each once")
    runs: list[RunFiles] = []
    for folder in folders:
        run = read_run(folder.resolve())
        runs.extend(split_population(run, only_run=len(folders) == 1))
    runs = with_unique_labels(runs)
    shared_score_name(runs)
    check_same_task(runs)
    target = folders[0] / "report" if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    curves = run_plots.learning_curves(runs)
    write_bytes(target / "curves.png", curves.png())
    write_text(target / "table.csv", _scores_csv(runs))
    page = target / "report.html"
    write_text(page, html.render("run.html", curves=curves, **_context(runs)))
    return page


def _as_folders(run_dirs: str | Path | Sequence[str | Path]) -> list[Path]:
    if isinstance(run_dirs, (str, Path)):
        return [Path(run_dirs)]
    return [Path(folder) for folder in run_dirs]


def _context(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """What ``run.html`` refers to."""
    score_name = shared_score_name(runs)
    evaluated = any(run.evals for run in runs)
    has_posterior = score_name == "success" and evaluated
    columns = _columns(runs)
    return {
        "title": _title(runs),
        "subtitle": runs[0].label if len(runs) == 1 else "",
        "state": runs[0].state,
        "score_name": score_name,
        "several": len(runs) > 1,
        "tiles": _tiles(runs[0]),
        "comparison": fact_table("comparison", _comparison(runs), columns),
        "provenance": fact_table("what_was_run", run_facts.provenance(runs), columns),
        "demonstrations": run_facts.demonstrations(runs, columns),
        "runs": [_section(run, index) for index, run in enumerate(runs)],
        "posteriors": run_plots.posteriors(runs) if has_posterior else None,
        "credible": fact_table("credible_intervals", run_facts.credible(runs), columns),
        "timing": fact_table("time", run_facts.timing(runs), columns),
        "finetune_diagnostics": run_plots.diagnostics(runs, "finetune"),
        "pretrain_diagnostics": run_plots.diagnostics(runs, "pretrain"),
        "warnings": run_warnings(runs),
    }


def _columns(runs: Sequence[RunFiles]) -> list[Cell]:
    """The head of each run's column; none on the page of a single run."""
    if len(runs) == 1:
        return []
    return [Cell(text=run.label, key=_key(index)) for index, run in enumerate(runs)]


def _key(index: int) -> LegendItem:
    return LegendItem(label="", color=series_color(index), width=3.0)


def _title(runs: Sequence[RunFiles]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs compared"
    algorithm = run_facts.name_of(runs[0], "algorithm")
    environment = run_facts.name_of(runs[0], "env")
    if MISSING in (algorithm, environment):
        return runs[0].label
    return f"{algorithm} on {environment}"


def _tiles(run: RunFiles) -> list[Tile]:
    line = run_numbers.pooled_line(run)
    before, after, change = line.estimates()
    return [
        Tile(value=before, name=f"{line.score_name} before"),
        Tile(value=after, name=f"{line.score_name} after"),
        Tile(value=change, name=_change_head(line.score_name)),
        Tile(
            value=format_count(run_numbers.last_counter(run, "env_steps")),
            name="environment steps per seed",
        ),
        Tile(value=format_duration(run_numbers.wall_seconds(run)), name="wall time"),
    ]


def _change_head(score_name: str) -> str:
    return "change, points" if score_name == "success" else "change"


def _comparison(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    score_name = shared_score_name(runs)
    lines = [run_numbers.pooled_line(run).cells() for run in runs]
    scores = [run_numbers.final_scores(run) for run in runs]
    facts = {
        f"{score_name.capitalize()} before": [line[1] for line in lines],
        f"{score_name.capitalize()} after": [line[2] for line in lines],
        _change_head(score_name).capitalize(): [line[3] for line in lines],
        "Seeds": [str(len(own)) for own in scores],
    }
    if any(len(own) > 1 for own in scores):
        middles = [_seed_mean(run) for run in runs]
        facts["Interquartile mean of the seeds"] = middles
    better = [_improvement(own, scores[0]) for own in scores[1:]]
    if any(text != MISSING for text in better):
        facts[f"P(a seed beats one of {runs[0].label})"] = [MISSING, *better]
    return facts


def _seed_mean(run: RunFiles) -> str:
    scores = run_numbers.final_scores(run)
    if len(scores) < 2:
        return MISSING
    episodes = run.evals[-1]["eval/episodes"] if run.score_name == "success" else None
    return interquartile_mean(scores, episodes=episodes).format(run.score_name)


def _improvement(scores: list[float], reference: list[float]) -> str:
    """Left open if either has one seed: that says nothing about the next one."""
    if min(len(scores), len(reference)) < 2:
        return MISSING
    return probability_of_improvement(scores, reference).percent()


def _section(run: RunFiles, index: int) -> RunSection:
    folder = run.folder / "report"
    videos = []
    for name in ("before", "after"):
        path = folder / f"{name}.mp4"
        if path.is_file():
            videos.append((name, html.data_uri(path.read_bytes(), "video/mp4")))
    reason = folder / "video.txt"
    text = reason.read_text(encoding="utf-8").strip() if reason.is_file() else ""
    return RunSection(
        label=run.label,
        key=_key(index),
        scores=_scores_table(run, index),
        intervals=describe_intervals(last_rows(run.evals)),
        best=run_facts.best_policies(run, index),
        videos=videos,
        no_video=text or "No video was recorded.",
        config=json.dumps(run.config, indent=2, ensure_ascii=False),
    )


def _scores_table(run: RunFiles, index: int) -> Table | None:
    lines = before_after(run.evals)
    if not lines:
        return None
    low, high = _span(lines)
    scale = "0 to 100 %" if run.score_name == "success" else f"{low:,.0f} to {high:,.0f}"
    before_key = LegendItem(label="", color=LIGHT.base, width=3.0)
    after_key = LegendItem(label="", color=series_color(0), width=3.0)
    heads = (
        "",
        Cell(text="before", key=before_key),
        Cell(text="after", key=after_key),
        _change_head(run.score_name),
        scale,
    )
    rows = []
    for line in lines:
        bar = IntervalBar(
            before=_fractions(line.before, low, high), after=_fractions(line.after, low, high)
        )
        rows.append((*line.cells(), Cell(text="", bar=bar)))
    return make_table(
        f"scores_{index}", heads, rows, csv=_scores_csv([run]), emphasized=len(rows) - 1
    )


def _span(lines: Sequence[BeforeAfter]) -> tuple[float, float]:
    """The range that intervals are drawn in: all rates, or the returns and 0."""
    if lines[0].score_name == "success":
        return 0.0, 1.0
    values = [0.0]
    for line in lines:
        for interval in (line.before, line.after):
            values.extend(interval or ())
    low = min(values)
    high = max(values)
    return low, high if high > low else low + 1.0


def _fractions(
    interval: Interval | None, low: float, high: float
) -> tuple[float, float, float] | None:
    """Estimate, low and high as fractions of the range."""
    if interval is None:
        return None
    width = high - low
    return (
        (interval.estimate - low) / width,
        (interval.low - low) / width,
        (interval.high - low) / width,
    )


def _scores_csv(runs: Sequence[RunFiles]) -> str:
    """Scores before and after of every run and seed, with their bounds; rates are fractions."""
    heads = ["run", "seed"]
    for name in ("before", "after", "change"):
        heads.extend((name, f"{name}_low", f"{name}_high"))
    rows = []
    for run in runs:
        for line in before_after(run.evals):
            row: list[Any] = [run.label, line.label]
            for interval in (line.before, line.after, line.change):
                row.extend(interval or (None, None, None))
            rows.append(row)
    return csv_text(heads, rows)

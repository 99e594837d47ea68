"""One HTML page from a sweep's folder: settings ranked with intervals, what each field does by itself, and the commands that
repeat the best. Nothing is run anew; an unfinished sweep has a report too.

A *setting* is what the sweep gave a training besides its seed; members of a population are settings of their own. Beside the page
are written ``marginals.png``, ``curves.png`` and ``table.csv``.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from gcp_jax.atomic_files import atomic_replacement, write_bytes, write_text
from gcp_jax.config import Member
from gcp_jax.launch import launcher, status
from gcp_jax.launch.axes import Point
from gcp_jax.report import run_page
from gcp_jax.report.benchmark_page import Picture
from gcp_jax.report.run_page import DARK, LIGHT, Panel, ReportError, Theme
from gcp_jax.run import metrics
from gcp_jax.stats.statistics import (
    MISSING,
    Interval,
    interquartile_mean,
    mean_score,
    pooled,
    probability_of_improvement,
    score,
    score_name_of,
)

MAX_BARS = 8  # values of a field up to which their means are drawn and told
CURVES = 6  # settings whose curves are drawn
COMMANDS = 5  # settings whose commands are told

Row = dict[str, Any]


class Setting(NamedTuple):
    """One setting. rows: evaluations of all its seeds, those of the base included; done: every one of its runs is finished."""

    values: Point
    rows: list[Row]
    commands: list[str]
    done: bool

    @property
    def final(self) -> list[Row]:
        """The newest evaluation of each seed in finetuning."""
        newest = {row["seed"]: row for row in self.rows if row["stage"] == "finetune"}
        return list(newest.values())

    @property
    def scores(self) -> list[float]:
        """[S] of the newest evaluations."""
        return [score(row) for row in self.final]

    @property
    def after(self) -> Interval | None:
        return pooled(self.final)

    @property
    def before(self) -> Interval | None:
        return pooled(
            list({row["seed"]: row for row in self.rows if row["stage"] == "base"}.values())
        )

    @property
    def curve(self) -> list[tuple[int, Interval]]:
        """(environment steps, score over the seeds evaluated there)."""
        by_steps: dict[int, list[Row]] = {}
        for row in self.rows:
            if row["stage"] in ("base", "finetune"):
                by_steps.setdefault(row["env_steps"], []).append(row)
        found = ((steps, pooled(rows)) for steps, rows in sorted(by_steps.items()))
        return [(steps, interval) for steps, interval in found if interval is not None]


class SweepResults(NamedTuple):
    """A sweep as read: its settings, the best first, its runs, and what they are score_name by."""

    folder: Path
    about: dict[str, Any]
    settings: list[Setting]
    runs: list[status.RunStatus]
    score_name: str

    @property
    def scored(self) -> list[Setting]:
        """Settings with a score."""
        return [setting for setting in self.settings if setting.scores]

    @property
    def fields(self) -> list[str]:
        """Those that vary."""
        names = list(dict.fromkeys(name for setting in self.settings for name in setting.values))
        return [
            name for name in names if len({_key(s.values.get(name)) for s in self.settings}) > 1
        ]

    @property
    def scale(self) -> float:
        """Rates are told in percent."""
        return 100.0 if self.score_name == "success" else 1.0


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a sweep's folder, into its ``report`` unless ``out`` names another; the path of the page. Raises
    ReportError or ConfigError."""
    found = read(Path(folder).resolve())
    target = Path(folder) / "report" if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    pictures = {}
    if found.scored:
        pictures["curves"] = _picture(_curves, found, "learning curves of the best settings")
        if found.fields:
            pictures["marginals"] = _picture(_marginals, found, "score against each field")
    for name, picture in pictures.items():
        write_bytes(target / f"{name}.png", picture.light)
    _write_csv(found, target / "table.csv")
    page = target / "report.html"
    write_text(page, _page(found, pictures))
    return page


def read(folder: Path) -> SweepResults:
    """The settings of a sweep, ranked by their mean score; those without one last. Raises ReportError for a mix of tasks score_name by
    success and by return."""
    about, runs = launcher.read(folder), status.standings(folder)
    settings: dict[str, Setting] = {}
    for run in runs:
        evals = _evaluations(launcher.folder_of(folder, run.id))
        for point, rows in _members(run.values, evals):
            setting = settings.setdefault(_key(point), Setting(point, [], [], True))
            setting.rows.extend(rows)
            setting.commands.append(about["runs"][run.id]["command"])
            settings[_key(point)] = setting._replace(done=setting.done and run.state == "finished")
    kinds = {score_name_of(row) for setting in settings.values() for row in setting.rows}
    if len(kinds) > 1:
        raise ReportError(
            f"{folder}: some tasks are score_name by success and some by return; sweep them apart"
        )
    ranked = sorted(
        settings.values(), key=lambda s: -float(np.mean(s.scores)) if s.scores else math.inf
    )
    return SweepResults(folder, about, ranked, runs, kinds.pop() if kinds else "success")


def _evaluations(folder: Path) -> list[Row]:
    return [
        row for row in metrics.rows(folder / "eval.jsonl") if row["stage"] in ("base", "finetune")
    ]


def _members(values: Mapping[str, Any], rows: list[Row]) -> Iterable[tuple[Point, list[Row]]]:
    """The settings that share a run, each with its rows: the base policy's are those of all."""
    plain = {name: value for name, value in values.items() if name != "seed" and not _packed(value)}
    packed = {name: value["packed"] for name, value in values.items() if _packed(value)}
    if not packed:
        yield plain, rows
        return
    for point in zip(*packed.values(), strict=True):
        own = dict(zip(packed, point, strict=True))
        member = Member(0, {name.removeprefix("algorithm."): value for name, value in own.items()})
        yield (
            plain | own,
            [
                row
                for row in rows
                if row["stage"] == "base" or row.get("population") == member.label
            ],
        )


def _packed(value: Any) -> bool:
    return isinstance(value, Mapping) and "packed" in value


def _key(values: Any) -> str:
    return json.dumps(values, sort_keys=True, default=str)


def _write_csv(found: SweepResults, path: Path) -> None:
    """Rates are fractions; a field is empty where its number is not known (yet)."""
    header = [
        *found.fields,
        "finished",
        "seeds",
        "before",
        *_columns(None, found.score_name),
        "env_steps",
        "command",
    ]
    with (
        atomic_replacement(path) as scratch,
        scratch.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, header, restval="")
        table.writeheader()
        for setting in found.settings:
            table.writerow(
                {
                    **{name: setting.values.get(name, "") for name in found.fields},
                    "finished": setting.done,
                    "seeds": len(setting.scores),
                    "before": setting.before.estimate if setting.before else "",
                    **_columns(setting.after, found.score_name),
                    "env_steps": max((row["env_steps"] for row in setting.final), default=""),
                    "command": setting.commands[0],
                }
            )


def _columns(interval: Interval | None, score_name: str) -> dict[str, Any]:
    return dict(
        zip(
            (score_name, f"{score_name}_low", f"{score_name}_high"),
            interval or ("", "", ""),
            strict=True,
        )
    )


# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _picture(draw: Any, found: SweepResults, what: str) -> Picture:
    light, dark = (run_page.png_bytes(draw(found, theme)) for theme in (LIGHT, DARK))
    return Picture(light, dark, what)


def _ylabel(found: SweepResults) -> str:
    return "final success (%)" if found.score_name == "success" else "final return"


def _marginals(found: SweepResults, theme: Theme) -> Figure:
    """A panel for each field: every setting as a point, and over each value the mean of all its trainings with its interval."""
    panels = [Panel("", name, _ylabel(found), lambda run: []) for name in found.fields]
    figure, axes = run_page.panel_grid(panels, min(3, len(panels)), (4.2, 3.2), theme)
    for panel, ax in zip(panels, axes, strict=True):
        run_page.label_axes(ax, panel, theme, 9.5)
        _marginal(ax, found, panel.title, theme)
        ax.set_xlabel(panel.title.rpartition(".")[2], color=theme.ink, fontsize=9.5)
    return figure


def _marginal(ax: Axes, found: SweepResults, field: str, theme: Theme) -> None:
    by_value = _by_value(found, field)
    numeric = all(run_page.is_number(value) for value in by_value)
    order = sorted(by_value) if numeric else list(by_value)
    means = np.asarray([mean_score(_all(by_value[value])) for value in order]) * found.scale
    places = np.asarray(order if numeric else range(len(order)), np.float64)
    for place, value in zip(places, order, strict=True):
        each = [found.scale * float(np.mean(scores)) for scores in by_value[value]]
        ax.plot([place] * len(each), each, "o", color=theme.palette[0], alpha=0.45, markersize=4)
    if numeric and places[0] > 0 and places[-1] >= 10 * places[0]:
        ax.set_xscale("log")
    if len(order) <= MAX_BARS:
        error = np.abs(means[:, 1:] - means[:, :1]).T
        style: dict[str, Any] = {
            "capsize": 3,
            "marker": "s",
            "markersize": 4,
            "elinewidth": 1.6,
            "linewidth": 1.6,
        }
        joined = "-" if numeric else ""
        ax.errorbar(places, means[:, 0], error, color=theme.palette[1], linestyle=joined, **style)
        ax.set_xticks(
            places, [f"{value:g}" if numeric else str(value) for value in order], fontsize=8.5
        )
        ax.xaxis.set_minor_locator(NullLocator())
    if not numeric:
        ax.set_xlim(-0.5, len(order) - 0.5)


def _by_value(found: SweepResults, field: str) -> dict[Any, list[list[float]]]:
    """Scores of the settings at each value of a field; values that are no numbers by their names."""
    by_value: dict[Any, list[list[float]]] = {}
    for setting in found.scored:
        if field in setting.values:
            value = setting.values[field]
            by_value.setdefault(value if run_page.is_number(value) else str(value), []).append(
                setting.scores
            )
    return by_value


def _all(scores: Iterable[list[float]]) -> list[float]:
    return [score for each in scores for score in each]


def _curves(found: SweepResults, theme: Theme) -> Figure:
    """Score against environment steps, of the best settings."""
    panel = Panel("", "", _ylabel(found).removeprefix("final "), lambda run: [])
    figure, (ax,) = run_page.panel_grid([panel], 1, (7.2, 4.2), theme)
    for setting, color in zip(found.scored[:CURVES], theme.palette, strict=False):
        x = [steps for steps, _ in setting.curve]
        mean, low, high = (
            found.scale * np.asarray([interval[i] for _, interval in setting.curve])
            for i in range(3)
        )
        ax.plot(x, mean, color=color, linewidth=2.0, label=status.label(setting.values))
        ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    run_page.label_axes(ax, panel, theme, 9.5)
    ax.set_xlabel("environment steps per seed", color=theme.ink, fontsize=9.5)
    for text in ax.legend(frameon=False, fontsize=8.5).get_texts():
        text.set(color=theme.ink, parse_math=False)
    return figure


# ── the page ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _page(found: SweepResults, pictures: Mapping[str, Picture]) -> str:
    failed = [
        (run.id, status.label(run.values), run.error) for run in found.runs if run.state == "failed"
    ]
    sections = {
        "What was run": run_page.fact_table((), _provenance(found)),
        "Settings, the best first": _ranking(found),
        "What each field does": (
            f"<p>{_MARGINALS}</p>{pictures['marginals'].html}" + _field_table(found)
        )
        if "marginals" in pictures
        else "",
        "Learning curves of the best": f'<div class="narrow">{pictures["curves"].html}</div>'
        if "curves" in pictures
        else "",
        "Commands that repeat the best": _commands(found),
        "Runs that failed": _table(("run", "setting", "error"), failed) if failed else "",
    }
    body = "".join(run_page.html_section(title, text) for title, text in sections.items() if text)
    title = f"Sweep of {len(found.settings)} settings"
    header = f"<header><h1>{title}</h1><p>{escape(found.folder.name)} <span>{escape(status.headline(found.runs))}</span></p></header>"
    return run_page.SHELL.format(
        title=title, css=run_page.CSS + _CSS, body=f"{header}\n{body}<footer>{_METHODS}</footer>"
    )


def _provenance(found: SweepResults) -> dict[str, list[str]]:
    rows = [row for setting in found.settings for row in setting.rows]
    episodes = sorted({row["eval/episodes"] for row in rows})
    facts = {
        "Sweep": found.about["file"],
        "Command": found.about["commands"][-1],
        "Fields that vary": ", ".join(found.fields),
        "Seeds of a setting": ", ".join(map(str, sorted({len(s.scores) for s in found.scored}))),
        "Evaluation": f"{' or '.join(map(str, episodes))} episodes per seed from fixed start states",
        "Versions": run_page.versions_text(found.about.get("versions")),
        "Commit": found.about.get("commit"),
    }
    return {name: [str(value or MISSING)] for name, value in facts.items()}


def _ranking(found: SweepResults) -> str:
    best = found.scored[0].scores if found.scored else []
    lines = []
    for place, setting in enumerate(found.settings):
        after, before = setting.after, setting.before
        beaten = (
            probability_of_improvement(best, setting.scores) if place and setting.scores else None
        )
        lines.append(
            (
                status.label(setting.values),
                str(len(setting.scores)),
                before.told(found.score_name) if before else MISSING,
                after.told(found.score_name) if after else MISSING,
                f"{100 * beaten.estimate:.0f} %" if beaten else MISSING,
                "finished" if setting.done else "not finished",
            )
        )
    heads = (
        "setting",
        "seeds",
        "before [95 %]",
        f"{found.score_name} [95 %]",
        "P(the best beats it)",
        "",
    )
    return _table(heads, lines)


def _field_table(found: SweepResults) -> str:
    """Mean and interquartile mean over everything that has a value."""
    lines = []
    for field in found.fields:
        by_value = _by_value(found, field)
        if len(by_value) > MAX_BARS:
            continue
        for value in sorted(by_value) if all(map(run_page.is_number, by_value)) else by_value:
            scores = _all(by_value[value])
            told = (
                function(scores).told(found.score_name)
                for function in (mean_score, interquartile_mean)
            )
            lines.append(
                (
                    field,
                    f"{value:g}" if run_page.is_number(value) else value,
                    str(len(scores)),
                    *told,
                )
            )
    return _table(
        ("field", "value", "trainings", "mean [95 %]", "interquartile mean [95 %]"), lines
    )


def _commands(found: SweepResults) -> str:
    told = []
    for setting in found.scored[:COMMANDS]:
        commands = "\n".join(dict.fromkeys(setting.commands))
        told.append(f"<p>{escape(status.label(setting.values))}</p><pre>{escape(commands)}</pre>")
    return "".join(told)


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return run_page.html_table(map(escape, heads), [[*map(escape, line)] for line in lines])


_CSS = "body { max-width:88rem; } .narrow { max-width:44rem; } .success th, .success td { padding-right:.9rem; font-size:.85rem; } .wide { overflow-x:auto; }\n"
_MARGINALS = (
    "Points are settings, each the mean of its seeds; the line is the mean over all trainings at a value, with a 95 % bootstrap "
    "over trainings. Fields that were varied together are not told apart by it, and early-stopped settings count with their last "
    "evaluation."
)
_METHODS = (
    "Intervals of a setting cover its seeds and episodes (Wilson's at the effective number of episodes; Student's for returns), "
    "those of a field resample trainings. The best of many settings is flattered by having been chosen: repeat it with new seeds."
)

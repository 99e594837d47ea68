"""Where a sweep stands, from its folder alone: any machine that sees the disk can ask."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from gcp_jax.launch import launcher
from gcp_jax.launch.axes import Point
from gcp_jax.run import metrics
from gcp_jax.stats.statistics import MISSING, pooled, score_name_of

SILENT = 90.0  # seconds without a sign of life after which a run is no longer running
STATES = ("running", "waiting", "paused", "finished", "dropped", "failed")
_TAIL = 1 << 16  # bytes


class RunStatus(NamedTuple):
    """One run: its state, environment steps of a seed done and in all, newest score told with its interval, that of the policy
    it started from, seconds left if it can be foretold, seconds spent on it so far, and the error of its last attempt."""

    id: str
    values: Point
    state: str
    done: int
    total: int
    score: str
    before: str
    left: float | None
    spent: float
    error: str


def standings(folder: Path) -> list[RunStatus]:
    """Every run of a sweep's folder. Raises ConfigError where that is no sweep."""
    known = launcher.read(folder)["runs"]
    return [
        standing(launcher.folder_of(folder, name), about["values"]) for name, about in known.items()
    ]


def standing(folder: Path, values: Point) -> RunStatus:
    """One run's."""
    evals = metrics.rows(folder / "eval.jsonl")
    newest, done = _newest(folder / "metrics.jsonl"), 0
    if newest.get("stage") == "finetune":
        done = newest["env_steps"]
    total = _total(folder)
    state, error = _state(folder)
    left = None
    if state == "running" and done and newest.get("train_seconds"):
        left = (total - done) * newest["train_seconds"] / done
    return RunStatus(
        id=folder.name,
        values=values,
        state=state,
        done=done,
        total=total,
        score=_told(evals, "finetune"),
        before=_told(evals, "base"),
        left=left,
        spent=_spent(folder),
        error=error,
    )


def cloning(folder: Path) -> int:
    """Clones that are being made, for which runs wait."""
    return sum(_alive(clone) for clone in folder.glob("clones/*"))


def table(found: Iterable[RunStatus], clones: int = 0) -> Table:
    """As a person reads it: counts above, a line for each run. clones: that are being made."""
    found = list(found)
    title = headline(found) + (f" · {clones} shared clones being made" if clones else "")
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("run", "state", "steps", "before", "now", "left", "what"):
        drawn.add_column(
            name, overflow="fold" if name == "what" else "ellipsis", no_wrap=name != "what"
        )
    for run in found:
        steps = f"{run.done:,}/{run.total:,}" if run.total else MISSING
        what = label(run.values) + (
            f" · {run.error}" if run.error and run.state != "finished" else ""
        )
        drawn.add_row(run.id, run.state, steps, run.before, run.score, clock(run.left), what)
    return drawn


def headline(found: list[RunStatus]) -> str:
    """``24 runs: 6 running, 10 waiting, 8 finished · about 0:12:30 left``"""
    counts = Counter(run.state for run in found)
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    seconds = left(found)
    return f"{len(found)} runs: {told}" + (
        f" · about {clock(seconds)} left" if seconds is not None else ""
    )


def left(found: list[RunStatus]) -> float | None:
    """Seconds until all is done, if as many run at a time as now and each takes what the finished ones took; None where nothing
    runs or nothing is finished."""
    took = [run.spent for run in found if run.state == "finished"]
    running = [run for run in found if run.state == "running"]
    if not took or not running:
        return None
    each = sum(took) / len(took)
    waiting = each * sum(run.state in ("waiting", "paused") for run in found)
    return (waiting + sum(each if run.left is None else run.left for run in running)) / len(running)


def label(values: Point) -> str:
    """``critic_lr=0.001, utd=0.125``: fields by their last name."""
    return (
        ", ".join(f"{name.rpartition('.')[2]}={_short(value)}" for name, value in values.items())
        or "as configured"
    )


def clock(seconds: float | None) -> str:
    """h:mm:ss"""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return _short(value["packed"])
    if isinstance(value, (list, tuple)):
        return "/".join(_short(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _state(folder: Path) -> tuple[str, str]:
    if launcher.finished(folder):
        return "finished", ""
    if (folder / "dropped.txt").exists():
        return "dropped", (folder / "dropped.txt").read_text().strip()
    attempts = metrics.rows(folder / "attempts.jsonl")
    last = attempts[-1] if attempts else {}
    how, error = last.get("outcome", ""), last.get("error", "")
    if "outcome" not in last and _alive(folder):
        return "running", ""
    if how in ("failed", "died"):
        return "failed", error
    return ("paused", "") if how == "paused" else ("waiting", "")


def _spent(folder: Path) -> float:
    """Seconds of all attempts that have ended."""
    spent, began = 0.0, None
    for row in metrics.rows(folder / "attempts.jsonl"):
        began = row.get("began", began)
        if "ended" in row and began is not None:
            spent, began = spent + row["ended"] - began, None
    return spent


def _alive(folder: Path) -> bool:
    try:
        return time.time() - os.stat(folder / "alive").st_mtime < SILENT
    except FileNotFoundError:
        return False


def _total(folder: Path) -> int:
    path = folder / "config.json"
    try:
        return int(json.loads(path.read_text())["config"]["finetune"]["env_steps"])
    except (FileNotFoundError, ValueError, KeyError):
        return 0


def _told(evals: list[dict[str, Any]], stage: str) -> str:
    """The newest score of a stage over all seeds and members, with its interval."""
    rows = [row for row in evals if row["stage"] == stage]
    newest = [row for row in rows if row["env_steps"] == rows[-1]["env_steps"]]
    interval = pooled(newest)
    return interval.told(score_name_of(newest[0])) if interval else MISSING


def _newest(path: Path) -> dict[str, Any]:
    """The last whole row of a file that may be long; {} without any."""
    try:
        with open(path, "rb") as file:
            file.seek(max(os.path.getsize(path) - _TAIL, 0))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return {}
    for line in reversed(lines[:-1]):
        try:
            row: dict[str, Any] = json.loads(line)
            return row
        except ValueError:
            continue
    return {}

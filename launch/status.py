"""The state of a sweep, read from its folder alone: any machine that sees the disk can ask."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from gcp_jax.config_fields import shortest
from gcp_jax.json_files import JsonError, Maybe, parse_json, problem_of, read_json
from gcp_jax.launch.axes import Point
from gcp_jax.launch.launcher import is_finished, run_folder
from gcp_jax.launch.manifest import read_manifest
from gcp_jax.launch.schedulers import DROPPED
from gcp_jax.report.read import eval_rows
from gcp_jax.run import metrics
from gcp_jax.stats.eval_rows import pooled_score, score_name_of
from gcp_jax.stats.intervals import MISSING

SILENT_SECONDS = 90.0  # without a heartbeat, after which a run no longer counts as running
STATES = ("running", "waiting", "paused", "finished", "dropped", "failed")
UNFINISHED = ("running", "waiting", "paused")
ATTEMPT = {  # a row of attempts.jsonl
    "began": Maybe(float),
    "ended": Maybe(float),
    "outcome": Maybe(str),
    "error": Maybe(str),
}
PROGRESS = {"stage": str, "env_steps": int, "train_seconds": Maybe(float)}  # of metrics.jsonl
WIDE = 120  # characters of a line that scores with their intervals need
_TAIL_BYTES = 1 << 16  # of a file, in which its last row is looked for


class RunStatus(NamedTuple):
    """The state of one run."""

    id: str
    values: Point  # what distinguishes the run
    state: str  # one of STATES
    env_steps: int  # of one seed, done
    total_env_steps: int  # of one seed, in all; 0 if unknown
    score: str  # the latest, with its interval
    base_score: str  # of the policy that finetuning started from
    seconds_left: float | None  # estimated; None if unknown
    seconds_spent: float  # of all attempts that have ended
    error: str  # of the last attempt, or why the run was dropped


def sweep_status(folder: Path) -> list[RunStatus]:
    """Return the state of every run of a sweep.

    Raises:
      ConfigError: if the folder holds no sweep.
    """
    runs = read_manifest(folder)["runs"]
    return [run_status(run_folder(folder, name), entry["values"]) for name, entry in runs.items()]


def run_status(folder: Path, values: Point) -> RunStatus:
    """Return the state of the run in ``folder``."""
    evals = eval_rows(folder / "eval.jsonl")
    newest = _last_row(folder / "metrics.jsonl")
    done = newest["env_steps"] if newest.get("stage") == "finetune" else 0
    total = _total_env_steps(folder)
    state, error = _state(folder)
    seconds_left = None
    if state == "running" and done and newest.get("train_seconds"):
        seconds_left = (total - done) * newest["train_seconds"] / done
    return RunStatus(
        id=folder.name,
        values=values,
        state=state,
        env_steps=done,
        total_env_steps=total,
        score=_latest_score(evals, "finetune"),
        base_score=_latest_score(evals, "base"),
        seconds_left=seconds_left,
        seconds_spent=_seconds_spent(folder),
        error=error,
    )


def count_active_clones(folder: Path) -> int:
    """Return how many shared clones of a sweep are being made."""
    return sum(_is_alive(clone) for clone in folder.glob("clones/*"))


def status_table(runs: Iterable[RunStatus], active_clones: int = 0, *, width: int = WIDE) -> Table:
    """Return a table of a line for each run, with the counts as its title.

    Args:
      runs: the runs.
      active_clones: how many shared clones are being made.
      width: characters of a line; in fewer than ``WIDE`` scores are without their intervals.
    """
    runs = list(runs)
    title = headline(runs)
    if active_clones:
        title += f" · {active_clones} shared clones being made"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("run", "state", "steps", "before", "now", "left"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    table.add_column("what", overflow="fold")
    for run in runs:
        steps = MISSING
        if run.total_env_steps:
            steps = f"{run.env_steps:,}/{run.total_env_steps:,}"
        what = values_label(run.values)
        if run.error and run.state != "finished":
            what += f" · {run.error}"
        scores = [run.base_score, run.score]
        if width < WIDE:
            scores = [score.partition(" [")[0] for score in scores]
        table.add_row(run.id, run.state, steps, *scores, format_seconds(run.seconds_left), what)
    return table


def headline(runs: Sequence[RunStatus]) -> str:
    """Return ``24 runs: 6 running, 10 waiting, 8 finished · about 0:12:30 left``."""
    counts = Counter(run.state for run in runs)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    text = f"{len(runs)} runs: {states}"
    seconds = sweep_seconds_left(runs)
    if seconds is not None:
        text += f" · about {format_seconds(seconds)} left"
    return text


def sweep_seconds_left(runs: Sequence[RunStatus]) -> float | None:
    """Return the estimated seconds until all runs have finished.

    It assumes that as many run at a time as now, and that each takes the mean time of the finished
    ones. None if no run is running or none has finished.
    """
    finished = [run.seconds_spent for run in runs if run.state == "finished"]
    running = [run for run in runs if run.state == "running"]
    if not finished or not running:
        return None
    mean = sum(finished) / len(finished)
    waiting = mean * sum(run.state in ("waiting", "paused") for run in runs)
    started = sum(mean if run.seconds_left is None else run.seconds_left for run in running)
    return (waiting + started) / len(running)


def values_label(values: Point) -> str:
    """Return ``critic_lr=0.001, utd=0.125``: fields by their last name."""
    parts = [f"{name.rpartition('.')[2]}={_short(value)}" for name, value in values.items()]
    return ", ".join(parts) or "as configured"


def format_seconds(seconds: float | None) -> str:
    """Return ``h:mm:ss``."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return _short(value["packed"])
    if isinstance(value, (list, tuple)):
        return "/".join(_short(item) for item in value)
    return shortest(value) if isinstance(value, float) else str(value)


def _state(folder: Path) -> tuple[str, str]:
    """Return the state of a run, and its error or the reason why it was dropped."""
    if is_finished(folder):
        return "finished", ""
    if (folder / DROPPED).exists():
        return "dropped", (folder / DROPPED).read_text().strip()
    attempts = metrics.rows(folder / "attempts.jsonl", ATTEMPT)
    last = attempts[-1] if attempts else {}
    if "outcome" not in last:
        return ("running" if _is_alive(folder) else "waiting"), ""
    if last["outcome"] in ("failed", "died", "decayed"):
        return "failed", last.get("error", "")
    if last["outcome"] == "paused":
        return "paused", ""
    return "waiting", ""


def _seconds_spent(folder: Path) -> float:
    """Return the seconds of all attempts that have ended."""
    spent = 0.0
    began = None
    for row in metrics.rows(folder / "attempts.jsonl", ATTEMPT):
        began = row.get("began", began)
        if "ended" in row and began is not None:
            spent += row["ended"] - began
            began = None
    return spent


def _is_alive(folder: Path) -> bool:
    """Return whether a worker has touched the folder's ``alive`` recently."""
    try:
        return time.time() - os.stat(folder / "alive").st_mtime < SILENT_SECONDS
    except FileNotFoundError:
        return False


def _total_env_steps(folder: Path) -> int:
    path = folder / "config.json"
    try:
        content = read_json(path, {"config": {"finetune": {"env_steps": int}}})
    except (FileNotFoundError, JsonError):
        return 0
    total: int = content["config"]["finetune"]["env_steps"]
    return total


def _latest_score(evals: list[dict[str, Any]], stage: str) -> str:
    """Return the latest score of a stage over all seeds, with its interval.

    Of a population it is the lowest and the highest score of its members.
    """
    rows = [row for row in evals if row["stage"] == stage]
    latest = [row for row in rows if row["env_steps"] == rows[-1]["env_steps"]]
    members: dict[Any, list[dict[str, Any]]] = {}
    for row in latest:
        members.setdefault(row.get("population"), []).append(row)
    intervals = [interval for interval in map(pooled_score, members.values()) if interval]
    if not intervals:
        return MISSING
    score_name = score_name_of(latest[0])
    if len(intervals) == 1:
        return intervals[0].format(score_name)
    alone = sorted(interval._replace(low=math.nan, high=math.nan) for interval in intervals)
    lowest = alone[0].format(score_name)
    highest = alone[-1].format(score_name)
    return f"{lowest} – {highest} ({len(alone)} members)"


def _last_row(path: Path) -> dict[str, Any]:
    """Return the last complete row of a JSON-lines file without reading all of it; {} if none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(os.path.getsize(path) - _TAIL_BYTES, 0))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return {}
    for line in reversed(lines[:-1]):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if not problem_of(row, PROGRESS):
            newest: dict[str, Any] = row
            return newest
    return {}

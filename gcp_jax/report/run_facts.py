"""The facts of a run page: what was run, its demonstrations, and how fast it was."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from gcp_jax.report import run_numbers
from gcp_jax.report.read import RunFiles, is_number, shared_score_name
from gcp_jax.report.tables import Cell, Table, fact_table, make_table
from gcp_jax.report.text import (
    format_count,
    format_duration,
    format_episodes,
    format_versions,
    known,
)
from gcp_jax.stats.eval_rows import last_rows, score_curve
from gcp_jax.stats.intervals import MISSING, Interval, jeffreys

THRESHOLDS = (0.5, 0.8, 0.9, 0.95)  # success rates whose first crossing is reported
_SPEEDS = {  # medians over segments
    "env steps/s before learning starts, median": "warmup_env_steps",
    "env steps/s while learning, median": "env_steps",
    "updates/s while learning, median": "updates",
}


def name_of(run: RunFiles, section: str) -> str:
    """``config[section]``, or its ``name`` if it is a group of fields."""
    value = run.config.get(section)
    if isinstance(value, Mapping):
        value = value.get("name")
    return known(value)


def provenance(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    """Command, environment, method, seeds, evaluation and versions of every run."""
    settings = _differing_settings(runs)
    return {
        "Command": [known(run.record.get("command")) for run in runs],
        "Environment": [name_of(run, "env") for run in runs],
        **({"Environment settings that differ": settings} if any(settings) else {}),
        "Algorithm": [name_of(run, "algorithm") for run in runs],
        "Seeds": [known(", ".join(map(str, run.seeds))) for run in runs],
        "Evaluation": [_evaluation(run) for run in runs],
        "Versions": [format_versions(run.record.get("versions")) for run in runs],
        "Commit": [known(run.record.get("commit")) for run in runs],
    }


def _differing_settings(runs: Sequence[RunFiles]) -> list[str]:
    """The settings of each run's environment that are not the same in all runs."""
    envs = [run.config.get("env") for run in runs]
    settings = [env if isinstance(env, Mapping) else {} for env in envs]
    names = sorted({name for each in settings for name in each})
    differing = [
        name for name in names if len({json.dumps(each.get(name)) for each in settings}) > 1
    ]
    return [
        ", ".join(f"{name}={each[name]}" for name in differing if name in each) for each in settings
    ]


def _evaluation(run: RunFiles) -> str:
    if not run.evals:
        return "none yet"
    diverged = 0
    for row in run.evals:
        if is_number(row.get("eval/diverged")):
            diverged += int(row["eval/diverged"])
    return f"{format_episodes(run.evals)}; {diverged} episodes diverged"


def demonstrations(runs: Sequence[RunFiles], columns: Sequence[Cell]) -> Table | None:
    """Facts about the demonstrations; None if no run has recorded any."""
    if not any(run.demonstrations for run in runs):
        return None
    names = {
        "Episodes": "episodes",
        "Episodes by mode": "modes",
        "Success": "success",
        "Mean return": "return",
        "Trajectory quality (TQ)": "trajectory_quality",
        "State-action coverage (SACo)": "coverage",
    }
    facts = {name: [_demonstration_fact(run, key) for run in runs] for name, key in names.items()}
    return fact_table("demonstrations", facts, columns)


def _demonstration_fact(run: RunFiles, name: str) -> str:
    value = run.demonstrations.get(name)
    if isinstance(value, list):
        return " + ".join(str(part) for part in value)
    if not is_number(value):
        return MISSING
    return f"{100 * value:.1f} %" if name == "success" else f"{value:,}"


def credible(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    """The 95 % credible interval of every seed's success rate after finetuning."""
    texts = []
    for run in runs:
        seeds = []
        if run.score_name == "success":
            for seed, row in sorted(last_rows(run.evals).after.items()):
                interval = jeffreys(int(row["eval/successes"]), int(row["eval/episodes"]))
                seeds.append(f"seed {seed}: {interval.percent()}")
        texts.append(known("; ".join(seeds)))
    return {"95 % credible interval after finetuning": texts}


def best_policies(run: RunFiles, index: int) -> Table | None:
    """The best policy of every seed by evaluation; None if the run names none.

    Args:
        run: the run.
        index: its place on the page.
    """
    if not run.best:
        return None
    heads = ("", "chosen at, env steps", "of evaluations", "selected", "on fresh start states")
    rows = []
    for entry in run.best:
        steps = "base policy" if entry["is_base"] else format_count(entry["env_steps"])
        selected = Interval(entry["selected"], math.nan, math.nan)
        fresh = Interval(entry["fresh"], entry["fresh_low"], entry["fresh_high"])
        rows.append(
            (
                f"seed {entry['seed']}",
                steps,
                format_count(entry["evaluations"]),
                selected.format(run.score_name),
                fresh.format(run.score_name),
            )
        )
    return make_table(f"best_policies_{index}", heads, rows)


def timing(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    """Steps, times, speeds and steps to each threshold of every run."""
    steps = [run_numbers.last_counter(run, "env_steps") for run in runs]
    updates = [run_numbers.last_counter(run, "updates") for run in runs]
    facts = {
        "State": [run.state for run in runs],
        "Environment steps per seed": [format_count(count) for count in steps],
        "Gradient updates per seed": [format_count(count) for count in updates],
        "Wall time": [format_duration(run_numbers.wall_seconds(run)) for run in runs],
        "of it training": [format_duration(run_numbers.training_seconds(run)) for run in runs],
        "of it compiling": [format_duration(run.summary.get("compile_seconds")) for run in runs],
    }
    speeds = [run_numbers.throughput(run) for run in runs]
    for name, key in _SPEEDS.items():
        facts[name] = [format_count(getattr(speed, key)) for speed in speeds]
    if shared_score_name(runs) == "success":
        for threshold in THRESHOLDS:
            fact = f"Environment steps to {100 * threshold:.0f} %"
            facts[fact] = [_steps_to(run, threshold) for run in runs]
    return facts


def _steps_to(run: RunFiles, threshold: float) -> str:
    points = score_curve(run.evals)
    steps = run_numbers.cost_to(
        [point.env_steps for point in points],
        [point.score.estimate for point in points],
        threshold,
        finished=bool(run.summary),
    )
    if steps is None:
        return "not reached yet"
    return steps if isinstance(steps, str) else format_count(steps)

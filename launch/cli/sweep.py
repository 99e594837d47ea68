"""``gcp-jax sweep`` and ``gcp-jax status``."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table

from gcp_jax.config import ConfigError, to_dict
from gcp_jax.experiments import assemble
from gcp_jax.experiments.plan import plan
from gcp_jax.launch import backends, launcher, schedulers, status
from gcp_jax.launch import spec as sweeps
from gcp_jax.launch.spec import RunSpec, Sweep
from gcp_jax.run import training

WIDTH = 160  # columns of a table that goes to no terminal


def sweep(
    file: str,
    *,
    folder: Path,
    on: str,
    slots: int | None,
    retries: int,
    address: str,
    resources: Mapping[str, float],
    slurm: Mapping[str, Any],
    command: str,
) -> dict[str, Any]:
    """Run what is left of a sweep. The folder is held against a second launcher."""
    chosen = sweeps.load(file)
    runs = planned_runs(chosen)
    devices = max(run.config.data_parallel for run in runs)
    run_sizes(runs)
    with training.run_folder_lock(folder):
        launcher.describe(runs if not chosen.search else [], folder, file=file, command=command)
        plan = schedulers.make(chosen, runs, folder)
        backend = backends.make(
            on,
            folder=folder,
            slots=slots,
            devices=devices,
            address=address,
            resources=resources,
            slurm=slurm,
        )
        began = time.monotonic()
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            ended = launcher.launch(
                chosen, plan, folder, backend, retries=retries, told=launcher.to_stderr
            )
        except KeyboardInterrupt:
            print("stopping: what runs here saves first …", file=sys.stderr)
            raise training.Interrupted(
                f"stopped; the same command goes on with what is left in {folder}.", signal.SIGINT
            ) from None
        finally:
            backend.close()
            signal.signal(signal.SIGTERM, before)
    found = status.standings(folder)
    _show(found)
    return {
        "run_dir": str(folder),
        "runs": len(found),
        "finished": sum(run.state == "finished" for run in found),
        "skipped": ended.skipped,
        "failed": ended.failed,
        "seconds": round(time.monotonic() - began, 1),
    }


def planned_runs(chosen: Sweep) -> list[RunSpec]:
    """The runs of a sweep; of a search, one point in the middle of its space, which stands for all."""
    if not chosen.search:
        return sweeps.runs(chosen)
    middle = {name: kind.middle for name, kind in chosen.search.space.items()}
    return [
        run for point in sweeps.points(chosen) for run in sweeps.runs(chosen, {**point, **middle})
    ]


class Size(NamedTuple):
    """What runs of one shape take. plan: see ``experiments.planning.plan``; task: that the first of them makes."""

    plan: dict[str, Any]
    task: training.TaskInterface


def run_sizes(runs: Sequence[RunSpec]) -> dict[str, Size]:
    """The size of every run by its ``shape``, before anything is started. Raises ConfigError for a run that cannot be."""
    made: dict[str, training.TaskInterface] = {}
    found: dict[str, Size] = {}
    for run in runs:
        key = compile_shape(run)
        if key in found:
            continue
        task_key = json.dumps(
            [run.config.env, to_dict(run.config)["demonstrations"]], sort_keys=True
        )
        if task_key not in made:
            made[task_key] = assemble.make_task(run.config, film=False)
        found[key] = Size(plan.plan(run.config, made[task_key]), made[task_key])
    return found


def compile_shape(run: RunSpec) -> str:
    """A run without the numbers of its method that shape nothing."""
    content = to_dict(run.config)
    content["algorithm"] = {
        k: v for k, v in content["algorithm"].items() if not isinstance(v, float)
    }
    del content["seed"]
    return json.dumps(content, sort_keys=True)


def dry_run(file: str) -> dict[str, Any]:
    """The table of a sweep's runs, and what they will take; nothing is started or written."""
    chosen = sweeps.load(file)
    runs = planned_runs(chosen)
    sizes, rate = run_sizes(runs), plan.rate()
    costs: dict[str, plan.Cost] = {}
    drawn = Table(box=None, pad_edge=False)
    for name in ("run", "members", "env steps", "updates", "MiB", "hours", "what"):
        drawn.add_column(
            name, justify="left" if name in ("run", "what") else "right", overflow="fold"
        )
    rows = []
    for run in runs:
        key = compile_shape(run)
        if key not in costs:
            costs[key] = plan.cost(run.config, sizes[key].task)
        numbers, members = sizes[key].plan, len(run.config.members)
        rows.append(
            {
                "id": run.id,
                "values": run.values,
                "members": members,
                "env_steps": numbers["env_steps_per_seed"] * members,
                "updates": numbers["updates"] * members,
                "bytes": sum(
                    numbers[f"{part}_bytes"] for part in ("state", "replay", "env", "batches")
                ),
                "hours": costs[key].hours(rate),
            }
        )
        row = rows[-1]
        cells = (f"{row[k]:,}" for k in ("members", "env_steps", "updates"))
        drawn.add_row(
            run.id,
            *cells,
            f"{row['bytes'] / 2**20:,.0f}",
            f"{row['hours']:.2f}",
            status.label(run.values),
        )
    times = chosen.search.trials if chosen.search else 1
    clones = len({launcher.clone_of(run) for run in runs if launcher.clone_of(run)})
    total = {
        "jobs": len(runs) * times,
        "clones": clones,
        "members": sum(row["members"] for row in rows) * times,
        "env_steps": sum(row["env_steps"] for row in rows) * times,
        "updates": sum(row["updates"] for row in rows) * times,
        "bytes": sum(row["bytes"] for row in rows) * times,
        "hours": round(sum(row["hours"] for row in rows) * times, 3),
    }
    _console().print(drawn)
    searched = (
        f" ({times} trials of a search; the runs above stand for one)" if chosen.search else ""
    )
    print(
        f"{total['jobs']} jobs{searched} of {total['members']} trainings, from {clones} shared clones: "
        f"{total['env_steps']:,} env steps, {total['updates']:,} updates, {total['bytes'] / 2**20:,.0f} MiB of state if all ran "
        f"at once, {total['hours']:.2f} hours of a machine like this one ({rate / 1e9:,.0f} GFLOP/s), one job at a time, without "
        "compiling and evaluations",
        file=sys.stderr,
    )
    return {**total, "runs": rows}


def show_status(folder: Path, *, watch: bool) -> dict[str, Any]:
    """Where a sweep stands; watch: again and again until nothing is left to do."""
    found = status.standings(folder)
    if watch and sys.stderr.isatty():
        with Live(status.table(found), console=_console(), refresh_per_second=1) as live:
            while any(run.state in ("running", "waiting", "paused") for run in found):
                time.sleep(2)
                found = status.standings(folder)
                live.update(status.table(found, status.cloning(folder)))
    else:
        _show(found, status.cloning(folder))
    counts = {state: sum(run.state == state for run in found) for state in status.STATES}
    return {**counts, "runs": [run._asdict() for run in found]}


def _show(found: Sequence[status.RunStatus], clones: int = 0) -> None:
    _console().print(status.table(found, clones))


def _console() -> Console:
    terminal = sys.stderr.isatty()
    return Console(file=sys.stderr, width=None if terminal else WIDTH, highlight=False)


def amounts(words: Sequence[str]) -> dict[str, float]:
    """``CPU=2`` and so on. Raises ConfigError."""
    found = {}
    for word in words:
        name, _, amount = word.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            raise ConfigError(
                f"--resources={word}; give NAME=AMOUNT, e.g. --resources=GPU=1."
            ) from None
    return found


def settings(words: Sequence[str]) -> dict[str, Any]:
    """``partition=gpu``, ``timeout_min=240`` and so on; whole numbers as such. Raises ConfigError."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--slurm={word}; give NAME=VALUE, e.g. --slurm=partition=gpu.")
        found[name] = int(value) if value.isdigit() else value
    return found

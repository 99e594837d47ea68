"""``gcp-jax sweep --dry-run``: the sizes and the costs of a sweep's runs, before one is started."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.table import Table

from gcp_jax.config import to_dict
from gcp_jax.console import make_console
from gcp_jax.experiments import assemble
from gcp_jax.experiments.plan import plan
from gcp_jax.launch import expand, launcher, status
from gcp_jax.launch.expand import RunSpec
from gcp_jax.launch.spec import Sweep
from gcp_jax.run.task import TaskInterface

COLUMNS = ("run", "members", "env steps", "updates", "MiB", "hours", "what")
BYTES = ("state_bytes", "replay_bytes", "env_bytes", "batches_bytes")
SUMS = ("members", "env_steps", "updates", "bytes", "hours")


class Size(NamedTuple):
    """What the runs of one shape take."""

    plan: dict[str, Any]  # see gcp_jax.experiments.plan
    task: TaskInterface


def planned_runs(sweep: Sweep) -> list[RunSpec]:
    """The runs of a sweep; of a search, the middle of its space, which stands for all trials."""
    if not sweep.search:
        return expand.expand(sweep)
    middle = {name: kind.middle for name, kind in sweep.search.space.items()}
    runs: list[RunSpec] = []
    for point in expand.list_points(sweep):
        runs += expand.expand(sweep, {**point, **middle})
    return runs


def run_sizes(runs: Sequence[RunSpec]) -> dict[str, Size]:
    """The size of every run by its ``compile_shape``.

    Raises:
      ConfigError: if a run is not possible.
    """
    tasks: dict[str, TaskInterface] = {}
    sizes: dict[str, Size] = {}
    for run in runs:
        shape = compile_shape(run)
        if shape in sizes:
            continue
        content = to_dict(run.config)
        task_key = json.dumps([content["env"], content["demonstrations"]], sort_keys=True)
        if task_key not in tasks:
            tasks[task_key] = assemble.make_task(run.config, film=False)
        task = tasks[task_key]
        sizes[shape] = Size(plan=plan.plan(run.config, task), task=task)
    return sizes


def compile_shape(run: RunSpec) -> str:
    """What shapes a run's programs: its configuration without seed and numbers of the method."""
    content = to_dict(run.config)
    settings = content["algorithm"].items()
    content["algorithm"] = {name: x for name, x in settings if not isinstance(x, float)}
    del content["seed"]
    return json.dumps(content, sort_keys=True)


def dry_run(sweep: Sweep) -> dict[str, Any]:
    """Print a table of a sweep's runs and what they will take; nothing is started or written.

    Returns:
      What ``gcp-jax sweep --dry-run --json`` prints.
    """
    runs = planned_runs(sweep)
    rate = plan.rate()
    rows = _rows(runs, rate)
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        is_text = name in ("run", "what")
        table.add_column(name, justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        table.add_row(*_cells(row))
    make_console(highlight=False).print(table)
    trials = sweep.search.trials if sweep.search else 1
    clones = {launcher.clone_id(run) for run in runs} - {""}
    total = {"jobs": len(runs) * trials, "clones": len(clones)}
    total |= {name: sum(row[name] for row in rows) * trials for name in SUMS}
    total["hours"] = round(total["hours"], 3)
    searched = ""
    if sweep.search:
        searched = f" ({trials} trials of a search; the runs above stand for one)"
    print(
        f"{total['jobs']} jobs{searched} of {total['members']} trainings, from "
        f"{total['clones']} shared clones: {total['env_steps']:,} env steps, "
        f"{total['updates']:,} updates, {total['bytes'] / 2**20:,.0f} MiB of state if all ran at "
        f"once, {total['hours']:.2f} hours on a machine like this one ({rate / 1e9:,.0f} GFLOP/s), "
        "one job at a time, without compiling and evaluations",
        file=sys.stderr,
    )
    return {**total, "runs": rows}


def _rows(runs: Sequence[RunSpec], rate: float) -> list[dict[str, Any]]:
    """One record for each run. rate: operations a second of this machine."""
    sizes = run_sizes(runs)
    costs: dict[str, plan.Cost] = {}
    rows = []
    for run in runs:
        shape = compile_shape(run)
        numbers = sizes[shape].plan
        if shape not in costs:
            costs[shape] = plan.cost(run.config, sizes[shape].task)
        members = len(run.config.members)
        row = {
            "id": run.id,
            "values": run.values,
            "members": members,
            "env_steps": numbers["env_steps_per_seed"] * members,
            "updates": numbers["updates"] * members,
            "bytes": sum(numbers[name] for name in BYTES),
            "hours": costs[shape].hours(rate),
        }
        rows.append(row)
    return rows


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["id"],
        f"{row['members']:,}",
        f"{row['env_steps']:,}",
        f"{row['updates']:,}",
        f"{row['bytes'] / 2**20:,.0f}",
        f"{row['hours']:.2f}",
        status.values_label(row["values"]),
    )

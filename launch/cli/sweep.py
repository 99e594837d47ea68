"""The commands ``sweep`` and ``status``."""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import flags
from rich.live import Live

from gcp_jax.config import ConfigError
from gcp_jax.config_fields import MAX_COUNT
from gcp_jax.console import make_console
from gcp_jax.launch import (
    backends,
    dry_run,
    expand,
    launcher,
    manifest,
    schedulers,
    status,
    worker,
)
from gcp_jax.launch.cli.parse import Arguments, Command, Configuration
from gcp_jax.launch.spec import Sweep
from gcp_jax.run.errors import Interrupted
from gcp_jax.run.folder import refuse_foreign_folder, run_folder_lock

WATCH_SECONDS = 2.0  # between two looks at a sweep's folder


def sweep(arguments: Arguments) -> dict[str, Any]:
    """Do the runs of a sweep that are not finished, or list them (--dry-run)."""
    values = arguments.flags
    file = arguments.one_positional(
        "sweep file", "gcp-jax sweep experiments/sweeps/learning_rates.py"
    )
    folder = arguments.run_dir(default=f"runs/sweeps/{Path(file).stem}")
    overrides = {name: x for name, x in arguments.overrides.items() if name != "run_dir"}
    declared = with_overrides(expand.load_sweep(file), overrides)
    if values.dry_run:
        return dry_run.dry_run(declared)
    runs = dry_run.planned_runs(declared)
    dry_run.run_sizes(runs)  # raises if a run is not possible
    return _launch(declared, runs, Path(folder), arguments)


def with_overrides(declared: Sweep, overrides: Mapping[str, Any]) -> Sweep:
    """The sweep with fields of every run replaced.

    Raises:
      ConfigError: if a field is one that the sweep varies.
    """
    fields = {**declared.fields, **overrides}
    seeds = fields.pop("seeds", declared.seeds)
    return dataclasses.replace(declared, fields=fields, seeds=seeds)


def _launch(
    declared: Sweep, runs: Sequence[expand.RunSpec], folder: Path, arguments: Arguments
) -> dict[str, Any]:
    """Launch what is left of a sweep, holding its folder against a second launcher.

    Everything that can be refused is refused before the folder is made.
    """
    values = arguments.flags
    start = time.monotonic()
    schedulers.check_packages(declared)
    worker.load_entry_point(declared.entry_point)
    refuse_foreign_folder(folder, manifest.NAME)
    if (folder / manifest.NAME).exists():
        manifest.read_manifest(folder)
    launcher.check_resumable(runs, folder, declared.entry_point)
    backend = backends.make_backend(
        values.backend,
        folder=folder,
        max_parallel=values.max_parallel,
        devices=max(run.config.data_parallel for run in runs),
        address=values.address,
        resources=parse_resources(values.resources),
        slurm=parse_slurm(values.slurm),
    )
    with _stopping(backend, folder), run_folder_lock(folder):
        manifest.write_manifest(
            [] if declared.search else runs,
            folder,
            file=arguments.positional[0],
            command=arguments.command_line,
        )
        summary = launcher.launch(
            declared,
            schedulers.make_scheduler(declared, runs, folder),
            folder,
            backend,
            retries=values.retries,
            log=launcher.log_to_stderr,
        )
    states = status.sweep_status(folder)
    _print_status(states)
    return {
        "run_dir": str(folder),
        "runs": len(states),
        "finished": sum(run.state == "finished" for run in states),
        "skipped": summary.skipped,
        "failed": summary.failed,
        "seconds": round(time.monotonic() - start, 1),
    }


@contextmanager
def _stopping(backend: launcher.Backend, folder: Path) -> Iterator[None]:
    """Stop on SIGINT and SIGTERM, and close the backend in every case.

    Raises:
      Interrupted: if a signal stopped the launch.
    """
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print("stopping: the runs on this machine are saved first …", file=sys.stderr)
        raise Interrupted(
            f"stopped; the same command resumes what is left in {folder}.", signal.SIGINT
        ) from None
    finally:
        backend.close()
        signal.signal(signal.SIGTERM, handler)


def show_status(arguments: Arguments) -> dict[str, Any]:
    """Print the state of every run of a sweep, once or until nothing is left to do (--watch)."""
    folder = Path(
        arguments.one_positional("sweep folder", "gcp-jax status runs/sweeps/learning_rates")
    )
    states = status.sweep_status(folder)
    if arguments.flags.watch and sys.stderr.isatty():
        states = _watch(folder, states)
    else:
        _print_status(states, status.count_active_clones(folder))
    counts = {state: sum(run.state == state for run in states) for state in status.STATES}
    return {**counts, "runs": [run._asdict() for run in states]}


def _watch(folder: Path, states: list[status.RunStatus]) -> list[status.RunStatus]:
    console = make_console(highlight=False)
    table = status.status_table(states, width=console.width)
    with Live(table, console=console, refresh_per_second=1) as live:
        while any(run.state in status.UNFINISHED for run in states):
            time.sleep(WATCH_SECONDS)
            states = status.sweep_status(folder)
            clones = status.count_active_clones(folder)
            live.update(status.status_table(states, clones, width=console.width))
    return states


def _print_status(states: Sequence[status.RunStatus], active_clones: int = 0) -> None:
    console = make_console(highlight=False)
    console.print(status.status_table(states, active_clones, width=console.width))


def parse_resources(words: Sequence[str]) -> dict[str, float]:
    """{"CPU": 2.0} from ["CPU=2"]. Raises ConfigError for another form."""
    resources = {}
    for word in words:
        name, _, amount = word.partition("=")
        try:
            resources[name] = float(amount)
        except ValueError:
            resources[name] = math.nan
        if not name or not 0.0 <= resources[name] < math.inf:
            example = "give NAME=AMOUNT, a number of at least 0, e.g. --resources=GPU=1"
            raise ConfigError(f"--resources={word}; {example}.")
    return resources


def parse_slurm(words: Sequence[str]) -> dict[str, Any]:
    """{"partition": "gpu", "time": 240} from ["partition=gpu", "time=240"].

    Raises:
      ConfigError: for another form.
    """
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            example = "give NAME=VALUE, e.g. --slurm=partition=gpu"
            raise ConfigError(f"--slurm={word}; {example}.")
        options[name] = int(value) if value.isdigit() else value
    return options


def _sweep_flags(declared: flags.FlagValues) -> None:
    flags.DEFINE_bool(
        "dry_run", False, "list the runs with their steps, bytes and hours", flag_values=declared
    )
    flags.DEFINE_string(
        "run_dir",
        "",
        "the folder of the sweep (default: runs/sweeps/NAME-OF-FILE)",
        flag_values=declared,
    )
    flags.DEFINE_string(
        "backend",
        "local",
        f"where runs are started: {', '.join(backends.NAMES)}",
        flag_values=declared,
    )
    flags.DEFINE_integer(
        "max_parallel",
        None,
        "local: runs at a time (default: one for each accelerator, or for two cores)",
        flag_values=declared,
        lower_bound=1,
        upper_bound=MAX_COUNT,
    )
    flags.DEFINE_integer(
        "retries",
        2,
        "further attempts at a run that fails; its error is kept and shown",
        flag_values=declared,
        lower_bound=0,
        upper_bound=MAX_COUNT,
    )
    flags.DEFINE_string(
        "address",
        "",
        "ray: HOST:PORT of the cluster (default: the one Ray finds, or a new one here)",
        flag_values=declared,
    )
    flags.DEFINE_multi_string(
        "resources",
        [],
        "ray: what a run takes, e.g. --resources=CPU=2 --resources=GPU=1",
        flag_values=declared,
    )
    flags.DEFINE_multi_string(
        "slurm",
        [],
        "slurm: an option of sbatch, named as submitit does, e.g. --slurm=partition=gpu "
        "--slurm=time=240 --slurm=gpus_per_node=1",
        flag_values=declared,
    )


def _status_flags(declared: flags.FlagValues) -> None:
    flags.DEFINE_bool(
        "watch", False, "repeat every two seconds until nothing is left to do", flag_values=declared
    )


COMMANDS = {
    "sweep": Command(
        run=sweep,
        usage="FILE [--dry-run] [--backend=local] [--config.FIELD=VALUE …] [--run_dir=DIR]",
        description="""\
FILE is Python with get_sweep() -> gcp_jax.launch.Sweep, e.g. experiments/sweeps/learning_rates.py.
A run's folder is DIR/runs/ID; ID is the hash of its configuration. The same command, or a FILE with
more runs, skips what is finished and resumes what is not. SLURM jobs are queued again when they are
preempted.""",
        json="run_dir, runs, finished, skipped, failed, seconds; with --dry-run the table",
        configuration=Configuration.OVERRIDES,
        define_flags=_sweep_flags,
    ),
    "status": Command(
        run=show_status,
        usage="SWEEP [--watch] [--json]",
        description="""\
One line for each run: state, steps, success before and now, time left. It works on any machine that
sees the sweep's folder.""",
        json="the number of runs in each state, and every run",
        define_flags=_status_flags,
    ),
}

"""The command ``benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from gcp_jax.config_fields import MAX_COUNT
from gcp_jax.experiments import comparison, runtime
from gcp_jax.launch.cli.parse import Arguments, Command, Configuration

RUN_DIR = "runs/benchmark"  # unless a flag names another


def benchmark(arguments: Arguments) -> dict[str, Any]:
    """Compare methods on tasks from shared clones; the report and what finished."""
    arguments.no_positional()
    values = arguments.flags
    folder = arguments.run_dir(default=RUN_DIR)
    overrides = {name: x for name, x in arguments.overrides.items() if name != "run_dir"}
    chosen = comparison.choose(
        file=values.file,
        algorithms=values.algorithms,
        envs=values.envs,
        seeds=values.seeds,
        steps=values.steps,
        overrides=overrides,
        clones=values.clones,
    )
    runtime.prepare_cpu(chosen.data_parallel)
    return comparison.run(chosen, Path(folder), arguments.command_line)


def _benchmark_flags(declared: flags.FlagValues) -> None:
    flags.DEFINE_list("algorithms", [], "methods, e.g. ogpo,dppo", flag_values=declared)
    flags.DEFINE_list("envs", [], "tasks, e.g. peg_insert,pick_place", flag_values=declared)
    flags.DEFINE_string(
        "file",
        "",
        "tasks, methods and settings from a file, e.g. experiments/comparisons/clones.py; the "
        "other flags override it",
        flag_values=declared,
    )
    flags.DEFINE_integer(
        "seeds",
        None,
        "seeds of each method from each clone; 3 if the file names no number",
        flag_values=declared,
        lower_bound=1,
        upper_bound=MAX_COUNT,
    )
    flags.DEFINE_integer(
        "clones",
        None,
        "clones of each task, with demonstrations and a training of their own; 1 if the file names "
        "no number",
        flag_values=declared,
        lower_bound=1,
        upper_bound=MAX_COUNT,
    )
    flags.DEFINE_integer(
        "steps",
        None,
        "environment steps of each seed",
        flag_values=declared,
        lower_bound=1,
        upper_bound=MAX_COUNT,
    )
    flags.DEFINE_string(
        "run_dir", "", f"the folder of the benchmark (default: {RUN_DIR})", flag_values=declared
    )


COMMANDS = {
    "benchmark": Command(
        run=benchmark,
        usage="--algorithms=A,B --envs=E,F [--clones=N] [--file=FILE] [--config.FIELD=VALUE …] "
        "[--run_dir=DIR]",
        description="""\
Clones each task and finetunes that clone with every method: the same seeds, the same environment
steps, evaluated at the same steps from the same start states. Intervals of one clone hold for that
clone only; --clones=N makes N, and the intervals then cover clones that were not made.
DIR/report/report.html compares the methods at equal steps and at equal compute time; tables are
also CSV and LaTeX. The same command resumes an interrupted benchmark and skips the runs that are
finished; with more clones, methods or tasks it adds them.""",
        json="report, tasks, methods, clones, finished, failed, seconds",
        configuration=Configuration.OVERRIDES,
        define_flags=_benchmark_flags,
    ),
}

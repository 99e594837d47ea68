"""Commands for one run: ``train``, ``plan``, ``debug``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from absl import flags

from gcp_jax.config import RunConfig
from gcp_jax.experiments import assemble, run_config, run_inputs, runtime
from gcp_jax.experiments.plan import plan as planning
from gcp_jax.launch.cli.parse import Arguments, Command, Configuration
from gcp_jax.report import read, run_page
from gcp_jax.run import distributed, progress
from gcp_jax.run.adopted_policy import adopt_policy
from gcp_jax.run.errors import Decayed
from gcp_jax.run.folder import config_hash
from gcp_jax.run.training import Training


def train(arguments: Arguments) -> dict[str, Any] | None:
    """Clone, finetune, evaluate and report; the summary, on the first host."""
    arguments.no_positional()
    if arguments.flags.hosts:
        distributed.join(arguments.flags.hosts)
    config = dataclasses.replace(arguments.run_config, run_dir=arguments.run_dir())
    folder = run_folder(config)
    config = adopt_policy(config, arguments.explicit, folder)
    task = run_inputs.task_of_run(config, folder)
    numbers = planning.plan(config, task)
    numbers.pop("notes", None)  # the run prints them
    print(planning.text(numbers), file=sys.stderr)
    try:
        summary = Training(config, task, folder, arguments.command_line).run()
    except Decayed:
        if distributed.is_primary():
            print(f"report: {run_page.write(folder)}", file=sys.stderr)
        raise
    if not distributed.is_primary():
        return None
    _print_scores(folder)
    print(f"report: {run_page.write(folder)}", file=sys.stderr)
    return summary


def run_folder(config: RunConfig) -> Path:
    """The run's folder: ``config.run_dir``, or one by the hash of the configuration."""
    if config.run_dir:
        return Path(config.run_dir)
    return Path("runs") / f"{config.env.name}-{config.algorithm.name}" / config_hash(config)


def plan(arguments: Arguments) -> dict[str, Any]:
    """Print the sizes of a run; nothing is compiled."""
    arguments.no_positional()
    config = arguments.run_config
    config = adopt_policy(config, arguments.explicit, run_folder(config))
    numbers = planning.plan(config, assemble.make_task(config, film=False), peak=True)
    print(planning.text(numbers))
    return numbers


def debug(arguments: Arguments) -> dict[str, Any]:
    """Recompute the first non-finite update of a run; what is known of it."""
    folder = Path(arguments.one_positional("run folder", "gcp-jax debug runs/first"))
    config = run_config.config_of_run(folder)
    runtime.prepare_cpu(config.data_parallel)
    return Training(config, assemble.make_task(config, film=False), folder, "").debug()


def _print_scores(folder: Path) -> None:
    """Print the table of scores of a run, or of each point of its population."""
    evals = read.eval_rows(folder / "eval.jsonl")
    points = read.population_points(evals)
    for point in points:
        print(point, file=sys.stderr)
        progress.print_scores(read.rows_of_point(evals, point), stream=sys.stderr)
    if not points:
        progress.print_scores(evals, stream=sys.stderr)


def _train_flags(declared: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "run_dir",
        "",
        "the run folder, --config.run_dir (default: runs/ENV-METHOD/HASH)",
        flag_values=declared,
    )
    flags.DEFINE_string(
        "hosts",
        "",
        "train as one run on several hosts, which all see run_dir: auto on SLURM, Kubernetes and "
        "TPU pods; elsewhere ADDRESS:PORT,COUNT,INDEX with the address of the first host, the "
        "number of hosts and the index of this one",
        flag_values=declared,
    )


COMMANDS = {
    "train": Command(
        run=train,
        usage="[--config=FILE] [--config.FIELD=VALUE …] [--run_dir=DIR] [--json]",
        description="""\
Makes demonstrations, clones them until the clone's success reaches pretrain.stop_at_success,
finetunes the clone and evaluates it. The run folder gets config.json, metrics.jsonl, eval.jsonl,
checkpoints/, policy/ and report/report.html. The same command resumes an unfinished run. Ctrl-C and
SIGTERM save the run at its next segment and stop it.""",
        json="base_success, success, success_per_seed (or the same of the return), env_steps, "
        "updates, best (the scores of policy/best), seconds, compile_seconds, run_dir; from the "
        "first host",
        configuration=Configuration.FULL,
        define_flags=_train_flags,
    ),
    "plan": Command(
        run=plan,
        usage="[--config=FILE] [--config.FIELD=VALUE …] [--json]",
        description="""\
Prints what train with the same flags would do and how much memory its state would take. Nothing is
compiled.""",
        json="every number of the plan",
        configuration=Configuration.FULL,
    ),
    "debug": Command(
        run=debug,
        usage="RUN [--json]",
        description="""\
An update that becomes NaN or inf is skipped and counted (train/nonfinite_updates). A training with
more than max_nonfinite_updates of them is stopped, and so is the run when no training is left. Its
newest checkpoint is then in RUN/fault. This command trains from there to the first such update,
prints its metrics and the ranges of its inputs, and writes state and batch to
RUN/fault/update.npz.""",
        json="stage, clock, index, description, update_of_segment, metrics, arrays",
    ),
}

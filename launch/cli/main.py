"""The ``gcp-jax`` command: train, debug, benchmark, sweep, status, evaluate, report, render, check, demos, plan, envs, algorithms."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from gcp_jax.experiments import runtime

HELP = """gcp-jax: finetune generative control policies with reinforcement learning

usage: gcp-jax COMMAND [--flag=value …]

{commands}

Start here:  gcp-jax train --config=experiments/configs/peg_insert.py --config.run_dir=runs/first
Each command explains itself:  gcp-jax COMMAND --help
With --json the last line of standard output is one JSON object; everything else goes to standard error.
"""

CONFIG_HELP = """  --config=FILE            a configuration file, e.g. experiments/configs/peg_insert.py
  --config.FIELD=VALUE     override any field, e.g. --config.seeds=3 --config.env.clearance_mm=0.5
                           --config.algorithm.conservative=False --config.policy.hidden="(256,256)"
"""

POPULATION = "--config.population."
EXPECTED = (ValueError, RuntimeError, OSError, ImportError, flags.Error)


class Command(NamedTuple):
    """A subcommand. run: (parsed flags, positional arguments) -> the JSON object."""

    run: Callable[[Any, list[str]], dict[str, Any]]
    summary: str
    help: str
    configured: bool = True
    names_env: bool = False  # its first word is a task, short for --config.env.name
    flags: Callable[[Any], None] | None = None


class UsageError(ValueError):
    """The command line itself is wrong."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for bad input, 128+signal where a signal stopped the run, 3 where another host has
    gone."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("--help", "-h", "help"):
        rows = "\n".join(f"  {name:<11} {command.summary}" for name, command in COMMANDS.items())
        print(HELP.format(commands=rows))
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        print(
            f"gcp-jax: there is no command {name!r}; allowed: {', '.join(COMMANDS)}.",
            file=sys.stderr,
        )
        return 2
    command = COMMANDS[name]
    if "--help" in rest or "-h" in rest:
        print(command.help + (f"\n{CONFIG_HELP}" if command.configured else ""))
        return 0
    return _execute(name, command, rest)


def _execute(name: str, command: Command, rest: list[str]) -> int:
    from gcp_jax.run.distributed import HostLost
    from gcp_jax.run.training import Interrupted

    aside = contextlib.redirect_stdout(sys.stderr) if "--json" in rest else contextlib.nullcontext()
    try:
        with aside:
            sys.path.append(os.getcwd())  # where a user's own method may lie
            values, positional = _parse(name, command, rest)
            runtime.prepare_cpu(values["config"].value.data if command.configured else 1)
            compilation_cache()
            reports = _join_hosts(values)
            result = command.run(values, positional)
    except Interrupted as stop:
        print(f"gcp-jax: {stop}", file=sys.stderr)
        return stop.code
    except HostLost as error:
        print(f"gcp-jax {name}: {error}", file=sys.stderr, flush=True)
        os._exit(3)  # leaving as usual waits for the host that has gone, and then aborts
    except EXPECTED as error:
        print(f"gcp-jax {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if values["json"].value and reports:
        print(json.dumps(result), flush=True)
    return 0


def _join_hosts(values: Any) -> bool:
    """Join the other hosts of --hosts; is this the one that reports?"""
    if "hosts" not in values or not values["hosts"].value:
        return True
    from gcp_jax.run import distributed

    distributed.join(values["hosts"].value)
    return distributed.is_primary()


def _train_flags(values: Any) -> None:
    flags.DEFINE_string("hosts", "", "auto, or ADDRESS:PORT,COUNT,INDEX.", flag_values=values)


def _parse(name: str, command: Command, rest: list[str]) -> tuple[Any, list[str]]:
    values = flags.FlagValues()
    flags.DEFINE_bool(
        "json", False, "One JSON object as the last line of standard output.", flag_values=values
    )
    flags.DEFINE_string("artifact", "", "A saved policy (a folder).", flag_values=values)
    flags.DEFINE_string("out", "", "Where to write.", flag_values=values)
    flags.DEFINE_integer("episodes", 256, "Episodes.", flag_values=values, lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the start states.", flag_values=values, lower_bound=0)
    if command.flags is not None:
        command.flags(values)
    if command.names_env:
        rest = [*_env_named(rest)]
    if not command.configured:
        return values, _read_flags(values, [name, *rest])
    config, rest = _configuration(rest)
    with _readable():
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=[name, *rest]
        )
    return values, _read_flags(values, [name, *rest])


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """What the flag libraries raise for a field or file that is not there, as the user's error."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, OSError) as error:
        told = str(error)
        if told[:1] == told[-1:] == "'":  # the words of a KeyError are quoted
            told = told[1:-1].replace("\\n", " ").replace("\\'", "'")
        raise UsageError(f"cannot read the configuration: {told}") from error


def _read_flags(values: Any, argv: list[str]) -> list[str]:
    """Parse argv into ``values``; the positional arguments. A dash in an option's name is an underscore."""
    with _readable():
        positional: list[str] = values([_underscored(word) for word in argv])[1:]
    return positional


def _underscored(word: str) -> str:
    name, *value = word.split("=", 1)
    return "=".join(["--" + name[2:].replace("-", "_"), *value]) if name.startswith("--") else word


def _configuration(rest: list[str]) -> tuple[Any, list[str]]:
    """The configuration that overrides apply to, and the arguments without what chose it.

    The file of ``--config``, or the defaults; ``--config.{env,algorithm}.{name,module}`` put that task's or method's own fields in
    place, so that these can be overridden too.
    """
    from gcp_jax.experiments import assemble

    values = flags.FlagValues()
    rest = [*itertools.chain.from_iterable(_joined(rest))]
    files = [word for word in rest if word.startswith("--config=")]
    if files:
        path = Path(files[-1].removeprefix("--config=").partition(":")[0])
        if not path.is_file():
            raise UsageError(
                f"--config={path} is not there; give a file such as experiments/configs/peg_insert.py."
            )
        words = ["config", files[-1]]
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
        _read_flags(values, words)
        config = values["config"].value
    else:
        config = assemble.defaults()
    if not isinstance(config, ml_collections.ConfigDict):
        raise UsageError(f"cannot read the configuration: {files[-1]} gives no ConfigDict.")
    env, env_module, algorithm, module = (
        _given(rest, f"--config.{x}=")
        for x in ("env.name", "env.module", "algorithm.name", "algorithm.module")
    )
    if env or env_module:
        assemble.set_env(config, env or env_module, env_module)
    if module or algorithm:
        assemble.set_algorithm(config, algorithm or module, module)
    for name in dict.fromkeys(
        word.split("=")[0].removeprefix(POPULATION) for word in rest if word.startswith(POPULATION)
    ):
        if name not in config.population:
            with config.unlocked():
                config.population[name] = ()
    return config, [word for word in rest if word not in files]


def _joined(rest: list[str]) -> Iterator[list[str]]:
    """``--config FILE`` as ``--config=FILE``."""
    words = iter(rest)
    for word in words:
        yield [f"--config={next(words, '')}"] if word == "--config" else [word]


def _env_named(rest: list[str]) -> Iterator[str]:
    """ENV in front as ``--config.env.name=ENV``."""
    if rest and not rest[0].startswith("-"):
        yield f"--config.env.name={rest[0]}"
        rest = rest[1:]
    yield from rest


def _given(rest: list[str], prefix: str) -> str:
    """The value of the last word that begins so."""
    return next(
        (word.removeprefix(prefix) for word in reversed(rest) if word.startswith(prefix)), ""
    )


def compilation_cache() -> None:
    """Compiled programs are kept between processes; a user's own setting stands."""
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(
        Path.home() / ".cache" / "gcp-jax" / "xla"
    )
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    print(f"compilation cache: {folder}", file=sys.stderr)


def _run_config(values: Any) -> Any:
    from gcp_jax.experiments.assemble import frozen_config

    return frozen_config(values["config"].value)


def _folder(config: Any) -> Path:
    """The run folder: given, or by the hash of the configuration."""
    from gcp_jax.run.training import config_hash

    if config.run_dir:
        return Path(config.run_dir)
    return Path("runs") / f"{config.env['name']}-{config.algorithm['name']}" / config_hash(config)


def train(values: Any, positional: list[str]) -> dict[str, Any]:
    """Clone, finetune, evaluate, report."""
    _no_positional(positional)
    from gcp_jax.experiments import assemble
    from gcp_jax.experiments.plan import plan
    from gcp_jax.report import run_page
    from gcp_jax.run import distributed, progress, training
    from gcp_jax.run.metrics import rows

    config = _run_config(values)
    folder = _folder(config)
    task = assemble.make_task(config)
    print(plan.text(plan.plan(config, task)), file=sys.stderr)
    command = shlex.join(["gcp-jax", *sys.argv[1:]])
    summary = training.Training(config, task, folder, command).run()
    if distributed.is_primary():
        evaluated = rows(folder / "eval.jsonl")
        for point in run_page.points_of(evaluated) or [""]:
            if point:
                print(point, file=sys.stderr)
            progress.table(run_page.of_point(evaluated, point), stream=sys.stderr)
        print(f"report: {run_page.write(folder)}", file=sys.stderr)
    return summary


def debug(values: Any, positional: list[str]) -> dict[str, Any]:
    """The update at which a run was given up."""
    from gcp_jax.experiments import assemble
    from gcp_jax.run import training

    if len(positional) != 1:
        raise UsageError("name one run folder, e.g. gcp-jax debug runs/first")
    folder = Path(positional[0])
    config = assemble.config_of_run(folder)
    runtime.prepare_cpu(config.data_parallel)
    return training.Training(config, assemble.make_task(config, film=False), folder, "").debug()


def benchmark(values: Any, positional: list[str]) -> dict[str, Any]:
    """Methods × tasks × seeds from shared clones, and their report."""
    from gcp_jax.experiments import comparison as benchmarks

    _no_positional(positional)
    chosen = benchmarks.chosen(
        file=values["file"].value,
        algorithms=values["algorithms"].value,
        envs=values["envs"].value,
        seeds=values["seeds"].value,
        steps=values["steps"].value,
        overrides=values["override"].value,
    )
    runtime.prepare_cpu(chosen.data)
    return benchmarks.run(
        chosen, Path(values["run_dir"].value), shlex.join(["gcp-jax", *sys.argv[1:]])
    )


def _benchmark_flags(values: Any) -> None:
    flags.DEFINE_list("algorithms", [], "Methods to compare.", flag_values=values)
    flags.DEFINE_list("envs", [], "Tasks to compare them on.", flag_values=values)
    flags.DEFINE_integer(
        "seeds", None, "Seeds of each method on each task.", flag_values=values, lower_bound=1
    )
    flags.DEFINE_integer(
        "steps", None, "Environment steps of each seed.", flag_values=values, lower_bound=1
    )
    flags.DEFINE_string(
        "run_dir", "runs/benchmark", "Where the runs and the report go.", flag_values=values
    )
    flags.DEFINE_string("file", "", "A benchmark file.", flag_values=values)
    flags.DEFINE_multi_string("override", [], "FIELD=VALUE for every run.", flag_values=values)


def evaluate(values: Any, positional: list[str]) -> dict[str, Any]:
    """Success of a saved policy from fixed start states."""
    from gcp_jax.launch.cli import inspect

    return inspect.evaluate(
        Path(_target(values, positional)),
        episodes=values["episodes"].value,
        seed=values["seed"].value,
    )


def render(values: Any, positional: list[str]) -> dict[str, Any]:
    """A video of a saved policy, or of the demonstrator."""
    from gcp_jax.launch.cli import inspect

    out = Path(values["out"].value or "video.mp4")
    grid, noise = values["grid"].value, values["noise"].value
    return inspect.render(
        _target(values, positional), out, seed=values["seed"].value, grid=grid, noise=noise
    )


def _render_flags(values: Any) -> None:
    flags.DEFINE_integer("grid", 4, "Episodes side by side.", flag_values=values, lower_bound=1)
    flags.DEFINE_float(
        "noise", 0.0, "The demonstrator's noise.", flag_values=values, lower_bound=0.0
    )


def demos(values: Any, positional: list[str]) -> dict[str, Any]:
    """Scripted episodes of a task, as a dataset."""
    _no_positional(positional)
    from gcp_jax.experiments import assemble
    from gcp_jax.launch.cli import inspect

    config = values["config"].value
    chosen = {
        "episodes": values["episodes"].value,
        "quality": values["quality"].value,
        "noise": values["noise"].value,
    }
    assemble.override(config, {f"demonstrations.{field}": value for field, value in chosen.items()})
    name = f"{config.env.name}-{chosen['quality']}".replace(":", "-")
    out = Path(values["out"].value or f"demos/{name}")
    return inspect.demos(assemble.frozen_config(config), out, seed=values["seed"].value)


def check(values: Any, positional: list[str]) -> dict[str, Any]:
    """Every contract of an environment."""
    _no_positional(positional)
    from gcp_jax.experiments import assemble
    from gcp_jax.launch.cli import inspect

    return inspect.check(assemble.frozen_config(values["config"].value), seed=values["seed"].value)


def _demos_flags(values: Any) -> None:
    flags.DEFINE_string("quality", "mixed", "A level of the task.", flag_values=values)
    flags.DEFINE_float("noise", -1.0, "The demonstrator's noise itself.", flag_values=values)


def sweep(values: Any, positional: list[str]) -> dict[str, Any]:
    """Many runs from one file."""
    from gcp_jax.launch.cli import sweep

    if len(positional) != 1:
        raise UsageError(
            "name one sweep file, e.g. gcp-jax sweep experiments/sweeps/learning_rates.py"
        )
    if values["dry_run"].value:
        return sweep.dry_run(positional[0])
    return sweep.sweep(
        positional[0],
        folder=Path(values["run_dir"].value or f"runs/sweeps/{Path(positional[0]).stem}"),
        on=values["on"].value,
        slots=values["slots"].value,
        retries=values["retries"].value,
        address=values["address"].value,
        resources=sweep.amounts(values["resources"].value),
        slurm=sweep.settings(values["slurm"].value),
        command=shlex.join(["gcp-jax", *sys.argv[1:]]),
    )


def _sweep_flags(values: Any) -> None:
    flags.DEFINE_bool("dry_run", False, "Only tell what would be run.", flag_values=values)
    flags.DEFINE_string("on", "local", "local, ray or slurm.", flag_values=values)
    flags.DEFINE_string("run_dir", "", "The folder of the sweep.", flag_values=values)
    flags.DEFINE_integer(
        "slots", None, "Runs at a time on this machine.", flag_values=values, lower_bound=1
    )
    flags.DEFINE_integer(
        "retries", 2, "Further attempts at a run that fails.", flag_values=values, lower_bound=0
    )
    flags.DEFINE_string("address", "", "Of a Ray cluster.", flag_values=values)
    flags.DEFINE_multi_string(
        "resources", [], "NAME=AMOUNT that a run takes on Ray.", flag_values=values
    )
    flags.DEFINE_multi_string("slurm", [], "NAME=VALUE for SLURM.", flag_values=values)


def status(values: Any, positional: list[str]) -> dict[str, Any]:
    """Where a sweep stands."""
    from gcp_jax.launch.cli import sweep

    if len(positional) != 1:
        raise UsageError("name one sweep folder, e.g. gcp-jax status runs/sweeps/learning_rates")
    return sweep.show_status(Path(positional[0]), watch=values["watch"].value)


def _status_flags(values: Any) -> None:
    flags.DEFINE_bool("watch", False, "Until nothing is left to do.", flag_values=values)


def report(values: Any, positional: list[str]) -> dict[str, Any]:
    """The report of finished or running runs, or of a sweep, from their folders alone."""
    from gcp_jax.report import run_page as reporting

    if not positional:
        raise UsageError("name at least one run folder, e.g. gcp-jax report runs/first")
    out = values["out"].value or None
    if len(positional) == 1 and (Path(positional[0]) / "sweep.json").exists():
        from gcp_jax.launch import sweep_page as of_sweep

        page = of_sweep.write(positional[0], out)
    else:
        page = reporting.write(positional if len(positional) > 1 else positional[0], out)
    print(f"report: {page}", file=sys.stderr)
    return {"report": str(page)}


def plan(values: Any, positional: list[str]) -> dict[str, Any]:
    """Sizes of a run before anything is compiled."""
    _no_positional(positional)
    from gcp_jax.experiments import assemble
    from gcp_jax.experiments.plan import plan

    config = _run_config(values)
    numbers = plan.plan(config, assemble.make_task(config, film=False), peak=True)
    print(plan.text(numbers), file=sys.stderr if values["json"].value else sys.stdout)
    return numbers


def list_envs(values: Any, positional: list[str]) -> dict[str, Any]:
    """The tasks."""
    _no_positional(positional)
    from gcp_jax.launch.cli import inspect

    return inspect.list_envs(to_stderr=values["json"].value)


def list_algorithms(values: Any, positional: list[str]) -> dict[str, Any]:
    """The methods."""
    _no_positional(positional)
    from gcp_jax.launch.cli import inspect

    return inspect.list_algorithms(to_stderr=values["json"].value)


def _target(values: Any, positional: list[str]) -> str:
    given = values["artifact"].value or (positional[0] if len(positional) == 1 else "")
    if not given:
        raise UsageError("name one saved policy, e.g. runs/first/policy/seed_0")
    return given


def _no_positional(positional: list[str]) -> None:
    if positional:
        raise UsageError(f"unexpected {positional[0]!r}; flags look like --config.seeds=3.")


COMMANDS = {
    "train": Command(
        train,
        "clone demonstrations, finetune the clone, evaluate, report",
        """gcp-jax train --config=FILE [--config.FIELD=VALUE …] [--json]

Makes demonstrations, clones them up to pretrain.stop_at_success success, finetunes the clone with the configured method, and
writes everything to the run folder: config.json, metrics.jsonl, eval.jsonl, checkpoints/, policy/, report/report.html.
The same command again resumes an unfinished run; Ctrl-C and SIGTERM save at the next segment first.

  --config.run_dir=DIR     the run folder (default: runs/ENV-ALGORITHM/HASH)
  --config.seeds=N         seeds trained in one program
  --config.population.FIELD=1e-4,3e-4   values of a numeric field of the method, trained in the same program with all seeds
  --config.finetune.env_steps=N   environment steps of each seed
  --config.pretrain.stop_at_success=P     success at which cloning is cut
  --hosts=auto             several processes as one run, found by JAX on SLURM, Kubernetes and TPU pods; elsewhere
                           ADDRESS:PORT,COUNT,INDEX: the first host's address, how many, and which this is; all see run_dir
  --json                   last line: base_success, success, success_per_seed (or …return), env_steps, updates, seconds,
                           compile_seconds, run_dir; from the first host""",
        flags=_train_flags,
    ),
    "debug": Command(
        debug,
        "the update at which a run was given up, once more, with all that went in",
        """gcp-jax debug RUN [--json]

An update that would leave the finite numbers is skipped and counted (train/nonfinite_updates); a training with more than max_nonfinite_updates of them is
given up, and a run without any other stops. Its newest checkpoint then lies in RUN/fault, and this command trains from there to the
first such update: the ranges of what went in, its metrics, and state and batch as RUN/fault/update.npz.

  --json                   last line: stage, clock, index, told, update_of_segment, metrics, arrays""",
        configured=False,
    ),
    "benchmark": Command(
        benchmark,
        "methods × tasks × seeds from the same clones, compared in one report",
        """gcp-jax benchmark --algorithms=A,B,… --envs=E,F,… [--seeds=N] [--steps=N] [--run_dir=DIR] [--json]
gcp-jax benchmark --file=FILE [the same flags, which then override the file's] [--run_dir=DIR] [--json]

Clones each task once, then finetunes that clone with every method: the same seeds, the same environment steps, evaluated at the
same steps on the same start states. The report (DIR/report/report.html, with PNG, CSV and LaTeX beside it) compares them at equal
steps and at equal compute time. The same command again goes on where it was stopped and skips what is finished.

  --algorithms=ogpo,dppo   methods, by name               --envs=peg_insert,pick_place   tasks, by name
  --file=FILE              tasks, methods and settings from a file, e.g. experiments/comparisons/clones.py
  --seeds=3                seeds of each method            --steps=36864    environment steps of each seed
  --override=FIELD=VALUE   a field of every run's configuration; may be given several times, e.g. --override=data=2
  --run_dir=DIR            the folder of the benchmark (default: runs/benchmark)
  --json                   last line: report, tasks, methods, finished, failed, seconds""",
        configured=False,
        flags=_benchmark_flags,
    ),
    "sweep": Command(
        sweep,
        "many runs from one file, on this machine, Ray or SLURM",
        """gcp-jax sweep FILE [--dry-run] [--on=local|ray|slurm] [--run_dir=DIR] [--retries=2] [--json]

FILE is Python with get_sweep() -> launch.Sweep, e.g. experiments/sweeps/learning_rates.py. A run's folder is DIR/runs/ID, where ID
is the hash of its configuration: the same command again, or a grown FILE, skips what is finished and resumes what is not.

  --dry-run                the table of runs with their steps, bytes and hours; nothing is started
  --on=local               processes of this machine: --slots=N at a time (default: by its accelerators, or two cores each)
  --on=ray                 Ray tasks: --address=HOST:PORT (default: a cluster that is there, or one started here),
                           --resources=CPU=2 --resources=GPU=1 of a run
  --on=slurm               arrays of SLURM jobs, queued again when preempted: --slurm=partition=gpu --slurm=time=240
                           --slurm=gpus_per_node=1, as submitit calls sbatch's options
  --retries=2              further attempts at a run that fails; its error is kept and shown
  --run_dir=DIR            (default: runs/sweeps/NAME-OF-FILE)
  --json                   last line: run_dir, runs, finished, skipped, failed, seconds; with --dry-run the table""",
        configured=False,
        flags=_sweep_flags,
    ),
    "status": Command(
        status,
        "where a sweep stands, from its folder alone",
        """gcp-jax status SWEEP [--watch] [--json]

A line for each run: state, steps, success before and now, time left. Works from any machine that sees the folder.

  --watch                  again every two seconds, until nothing is left to do
  --json                   last line: how many are in each state, and every run""",
        configured=False,
        flags=_status_flags,
    ),
    "evaluate": Command(
        evaluate,
        "success of a saved policy from fixed start states, with its interval",
        """gcp-jax evaluate POLICY [--episodes=256] [--seed=0] [--json]

Loads a saved policy (a folder such as RUN/policy/seed_0), checks it, and runs it on its own task.""",
        configured=False,
    ),
    "report": Command(
        report,
        "tables, curves and one HTML page from run folders, or from a sweep's",
        """gcp-jax report RUN [RUN …] [--out=DIR] [--json]
gcp-jax report SWEEP [--out=DIR] [--json]

One run: RUN/report/report.html. Several runs: side by side, into --out. Works while runs are still going on.""",
        configured=False,
    ),
    "render": Command(
        render,
        "a video of a saved policy, or of a task's demonstrator",
        """gcp-jax render POLICY|ENV [--out=video.mp4] [--grid=4] [--noise=0] [--seed=0] [--json]

POLICY is a folder such as RUN/policy/seed_0; ENV a task's name, whose scripted demonstrator is shown.

  --grid=16        so many episodes side by side     --noise=1.5   of the demonstrator
  --out=FILE.png   a picture instead: each episode half-way""",
        configured=False,
        flags=_render_flags,
    ),
    "check": Command(
        check,
        "does an environment keep the contracts",
        """gcp-jax check ENV [--config.env.FIELD=VALUE …] [--seed=0] [--json]

Runs random actions through a task, one of a suite (brax:ant) or your own (--config.env.module=my_env), and checks what
everything else relies on: shapes, keys, determinism, batching, clipping, endings, true successors, resets.""",
        names_env=True,
    ),
    "demos": Command(
        demos,
        "scripted episodes of a task, written as a dataset",
        """gcp-jax demos ENV [--quality=mixed] [--episodes=256] [--seed=0] [--out=DIR] [--config.env.FIELD=VALUE …] [--json]

Writes a folder of numpy arrays (envs/datasets.py says which) that --config.demonstrations.path=DIR clones.

  --quality=expert|mixed|poor|bad   a noise level of the demonstrator    --noise=1.5   or the noise itself
  --out=DIR                         where to (default: demos/ENV-QUALITY)
  --json                            last line: dataset, episodes, steps, success, modes, seconds""",
        names_env=True,
        flags=_demos_flags,
    ),
    "plan": Command(
        plan,
        "steps, updates, UTD, bytes and parameters of a run, without compiling",
        """gcp-jax plan --config=FILE [--config.FIELD=VALUE …] [--json]

Prints what `train` with the same flags would do, and how much memory its state takes, without compiling anything.""",
    ),
    "envs": Command(
        list_envs, "the tasks", "gcp-jax envs [--json]\n\nA table of the tasks.", configured=False
    ),
    "algorithms": Command(
        list_algorithms,
        "the methods and their fields",
        "gcp-jax algorithms [--json]\n\nThe finetuning methods with every field and its default.",
        configured=False,
    ),
}

if __name__ == "__main__":
    sys.exit(main())

"""Methods × tasks × clones × seeds: ``gcp-jax benchmark``.

All methods start from the same clones of a task. Clone c is made from demonstrations of its own and
by a training of its own: its runs have ``seed`` + ``CLONE_STRIDE``·c.

A benchmark file has ``get_config() -> dict`` with

    tasks    {label: {"config": a file in experiments/configs or a task, FIELD: VALUE, …}}
    methods  {label: {"algorithm": name, "module": optional, FIELD: VALUE, …}}
    seeds, steps    seeds, and environment steps, of every run
    clones          clones of each task, by default 1
    common   {FIELD: VALUE, …} for every run

FIELD is dotted, e.g. "pretrain.stop_at_success". Fields of a task are set before the method is
chosen, fields of a method after it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from gcp_jax.atomic_files import write_json, write_text
from gcp_jax.config import ConfigError, RunConfig, clone_config, to_dict
from gcp_jax.config_fields import check_count, check_magnitude, refuse_fields
from gcp_jax.experiments import assemble, benchmark_file, run_config, run_inputs
from gcp_jax.experiments.plan import plan
from gcp_jax.json_files import read_json
from gcp_jax.report import benchmark_page, benchmark_read
from gcp_jax.run import provenance, run_policies
from gcp_jax.run.adopted_policy import adopt_policy, check_same_network, policy_differences
from gcp_jax.run.code_digests import code_digests
from gcp_jax.run.errors import Interrupted
from gcp_jax.run.folder import check_path, check_resumable, differences, refuse_foreign_folder
from gcp_jax.run.requirements import require_packages_and_devices
from gcp_jax.run.sizes import run_sizes
from gcp_jax.run.task import TaskInterface
from gcp_jax.run.training import Training

DEFAULT_SEEDS = 3
CLONE = "base"  # the folder of the run that makes a clone
CLONE_STRIDE = 1000  # between the first seeds of two clones

Fields = Mapping[str, Any]

SET_HERE = {  # fields that a benchmark sets itself, and what sets them
    "env.name": "choose tasks by --envs and methods by --algorithms",
    "env.module": "choose tasks by --envs and methods by --algorithms",
    "algorithm.name": "choose tasks by --envs and methods by --algorithms",
    "algorithm.module": "choose methods by --algorithms, or by module=NAME of a method in --file",
    "seeds": "use --seeds, or seeds of the file, for all runs",
    "finetune.env_steps": "use --steps, or steps of the file, for all runs",
    "run_dir": "use --run_dir, the folder of the whole benchmark",
    "video": "a benchmark writes no videos",
    "pretrain.saved_policy": "every method starts from the clone of its task",
    "population.": "a benchmark compares methods, not a population; list each setting as a method",
}
OF_A_CLONE = ("env", "demonstrations", "pretrain", "seed", "data_parallel")  # shared by methods


class Comparison(NamedTuple):
    """What to compare; the runs lack only their clone."""

    seeds: int  # of every run
    steps: int  # environment steps of every run
    data_parallel: int
    runs: dict[str, dict[str, RunConfig]]  # by task, by method; those of clone 0
    clones: int = 1  # of every task

    @property
    def first_runs(self) -> dict[str, RunConfig]:
        """One run of each task; the methods of a task share its clones."""
        return {task: next(iter(methods.values())) for task, methods in self.runs.items()}

    @property
    def methods(self) -> dict[str, RunConfig]:
        """The methods by label, each with its run on the first task."""
        return next(iter(self.runs.values()))

    def clones_of(self, task: str, folder: Path) -> list[Clone]:
        """The clones of a task.

        Args:
          task: its label.
          folder: the folder of the benchmark.
        """
        return [
            Clone(
                task=task,
                number=number,
                folder=benchmark_read.clone_folder(folder / task, number),
                runs={name: _of_clone(run, number) for name, run in self.runs[task].items()},
            )
            for number in range(self.clones)
        ]

    def all_clones(self, folder: Path) -> list[Clone]:
        """The clones of all tasks, in the order in which they are run."""
        return [clone for task in self.runs for clone in self.clones_of(task, folder)]


class Clone(NamedTuple):
    """A clone of a task and the runs that start from it."""

    task: str
    number: int  # 0 is the first
    folder: Path  # holds the folder ``CLONE`` and one for each method
    runs: dict[str, RunConfig]  # by method; they lack only their clone

    @property
    def config(self) -> RunConfig:
        """The run that makes the clone."""
        return clone_config(next(iter(self.runs.values())))

    @property
    def base(self) -> Path:
        """The folder of the run that makes the clone."""
        return self.folder / CLONE

    @property
    def name(self) -> str:
        """Its folder, seen from that of the benchmark."""
        return benchmark_read.clone_folder(Path(self.task), self.number).as_posix()


def _of_clone(config: RunConfig, number: int) -> RunConfig:
    return dataclasses.replace(config, seed=config.seed + CLONE_STRIDE * number)


def choose(
    *,
    file: str,
    algorithms: Sequence[str],
    envs: Sequence[str],
    seeds: int | None,
    steps: int | None,
    overrides: Fields,
    clones: int | None = None,
) -> Comparison:
    """A comparison from a file, from flags, or from a file whose contents the flags narrow.

    Args:
      file: a benchmark file, or "".
      algorithms: labels of the file's methods or names of methods; none: all of the file.
      envs: labels of the file's tasks or names of tasks; none: all of the file.
      seeds: of each method on each task; None: the file's number.
      steps: environment steps of each seed; None: the file's number or each task's.
      overrides: dotted field: value, for every run.
      clones: of each task; None: the file's number, or 1.

    Raises:
      ConfigError: in one line.
    """
    declared = benchmark_file.read_declaration(file) if file else {}
    tasks = _narrowed(declared.get("tasks", {}), envs, key="config")
    methods = _narrowed(declared.get("methods", {}), algorithms, key="algorithm")
    if not tasks or not methods:
        example = "--algorithms=ogpo,dppo --envs=peg_insert"
        raise ConfigError(f"nothing to compare: name methods and tasks, e.g. {example}.")
    common = _common_fields(declared.get("common", {}), overrides, {**tasks, **methods})
    common["seeds"] = seeds or declared.get("seeds", DEFAULT_SEEDS)
    if steps or "steps" in declared:
        common["finetune.env_steps"] = steps or declared["steps"]
    runs = {
        task: {name: _run(fields, method, common) for name, method in methods.items()}
        for task, fields in tasks.items()
    }
    first = next(iter(next(iter(runs.values())).values()))
    comparison = Comparison(
        seeds=first.seeds,
        steps=first.finetune.env_steps,
        data_parallel=first.data_parallel,
        runs=runs,
        clones=declared.get("clones", 1) if clones is None else clones,
    )
    _check_clones(comparison)
    return comparison


def _check_clones(comparison: Comparison) -> None:
    """Check that each task can have so many clones, beside its methods.

    Raises:
      ConfigError: in one line.
    """
    if CLONE in comparison.methods:
        raise ConfigError(
            f"a method is called {CLONE!r}, like the folder of the clone; choose another label."
        )
    count = comparison.clones
    check_count("clones", count, low=1)
    if count == 1:
        return
    if comparison.seeds > CLONE_STRIDE:
        raise ConfigError(
            f"seeds is {comparison.seeds}; with several clones it must be at most {CLONE_STRIDE}, "
            "because the seeds of two clones must differ."
        )
    for name in comparison.methods:
        if benchmark_read.is_clone_folder(name):
            raise ConfigError(
                f"a method is called {name!r}, like the folder of a clone; choose another label."
            )
    for task, config in comparison.first_runs.items():
        if config.demonstrations.path:
            raise ConfigError(
                f"{task} clones the dataset {config.demonstrations.path}, of which all clones "
                "would be made, but each needs demonstrations of its own; leave "
                "demonstrations.path out, or choose --clones=1."
            )
        last = config.seed + CLONE_STRIDE * (count - 1) + config.seeds - 1
        check_magnitude(last, f"the last seed of {count} clones from seed={config.seed}")


def _narrowed(declared: Mapping[str, Fields], names: Sequence[str], key: str) -> dict[str, Fields]:
    """The declared entries with these names; a name that is not declared is an entry of its own."""
    if not names:
        return dict(declared)
    return {name: declared.get(name, {key: name}) for name in names}


def _common_fields(
    common: Fields, overrides: Fields, entries: Mapping[str, Fields]
) -> dict[str, Any]:
    """The fields of every run: those of the file with those of flags in their place.

    Args:
      common: fields of the file.
      overrides: fields of flags.
      entries: the tasks and methods, by label.

    Raises:
      ConfigError: for a field that the benchmark sets itself, and for a field of a task or a method
        that the common ones would override.
    """
    refuse_fields(overrides, SET_HERE, "--config.")
    refuse_fields(common, SET_HERE, "common: ")
    merged = {**common, **overrides}
    for label, fields in entries.items():
        refuse_fields(fields, SET_HERE, f"{label}: ")
        twice = [name for name in fields if name in merged]
        if twice:
            raise ConfigError(
                f"{twice[0]} is set for {label} and for every run; set it in one of them."
            )
    return merged


def _run(task: Fields, method: Fields, common: Fields) -> RunConfig:
    """The configuration of one method on one task."""
    task_fields = dict(task)
    method_fields = dict(method)
    config = _task_config(task_fields.pop("config"))
    run_config.override(config, task_fields)
    name = method_fields.pop("algorithm")
    run_config.set_algorithm(config, name, method_fields.pop("module", ""))
    run_config.override(config, {**method_fields, **common, "video": False})
    return run_config.frozen_config(config)


def _task_config(name: str) -> ml_collections.ConfigDict:
    """The configuration file of a task, or its defaults if it has none."""
    defaults = run_config.defaults(env=name)  # raises if there is no such task
    file = f"gcp_jax.experiments.configs.{name}"
    if importlib.util.find_spec(file) is None:
        return defaults
    config: ml_collections.ConfigDict = importlib.import_module(file).get_config()
    return config


def run(comparison: Comparison, folder: Path, command: str) -> dict[str, Any]:
    """Do the runs that are not finished, one after the other, and write the report.

    A run that fails is recorded, and the next one follows.

    Args:
      comparison: what to compare.
      folder: the folder of the benchmark.
      command: the command line, for the records.

    Returns:
      What ``gcp-jax benchmark --json`` prints.

    Raises:
      ConfigError: before anything is started, if the runs cannot be compared.
      RunError: before anything is started, if the folder holds something else, or a run of it was
        begun with another configuration or other code.
      Interrupted: if a signal stopped a run.
    """
    tasks = {task: _make_task(comparison, task, folder) for task in comparison.runs}
    _check_comparable(comparison, tasks)
    _check_folder(comparison, folder)
    _write_manifest(comparison, folder, command)
    start = time.monotonic()
    clones = comparison.all_clones(folder)
    total = sum(len(clone.runs) for clone in clones)
    count = 0
    failed = {}
    for clone in clones:
        task = tasks[clone.task]
        _training(clone.config, task, clone.base, command).pretrain()
        for name in clone.runs:
            count += 1
            print(f"── {clone.name}: {name} ({count} of {total})", file=sys.stderr)
            problem = _finetune(clone.folder / name, _adopted(clone, name), task, command)
            if problem:
                failed[f"{clone.name}/{name}"] = problem
    page = benchmark_page.write(folder)
    print(f"report: {page}", file=sys.stderr)
    return {
        "report": str(page),
        "tasks": list(comparison.runs),
        "methods": list(comparison.methods),
        "clones": comparison.clones,
        "finished": total - len(failed),
        "failed": failed,
        "seconds": round(time.monotonic() - start, 1),
    }


def _changed_policy_fields(clone: RunConfig, config: RunConfig) -> list[str]:
    """The fields of the policy that a method sets otherwise than the clone of its task."""
    changed = policy_differences(clone.policy, config.policy)
    return [f"policy.{name}" for name, _, _ in changed]


def _check_comparable(comparison: Comparison, tasks: Mapping[str, TaskInterface]) -> None:
    """Check that all runs are possible and that those of a task can be compared.

    Raises:
      ConfigError: if a task is scored by return, if methods of a task would be evaluated at
        different environment steps or need different networks, or if the sizes of a run do not fit.
      ImportError: a package that writes metrics is missing.
      ValueError: there are too few devices.
    """
    for task, methods in comparison.runs.items():
        specs = tasks[task].env.specs
        if specs.by_return:
            raise ConfigError(
                f"{task} is scored by its return, and a benchmark compares success rates; train on "
                "it with each method and compare the runs by gcp-jax report RUN RUN --out=DIR."
            )
        points = {}
        for name, config in methods.items():
            size = run_sizes(config, specs)
            end = size.segments * size.env_steps
            every = size.evaluate_every * size.env_steps
            points[name] = f"ends at {end}, evaluated every {every}"
        if len(set(points.values())) > 1:
            listed = "; ".join(f"{name} {point}" for name, point in points.items())
            raise ConfigError(
                f"on {task} the methods would not be evaluated at the same environment steps "
                f"({listed}); choose steps and evaluation.every as multiples of every method's "
                "segment (finetune.envs · finetune.unroll_chunks · policy.chunk)."
            )
        for name, config in methods.items():
            require_packages_and_devices(config)
            _check_clone(f"{task}: {name}", comparison.first_runs[task], config)
            plan.plan(config, tasks[task])


def _make_task(comparison: Comparison, task: str, folder: Path) -> TaskInterface:
    """A task, whose dataset is read only if a run still needs it."""
    needed = any(_needs_demonstrations(clone) for clone in comparison.clones_of(task, folder))
    config = comparison.first_runs[task]
    return assemble.make_task(config, film=False, demonstrations=needed)


def _needs_demonstrations(clone: Clone) -> bool:
    return run_inputs.needs_demonstrations(clone.config, clone.base) or any(
        run_inputs.needs_demonstrations(_from_clone(config, clone), clone.folder / name)
        for name, config in clone.runs.items()
    )


def _training(config: RunConfig, task: TaskInterface, folder: Path, command: str) -> Training:
    """A run with the digests of what it reads from disk."""
    inputs = run_inputs.input_digests(config, folder)
    return Training(config, task._replace(inputs=inputs), folder, command)


def _from_clone(config: RunConfig, clone: Clone) -> RunConfig:
    """The run of a method from a clone, which need not exist yet."""
    base = run_policies.policy_folder(clone.base, run_policies.BASE)
    pretrain = dataclasses.replace(config.pretrain, saved_policy=str(base))
    return dataclasses.replace(config, pretrain=pretrain)


def _adopted(clone: Clone, name: str) -> RunConfig:
    """The run of a method from a clone, with the settings of the clone's policy."""
    config = clone.runs[name]
    explicit = _changed_policy_fields(clone.config, config)
    return adopt_policy(_from_clone(config, clone), explicit, clone.folder / name)


def _check_folder(comparison: Comparison, folder: Path) -> None:
    """Check that a folder holds nothing, or this benchmark with the same code.

    Raises:
      ConfigError: the folder holds a benchmark with another number of seeds or steps.
      RunError: it holds something else, or other runs.
    """
    check_path(folder)
    refuse_foreign_folder(folder, benchmark_read.MANIFEST)
    path = folder / benchmark_read.MANIFEST
    if path.exists():
        saved = read_json(path, benchmark_read.PLAN, error=ConfigError)
        for field in ("seeds", "steps"):
            current = getattr(comparison, field)
            if saved.get(field) != current:
                raise ConfigError(
                    f"{folder} holds a benchmark with {field}={saved.get(field)}, not {current}; "
                    "choose another --run_dir."
                )
    for clone in comparison.all_clones(folder):
        _check_run(clone.base, clone.config)
        if run_policies.missing_policies(clone.base, members=()):
            continue
        for name in clone.runs:
            _check_run(clone.folder / name, _adopted(clone, name))


def _check_run(folder: Path, config: RunConfig) -> None:
    if (folder / "config.json").exists():
        inputs = run_inputs.input_digests(config, folder)
        check_resumable(folder, config, code_digests(config), inputs)


def _check_clone(label: str, first: RunConfig, config: RunConfig) -> None:
    """Check that a method does not ask for another clone than the one that its task has.

    Raises:
      ConfigError: for the first field that differs.
    """
    made, asked = ({name: to_dict(x)[name] for name in OF_A_CLONE} for x in (first, config))
    for difference in differences(made, asked):
        raise ConfigError(
            f"{label} sets {difference.field}={difference.current!r}, but the methods of a task "
            f"share a clone, which is made with {difference.saved!r}; set it for the task or for "
            "every run."
        )
    check_same_network(config.policy, first.policy, f"the clone of {label}")


def _write_manifest(comparison: Comparison, folder: Path, command: str) -> None:
    """Write ``benchmark.json``: what the report is about, with what it listed before.

    The number of clones is listed if there are several.
    """
    content: dict[str, Any] = {
        "command": command,
        "versions": provenance.package_versions(),
        "commit": provenance.git_commit(),
        "seeds": comparison.seeds,
        "steps": comparison.steps,
        "tasks": [
            {"label": task, "env": config.env.name}
            for task, config in comparison.first_runs.items()
        ],
        "methods": [
            {"label": name, "algorithm": config.algorithm.name}
            for name, config in comparison.methods.items()
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / benchmark_read.MANIFEST
    clones = comparison.clones
    if path.exists():
        saved = read_json(path, benchmark_read.PLAN, error=ConfigError)
        for field in ("tasks", "methods"):
            new = [entry for entry in content[field] if entry not in saved[field]]
            content[field] = [*saved[field], *new]
        clones = max(clones, saved.get("clones") or 1)
    if clones > 1:
        content["clones"] = clones
    write_json(path, content)


def _finetune(folder: Path, config: RunConfig, task: TaskInterface, command: str) -> str:
    """Do one run; why it failed, or ""."""
    note = folder / "failed.txt"
    try:
        _training(config, task, folder, command).run()
    except Interrupted:
        raise
    except (RuntimeError, FloatingPointError) as error:
        reason = " ".join(str(error).split())
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, f"{reason}\n")
        print(f"failed: {error}", file=sys.stderr)
        return reason
    finally:
        jax.clear_caches()
    note.unlink(missing_ok=True)
    return ""

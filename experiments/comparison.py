"""Methods × tasks × seeds from shared clones: ``gcp-jax benchmark``.

A benchmark file has ``get_config() -> dict`` with

    tasks    {label: {"config": a file in experiments/configs or a task, FIELD: VALUE, …}}
    methods  {label: {"algorithm": name, "module": optional, FIELD: VALUE, …}}
    seeds    of every run
    steps    environment steps of every run
    common   {FIELD: VALUE, …} for every run

FIELD is dotted, e.g. "pretrain.stop_at_success". Fields of a task are set before the method is
chosen, fields of a method after it.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from gcp_jax.atomic_files import write_json, write_text
from gcp_jax.config import ConfigError, RunConfig, clone_config
from gcp_jax.experiments import assemble, run_config, user_files
from gcp_jax.experiments.plan import plan
from gcp_jax.json_files import DictOf, Maybe, problem_of, read_json
from gcp_jax.report import benchmark_page, benchmark_read
from gcp_jax.run import provenance
from gcp_jax.run.errors import Interrupted
from gcp_jax.run.sizes import run_sizes
from gcp_jax.run.task import TaskInterface
from gcp_jax.run.training import Training

EXAMPLE = "experiments/comparisons/clones.py"
DEFAULT_SEEDS = 3
DECLARATION = {  # what get_config() returns
    "tasks": Maybe(DictOf({"config": str})),
    "methods": Maybe(DictOf({"algorithm": str, "module": Maybe(str)})),
    "seeds": Maybe(int),
    "steps": Maybe(int),
    "common": Maybe(dict),
}

Fields = Mapping[str, Any]


class Comparison(NamedTuple):
    """What to compare; the runs lack only their clone."""

    seeds: int  # of every run
    steps: int  # environment steps of every run
    data_parallel: int
    runs: dict[str, dict[str, RunConfig]]  # by task, by method

    @property
    def first_runs(self) -> dict[str, RunConfig]:
        """One run of each task; the methods of a task share its clone."""
        return {task: next(iter(methods.values())) for task, methods in self.runs.items()}

    @property
    def methods(self) -> dict[str, RunConfig]:
        """The methods by label, each with its run on the first task."""
        return next(iter(self.runs.values()))


def choose(
    *,
    file: str,
    algorithms: Sequence[str],
    envs: Sequence[str],
    seeds: int | None,
    steps: int | None,
    overrides: Fields,
) -> Comparison:
    """A comparison from a file, from flags, or from a file whose contents the flags narrow.

    Args:
      file: a benchmark file, or "".
      algorithms: labels of the file's methods or names of methods; none: all of the file.
      envs: labels of the file's tasks or names of tasks; none: all of the file.
      seeds: of each method on each task; None: the file's number.
      steps: environment steps of each seed; None: the file's number or each task's.
      overrides: dotted field: value, for every run.

    Raises:
      ConfigError: in one line.
    """
    declared = _read_declaration(file) if file else {}
    tasks = _narrowed(declared.get("tasks", {}), envs, key="config")
    methods = _narrowed(declared.get("methods", {}), algorithms, key="algorithm")
    if not tasks or not methods:
        example = "--algorithms=ogpo,dppo --envs=peg_insert"
        raise ConfigError(f"nothing to compare: name methods and tasks, e.g. {example}.")
    _refuse_selectors(overrides)
    common = {**declared.get("common", {}), **overrides}
    common["seeds"] = seeds or common.get("seeds") or declared.get("seeds", DEFAULT_SEEDS)
    if steps or "steps" in declared:
        common["finetune.env_steps"] = steps or declared["steps"]
    runs = {
        task: {name: _run(fields, method, common) for name, method in methods.items()}
        for task, fields in tasks.items()
    }
    first = next(iter(next(iter(runs.values())).values()))
    return Comparison(
        seeds=first.seeds,
        steps=first.finetune.env_steps,
        data_parallel=first.data_parallel,
        runs=runs,
    )


def _read_declaration(file: str) -> dict[str, Any]:
    """What ``get_config()`` of a benchmark file returns, without the keys that are None.

    Raises:
      ConfigError: in one line, if it is no benchmark.
    """
    named = f"--file={file}"
    declared = user_files.call_user_file(file, "get_config", named=named, example=EXAMPLE)
    problem = problem_of(declared, DECLARATION)
    if problem:
        raise ConfigError(
            f"{named}: get_config() returns something else: {problem}; see {EXAMPLE}."
        )
    for key in ("tasks", "methods", "common"):
        wrong = [name for name in declared.get(key) or {} if not isinstance(name, str) or not name]
        if wrong:
            raise ConfigError(f"{named}: {wrong[0]!r} in {key!r} is no name; see {EXAMPLE}.")
    return {key: value for key, value in declared.items() if value is not None}


def _narrowed(declared: Mapping[str, Fields], names: Sequence[str], key: str) -> dict[str, Fields]:
    """The declared entries with these names; a name that is not declared is an entry of its own."""
    if not names:
        return dict(declared)
    return {name: declared.get(name, {key: name}) for name in names}


def _refuse_selectors(overrides: Fields) -> None:
    for name in overrides:
        if name in run_config.SELECTORS:
            raise ConfigError(
                f"--config.{name} cannot be used here; choose tasks by --envs and methods by "
                "--algorithms."
            )


def _run(task: Fields, method: Fields, common: Fields) -> RunConfig:
    """The configuration of one method on one task."""
    task_fields = dict(task)
    method_fields = dict(method)
    config = _task_config(task_fields.pop("config"))
    run_config.override(config, task_fields)
    name = method_fields.pop("algorithm")
    run_config.set_algorithm(config, name, method_fields.pop("module", ""))
    run_config.override(config, {**method_fields, **common, "video": False})
    resolved = run_config.frozen_config(config)
    if resolved.population:
        raise ConfigError(
            f"{name}: a benchmark compares methods, not a population; list each setting as a "
            "method."
        )
    return resolved


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
      Interrupted: if a signal stopped a run.
    """
    tasks = {
        task: assemble.make_task(config, film=False)
        for task, config in comparison.first_runs.items()
    }
    _check_comparable(comparison, tasks)
    for task, methods in comparison.runs.items():
        for name, config in methods.items():
            Training(config, tasks[task], folder / task / name, command)  # raises if impossible
    _write_manifest(comparison, folder, command)
    start = time.monotonic()
    total = sum(len(methods) for methods in comparison.runs.values())
    count = 0
    failed = {}
    for task, methods in comparison.runs.items():
        clone = clone_config(comparison.first_runs[task])
        base = Training(clone, tasks[task], folder / task / "base", command).pretrain()
        for name, config in methods.items():
            count += 1
            print(f"── {task}: {name} ({count} of {total})", file=sys.stderr)
            pretrain = dataclasses.replace(config.pretrain, saved_policy=str(base))
            config = dataclasses.replace(config, pretrain=pretrain)
            problem = _finetune(folder / task / name, config, tasks[task], command)
            if problem:
                failed[f"{task}/{name}"] = problem
    page = benchmark_page.write(folder)
    print(f"report: {page}", file=sys.stderr)
    return {
        "report": str(page),
        "tasks": list(comparison.runs),
        "methods": list(comparison.methods),
        "finished": total - len(failed),
        "failed": failed,
        "seconds": round(time.monotonic() - start, 1),
    }


def _check_comparable(comparison: Comparison, tasks: Mapping[str, TaskInterface]) -> None:
    """Check that all runs are possible and that those of a task can be compared.

    Raises:
      ConfigError: if a task is scored by return, if methods of a task would be evaluated at
        different environment steps, or if the sizes of a run do not fit.
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
        for config in methods.values():
            plan.plan(config, tasks[task])


def _write_manifest(comparison: Comparison, folder: Path, command: str) -> None:
    """Write ``benchmark.json``: what the report is about.

    Raises:
      ConfigError: if the folder holds a benchmark with another number of seeds or steps.
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
    path = folder / "benchmark.json"
    if path.exists():
        saved = read_json(path, benchmark_read.PLAN, error=ConfigError)
        for field in ("seeds", "steps"):
            if saved.get(field) != content[field]:
                raise ConfigError(
                    f"{folder} holds a benchmark with {field}={saved.get(field)}, not "
                    f"{content[field]}; choose another --run_dir."
                )
        for field in ("tasks", "methods"):
            new = [entry for entry in content[field] if entry not in saved[field]]
            content[field] = [*saved[field], *new]
    write_json(path, content)


def _finetune(folder: Path, config: RunConfig, task: TaskInterface, command: str) -> str:
    """Do one run; why it failed, or ""."""
    note = folder / "failed.txt"
    try:
        Training(config, task, folder, command).run()
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

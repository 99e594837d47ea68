"""Methods × tasks × seeds from shared clones: ``gcp-jax benchmark``.

A benchmark file has ``get_config() -> dict`` with

    tasks    {label: {"config": name of a file in experiments/configs or of a task, FIELD: VALUE, …}}
    methods  {label: {"algorithm": name, "module": optional, FIELD: VALUE, …}}
    seeds, steps    of every run
    common   {FIELD: VALUE, …} for every run

where FIELD is dotted, e.g. "pretrain.stop_at_success". Fields of a task are set before the method is chosen, fields of a method after.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from gcp_jax.atomic_files import write_json, write_text
from gcp_jax.config import ConfigError, RunConfig, clone_config, resolve, to_dict
from gcp_jax.experiments import assemble
from gcp_jax.experiments.plan import plan
from gcp_jax.report import benchmark_page
from gcp_jax.run import training


class Chosen(NamedTuple):
    """What to compare, checked: every run's configuration but for its folders and artifact."""

    seeds: int
    steps: int
    data: int
    runs: dict[str, dict[str, RunConfig]]  # by task, by method


def chosen(
    *,
    file: str,
    algorithms: Sequence[str],
    envs: Sequence[str],
    seeds: int | None,
    steps: int | None,
    overrides: Sequence[str],
) -> Chosen:
    """A benchmark from a file, from flags, or from a file whose choices flags narrow. Raises ConfigError in one line."""
    given = {}
    if file:
        given = assemble.call_user_file(
            file, "get_config", named=f"--file={file}", example="experiments/comparisons/clones.py"
        )
    task_fields, method_fields = given.get("tasks", {}), given.get("methods", {})
    if envs:
        task_fields = _narrowed(task_fields, envs, "config")
    if algorithms:
        method_fields = _narrowed(method_fields, algorithms, "algorithm")
    if not task_fields or not method_fields:
        raise ConfigError(
            "nothing to compare: name methods and tasks, e.g. --algorithms=ogpo,dppo --envs=peg_insert."
        )
    common = {**given.get("common", {}), **dict(_assignment(word) for word in overrides)}
    common["seeds"] = seeds or given.get("seeds", 3)
    if steps or "steps" in given:
        common["finetune.env_steps"] = steps or given["steps"]
    runs = {
        task: {name: _run(fields, method, common) for name, method in method_fields.items()}
        for task, fields in task_fields.items()
    }
    for name, run in itertools.chain.from_iterable(methods.items() for methods in runs.values()):
        if run.population:
            raise ConfigError(
                f"{name}: a benchmark compares methods, not a population; list each setting as a method."
            )
    first = next(iter(next(iter(runs.values())).values()))
    return Chosen(first.seeds, first.finetune.env_steps, first.data_parallel, runs)


def _narrowed(
    known: Mapping[str, dict[str, Any]], names: Sequence[str], key: str
) -> dict[str, dict[str, Any]]:
    """The entries called so, or where the file has none of that name, a plain one."""
    return {name: dict(known[name]) if name in known else {key: name} for name in names}


def _assignment(word: str) -> tuple[str, Any]:
    """``FIELD=VALUE`` with a Python literal or plain text for the value."""
    field, equals, text = word.partition("=")
    if not equals:
        raise ConfigError(f"--override={word} lacks its value; write --override=FIELD=VALUE.")
    try:
        return field, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return field, text


def _run(
    task: Mapping[str, Any], method: Mapping[str, Any], common: Mapping[str, Any]
) -> RunConfig:
    """The configuration of one method on one task."""
    task, method = dict(task), dict(method)
    config = _task_config(task.pop("config"))
    assemble.override(config, task)
    assemble.set_algorithm(config, method.pop("algorithm"), method.pop("module", ""))
    assemble.override(config, {**method, **common, "video": False})
    return assemble.frozen_config(config)


def _task_config(name: str) -> ml_collections.ConfigDict:
    """The configuration file of a task, or its defaults for many environments."""
    plain = assemble.defaults(env=name)
    file = f"gcp_jax.experiments.configs.{name}"
    if importlib.util.find_spec(file) is not None:
        found: ml_collections.ConfigDict = importlib.import_module(file).get_config()
        return found
    assemble.apply_many_env_preset(plain)
    return plain


def _check_alike(chosen: Chosen, made: Mapping[str, training.TaskInterface]) -> None:
    """Every task must have a success to compare; methods of a task must end, and be evaluated, at the same environment steps."""
    for task, methods in chosen.runs.items():
        if made[task].env.specs.by_return:
            raise ConfigError(
                f"{task} is judged by its return, and a benchmark compares success rates; train on it with each method and "
                "put the runs side by side with gcp-jax report RUN RUN --out=DIR."
            )
        points = {}
        for name, config in methods.items():
            size = training.run_sizes(config, made[task].env.specs)
            points[name] = (size.segments * size.env_steps, size.evaluate * size.env_steps)
        if len(set(points.values())) > 1:
            told = "; ".join(
                f"{name} ends at {end}, evaluated every {every}"
                for name, (end, every) in points.items()
            )
            raise ConfigError(
                f"on {task} the methods would not be evaluated at the same environment steps ({told}); choose steps and "
                "evaluation.every as multiples of every method's segment (finetune.envs · finetune.unroll_chunks · policy.chunk)."
            )


def run(chosen: Chosen, folder: Path, command: str) -> dict[str, Any]:
    """Run what is not finished, one after the other, and write the report; a run that fails is noted and left behind."""
    made = {
        task: assemble.make_task(next(iter(methods.values())), film=False)
        for task, methods in chosen.runs.items()
    }
    _check_alike(chosen, made)
    for task, methods in chosen.runs.items():
        for config in methods.values():
            plan.plan(config, made[task])
    _describe(chosen, folder, command)
    began, failed, count = time.monotonic(), {}, 0
    total = sum(len(methods) for methods in chosen.runs.values())
    for task, methods in chosen.runs.items():
        artifact = _clone(folder / task / "base", next(iter(methods.values())), made[task], command)
        for name, config in methods.items():
            count += 1
            print(f"── {task}: {name} ({count} of {total})", file=sys.stderr)
            problem = _finetune(folder / task / name, config, artifact, made[task], command)
            if problem:
                failed[f"{task}/{name}"] = problem
    page = benchmark_page.write(folder)
    print(f"report: {page}", file=sys.stderr)
    return {
        "report": str(page),
        "tasks": list(chosen.runs),
        "methods": list(next(iter(chosen.runs.values()))),
        "finished": total - len(failed),
        "failed": failed,
        "seconds": round(time.monotonic() - began, 1),
    }


def _describe(chosen: Chosen, folder: Path, command: str) -> None:
    """``benchmark.json``: what the report is about. A folder of another benchmark is refused."""
    content: dict[str, Any] = {
        "command": command,
        "versions": training.package_versions(),
        "commit": training.git_commit(),
        "seeds": chosen.seeds,
        "steps": chosen.steps,
        "tasks": [
            {"label": task, "env": next(iter(m.values())).env["name"]}
            for task, m in chosen.runs.items()
        ],
        "methods": [
            {"label": name, "algorithm": config.algorithm["name"]}
            for name, config in next(iter(chosen.runs.values())).items()
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "benchmark.json"
    if path.exists():
        there = json.loads(path.read_text())
        for field in ("seeds", "steps"):
            if there[field] != content[field]:
                raise ConfigError(
                    f"{folder} holds a benchmark with {field}={there[field]}, not {content[field]}; choose another --run_dir."
                )
        for field in ("tasks", "methods"):
            content[field] = [
                *there[field],
                *(entry for entry in content[field] if entry not in there[field]),
            ]
    write_json(path, content)


def _clone(folder: Path, config: RunConfig, task: training.TaskInterface, command: str) -> Path:
    """The task's shared clone."""
    return training.Training(clone_config(config), task, folder, command).pretrain()


def _finetune(
    folder: Path, config: RunConfig, artifact: Path, task: training.TaskInterface, command: str
) -> str:
    """One run; "" or why it failed."""
    values = to_dict(config)
    values["pretrain"]["artifact"] = str(artifact)
    note = folder / "failed.txt"
    try:
        training.Training(resolve(values), task, folder, command).run()
    except training.Interrupted:
        raise
    except (RuntimeError, FloatingPointError) as error:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, f"{' '.join(str(error).split())}\n")
        print(f"failed: {error}", file=sys.stderr)
        return note.read_text().strip()
    finally:
        jax.clear_caches()
    note.unlink(missing_ok=True)
    return ""

"""``sweep.json``: the list of a sweep's runs, in the sweep's folder.

It holds every run by its id, those of earlier launches included, and the commands that launched
the sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gcp_jax.atomic_files import write_json
from gcp_jax.config import ConfigError
from gcp_jax.json_files import DictOf, ListOf, Maybe, problem_of, read_json
from gcp_jax.launch.expand import RunSpec
from gcp_jax.run import provenance

FORMAT = 1
NAME = "sweep.json"
CONTENT = {
    "file": str,
    "commands": ListOf(str),
    "versions": Maybe(DictOf(str)),
    "commit": Maybe(str),
    "runs": DictOf({"values": dict, "command": str}),
}
PACKED = {"packed": ListOf(float)}  # values of a field that share one program


def write_manifest(runs: Sequence[RunSpec], folder: Path, *, file: str, command: str) -> None:
    """Write ``sweep.json``, or add the runs and the command to the one that exists.

    Raises:
      ConfigError: if the existing file is of another version.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "file": file,
        "commands": [command],
        "versions": provenance.package_versions(),
        "commit": provenance.git_commit(),
        "runs": {run.id: _entry(run) for run in runs},
    }
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / NAME).exists():
        existing = read_manifest(folder)
        content["runs"] = existing["runs"] | content["runs"]
        content["commands"] = [*existing["commands"], command]
    write_json(folder / NAME, content)


def add_runs(runs: Sequence[RunSpec], folder: Path) -> None:
    """Add the runs of a new trial of a search to ``sweep.json``."""
    content = read_manifest(folder)
    new = {run.id: _entry(run) for run in runs if run.id not in content["runs"]}
    if new:
        write_json(folder / NAME, {**content, "runs": content["runs"] | new})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of ``sweep.json``.

    Raises:
      ConfigError: if the folder has none, or one that is damaged or of another version.
    """
    path = folder / NAME
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds no sweep (there is no {NAME}); name the --run_dir of a gcp-jax sweep."
        )
    content: dict[str, Any] = read_json(path, error=ConfigError)
    if content.get("format") != FORMAT:
        raise ConfigError(
            f"{folder} holds a sweep of format {content.get('format')!r}, "
            f"this version reads {FORMAT}; choose another --run_dir."
        )
    problem = problem_of(content, CONTENT) or _problem_of_values(content["runs"])
    if problem:
        raise ConfigError(f"{path}: {problem}; restore the file as it was written.")
    return content


def _problem_of_values(runs: Mapping[str, Any]) -> str:
    """What is wrong with the values that distinguish the runs; "" if nothing is."""
    for name, entry in runs.items():
        packed = {field: x for field, x in entry["values"].items() if isinstance(x, dict)}
        problem = problem_of(packed, DictOf(PACKED), f"runs.{name}.values")
        if problem:
            return problem
        if len({len(x["packed"]) for x in packed.values()}) > 1:
            return f"'runs.{name}.values' packs fields of different numbers of values"
    return ""


def _entry(run: RunSpec) -> dict[str, Any]:
    return {"values": run.values, "command": run.command}

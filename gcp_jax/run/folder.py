"""The folder of a run: its lock, ``config.json``, and which configurations may share it.

A folder without ``config.json`` may hold the rows and the policy of a clone made elsewhere: the
run adopts them. A folder with it is resumed only by the same configuration.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gcp_jax.atomic_files import write_json
from gcp_jax.config import RunConfig, to_dict
from gcp_jax.json_files import DictOf, problem_of, read_json
from gcp_jax.run import checkpoint, distributed, metrics, provenance
from gcp_jax.run.errors import RunError
from gcp_jax.run.sizes import Cadences

FORMAT = metrics.RUN_FORMAT
ROW_FILES = ("metrics.jsonl", "eval.jsonl")
FREE_FIELDS = (  # may differ when a run is resumed
    "run_dir",
    "writers",
    "video",
    "checkpoint",
    "max_nonfinite_updates",
)


def config_hash(config: RunConfig) -> str:
    """A hash of the fields that determine a run's numbers: the name of an unnamed run's folder."""
    content = {name: value for name, value in to_dict(config).items() if name not in FREE_FIELDS}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


@contextlib.contextmanager
def run_folder_lock(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Create the folder and keep other processes out; the first host locks it for all hosts.

    Raises:
      RunError: another process holds the lock.
    """
    if not distributed.is_primary():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                f"{folder} is in use by another process; wait for it or choose another --run_dir."
            ) from None
        yield


def open_folder(folder: Path, config: RunConfig, command: str) -> None:
    """Begin a run in a folder, or check that its run can be resumed.

    Prints a warning if the run began with other versions of the packages that it uses.

    Args:
      folder: the run's folder.
      config: the run.
      command: the command line, to be recorded.

    Raises:
      RunError: the folder holds something else, or a run of another format or configuration.
    """
    path = folder / "config.json"
    content = to_dict(config)
    versions = provenance.package_versions()
    if not path.exists() and distributed.is_primary():
        _refuse_other_content(folder)
        record = {
            "format": FORMAT,
            "config": content,
            "command": command,
            "versions": versions,
            "commit": provenance.git_commit(),
        }
        write_json(path, record)
    distributed.wait("config.json")
    saved = read_json(path, error=RunError, remedy="restore it, or choose another --run_dir")
    if saved.get("format") != FORMAT:
        raise RunError(
            f"{folder} holds a run of format {saved.get('format')!r}, this version reads {FORMAT}; "
            "finish it with the version that began it, or choose another --run_dir."
        )
    problem = problem_of(saved, {"config": dict, "versions": DictOf(str)})
    if problem:
        raise RunError(f"{path}: {problem}; restore it, or choose another --run_dir.")
    _warn_of_versions(saved["versions"], versions)
    for difference in differences(saved["config"], content):
        raise RunError(
            f"{folder} holds a run with {difference.field}={difference.saved!r}, "
            f"not {difference.current!r}; {_way_on(folder)}."
        )


def _way_on(folder: Path) -> str:
    """What to do with a folder that holds another run."""
    if not (folder / "summary.json").exists():
        return "use the same configuration to resume it, or another --run_dir"
    return (
        "it is finished; choose another --run_dir, and to begin from its clone "
        f"--config.pretrain.saved_policy={folder / 'policy' / 'base'}"
    )


def _refuse_other_content(folder: Path) -> None:
    if name := other_content(folder):
        raise RunError(
            f"{folder} holds a {name}, but no config.json: it is not a run of gcp-jax, or its "
            "config.json was deleted. Choose another --run_dir."
        )


def other_content(folder: Path) -> str:
    """The first file of a folder without ``config.json`` that a run would overwrite.

    Rows written by an adopted clone belong to the run.

    Returns:
      The file's name; "" if there is none.
    """
    for name in ROW_FILES:
        if not _holds_rows_of_a_run(folder / name):
            return name
    for name in ("checkpoints", "report", "summary.json"):
        if (folder / name).exists():
            return name
    return ""


def _holds_rows_of_a_run(path: Path) -> bool:
    """True for a file of a run's rows, for an empty file, and if there is no file."""
    try:
        rows = metrics.rows(path)
    except ValueError:
        return False
    if not rows:
        return not path.exists() or path.stat().st_size == 0
    return all("stage" in row for row in rows)


def _warn_of_versions(saved: Mapping[str, str], current: Mapping[str, str]) -> None:
    for name, version in saved.items():
        if version != current.get(name):
            print(
                f"this run began with {name} {version}, now it is {current.get(name)}: "
                "the last bits may differ",
                file=sys.stderr,
            )


class Difference(NamedTuple):
    """A field in which two configurations differ."""

    field: str  # its dotted name
    saved: Any
    current: Any


def differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = ""
) -> Iterator[Difference]:
    """Compare two configurations in the fields that determine a run's numbers.

    Args:
      saved: a configuration as it was read from JSON.
      current: a configuration as plain values.
      prefix: what precedes the names of the fields.

    Yields:
      The fields that differ, in alphabetical order.
    """
    for name in sorted({*saved, *current}):
        if not prefix and name in FREE_FIELDS:
            continue
        old = saved.get(name)
        new = current.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{name}.")
        elif old != json.loads(json.dumps(new)):
            yield Difference(f"{prefix}{name}", old, new)


def drop_late_rows(folder: Path, cadences: Cadences) -> None:
    """Drop the rows that a killed process wrote after the checkpoint from which the run resumes."""
    clock = checkpoint.latest(folder / "checkpoints" / "finetune")
    if clock is not None:
        keep = metrics.until("finetune", **cadences.finetune.counters(clock))
    elif (folder / "policy" / "base").exists():
        keep = metrics.until("base", env_steps=0, updates=0)
    else:
        clock = checkpoint.latest(folder / "checkpoints" / "pretrain") or 0
        keep = metrics.until("pretrain", **cadences.pretrain.counters(clock))
    for name in ROW_FILES:
        metrics.truncate_after(folder / name, keep, metrics.ROW)

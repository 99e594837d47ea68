"""The folder of a run: its lock, ``config.json``, and which configurations may share it.

A folder without ``config.json`` may hold the rows and the policy of a clone made elsewhere: the
run adopts them. A folder with it is resumed only by the same configuration and the same code.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gcp_jax.atomic_files import write_json
from gcp_jax.config import RunConfig, to_dict
from gcp_jax.json_files import DictOf, Maybe, problem_of, read_json
from gcp_jax.run import (
    checkpoint,
    distributed,
    metrics,
    provenance,
    run_policies,
    saved_policy,
)
from gcp_jax.run.code_digests import code_digests
from gcp_jax.run.errors import RunError
from gcp_jax.run.sizes import Cadences

FORMAT = metrics.RUN_FORMAT
RECORD = {  # config.json
    "config": dict,
    "versions": Maybe(DictOf(str)),
    "code": Maybe(DictOf(str)),
    "inputs": Maybe(DictOf(str)),
    "earlier_code": Maybe(list),
}
ROW_FILES = ("metrics.jsonl", "eval.jsonl")
FREE_FIELDS = (  # may differ when a run is resumed
    "run_dir",
    "writers",
    "video",
    "checkpoint",
    "max_nonfinite_updates",
    "allow_changed_code",
)
ON_DECAY = "finetune.on_decay"
RESTORE = "restore"  # the only value of it that changes numbers; the others may replace each other
INPUT_FIELDS = ("demonstrations.path", "pretrain.saved_policy")  # paths, compared by their content
NAMES_BEFORE_RUN = frozenset(  # what a worker, a benchmark or an adopted clone leaves in a folder
    (
        "alive",
        "attempts.jsonl",
        "config.tmp",
        "dropped.txt",
        "error.txt",
        "failed.txt",
        "log.txt",
        "policy",
        *ROW_FILES,
    )
)
POLICIES_BEFORE_RUN = frozenset(("base", ".base"))


def config_hash(config: RunConfig) -> str:
    """A hash of the fields that determine a run's numbers: the name of an unnamed run's folder."""
    content = {name: value for name, value in to_dict(config).items() if name not in FREE_FIELDS}
    if config.finetune.on_decay != RESTORE:
        content["finetune"].pop("on_decay")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


@contextlib.contextmanager
def run_folder_lock(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Create the folder and keep other processes out; the first host locks it for all hosts.

    Raises:
      RunError: another process holds the lock, or a run cannot be kept at this path.
    """
    check_path(folder)
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


def check_path(folder: Path) -> None:
    """Raise RunError for a path at which a run cannot be kept."""
    path = str(folder)
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        raise RunError(
            f"the path {path!r} holds a character that is not text; choose another --run_dir."
        )
    if re.match(r"[A-Za-z][\w+.-]*:/", path):
        raise RunError(
            f"{path} looks like the address of a remote store; a run needs a folder of this "
            "machine, so choose another --run_dir (./NAME:/… if that is the folder's name)."
        )
    if not checkpoint.is_plain(folder.resolve()) and not checkpoint.can_be_aliased():
        raise RunError(
            f"checkpoints cannot be kept in {folder.resolve()}: with several hosts, or with such a "
            "path of TMPDIR, it may hold none of * ? [ ] \\ and no folder that ends with a colon; "
            "choose another --run_dir."
        )


def open_folder(
    folder: Path,
    config: RunConfig,
    command: str,
    cadences: Cadences,
    inputs: Mapping[str, str],
) -> None:
    """Begin a run in a folder, or check that its run can be resumed.

    Prints a warning if the run began with other versions of the packages that it uses.

    Args:
      folder: the run's folder.
      config: the run.
      command: the command line, to be recorded.
      cadences: of its stages, from which ``row_gaps`` knows which rows there should be.
      inputs: digests of what it reads from disk (``TaskInterface.inputs``).

    Raises:
      RunError: the folder holds something else, or a run of another format, configuration or code.
    """
    path = folder / "config.json"
    code = code_digests(config)
    if not path.exists() and distributed.is_primary():
        _refuse_other_content(folder)
        record = {
            "format": FORMAT,
            "config": to_dict(config),
            "command": command,
            "versions": provenance.package_versions(),
            "commit": provenance.git_commit(),
            "code": code,
            "inputs": dict(inputs),
            "cadences": {cadence.name: cadence._asdict() for cadence in cadences},
        }
        write_json(path, record)
    distributed.wait("config.json")
    saved = check_resumable(folder, config, code, inputs)
    _warn_of_versions(saved.get("versions") or {}, provenance.package_versions())
    if (changed := _changed_modules(saved, code)) and distributed.is_primary():
        print(f"{changed} changed since this run began (allow_changed_code)", file=sys.stderr)
        earlier = [*(saved.get("earlier_code") or ()), saved["code"]]
        write_json(path, {**saved, "code": code, "earlier_code": earlier})


def check_folder(folder: Path, config: RunConfig, inputs: Mapping[str, str]) -> None:
    """Check that a run can begin or continue in a folder; nothing is written.

    Raises:
      RunError: a run cannot be kept at this path, or it holds something else or another run.
    """
    check_path(folder)
    if (folder / "config.json").exists():
        check_resumable(folder, config, code_digests(config), inputs)
    else:
        _refuse_other_content(folder)


def check_resumable(
    folder: Path, config: RunConfig, code: Mapping[str, str], inputs: Mapping[str, str]
) -> dict[str, Any]:
    """Check that a folder's run, if it holds one, is the given one; nothing is written.

    Args:
      folder: the run's folder.
      config: the run.
      code: what ``code_digests`` gives for it.
      inputs: digests of what it reads from disk, as far as that is there.

    Returns:
      The content of ``config.json``; {} if there is none.

    Raises:
      RunError: the folder holds a run of another format, configuration, code or data.
    """
    path = folder / "config.json"
    if not path.exists():
        return {}
    remedy = "restore it, or choose another --run_dir"
    saved: dict[str, Any] = read_json(path, error=RunError, remedy=remedy)
    if saved.get("format") != FORMAT:
        raise RunError(
            f"{folder} holds a run of format {saved.get('format')!r}, this version reads {FORMAT}; "
            "finish it with the version that began it, or choose another --run_dir."
        )
    problem = problem_of(saved, RECORD)
    if problem:
        raise RunError(f"{path}: {problem}; {remedy}.")
    saved_inputs = saved.get("inputs") or {}
    for field, digest in inputs.items():
        if saved_inputs.get(field, digest) != digest:
            raise RunError(
                f"{folder} holds a run that began with other data at {field}; give it the same "
                "data to resume it, or choose another --run_dir."
            )
    for difference in differences(saved["config"], to_dict(config)):
        if _is_same_input(difference, saved_inputs, inputs):
            continue
        raise RunError(
            f"{folder} holds a run with {difference.field}={difference.saved!r}, "
            f"not {difference.current!r}; {_way_on(folder)}."
        )
    if (changed := _changed_modules(saved, code)) and not config.allow_changed_code:
        raise RunError(
            f"{folder} holds a run with other code: {changed} changed since it began. Restore "
            "it, choose another --run_dir, or continue with the new code by "
            "--config.allow_changed_code=True."
        )
    return saved


def _is_same_input(
    difference: Difference, saved_inputs: Mapping[str, str], inputs: Mapping[str, str]
) -> bool:
    """Whether two paths of one field lead to the same data, or are spellings of one folder."""
    field, saved, current = difference
    if field not in INPUT_FIELDS or not saved or not current:
        return False
    if field in saved_inputs and field in inputs:
        return saved_inputs[field] == inputs[field]
    return Path(saved).resolve() == Path(current).resolve()


def _changed_modules(record: Mapping[str, Any], code: Mapping[str, str]) -> str:
    """The modules whose code is not that which ``config.json`` recorded, for a message."""
    saved = record.get("code")
    if saved is None:
        return ""
    changed = [name for name in sorted({*saved, *code}) if saved.get(name) != code.get(name)]
    return ", ".join("gcp_jax itself" if name == "gcp_jax" else f"{name}.py" for name in changed)


def _way_on(folder: Path) -> str:
    """What to do with a folder that holds another run."""
    if not (folder / "summary.json").exists():
        return "use the same configuration to resume it, or another --run_dir"
    return (
        "it is finished; choose another --run_dir, and to begin from its clone "
        f"--config.pretrain.saved_policy={folder / 'policy' / 'base'}"
    )


def _refuse_other_content(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; choose another --run_dir.")
    if name := other_content(folder):
        raise RunError(
            f"{folder} holds a {name}, but no config.json: it is not a run of gcp-jax, or its "
            "config.json was deleted. Choose another --run_dir."
        )


def other_content(folder: Path) -> str:
    """The first file of a folder without ``config.json`` that is not of a run about to begin.

    Rows and the policy written by an adopted clone belong to the run; hidden files are ignored.

    Returns:
      The file's path in the folder; "" if there is none.
    """
    for name in ROW_FILES:
        if not _holds_rows_of_a_run(folder / name):
            return name
    return first_foreign_name(folder, NAMES_BEFORE_RUN) or first_foreign_name(
        folder / "policy", POLICIES_BEFORE_RUN, prefix="policy/"
    )


def refuse_foreign_folder(folder: Path, marker: str) -> None:
    """Raise RunError if a folder without the file ``marker`` holds anything but hidden files."""
    if (folder / marker).exists():
        return
    if name := first_foreign_name(folder, frozenset()):
        raise RunError(
            f"{folder} holds a {name}, but no {marker}: it was not made by this command. Choose "
            "another --run_dir."
        )


def first_foreign_name(folder: Path, known: frozenset[str], prefix: str = "") -> str:
    """The first name in a folder that is not ``known`` and no hidden file; "" if there is none."""
    if not folder.is_dir():
        return ""
    for path in sorted(folder.iterdir()):
        hidden_file = path.name.startswith(".") and path.is_file()
        if path.name not in known and not hidden_file:
            return f"{prefix}{path.name}"
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


def finished_summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished run; {} if it is missing, of a clone alone, or cut."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}


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
      saved: a configuration, as plain values or as it was read from JSON.
      current: the same.
      prefix: what precedes the names of the fields.

    Yields:
      The fields that differ, in alphabetical order.
    """
    for name in sorted({*saved, *current}):
        if not prefix and name in FREE_FIELDS:
            continue
        old = saved.get(name)
        new = current.get(name)
        if f"{prefix}{name}" == ON_DECAY and RESTORE not in (old, new):
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{name}.")
        elif json.loads(json.dumps(old)) != json.loads(json.dumps(new)):
            yield Difference(f"{prefix}{name}", old, new)


def drop_late_rows(folder: Path, cadences: Cadences) -> None:
    """Drop the rows that a killed process wrote after the checkpoint from which the run resumes."""
    clock = checkpoint.latest(folder / "checkpoints" / "finetune")
    if clock is not None:
        keep = metrics.until("finetune", **cadences.finetune.counters(clock))
    elif saved_policy.is_intact(run_policies.policy_folder(folder, run_policies.BASE)):
        keep = metrics.until("base", env_steps=0, updates=0)
    else:
        clock = checkpoint.latest(folder / "checkpoints" / "pretrain") or 0
        keep = metrics.until("pretrain", **cadences.pretrain.counters(clock))
    for name in ROW_FILES:
        metrics.truncate_after(folder / name, keep, metrics.ROW)

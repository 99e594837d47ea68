"""Checkpoints: the state of the compiled loop and of the host, written by orbax.

A run resumed from a checkpoint equals one that never stopped, bit for bit. Each checkpoint is
signed once it is on disk and holds every array: ``digests.json`` in its folder has the SHA-256 of
every file. A checkpoint that lacks an array, does not match its digests, or has none, is not
restored.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from gcp_jax.atomic_files import write_json
from gcp_jax.run import distributed
from gcp_jax.types import PyTree, Train

SIGNATURE = "digests.json"
KEPT = "kept"  # the item of arrays that are not of the compiled loop
FULL = (errno.ENOSPC, errno.EDQUOT)
PATTERN_CHARACTERS = frozenset("*?[]\\")  # orbax expands patterns in the paths of its folders


def latest(folder: Path) -> int | None:
    """The clock of the newest complete checkpoint of a stage; None if there is none."""
    if not folder.exists():
        return None
    return max(ocp.utils.checkpoint_steps(folder), default=None)


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, in a few words; "" if every file is intact."""
    try:
        digests = json.loads((checkpoint / SIGNATURE).read_text())
    except FileNotFoundError:
        return "it was never finished"
    except (ValueError, RecursionError):
        return f"{SIGNATURE} cannot be read"
    if not isinstance(digests, dict) or not digests:
        return f"{SIGNATURE} names no files"
    files = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    for name, digest in digests.items():
        if name not in files:
            return f"{name} is missing"
        if _digest(checkpoint / name) != digest:
            return f"{name} is not what was written"
    return missing_arrays(checkpoint)


def missing_arrays(checkpoint: Path) -> str:
    """Which arrays a checkpoint lacks, in a few words; "" if all are there."""
    items = ["train", KEPT] if (checkpoint / KEPT).exists() else ["train"]
    return next(filter(None, (_missing_arrays(checkpoint / item) for item in items)), "")


def _missing_arrays(item: Path) -> str:
    """Which arrays of an item of a checkpoint are missing.

    Its description lists them; what orbax has written is in one database.
    """
    try:
        description = json.loads((item / "_METADATA").read_text())
        described = description["tree_metadata"].values()
        with plain_path(item) as folder:
            database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
            keys = tensorstore.KvStore.open(database).result().list().result()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return f"its arrays cannot be read: {first_line(error)}"
    entries: dict[str, int] = {}
    for key in keys:
        array = key.decode().rpartition("/")[0]
        entries[array] = entries.get(array, 0) + 1
    complete = sum(count > 1 for count in entries.values())  # a description and some numbers
    needed = sum(not entry["value_metadata"]["skip_deserialize"] for entry in described)
    if complete < needed:
        return f"it holds {complete} of {needed} arrays"
    return ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without tensorstore's list of source locations."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.partition(" [source locations=")[0]


def set_damaged_aside(folder: Path, aside: Path) -> None:
    """Move damaged checkpoints of a stage away, from the newest to the first intact one.

    Prints one line for each. Returns on every host when the first has finished.

    Args:
      folder: the stage's checkpoints.
      aside: where damaged ones are moved.
    """
    if distributed.is_primary():
        while (clock := latest(folder)) is not None:
            problem = damage(folder / str(clock))
            if not problem:
                break
            target = set_aside(folder / str(clock), aside, f"{folder.name}-{clock}")
            previous = latest(folder)
            if previous is None:
                next_step = "there is none before it"
            else:
                next_step = f"resuming from {previous}"
            print(
                f"checkpoint {clock} of {folder.name} is damaged ({problem}); "
                f"moved to {target}, {next_step}",
                file=sys.stderr,
            )
    distributed.wait(f"{folder.name} checked")


def set_aside(path: Path, aside: Path, name: str) -> Path:
    """Move a damaged folder into ``aside``, under ``name`` or a number after it; where it is."""
    target = _free_path(aside, name)
    aside.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)
    return target


def _free_path(folder: Path, name: str) -> Path:
    """``folder/name``, or the first of ``folder/name-1``, ``folder/name-2``, … that is free."""
    path = folder / name
    for number in itertools.count(1):
        if not path.exists():
            break
        path = folder / f"{name}-{number}"
    return path


def _sign(checkpoint: Path) -> None:
    digests = {
        str(path.relative_to(checkpoint)): _digest(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    write_json(checkpoint / SIGNATURE, digests)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_plain(path: Path) -> bool:
    """True if orbax can be given this path: without patterns, and not like an address."""
    return not PATTERN_CHARACTERS & set(str(path)) and not any(
        part.endswith(":") for part in path.parts
    )


def can_be_aliased() -> bool:
    """True if a folder whose path is not plain can be given to orbax under another path."""
    return distributed.count() == 1 and is_plain(Path(tempfile.gettempdir()).resolve())


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """A folder by a plain path: its own, or that of a symbolic link in a temporary folder."""
    folder = folder.resolve()
    if is_plain(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="gcp-jax-") as scratch:
        link = Path(scratch).resolve() / "checkpoints"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _hide_logged_errors(record: logging.LogRecord) -> bool:
    """False for errors that orbax logs with a traceback, and asyncio for it; orbax raises them."""
    of_orbax = "orbax" in record.pathname or (
        record.name == "asyncio" and "OCDBT" in record.getMessage()
    )
    return record.levelno < logging.ERROR or not of_orbax


@functools.cache
def _keep_failures_quiet() -> None:
    """Print no tracebacks of what orbax and tensorstore do besides raising a failed write.

    Orbax logs it in each of its threads. Tensorstore then still calls the event loop that orbax has
    closed, and prints that this fails.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_hide_logged_errors)
    previous = sys.unraisablehook

    def hide_closed_loops(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    sys.unraisablehook = hide_closed_loops


class Checkpoints:
    """The checkpoints of one stage, numbered by its clock; the newest ``keep`` of them are kept."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        _keep_failures_quiet()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._folder = folder.resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._alias = contextlib.ExitStack()
        path = self._alias.enter_context(plain_path(self._folder))
        self._manager = ocp.CheckpointManager(path, options=options)

    def save(
        self, clock: int, train: Train, host: Mapping[str, Any], kept: PyTree | None = None
    ) -> None:
        """Write a checkpoint, unless the one of this clock exists; returns when it is on disk.

        Args:
          clock: segments done.
          train: the state of the compiled loop.
          host: plain values of the host.
          kept: arrays of the host; None or empty: none.

        Raises:
          OSError: the disk is full, or not every array was written.
        """
        if clock in self._manager.all_steps():
            return
        items: dict[str, Any] = {
            "train": ocp.args.StandardSave(key_data(train)),
            "host": ocp.args.JsonSave(dict(host)),
        }
        if kept:
            items[KEPT] = ocp.args.StandardSave(kept)
        try:
            self._manager.save(clock, args=ocp.args.Composite(**items))
            if distributed.is_primary():
                self._sign(clock)
        except (OSError, ValueError) as error:  # tensorstore raises ValueError if the disk is full
            raise OSError(
                f"cannot write checkpoint {clock} to {self._folder}: {_reason(error)}; the same "
                "command resumes from the checkpoint before"
            ) from error

    def _sign(self, clock: int) -> None:
        """Sign a checkpoint if it holds what it should."""
        checkpoint = self._folder / str(clock)
        if problem := missing_arrays(checkpoint):
            raise ValueError(problem)
        _sign(checkpoint)

    def restore(
        self, init: Callable[[], Train], shardings: PyTree
    ) -> tuple[Train, dict[str, Any]] | None:
        """Read the newest checkpoint.

        Args:
          init: makes a state with the same shapes; it is traced, not run.
          shardings: how the state is placed on devices, a prefix of it.

        Returns:
          The state and the host's values; None if there is no checkpoint.
        """
        clock = self._manager.latest_step()
        if clock is None:
            return None
        shapes = jax.eval_shape(init)
        placed = _with_shardings(shapes, shardings)
        raw = jax.tree.map(
            lambda x, like: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=like.sharding),
            jax.eval_shape(key_data, shapes),
            placed,
        )
        arguments = ocp.args.Composite(
            train=ocp.args.StandardRestore(raw), host=ocp.args.JsonRestore()
        )
        found = self._manager.restore(clock, args=arguments)
        train = wrap_keys(found["train"], shapes)
        return jax.device_put(train, jax.tree.map(lambda x: x.sharding, placed)), found["host"]

    def restore_kept(self, shapes: PyTree) -> PyTree | None:
        """Read the arrays of the host from the newest checkpoint, as numpy arrays.

        Args:
          shapes: their shapes and types, without random keys.

        Returns:
          The arrays; None if the checkpoint has none.
        """
        clock = self._manager.latest_step()
        if clock is None or not (self._folder / str(clock) / KEPT).exists():
            return None
        like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        arguments = ocp.args.Composite(**{KEPT: ocp.args.StandardRestore(like)})
        return self._manager.restore(clock, args=arguments)[KEPT]

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()
        self._alias.close()


def _reason(error: BaseException) -> str:
    """Why a checkpoint was not written, with the remedy if the disk is full."""
    message = first_line(error)
    if getattr(error, "errno", None) in FULL or "RESOURCE_EXHAUSTED" in message:
        return "the disk is full; free some space"
    if "File too large" in message:
        return "a file may not be as large (ulimit -f)"
    return message


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def key_data(tree: PyTree) -> PyTree:
    """Replace typed random keys by their integers, which orbax can write."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def wrap_keys(tree: PyTree, like: PyTree) -> PyTree:
    """Undo ``key_data``: random keys where ``like`` has them."""
    return jax.tree.map(lambda x, y: jax.random.wrap_key_data(x) if _is_key(y) else x, tree, like)


def _with_shardings(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Shapes with the shardings of a prefix tree."""

    def place(sharding: jax.sharding.Sharding, part: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part
        )

    return jax.tree.map(
        place, shardings, shapes, is_leaf=lambda x: isinstance(x, jax.sharding.Sharding)
    )

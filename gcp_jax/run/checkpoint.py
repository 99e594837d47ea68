"""Checkpoints: the state of the compiled loop and of the host, written by orbax.

A run resumed from a checkpoint equals one that never stopped, bit for bit. Each checkpoint is
signed once it is on disk: ``digests.json`` in its folder holds the SHA-256 of every file. A
checkpoint that does not match its digests, or has none, is not restored.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from gcp_jax.atomic_files import write_json
from gcp_jax.run import distributed
from gcp_jax.types import PyTree, Train

SIGNATURE = "digests.json"


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
    return ""


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
            target = _free_path(aside, f"{folder.name}-{clock}")
            aside.mkdir(parents=True, exist_ok=True)
            os.replace(folder / str(clock), target)
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


class Checkpoints:
    """The checkpoints of one stage, numbered by its clock; the newest ``keep`` of them are kept."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._folder = folder.resolve()
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, clock: int, train: Train, host: Mapping[str, Any]) -> None:
        """Write a checkpoint, unless the one of this clock exists; returns when it is on disk.

        Args:
          clock: segments done.
          train: the state of the compiled loop.
          host: plain values of the host.

        Raises:
          OSError: the disk is full.
        """
        if clock in self._manager.all_steps():
            return
        arguments = ocp.args.Composite(
            train=ocp.args.StandardSave(_key_data(train)), host=ocp.args.JsonSave(dict(host))
        )
        try:
            self._manager.save(clock, args=arguments)
            if distributed.is_primary():
                _sign(self._folder / str(clock))
        except (OSError, ValueError) as error:  # tensorstore raises ValueError if the disk is full
            raise OSError(
                f"cannot write checkpoint {clock} to {self._folder}: {error}; free some space: the "
                "same command resumes from the checkpoint before"
            ) from error

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
            jax.eval_shape(_key_data, shapes),
            placed,
        )
        arguments = ocp.args.Composite(
            train=ocp.args.StandardRestore(raw), host=ocp.args.JsonRestore()
        )
        found = self._manager.restore(clock, args=arguments)
        train = jax.tree.map(
            lambda x, like: jax.random.wrap_key_data(x) if _is_key(like) else x,
            found["train"],
            shapes,
        )
        return jax.device_put(train, jax.tree.map(lambda x: x.sharding, placed)), found["host"]

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _key_data(tree: PyTree) -> PyTree:
    """Replace typed random keys by their integers, which orbax can write."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _with_shardings(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Shapes with the shardings of a prefix tree."""

    def place(sharding: jax.sharding.Sharding, part: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part
        )

    return jax.tree.map(
        place, shardings, shapes, is_leaf=lambda x: isinstance(x, jax.sharding.Sharding)
    )

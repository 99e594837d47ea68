"""Checkpoints: the whole ``Train`` and where the host loop stood, by orbax; restoring continues bit for bit.

Each is signed once it is on disk: ``digests.json`` in its folder holds the SHA-256 of every file. What does not match was damaged, or
never finished, and is not restored.
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


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _without_keys(tree: PyTree) -> PyTree:
    """Typed keys as their raw words: what a file can hold."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def latest(folder: Path) -> int | None:
    """The clock of the newest complete checkpoint in a stage's folder; None without any."""
    return max(ocp.utils.checkpoint_steps(folder), default=None) if folder.exists() else None


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, in a few words; "" where every file is as it was written."""
    try:
        known = json.loads((checkpoint / SIGNATURE).read_text())
    except FileNotFoundError:
        return "it was never finished"
    except (ValueError, RecursionError):
        return f"{SIGNATURE} cannot be read"
    there = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    if not isinstance(known, dict) or not known:
        return f"{SIGNATURE} names no files"
    for name, digest in known.items():
        if name not in there:
            return f"{name} is missing"
        if _digest(checkpoint / name) != digest:
            return f"{name} is not what was written"
    return ""


def set_damaged_aside(folder: Path, aside: Path) -> None:
    """Move what cannot be restored of a stage's checkpoints to ``aside``, from the newest to the first that can, and say so."""
    if distributed.is_primary():
        while (clock := latest(folder)) is not None and (wrong := damage(folder / str(clock))):
            name = f"{folder.name}-{clock}"
            names = itertools.chain([name], (f"{name}-{again}" for again in itertools.count(1)))
            target = next(path for each in names if not (path := aside / each).exists())
            aside.mkdir(parents=True, exist_ok=True)
            os.replace(folder / str(clock), target)
            told = (
                f"going on from {before}"
                if (before := latest(folder)) is not None
                else "there is none before it"
            )
            print(
                f"checkpoint {clock} of {folder.name} is damaged ({wrong}); moved to {target}, {told}",
                file=sys.stderr,
            )
    distributed.wait(f"{folder.name} looked at")


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
    """The checkpoints of one stage of a run, numbered by the clock; the newest ``keep`` stay."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._folder = folder.resolve()
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, clock: int, train: Train, host: Mapping[str, Any]) -> None:
        """Write the state and the host loop's own counters; returns when it is on disk."""
        arguments = ocp.args.Composite(
            train=ocp.args.StandardSave(_without_keys(train)), host=ocp.args.JsonSave(dict(host))
        )
        if clock not in self._manager.all_steps():
            try:
                self._manager.save(clock, args=arguments)
                if distributed.is_primary():
                    _sign(self._folder / str(clock))
            except (OSError, ValueError) as error:  # of a full disk, by way of tensorstore
                raise OSError(
                    f"cannot write checkpoint {clock} to {self._folder}: {error}; make room: the same command goes on from the "
                    "checkpoint before"
                ) from error

    def restore(
        self, init: Callable[[], Train], shardings: PyTree
    ) -> tuple[Train, dict[str, Any]] | None:
        """The newest checkpoint as (Train, host counters), or None. ``init`` gives the shapes; nothing of it is run."""
        clock = self._manager.latest_step()
        if clock is None:
            return None
        shapes = jax.eval_shape(init)
        placed = _place(shapes, shardings)
        raw = jax.eval_shape(_without_keys, shapes)
        raw = jax.tree.map(
            lambda x, like: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=like.sharding),
            raw,
            placed,
        )
        arguments = ocp.args.Composite(
            train=ocp.args.StandardRestore(raw), host=ocp.args.JsonRestore()
        )
        found = self._manager.restore(clock, args=arguments)
        restored = jax.tree.map(
            lambda x, like: jax.random.wrap_key_data(x) if _is_key(like) else x,
            found["train"],
            shapes,
        )
        return jax.device_put(restored, jax.tree.map(lambda x: x.sharding, placed)), found["host"]

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()


def _place(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Shapes with the shardings of a prefix tree."""
    return jax.tree.map(
        lambda sharding, part: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part
        ),
        shardings,
        shapes,
        is_leaf=lambda x: isinstance(x, jax.sharding.Sharding),
    )

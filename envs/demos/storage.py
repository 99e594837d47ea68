"""Demonstrations on disk: a folder of plain numpy arrays, memory-mapped and checked on load.

    dataset.json     format, env (its name and settings), obs_dim, action_dim, horizon, episodes, steps, and free facts
    obs.npy          [S, O] float32     all steps of all episodes, one episode after the other
    action.npy       [S, A] float32     in [-1, 1]
    next_obs.npy     [S, O] float32     the true successor, also at an episode's end
    reward.npy       [S] float32
    terminated.npy, truncated.npy, success.npy    [S] bool
    start.npy        [E] int64          the first step of each episode; the next episode's is its end
    mode.npy         [E] int32          which way the demonstrator took; -1 where nobody knows

``dataset.json`` is written last: a folder without it was not finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gcp_jax.atomic_files import UNREADABLE
from gcp_jax.envs.demos.collect import Info
from gcp_jax.types import Step

FORMAT = 1
CHECKED_AT_ONCE = 65_536  # rows, so that a large file is never in memory as a whole

_STEP = ("obs", "action", "next_obs", "reward", "terminated", "truncated", "success")
_KIND = dict.fromkeys(_STEP, np.dtype(np.float32)) | dict.fromkeys(_STEP[4:], np.dtype(bool))
_SIZES = ("obs_dim", "action_dim", "horizon", "episodes", "steps")


class DatasetError(ValueError):
    """A folder that is no dataset: which file, what is wrong, what it must be."""


class Dataset(NamedTuple):
    """Memory-mapped arrays as in the module's docstring; steps: name -> [S, ...]."""

    steps: dict[str, np.ndarray]
    start: np.ndarray
    mode: np.ndarray
    facts: dict[str, Any]

    @property
    def length(self) -> np.ndarray:
        """[E] steps of each episode."""
        return np.diff(self.start, append=len(self.steps["obs"]))

    @property
    def solved(self) -> np.ndarray:
        """[E] bool: success was reached in the episode."""
        return np.logical_or.reduceat(self.steps["success"], self.start)


def check_free(folder: Path) -> None:
    """Raises FileExistsError where ``folder`` holds anything: a dataset is never overwritten."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists and is not empty; choose another --out.")


def write(folder: Path, steps: Step, info: Info, facts: Mapping[str, Any]) -> Dataset:
    """Keep demonstrations, leaves [T, E, ...] as ``demonstrations.collect`` returns them on the host, and read them back.

    facts: plain values, ``env`` among them. Raises FileExistsError where ``folder`` holds anything.
    """
    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    executed = np.asarray(steps.executed).T  # [E, T]: one episode after the other
    for name in _STEP:
        np.save(
            folder / f"{name}.npy", np.swapaxes(np.asarray(getattr(steps, name)), 0, 1)[executed]
        )
    length = executed.sum(1)
    np.save(folder / "start.npy", (np.cumsum(length) - length).astype(np.int64))
    np.save(folder / "mode.npy", np.asarray(info.mode, np.int32))
    sizes = {
        "obs_dim": steps.obs.shape[-1],
        "action_dim": steps.action.shape[-1],
        "horizon": int(executed.shape[1]),
        "episodes": int(executed.shape[0]),
        "steps": int(length.sum()),
    }
    (folder / "dataset.json").write_text(
        json.dumps({"format": FORMAT, **sizes, **facts}, indent=1) + "\n"
    )
    return read(folder)


def read(folder: Path) -> Dataset:
    """Open a dataset and check every row of it. Raises DatasetError in one line."""
    description = folder / "dataset.json"
    if not description.is_file():
        raise DatasetError(f"{folder} has no dataset.json: it is no dataset, or was not finished.")
    try:
        facts = json.loads(description.read_text())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{description} is damaged: {error}.") from error
    _require(isinstance(facts, dict), description, "is no JSON object")
    _require(
        facts.get("format") == FORMAT,
        description,
        f"has format {facts.get('format')}, must be {FORMAT}",
    )
    for size in _SIZES:
        whole = (
            isinstance(facts.get(size), int)
            and not isinstance(facts[size], bool)
            and facts[size] > 0
        )
        _require(
            whole, description, f"has {size} {facts.get(size)!r}, must be a whole number above 0"
        )
    arrays = {name: _open(folder, name) for name in (*_STEP, "start", "mode")}
    widths = {"obs": ("obs_dim",), "next_obs": ("obs_dim",), "action": ("action_dim",)}
    for name in _STEP:
        shape = (facts["steps"], *(facts[size] for size in widths.get(name, ())))
        _check_rows(folder / f"{name}.npy", name, arrays[name], shape)
    start, steps = arrays["start"], facts["steps"]
    _require(
        start.shape == (facts["episodes"],),
        folder / "start.npy",
        f"has shape {start.shape}, must be ({facts['episodes']},)",
    )
    _require(
        arrays["mode"].shape == start.shape,
        folder / "mode.npy",
        f"has shape {arrays['mode'].shape}, must be {start.shape}",
    )
    _require(start.dtype.kind == "i", folder / "start.npy", f"is {start.dtype}, must be int64")
    _require(
        arrays["mode"].dtype.kind == "i",
        folder / "mode.npy",
        f"is {arrays['mode'].dtype}, must be int32",
    )
    length = np.diff(start, append=steps)
    ordered = (
        len(start) > 0
        and start[0] == 0
        and (length > 0).all()
        and (length <= facts["horizon"]).all()
    )
    _require(
        ordered,
        folder / "start.npy",
        f"must rise from 0 by 1 to {facts['horizon']} steps an episode",
    )
    return Dataset({name: arrays[name] for name in _STEP}, start, arrays["mode"], facts)


def _require(holds: Any, path: Path, complaint: str) -> None:
    if not holds:
        raise DatasetError(f"{path} {complaint}.")


def _open(folder: Path, name: str) -> np.ndarray:
    path = folder / f"{name}.npy"
    _require(path.is_file(), path, "is missing")
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise DatasetError(f"{path} cannot be read as a numpy array: {error}.") from error
    return array


def _check_rows(path: Path, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    found = f"{array.dtype}{list(array.shape)}"
    _require(
        array.shape == shape and array.dtype == _KIND[name],
        path,
        f"is {found}, must be {_KIND[name]}{list(shape)}",
    )
    for first in range(0, len(array), CHECKED_AT_ONCE):
        rows = array[first : first + CHECKED_AT_ONCE]
        if name == "action":
            bad = ~(np.abs(rows) <= 1.0)
            allowed = "in [-1, 1]"
        else:
            bad, allowed = ~np.isfinite(rows), "finite"
        if bad.any():
            row = first + int(np.argwhere(bad)[0][0])
            raise DatasetError(
                f"{path} row {row} is {array[row].tolist()!s:.60}; every number must be {allowed}."
            )


def padded(dataset: Dataset) -> tuple[Step, Info]:
    """As ``demonstrations.collect`` returns them: leaves [T, E, ...], where T is the longest episode; what an episode lacks
    is its last row again, not executed."""
    length = dataset.length
    rows = dataset.start + np.minimum(np.arange(length.max())[:, None], length - 1)  # [T, E]
    executed = np.arange(length.max())[:, None] < length
    step: dict[str, Any] = {name: values[rows] for name, values in dataset.steps.items()}
    episode: tuple[Any, ...] = (dataset.solved, dataset.mode, length, np.zeros(len(length), bool))
    return Step(**step, executed=executed), Info(*episode)  # type: ignore[arg-type]  # numpy stands for an Array

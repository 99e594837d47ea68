"""Demonstrations on disk: a folder of plain numpy arrays, memory-mapped and checked on load.

| file | array | content |
|---|---|---|
| dataset.json | | format, env (its name and settings), the sizes below, and free facts |
| obs.npy | [S, O] float32 | all steps of all episodes, one episode after the other |
| action.npy | [S, A] float32 | in [-1, 1] |
| next_obs.npy | [S, O] float32 | the true successor, also at an episode's end |
| reward.npy | [S] float32 | |
| terminated.npy, truncated.npy, success.npy | [S] bool | |
| start.npy | [E] int64 | first step of each episode; the next episode's is its end |
| mode.npy | [E] int32 | which way the demonstrator took; -1 if unknown |

Sizes in dataset.json: obs_dim (O), action_dim (A), horizon, episodes (E), steps (S). It is written
last: a folder without it was not finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gcp_jax.atomic_files import UNREADABLE
from gcp_jax.envs.demos import quality
from gcp_jax.envs.demos.collect import Info
from gcp_jax.json_files import Maybe, parse_json, problem_of
from gcp_jax.types import Step

FORMAT = 1
LARGEST = 1e15  # of a number: its square is still a float32, with room for a sum
CHECKED_AT_ONCE = 65_536  # rows, so that a large file is never in memory as a whole

_STEP = ("obs", "action", "next_obs", "reward", "terminated", "truncated", "success")
_DTYPES = dict.fromkeys(_STEP, np.dtype(np.float32)) | dict.fromkeys(_STEP[4:], np.dtype(bool))
_FACTS = {"env": Maybe(dict), **dict.fromkeys(quality.NAMES, Maybe(float))}
_SIZES = ("obs_dim", "action_dim", "horizon", "episodes", "steps")


class DatasetError(ValueError):
    """A folder that is no dataset: which file, what is wrong, what it must be."""


class Dataset(NamedTuple):
    """Memory-mapped arrays as in the module's docstring."""

    steps: dict[str, np.ndarray]  # name -> [S, ...]
    start: np.ndarray  # [E]
    mode: np.ndarray  # [E]
    facts: dict[str, Any]  # dataset.json

    @property
    def length(self) -> np.ndarray:
        """[E] steps of each episode."""
        return np.diff(self.start, append=len(self.steps["obs"]))

    @property
    def solved(self) -> np.ndarray:
        """[E] bool: success was reached in the episode."""
        return np.logical_or.reduceat(self.steps["success"], self.start)


def check_free(folder: Path) -> None:
    """Raise FileExistsError if ``folder`` holds anything: a dataset is never overwritten."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists and is not empty; choose another --out.")


def write(folder: Path, steps: Step, info: Info, facts: Mapping[str, Any]) -> Dataset:
    """Write demonstrations and read them back.

    Args:
      folder: where to; it must be empty.
      steps: leaves [T, E, ...], as ``collect`` returns them, on the host.
      info: facts of the episodes.
      facts: plain values for dataset.json, ``env`` among them.

    Raises:
      FileExistsError: if ``folder`` holds anything.
    """
    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    executed = np.asarray(steps.executed).T  # [E, T]: one episode after the other
    for name in _STEP:
        by_episode = np.swapaxes(np.asarray(getattr(steps, name)), 0, 1)
        np.save(folder / f"{name}.npy", by_episode[executed])
    length = executed.sum(1)
    np.save(folder / "start.npy", (np.cumsum(length) - length).astype(np.int64))
    np.save(folder / "mode.npy", np.asarray(info.mode, np.int32))
    description = {
        "format": FORMAT,
        "obs_dim": steps.obs.shape[-1],
        "action_dim": steps.action.shape[-1],
        "horizon": int(executed.shape[1]),
        "episodes": int(executed.shape[0]),
        "steps": int(length.sum()),
        **facts,
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n")
    return read(folder)


def read(folder: Path) -> Dataset:
    """Open a dataset and check every row of it.

    Raises:
      DatasetError: in one line, at the first thing that is wrong.
    """
    facts = _read_description(folder)
    arrays = {name: _open(folder, name) for name in (*_STEP, "start", "mode")}
    columns = {"obs": "obs_dim", "next_obs": "obs_dim", "action": "action_dim"}
    for name in _STEP:
        shape = [facts["steps"]]
        if name in columns:
            shape.append(facts[columns[name]])
        _check_rows(folder / f"{name}.npy", name, arrays[name], tuple(shape))
    _check_episodes(folder, arrays["start"], arrays["mode"], facts)
    return Dataset(
        steps={name: arrays[name] for name in _STEP},
        start=arrays["start"],
        mode=arrays["mode"],
        facts=facts,
    )


def _read_description(folder: Path) -> dict[str, Any]:
    """The content of dataset.json, checked."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise DatasetError(f"{folder} has no dataset.json: it is no dataset, or was not finished.")
    try:
        facts = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path} is damaged: {error}.") from error
    if not isinstance(facts, dict):
        raise DatasetError(f"{path} is no JSON object.")
    version = facts.get("format")
    _require(version == FORMAT, path, f"has format {version!r}, must be {FORMAT}")
    for name in _SIZES:
        size = facts.get(name)
        is_count = isinstance(size, int) and not isinstance(size, bool) and size > 0
        _require(is_count, path, f"has {name} {size!r}, must be a whole number above 0")
    problem = problem_of(facts, _FACTS)
    _require(not problem, path, f"is damaged: {problem}")
    return facts


def _check_episodes(
    folder: Path, start: np.ndarray, mode: np.ndarray, facts: Mapping[str, Any]
) -> None:
    """Check the arrays with one row per episode."""
    start_path, mode_path = folder / "start.npy", folder / "mode.npy"
    episodes, horizon = facts["episodes"], facts["horizon"]
    _require(
        start.shape == (episodes,), start_path, f"has shape {start.shape}, must be ({episodes},)"
    )
    _require(mode.shape == start.shape, mode_path, f"has shape {mode.shape}, must be {start.shape}")
    _require(start.dtype.kind == "i", start_path, f"is {start.dtype}, must be int64")
    _require(mode.dtype.kind == "i", mode_path, f"is {mode.dtype}, must be int32")
    length = np.diff(start, append=facts["steps"])
    begins_at_0 = len(start) > 0 and start[0] == 0
    ordered = begins_at_0 and (length > 0).all() and (length <= horizon).all()
    _require(ordered, start_path, f"must rise from 0 by 1 to {horizon} steps an episode")


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
    """Check shape, dtype and every number of an array of steps."""
    dtype = _DTYPES[name]
    _require(
        array.shape == shape and array.dtype == dtype,
        path,
        f"is {array.dtype}{list(array.shape)}, must be {dtype}{list(shape)}",
    )
    for first in range(0, len(array), CHECKED_AT_ONCE):
        rows = array[first : first + CHECKED_AT_ONCE]
        if name == "action":
            bad = ~(np.abs(rows) <= 1.0)
            allowed = "in [-1, 1]"
        else:
            bad = ~(np.abs(rows) <= LARGEST) if rows.dtype != bool else np.zeros(rows.shape, bool)
            allowed = f"finite, and at most {LARGEST:g} in size"
        if bad.any():
            row = first + int(np.argwhere(bad)[0][0])
            raise DatasetError(
                f"{path} row {row} is {array[row].tolist()!s:.60}; every number must be {allowed}."
            )


def padded(dataset: Dataset) -> tuple[Step, Info]:
    """The dataset as ``collect`` returns it: leaves [T, E, ...], where T is the longest episode.

    A shorter episode is filled with its last row, marked not executed.
    """
    length = dataset.length
    time = np.arange(length.max())[:, None]
    rows = dataset.start + np.minimum(time, length - 1)  # [T, E]
    steps: dict[str, Any] = {name: values[rows] for name, values in dataset.steps.items()}
    facts: dict[str, Any] = {  # numpy stands for jax arrays
        "success": dataset.solved,
        "mode": dataset.mode,
        "length": length,
        "diverged": np.zeros(len(length), bool),
    }
    steps["executed"] = time < length
    return Step(**steps), Info(**facts)

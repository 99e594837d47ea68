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

``start.npy`` says where episodes end. A flag inside an episode contradicts it and is refused; an
episode whose last step has no flag was truncated there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gcp_jax.atomic_files import UNREADABLE
from gcp_jax.core.demonstrations import Demonstrations, flatten_episodes, make_demonstrations
from gcp_jax.envs.demos import collect, quality
from gcp_jax.envs.demos.collect import Info
from gcp_jax.json_files import parse_json
from gcp_jax.types import Step

FORMAT = 1
LARGEST = 1e15  # of a number: its square is still a float32, with room for a sum
CHECKED_AT_ONCE = 65_536  # rows, so that a large file is never in memory as a whole

_STEP = ("obs", "action", "next_obs", "reward", "terminated", "truncated", "success")
_DTYPES = dict.fromkeys(_STEP, np.dtype(np.float32)) | dict.fromkeys(_STEP[4:], np.dtype(bool))
_SIZES = ("obs_dim", "action_dim", "horizon", "episodes", "steps")
_FACT = "must be a finite number or null"


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

    def first(self, episodes: int) -> Dataset:
        """The first episodes; of a part, without the facts that were measured of the whole."""
        if episodes >= len(self.start):
            return self
        count = self.start[episodes]
        return Dataset(
            steps={name: values[:count] for name, values in self.steps.items()},
            start=self.start[:episodes],
            mode=self.mode[:episodes],
            facts={name: fact for name, fact in self.facts.items() if name not in quality.NAMES},
        )


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
    flat, start = flatten_episodes(steps)
    for name in _STEP:
        np.save(folder / f"{name}.npy", getattr(flat, name))
    np.save(folder / "start.npy", start)
    np.save(folder / "mode.npy", np.asarray(info.mode, np.int32))
    description = {
        "format": FORMAT,
        "obs_dim": steps.obs.shape[-1],
        "action_dim": steps.action.shape[-1],
        "horizon": int(steps.executed.shape[0]),
        "episodes": len(start),
        "steps": len(flat.executed),
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
    for name in ("terminated", "truncated"):
        _check_flag(folder / f"{name}.npy", arrays[name], arrays["start"])
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
    for name in quality.NAMES:
        _require(_is_fact(facts.get(name)), path, f"has {name} {facts.get(name)!r}, {_FACT}")
    for name, value in _references(facts).items():
        _require(_is_fact(value), path, f"has {quality.REFERENCES}.{name} {value!r}, {_FACT}")
    return facts


def _is_fact(value: Any) -> bool:
    """Whether it is a finite number, or None."""
    if value is None:
        return True
    return isinstance(value, int | float) and math.isfinite(value)


def _references(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The mean returns of the clean demonstrator and of random actions, None if not recorded."""
    found = facts.get(quality.REFERENCES)
    known = found if isinstance(found, Mapping) else {}
    return {name: known.get(name) for name in ("clean", "random")}


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


def _check_flag(path: Path, flag: np.ndarray, start: np.ndarray) -> None:
    """Check that a flag [S] that ends episodes is set at their last steps only."""
    inside = np.array(flag)
    inside[np.append(start[1:], len(flag)) - 1] = False
    if inside.any():
        row = int(inside.argmax())
        episode = int(np.searchsorted(start, row, side="right")) - 1
        raise DatasetError(
            f"{path} row {row} is true inside episode {episode}, which start.npy begins at row "
            f"{start[episode]}; only an episode's last row may be: clear the flag, or add "
            f"{row + 1} to start.npy."
        )


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


def demonstrations(dataset: Dataset) -> Demonstrations:
    """The steps of a dataset, in its order; arrays stay memory-mapped."""
    executed = np.ones(len(dataset.steps["obs"]), bool)
    steps: dict[str, Any] = {**dataset.steps, "executed": executed}
    return make_demonstrations(Step(**steps), dataset.start)


def measured_facts(dataset: Dataset) -> dict[str, Any]:
    """Facts of the episodes of a dataset, for a run that learns from them.

    Everything is measured of these episodes. What needs more than they hold is left out:
    ``trajectory_quality`` of a part needs the references' returns, ``coverage`` their steps.
    """
    info: dict[str, Any] = {  # numpy stands for jax arrays
        "success": dataset.solved,
        "mode": dataset.mode,
        "length": dataset.length,
        "diverged": np.zeros(len(dataset.start), bool),
    }
    mean = float(demonstrations(dataset).returns().mean())
    found: dict[str, Any] = {**collect.facts(Info(**info)), "return": round(mean, 3)}
    references = _references(dataset.facts)
    if None not in references.values():
        ratio = quality.trajectory_quality(mean, **references)
        found["trajectory_quality"] = None if ratio is None else round(ratio, 3)
    known = {name: dataset.facts[name] for name in quality.NAMES if name in dataset.facts}
    return {**known, **found}

"""Whether two runs of the same configuration gave the same results, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

ROW_FILES = ("metrics.jsonl", "eval.jsonl")


def untimed_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file without their seconds and speeds, which differ between two equal runs."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: x for name, x in row.items() if not _is_time(name)} for row in rows]


def _is_time(column: str) -> bool:
    return column in ("seconds", "train_seconds") or column.startswith("time/")


def run_content(run: Path) -> dict[str, Any]:
    """What must be equal in two runs: rows without times, and the bytes of the policies' arrays."""
    content: dict[str, Any] = {name: untimed_rows(run / name) for name in ROW_FILES}
    for path in sorted((run / "policy").rglob("*")):
        if path.is_file() and path.suffix != ".json":
            content[str(path.relative_to(run))] = path.read_bytes()
    return content


def checkpoint_arrays(run: Path) -> dict[str, np.ndarray]:
    """All arrays of a run's last checkpoint of finetuning, however many devices wrote it."""
    folder = (run / "checkpoints" / "finetune").resolve()
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.CheckpointManager(folder) as manager:
        found = manager.restore(
            max(ocp.utils.checkpoint_steps(folder)),
            args=ocp.args.Composite(train=ocp.args.StandardRestore(fallback_sharding=one_device)),
        )
    flat = ocp.utils.to_flat_dict(found["train"])
    return {"/".join(map(str, name)): np.asarray(value) for name, value in flat.items()}


def unequal_parts(one: Path, other: Path) -> list[str]:
    """Names of the rows, policies and arrays of the last checkpoint that differ in two runs."""
    parts_of_one = {**run_content(one), **checkpoint_arrays(one)}
    parts_of_other = {**run_content(other), **checkpoint_arrays(other)}
    names = sorted(parts_of_one.keys() | parts_of_other.keys())
    return [name for name in names if not _equal(parts_of_one.get(name), parts_of_other.get(name))]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=True)
    return bool(a == b)

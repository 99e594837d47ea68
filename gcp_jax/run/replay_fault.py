"""``gcp-jax debug``: recomputes the first non-finite update of a run.

When an update is skipped for the first time, the newest checkpoint is copied to ``RUN/fault``, with
a description of the update. The loop is deterministic: the same segments from there lead to the
same update.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from gcp_jax import mesh as mesh_lib
from gcp_jax.atomic_files import write_json
from gcp_jax.console import make_console
from gcp_jax.json_files import OneOf, read_json
from gcp_jax.learner import nonfinite
from gcp_jax.learner.loop import CollectInputs, Learner
from gcp_jax.learner.updates import Keys, sample_batches
from gcp_jax.run import checkpoint
from gcp_jax.types import Algorithm, LearnerState, PyTree, Segment, Train

FOLDER = "fault"  # in the run's folder
FAULT = {  # fault.json
    "stage": OneOf(("pretrain", "finetune")),
    "clock": int,
    "index": int,
    "description": str,
}


class BrokenUpdate(NamedTuple):
    """An update with a non-finite result."""

    position: int  # in its segment
    state: PyTree  # before it
    batch: PyTree
    metrics: dict[str, float]


def keep_fault(run: Path, fault: Mapping[str, Any]) -> None:
    """Keep the newest checkpoint of a stage and the description of a run's first fault.

    Args:
      run: the run's folder.
      fault: "stage", "clock" after the fault's segment, "index" of the member, "description".
    """
    if (run / FOLDER).exists():
        return
    checkpoints = run / "checkpoints" / fault["stage"]
    scratch = run / f".{FOLDER}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    clock = checkpoint.latest(checkpoints)
    if clock is not None:
        shutil.copytree(checkpoints / str(clock), scratch / "checkpoints" / str(clock))
    write_json(scratch / "fault.json", dict(fault))
    os.replace(scratch, run / FOLDER)


def load_fault(run: Path) -> dict[str, Any]:
    """The description of a run's first fault, as ``keep_fault`` kept it.

    Raises:
      FileNotFoundError: every update was finite.
    """
    path = run / FOLDER / "fault.json"
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}: every update of {run} was finite; there is nothing to debug."
        )
    fault: dict[str, Any] = read_json(path, FAULT)
    return fault


def replay(
    learner: Learner,
    algorithm_of: Callable[[PyTree], Algorithm],
    train: Train,
    fault: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Train on to a fault, print its state and batch, and write them to ``update.npz``.

    Args:
      learner: the compiled loop of the fault's stage.
      algorithm_of: (values of one member) -> its method.
      train: the state of the kept checkpoint.
      fault: its description.
      folder: where to write.

    Returns:
      ``fault`` with "update_of_segment", "metrics" (None: not finite) and "arrays", the file.

    Raises:
      RuntimeError: this time every update is finite.
    """
    start = int(train.learner.clock)
    print(f"{fault['description']}\ntraining to it again from segment {start}", file=sys.stderr)
    member, segment = _train_to(learner, train, fault)
    update = first_broken_update(algorithm_of(member.values), member, segment)
    if update is None:
        raise RuntimeError(
            f"every update of segment {fault['clock']} was finite this time: one member computed "
            "alone is rounded differently."
        )
    arrays = _named_arrays("state", update.state) | _named_arrays("batch", update.batch)
    path = folder / "update.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    _print_summary(arrays, update.metrics)
    print(f"state and batch: {path}", file=sys.stderr)
    metrics = {name: x if np.isfinite(x) else None for name, x in update.metrics.items()}
    return {
        **fault,
        "update_of_segment": update.position,
        "metrics": metrics,
        "arrays": str(path),
    }


def _train_to(
    learner: Learner, train: Train, fault: Mapping[str, Any]
) -> tuple[LearnerState, Segment | None]:
    """The faulty member before the updates of its segment, and the segment it learns from."""
    learner = learner.compile(train)
    while int(train.learner.clock) < fault["clock"] - 1:
        train, _ = learner.segment(train)
    segment = None
    if learner.collect is not None:
        _, segments, _ = learner.collect(train.env_state, CollectInputs.of(train.learner))
        segment = jax.tree.map(lambda x: x[fault["index"]], segments)
    member: LearnerState = mesh_lib.take_seed(
        train.learner, learner.partition_spec.learner, fault["index"]
    )
    return member, segment


def first_broken_update(
    algorithm: Algorithm, member: LearnerState, segment: Segment | None
) -> BrokenUpdate | None:
    """The first update of one member's segment with a non-finite result; None without one."""
    keys = Keys.for_learn(member.key)
    sample = jax.jit(lambda member, segment: sample_batches(algorithm, member, segment, keys))
    sampled = sample(member, segment)
    state = sampled.state
    update = jax.jit(algorithm.update)
    for position, key in enumerate(jax.random.split(keys.update, algorithm.source.updates)):
        batch = jax.tree.map(lambda x, position=position: x[position], sampled.batches)
        new_state, metrics = update(state, batch, key)
        skipped = nonfinite.update_flags(metrics).skipped > 0
        if skipped or not nonfinite.all_finite(new_state):
            means = {name: float(np.mean(x)) for name, x in metrics.items()}
            return BrokenUpdate(position=position, state=state, batch=batch, metrics=means)
        state = new_state
    return None


class Summary(NamedTuple):
    """The numbers of some arrays in brief."""

    size: int
    smallest: float  # of the finite numbers
    largest: float  # of the finite numbers
    nonfinite: int


def _print_summary(arrays: Mapping[str, np.ndarray], metrics: Mapping[str, float]) -> None:
    """Print a table of the state, the batch and the metrics of an update."""
    summaries = _summarize_records(arrays)
    for name, x in metrics.items():
        summaries[f"metric {name}"] = Summary(1, x, x, int(not np.isfinite(x)))
    table = Table("number", "size", "smallest", "largest", "not finite")
    for name, summary in summaries.items():
        table.add_row(
            name,
            f"{summary.size:,}",
            f"{summary.smallest:.3g}",
            f"{summary.largest:.3g}",
            str(summary.nonfinite),
        )
    make_console().print(table)


def _named_arrays(root: str, tree: PyTree) -> dict[str, np.ndarray]:
    """Numeric leaves keyed by their path, such as ``state.critic.params['Dense_0']['bias']``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        f"{root}{jax.tree_util.keystr(path)}": np.asarray(x)
        for path, x in leaves
        if jnp.issubdtype(x.dtype, np.number)
    }


def _summarize_records(arrays: Mapping[str, np.ndarray]) -> dict[str, Summary]:
    """One summary for all floating-point arrays of a record, such as a network's parameters."""
    records: dict[str, list[np.ndarray]] = {}
    for name, x in arrays.items():
        if np.issubdtype(x.dtype, np.floating):
            records.setdefault(name.split("[")[0], []).append(x.ravel())
    return {name: _summarize(np.concatenate(parts)) for name, parts in records.items()}


def _summarize(x: np.ndarray) -> Summary:
    finite = x[np.isfinite(x)]
    if not finite.size:
        finite = np.full(1, np.nan)
    return Summary(
        size=x.size,
        smallest=float(finite.min()),
        largest=float(finite.max()),
        nonfinite=int(np.sum(~np.isfinite(x))),
    )

"""What ``gcp-jax debug`` shows: the first update of a run that left the finite numbers, computed once more.

When an update is skipped for the first time, the newest checkpoint is copied to ``RUN/fault`` with the place of the update. The loop
is deterministic: the same segments from there lead to it again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from gcp_jax import mesh as mesh_lib
from gcp_jax.atomic_files import write_json
from gcp_jax.learner import nonfinite
from gcp_jax.learner.loop import Keys, Learner, sample_batches
from gcp_jax.run import checkpoint
from gcp_jax.types import Algorithm, PyTree, Segment, Train

FOLDER = "fault"


class Broken(NamedTuple):
    """An update that was not finite: its place in the segment, what went in and the metrics that came out."""

    update: int
    state: PyTree
    batch: PyTree
    metrics: dict[str, Any]


def keep(run: Path, facts: dict[str, Any]) -> None:
    """Put the newest checkpoint of ``facts["stage"]`` and ``facts`` aside in the run's folder; the first fault stays."""
    if (run / FOLDER).exists():
        return
    source, making = run / "checkpoints" / facts["stage"], run / f".{FOLDER}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    if (clock := checkpoint.latest(source)) is not None:
        shutil.copytree(source / str(clock), making / "checkpoints" / str(clock))
    write_json(making / "fault.json", facts)
    os.replace(making, run / FOLDER)


def kept(run: Path) -> dict[str, Any]:
    """The facts of a run's fault. Raises FileNotFoundError where there was none."""
    path = run / FOLDER / "fault.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there: every update of {run} was finite; there is nothing to debug."
        )
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


def show(
    learner: Learner, method: Any, train: Train, facts: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Train on to the fault, tell and write what went in; ``method`` is (values of a member) -> Algorithm."""
    print(
        f"{facts['told']}\ntraining to there again from segment {int(train.clock)}", file=sys.stderr
    )
    learner = learner.compile(train)
    while int(train.clock) < facts["clock"] - 1:
        train, _ = learner.segment(train)
    rows = None
    if learner.collect is not None:
        _, rows, _ = learner.collect(train.env, train._replace(env=None, store=None))
        rows = jax.tree.map(lambda x: x[facts["index"]], rows)
    own = mesh_lib.take_seed(train._replace(env=None), learner.layout, facts["index"])
    found = first_broken(method(own.values), own, rows)
    if found is None:
        raise RuntimeError(
            f"every update of segment {facts['clock']} was finite this time: alone, it is rounded differently."
        )
    arrays = {**_named("state", found.state), **_named("batch", found.batch)}
    np.savez_compressed(folder / "update.npz", **arrays)  # type: ignore[arg-type]
    numbers = _extents(arrays) | {
        f"metric {name}": Extent(1, x, x, int(not np.isfinite(x)))
        for name, x in found.metrics.items()
    }
    table = Table("number", "size", "smallest", "largest", "not finite")
    for name, x in numbers.items():
        table.add_row(name, f"{x.size:,}", f"{x.smallest:.3g}", f"{x.largest:.3g}", str(x.broken))
    Console(stderr=True, width=None if sys.stderr.isatty() else 160).print(table)
    print(f"state and batch: {folder / 'update.npz'}", file=sys.stderr)
    told = {name: x if np.isfinite(x) else None for name, x in found.metrics.items()}
    return {
        **facts,
        "update_of_segment": found.update,
        "metrics": told,
        "arrays": str(folder / "update.npz"),
    }


def first_broken(algorithm: Algorithm, train: Train, rows: Segment | None) -> Broken | None:
    """The first update of one seed's segment that is not finite, one after the other."""
    keys = Keys.of(train.key)
    state, _, batches, _ = jax.jit(
        lambda train, rows: sample_batches(algorithm, train, rows, keys)
    )(train, rows)
    update = jax.jit(algorithm.update)
    for i, key in enumerate(jax.random.split(keys.update, algorithm.source.updates)):
        batch = jax.tree.map(lambda x, i=i: x[i], batches)
        new, metrics = update(state, batch, key)
        if not nonfinite.all_finite((new, metrics)):
            return Broken(i, state, batch, {name: float(np.mean(x)) for name, x in metrics.items()})
        state = new
    return None


class Extent(NamedTuple):
    """Of the numbers of some arrays: how many, the extremes of the finite ones, and how many are not finite."""

    size: int
    smallest: float
    largest: float
    broken: int


def _named(root: str, tree: PyTree) -> dict[str, np.ndarray]:
    """Leaves by the way to them, as state.critic.net['Dense_0']['bias']."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        f"{root}{jax.tree_util.keystr(path)}": np.asarray(x)
        for path, x in leaves
        if jnp.issubdtype(x.dtype, np.number)
    }


def _extents(arrays: dict[str, np.ndarray]) -> dict[str, Extent]:
    """Of all arrays of a record together: the parameters of a network are one line."""
    together: dict[str, list[np.ndarray]] = {}
    for name, x in arrays.items():
        if np.issubdtype(x.dtype, np.floating):
            together.setdefault(name.split("[")[0], []).append(x.ravel())
    found = {}
    for name, parts in together.items():
        x = np.concatenate(parts)
        known = x[np.isfinite(x)] if np.isfinite(x).any() else np.full(1, np.nan)
        found[name] = Extent(
            x.size, float(known.min()), float(known.max()), int(np.sum(~np.isfinite(x)))
        )
    return found

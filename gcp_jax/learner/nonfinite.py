"""Updates that are not finite: skipped inside the compiled loop, counted and reported on the host.

The loop adds to the metrics of a segment how many updates were skipped, which was the first, and
which of its metrics was the first that was not finite. ``pop_nonfinite`` reads them on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.types import Array, Metrics, PyTree

PREFIX = "train/"  # of the metrics of learning, in a row
COUNT = "nonfinite_updates"
FIRST = "first_nonfinite_update"
CAUSE = "broken/"  # prefix of one flag per metric


def all_finite(tree: PyTree) -> Array:
    """Whether all floating-point numbers of a tree are finite, bool []."""
    leaves: list[Array] = jax.tree.leaves(tree)
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    if not floats:
        return jnp.asarray(True)
    finite = [jnp.all(jnp.isfinite(x)) for x in floats]
    return jnp.all(jnp.stack(finite))


def keep_if_finite(old: PyTree, new: PyTree) -> tuple[PyTree, Array]:
    """Choose ``new`` if all its numbers are finite, else ``old``.

    Returns:
      The chosen tree, and whether ``new`` was discarded, bool [].
    """
    finite = all_finite(new)
    chosen = jax.tree.map(lambda x, y: jnp.where(finite, y, x), old, new)
    return chosen, ~finite


def first_nonfinite_flags(metrics: Metrics) -> Metrics:
    """Mark the first metric of one update that is not finite, in the order of the dict.

    Returns:
      For each metric 1.0 if it is that metric, else 0.0.
    """
    flags: Metrics = {}
    already_found = jnp.bool(False)
    for name, value in metrics.items():
        is_broken = ~jnp.all(jnp.isfinite(value))
        flags[name] = jnp.float32(is_broken & ~already_found)
        already_found = is_broken | already_found
    return flags


def mean_of_finite(x: Array) -> Array:
    """Mean over the finite numbers of x [U, ...], []; NaN if there is none."""
    finite = jnp.isfinite(x)
    return jnp.sum(jnp.where(finite, x, 0.0)) / jnp.sum(finite)


def nonfinite_summary(flags: Metrics, discarded: Array) -> Metrics:
    """Summarize the non-finite updates of a segment.

    Args:
      flags: ``first_nonfinite_flags`` of U updates, [U] each; means over all devices.
      discarded: whether all updates were discarded, bool [].

    Returns:
      The number of skipped updates, the first of them, and the flags of the first.
    """
    skipped = jnp.any(jnp.stack(list(flags.values())) > 0, 0)
    first = jnp.argmax(skipped)
    summary = {COUNT: jnp.where(discarded, len(skipped), jnp.sum(skipped)), FIRST: first}
    for name, flag in flags.items():
        summary[f"{CAUSE}{name}"] = flag[first] > 0
    return {name: jnp.asarray(x, jnp.float32) for name, x in summary.items()}


class NonfiniteUpdates(NamedTuple):
    """The non-finite updates of one seed in one segment."""

    skipped: float  # skipped updates; inf if a metric is not finite though no update was skipped
    first: int  # index of the first in the segment
    cause: str  # what was not finite; "" if all was finite


def pop_nonfinite(row: dict[str, Any], may_be_missing: Sequence[str]) -> NonfiniteUpdates:
    """Read and remove what ``nonfinite_summary`` added to a row of metrics.

    All numbers that are not finite are removed from the row too. The number of skipped updates
    stays in it.

    Args:
      row: metrics of one seed and segment, changed in place.
      may_be_missing: metrics that may be NaN without an error.
    """
    cause_prefix = PREFIX + CAUSE
    flags = [name for name in row if name.startswith(cause_prefix)]
    causes = [name.removeprefix(cause_prefix) for name in flags if row[name] > 0]
    nonfinite = [
        name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)
    ]
    errors = [f"{name} became {row[name]}" for name in nonfinite if name not in may_be_missing]
    first = round(row.pop(PREFIX + FIRST, 0.0))
    for name in {*flags, *nonfinite}:
        del row[name]
    skipped = round(row.get(PREFIX + COUNT, 0.0))
    if skipped:
        quantity = causes[0] if causes else "a parameter"
        return NonfiniteUpdates(skipped=skipped, first=first, cause=f"{quantity} was not finite")
    if errors:
        return NonfiniteUpdates(skipped=math.inf, first=0, cause=errors[0])
    return NonfiniteUpdates(skipped=0, first=0, cause="")

"""Updates that are not finite: skipped inside the compiled loop, counted and reported on the host.

Gradients and the state decide whether an update is finite. A metric does not: one that is NaN or
infinite is a missing number. No NaN leaves the device for it, so that ``JAX_DEBUG_NANS`` stops at
real faults only: the loop gives 0 and a flag.

The loop adds to the metrics of a segment how many updates were skipped, which was the first, and
which loss or gradient was the first that was not finite. ``pop_nonfinite`` reads all of these on
the host.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax import mesh
from gcp_jax.types import Array, Metrics, PyTree

PREFIX = "train/"  # of the metrics of learning, in a row
COUNT = "nonfinite_updates"
FIRST = "first_nonfinite_update"
CAUSE = "broken/"  # prefix of one flag per loss and gradient
MISSING = "missing/"  # prefix of one flag per metric
GRADIENT = "_gradient_norm"  # end of the names of what ``core.optim.gradient_step`` measures
LOSS = "_loss"  # end of the names of losses


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


class UpdateFlags(NamedTuple):
    """What was not finite in an update, as 0.0 and 1.0."""

    skipped: Array  # a gradient was not finite, so that its step was skipped
    causes: Metrics  # the first loss or gradient of a skipped update that was not finite


def update_flags(metrics: Metrics) -> UpdateFlags:
    """Find what was not finite in one update, by the losses and gradient norms of its metrics.

    Other metrics do not count, nor does a loss whose gradient is finite.
    """
    broken = {name: ~jnp.all(jnp.isfinite(x)) for name, x in metrics.items()}
    skipped = jnp.bool(False)
    for name, is_broken in broken.items():
        if name.endswith(GRADIENT):
            skipped = skipped | is_broken
    causes: Metrics = {}
    already_found = ~skipped
    for name, is_broken in broken.items():
        if name.endswith((LOSS, GRADIENT)):
            causes[name] = jnp.float32(is_broken & ~already_found)
            already_found = is_broken | already_found
    return UpdateFlags(skipped=jnp.float32(skipped), causes=causes)


def segment_means(metrics: Metrics) -> Metrics:
    """Means over the finite numbers of metrics [U, ...] and over the devices that have any.

    Returns:
      For each metric the mean [], 0 if it is missing, and whether it is missing, 0.0 or 1.0.
    """
    means: Metrics = {}
    devices: Metrics = {}
    for name, x in metrics.items():
        finite = jnp.isfinite(x)
        count = jnp.sum(finite)
        means[name] = jnp.sum(jnp.where(finite, x, 0.0)) / jnp.maximum(count, 1)
        devices[name] = jnp.float32(count > 0)
    means, devices = mesh.all_sum((means, devices))
    missing = {f"{MISSING}{name}": jnp.float32(count == 0) for name, count in devices.items()}
    means = {name: x / jnp.maximum(devices[name], 1.0) for name, x in means.items()}
    return means | missing


def flag_missing(metrics: Metrics) -> Metrics:
    """Replace what is not finite of metrics [] by 0, and add a flag for each metric."""
    missing = {f"{MISSING}{name}": jnp.float32(~jnp.isfinite(x)) for name, x in metrics.items()}
    numbers = {name: jnp.where(jnp.isfinite(x), x, 0.0) for name, x in metrics.items()}
    return numbers | missing


def nonfinite_summary(flags: UpdateFlags, discarded: Array) -> Metrics:
    """Summarize the non-finite updates of a segment.

    Args:
      flags: those of U updates, [U] each; means over all devices.
      discarded: whether all updates were discarded, bool [].

    Returns:
      The number of skipped updates, the first of them, and the causes of the first.
    """
    skipped = flags.skipped > 0
    first = jnp.argmax(skipped)
    summary = {COUNT: jnp.where(discarded, len(skipped), jnp.sum(skipped)), FIRST: first}
    for name, flag in flags.causes.items():
        summary[f"{CAUSE}{name}"] = flag[first] > 0
    return {name: jnp.asarray(x, jnp.float32) for name, x in summary.items()}


class NonfiniteUpdates(NamedTuple):
    """The non-finite updates of one seed in one segment."""

    skipped: int  # skipped updates
    first: int  # index of the first in the segment
    cause: str  # what was not finite; "" if all was finite


def pop_nonfinite(row: dict[str, Any]) -> NonfiniteUpdates:
    """Read and remove what the loop added to a row of metrics.

    Missing numbers are removed from the row too. The number of skipped updates stays in it.

    Args:
      row: metrics of one seed and segment, changed in place.
    """
    cause_prefix = PREFIX + CAUSE
    missing_prefix = PREFIX + MISSING
    causes = [name for name in row if name.startswith(cause_prefix)]
    broken = [name.removeprefix(cause_prefix) for name in causes if row[name] > 0]
    flags = [name for name in row if name.startswith(missing_prefix)]
    missing = [PREFIX + name.removeprefix(missing_prefix) for name in flags if row[name] > 0]
    nonfinite = [
        name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)
    ]
    first = round(row.pop(PREFIX + FIRST, 0.0))
    for name in {*causes, *flags, *missing, *nonfinite}:
        row.pop(name, None)
    skipped = round(row.get(PREFIX + COUNT, 0.0))
    if not skipped:
        return NonfiniteUpdates(skipped=0, first=0, cause="")
    quantity = broken[0] if broken else "a parameter"
    return NonfiniteUpdates(skipped=skipped, first=first, cause=f"{quantity} was not finite")

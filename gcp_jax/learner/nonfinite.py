"""Updates that left the finite numbers: left out inside the compiled loop, counted and named outside of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.types import Array, PyTree

SKIPPED, FIRST, BROKEN = (
    "train/nonfinite_updates",
    "train/first_nonfinite_update",
    "train/broken/",
)  # metrics of a segment


def all_finite(tree: PyTree) -> Array:
    """Is every floating number of ``tree``? A scalar."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return (
        jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats])) if floats else jnp.bool(True)
    )


def keep_if_finite(old: PyTree, new: PyTree) -> tuple[PyTree, Array]:
    """(``new``, False), or (``old``, True) where a number of ``new`` is not finite."""
    fine = all_finite(new)
    return jax.tree.map(lambda a, b: jnp.where(fine, b, a), old, new), ~fine


def first_nonfinite_flags(metrics: dict[str, Array]) -> dict[str, Array]:
    """For every metric of one update: is it the first of them, in the order of the dict, that is not finite? 0 or 1."""
    found: dict[str, Array] = {}
    seen = jnp.bool(False)
    for name, value in metrics.items():
        broken = ~jnp.all(jnp.isfinite(value))
        found[name], seen = jnp.float32(broken & ~seen), broken | seen
    return found


def mean_of_finite(x: Array) -> Array:
    """Mean over the finite numbers of x [U, …]; NaN where none is."""
    known = jnp.isfinite(x)
    return jnp.sum(jnp.where(known, x, 0.0)) / jnp.sum(known)


def nonfinite_summary(broken: dict[str, Array], lost: Array) -> dict[str, Array]:
    """From ``first_of`` of U updates [U], over all devices: how many had a metric that is not finite, which was the first and what
    told it; all of them where ``lost``."""
    skipped = jnp.any(jnp.stack(list(broken.values())) > 0, 0)
    first = jnp.argmax(skipped)
    found = {SKIPPED: jnp.where(lost, len(skipped), jnp.sum(skipped)), FIRST: first}
    found |= {f"{BROKEN}{name}": x[first] > 0 for name, x in broken.items()}
    return {name.removeprefix("train/"): jnp.asarray(x, jnp.float32) for name, x in found.items()}


class NonfiniteUpdates(NamedTuple):
    """Of one seed in one segment: how many updates were skipped, the first of them, and what was not finite."""

    skipped: float  # infinite where a number is not finite although no update was skipped
    first: int
    quantity: str


def pop_nonfinite(row: dict[str, Any], may_be_missing: Sequence[str]) -> NonfiniteUpdates:
    """Take out of a row of metrics what ``told`` put in, and all that is not finite; ``train/nonfinite_updates`` stays."""
    names = [name for name in row if name.startswith(BROKEN)]
    named = [name.removeprefix(BROKEN) for name in names if row[name] > 0]
    lost = [
        name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)
    ]
    told = [f"{name} became {row[name]}" for name in lost if name not in may_be_missing]
    first = round(row.pop(FIRST, 0.0))
    for name in {*names, *lost}:
        del row[name]
    if skipped := round(row.get(SKIPPED, 0.0)):
        return NonfiniteUpdates(
            skipped, first, f"{next(iter(named), 'a parameter')} was not finite"
        )
    return NonfiniteUpdates(math.inf if told else 0, 0, next(iter(told), ""))

"""Operations on pytrees of arrays that several parts of the library need."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gcp_jax.types import Array, PyTree


def where_tree(pred: Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """Choose between two trees of one structure by a scalar condition.

    Args:
      pred: bool [].
      if_true: returned if ``pred`` is True.
      if_false: returned otherwise.
    """
    return jax.tree.map(lambda x, y: jnp.where(pred, x, y), if_true, if_false)

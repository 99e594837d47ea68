"""The optimizer of all methods and one gradient step over the devices of the data axis."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gcp_jax.core.tree import where_tree
from gcp_jax.mesh import all_mean
from gcp_jax.types import Array, PyTree

LossFn = Callable[[PyTree], tuple[Array, dict[str, Array]]]


def clipped_adam(
    learning_rate: float | optax.Schedule, grad_clip: float
) -> optax.GradientTransformation:
    """Adam on gradients whose global norm is clipped to ``grad_clip``."""
    return optax.chain(optax.clip_by_global_norm(grad_clip), optax.adam(learning_rate))


def gradient_step(
    loss: LossFn,
    params: PyTree,
    opt_state: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    name: str,
) -> tuple[PyTree, PyTree, dict[str, Array]]:
    """Take one step on the mean of a loss over all devices of the data axis.

    If the norm of the gradient is not finite the step is skipped: ``params`` and ``opt_state`` are
    returned unchanged, and the norm is in the metrics.

    The mean over devices is taken inside the gradient, because ``pmean(grad(loss))`` under
    ``shard_map`` is too large by the number of devices.

    Args:
      loss: maps parameters to (loss [] over the local samples, metrics).
      params: the parameters.
      opt_state: the optimizer's state.
      optimizer: the optimizer.
      name: which network this is; names the metric of the norm, e.g. ``"critic"``.

    Returns:
      The new parameters, the new state of the optimizer, and the loss's metrics with
      ``f"{name}_gradient_norm"`` added.
    """

    def mean_loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
        value, metrics = loss(params)
        return all_mean(value), metrics

    gradient, metrics = jax.grad(mean_loss, has_aux=True)(params)
    norm = optax.tree.norm(gradient)
    updates, new_opt_state = optimizer.update(gradient, opt_state, params)
    new_params = optax.apply_updates(params, updates)
    params, opt_state = where_tree(
        jnp.isfinite(norm), (new_params, new_opt_state), (params, opt_state)
    )
    return params, opt_state, {**metrics, f"{name}_gradient_norm": norm}

"""The optimizer of all methods and one gradient step over the devices of the data axis."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gcp_jax.core.tree import where_tree
from gcp_jax.mesh import all_mean, vary_like, zeros_varying_like
from gcp_jax.types import Array, PyTree

LossFn = Callable[[PyTree], tuple[Array, dict[str, Array]]]


def clipped_adam(
    learning_rate: float | optax.Schedule, grad_clip: float
) -> optax.GradientTransformation:
    """Adam on gradients whose global norm is clipped to ``grad_clip``."""
    return optax.chain(optax.clip_by_global_norm(grad_clip), optax.adam(learning_rate))


BlockLoss = Callable[[PyTree, PyTree], tuple[Array, dict[str, Array]]]


def mean_over_blocks(
    loss: BlockLoss, params: PyTree, blocks: PyTree
) -> tuple[Array, dict[str, Array]]:
    """The mean of a loss over blocks, one after the other; its gradient needs one block's memory.

    Each block's gradient g is taken as soon as its loss has been computed. What is returned is
    linear in the parameters around their value: the mean loss plus ⟨mean g, θ − θ⟩, where only the
    first θ is differentiated. Its value and its gradient are those of the mean loss; its second
    derivative is not.

    Args:
      loss: (params, block) -> (loss [], metrics []), both means over the block's samples.
      params: the parameters θ.
      blocks: the samples, leaves [blocks, samples of a block, ...].

    Returns:
      The mean loss [] and the mean of each metric [].
    """
    a_block = jax.tree.leaves(blocks)[0]
    local_params = jax.tree.map(lambda x: vary_like(x, a_block), params)
    fixed_params = jax.lax.stop_gradient(local_params)
    zeros = jax.tree.map(zeros_varying_like, fixed_params)

    def step(total: PyTree, block: PyTree) -> tuple[PyTree, tuple[Array, dict[str, Array]]]:
        found, gradient = jax.value_and_grad(loss, has_aux=True)(fixed_params, block)
        return jax.tree.map(jnp.add, total, gradient), found

    total, found = jax.lax.scan(step, zeros, blocks)
    value, metrics = jax.tree.map(lambda x: jnp.mean(x, 0), found)
    change = jax.tree.map(jnp.subtract, local_params, fixed_params)
    return value + optax.tree.vdot(total, change) / len(a_block), metrics


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

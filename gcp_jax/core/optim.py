"""The optimizer of all methods and one gradient step over the devices of the data axis."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gcp_jax.core.bounded_loop import bounded_loop
from gcp_jax.core.tree import where_tree
from gcp_jax.mesh import all_mean, vary_like
from gcp_jax.types import Array, PyTree

LossFn = Callable[[PyTree], tuple[Array, dict[str, Array]]]


def clipped_adam(
    learning_rate: float | optax.Schedule, grad_clip: float
) -> optax.GradientTransformation:
    """Adam on gradients whose global norm is clipped to ``grad_clip``."""
    return optax.chain(optax.clip_by_global_norm(grad_clip), optax.adam(learning_rate))


BlockLoss = Callable[[PyTree, PyTree], tuple[Array, dict[str, Array]]]


def mean_over_blocks(
    loss: BlockLoss, params: PyTree, blocks: PyTree, *, used: Array
) -> tuple[Array, dict[str, Array]]:
    """The mean of a loss over blocks, one after the other; its gradient needs one block's memory.

    Each block's gradient is taken as soon as its loss has been computed. Their mean is the gradient
    of what is returned, which can be differentiated once, in reverse mode.

    Args:
      loss: (params, block) -> (loss [], metrics []), both means over the block's samples.
      params: the parameters θ.
      blocks: the samples, leaves [blocks, samples of a block, ...].
      used: how many of the first blocks are computed, int32 []; the loss and the metrics of the
        others must be 0.

    Returns:
      The mean loss [] and the mean of each metric [].
    """
    a_block = jax.tree.leaves(blocks)[0]
    count = len(a_block)
    local_params = jax.tree.map(lambda x: vary_like(x, a_block), params)
    fixed_params = jax.lax.stop_gradient(local_params)

    def block_gradient(index: Array) -> PyTree:
        block = jax.tree.map(lambda x: x[index], blocks)
        return jax.value_and_grad(loss, has_aux=True)(fixed_params, block)

    def add_block(index: Array, total: PyTree) -> PyTree:
        return jax.tree.map(jnp.add, total, block_gradient(index))

    zeros = jax.tree.map(
        lambda x: vary_like(jnp.zeros(x.shape, x.dtype), a_block),
        jax.eval_shape(block_gradient, jnp.int32(0)),
    )
    total = bounded_loop(used, count, add_block, zeros)
    (value, metrics), gradient = jax.tree.map(lambda x: x / count, total)
    return _with_gradient(local_params, value, gradient), metrics


@jax.custom_vjp
def _with_gradient(params: PyTree, value: Array, gradient: PyTree) -> Array:
    """``value``, whose gradient with respect to ``params`` is ``gradient``."""
    return value


def _with_gradient_forward(params: PyTree, value: Array, gradient: PyTree) -> tuple[Array, PyTree]:
    return value, gradient


def _with_gradient_backward(gradient: PyTree, factor: Array) -> tuple[PyTree, None, None]:
    return jax.tree.map(lambda x: factor * x, gradient), None, None


_with_gradient.defvjp(_with_gradient_forward, _with_gradient_backward)


def mean_gradient(loss: LossFn, params: PyTree) -> tuple[PyTree, dict[str, Array]]:
    """The gradient of the mean of a loss over all devices of the data axis.

    The mean over devices is taken inside the gradient, because ``pmean(grad(loss))`` under
    ``shard_map`` is too large by the number of devices.

    Args:
      loss: maps parameters to (loss [] over the local samples, metrics).
      params: the parameters.

    Returns:
      The gradient, and the loss's metrics.
    """

    def mean_loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
        value, metrics = loss(params)
        return all_mean(value), metrics

    gradient, metrics = jax.grad(mean_loss, has_aux=True)(params)
    return gradient, metrics


def apply_gradient(
    gradient: PyTree,
    params: PyTree,
    opt_state: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    name: str,
    scale: Array | None = None,
) -> tuple[PyTree, PyTree, dict[str, Array]]:
    """Take one step of the optimizer.

    If the norm of the gradient is not finite the step is skipped: ``params`` and ``opt_state`` are
    returned unchanged, and the norm is in the metrics.

    Args:
      gradient: of the parameters.
      params: the parameters.
      opt_state: the optimizer's state.
      optimizer: the optimizer.
      name: which network this is; names the metric of the norm, e.g. ``"critic"``.
      scale: factor of the learning rate []; None: 1.

    Returns:
      The new parameters, the new state of the optimizer, and ``f"{name}_gradient_norm"``.
    """
    norm = optax.tree.norm(gradient)
    updates, new_opt_state = optimizer.update(gradient, opt_state, params)
    if scale is not None:
        updates = optax.tree.scale(scale, updates)
    new_params = optax.apply_updates(params, updates)
    params, opt_state = where_tree(
        jnp.isfinite(norm), (new_params, new_opt_state), (params, opt_state)
    )
    return params, opt_state, {f"{name}_gradient_norm": norm}


def gradient_step(
    loss: LossFn,
    params: PyTree,
    opt_state: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    name: str,
) -> tuple[PyTree, PyTree, dict[str, Array]]:
    """Take one step on the mean of a loss over all devices of the data axis.

    ``mean_gradient`` and ``apply_gradient`` after each other.

    Returns:
      The new parameters, the new state of the optimizer, and the loss's metrics with
      ``f"{name}_gradient_norm"`` added.
    """
    gradient, metrics = mean_gradient(loss, params)
    params, opt_state, norm = apply_gradient(gradient, params, opt_state, optimizer, name=name)
    return params, opt_state, {**metrics, **norm}

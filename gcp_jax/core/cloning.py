"""A base policy that keeps cloning the replay while something else improves on it: the part QC, EXPO and FQL share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from gcp_jax.core.critic import clipped_adam
from gcp_jax.core.policy import Policy
from gcp_jax.mesh import gradient_step
from gcp_jax.types import Array, PyTree, Transition


class BCState(NamedTuple):
    """Network, its average (which samples), optimizer."""

    net: PyTree
    target: PyTree
    opt: PyTree


class BCUpdater(NamedTuple):
    """init:    (net) -> CloneState
    improve: (state, normalized obs [B, O], transitions, key) -> (state, metrics), one step on the policy's imitation loss
    """

    init: Callable[[PyTree], BCState]
    improve: Callable[[BCState, Array, Transition, Array], tuple[BCState, dict[str, Array]]]


def make_bc_updater(
    policy: Policy, *, learning_rate: float, ema: float, grad_clip: float
) -> BCUpdater:
    """Cloning of the chunks a replay holds; ema: rate of the average."""
    optimizer = clipped_adam(learning_rate, grad_clip)

    def init(net: PyTree) -> BCState:
        return BCState(net, net, optimizer.init(net))

    def improve(
        state: BCState, obs: Array, data: Transition, key: Array
    ) -> tuple[BCState, dict[str, Array]]:
        def loss(net: PyTree) -> tuple[Array, dict[str, Array]]:
            value = jnp.mean(policy.bc_loss(net, obs, data.action, data.mask, key))
            return value, {"imitation_loss": value}

        net, opt, metrics = gradient_step(loss, state.net, state.opt, optimizer)
        metrics["base_gradient_norm"] = metrics.pop("gradient_norm")
        return BCState(net, optax.incremental_update(net, state.target, ema), opt), metrics

    return BCUpdater(init, improve)

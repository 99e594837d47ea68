"""A base policy that keeps cloning the replay while something else improves on it: the part QC, EXPO and FQL share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from gcp_jax.critic import adam
from gcp_jax.mesh import descend
from gcp_jax.policy import Policy
from gcp_jax.types import Array, PyTree, Transition


class CloneState(NamedTuple):
    """Network, its average (which samples), optimiser."""

    net: PyTree
    target: PyTree
    opt: PyTree


class Cloner(NamedTuple):
    """init:    (net) -> CloneState
    improve: (state, normalised obs [B, O], transitions, key) -> (state, metrics), one step on the policy's imitation loss
    """

    init: Callable[[PyTree], CloneState]
    improve: Callable[[CloneState, Array, Transition, Array], tuple[CloneState, dict[str, Array]]]


def make(policy: Policy, *, learning_rate: float, ema: float, grad_clip: float) -> Cloner:
    """Cloning of the chunks a replay holds; ema: rate of the average."""
    optimiser = adam(learning_rate, grad_clip)

    def init(net: PyTree) -> CloneState:
        return CloneState(net, net, optimiser.init(net))

    def improve(state: CloneState, obs: Array, data: Transition, key: Array) -> tuple[CloneState, dict[str, Array]]:
        def loss(net: PyTree) -> tuple[Array, dict[str, Array]]:
            value = jnp.mean(policy.imitate(net, obs, data.action, data.mask, key))
            return value, {"imitation_loss": value}

        net, opt, metrics = descend(loss, state.net, state.opt, optimiser)
        metrics["base_gradient_norm"] = metrics.pop("gradient_norm")
        return CloneState(net, optax.incremental_update(net, state.target, ema), opt), metrics

    return Cloner(init, improve)

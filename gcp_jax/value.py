"""The value function V(s) of the on-policy methods, and its regression on returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from gcp_jax.critic import adam
from gcp_jax.mesh import descend
from gcp_jax.networks import Value
from gcp_jax.types import Array, PyTree


class ValueState(NamedTuple):
    """V's parameters and their optimiser."""

    net: PyTree
    opt: PyTree


class Values(NamedTuple):
    """init:    (key) -> ValueState
    v:       (params, obs [..., O]) -> [...]
    regress: (state, obs [B, O], target [B]) -> (state, loss []), one Adam step on ½·½ mean (V − R)²
    """

    init: Callable[[Array], ValueState]
    v: Callable[[PyTree, Array], Array]
    regress: Callable[[ValueState, Array, Array], tuple[ValueState, Array]]


def make(obs_dim: int, *, hidden: Sequence[int], rate: float, grad_clip: float) -> Values:
    """V on normalised observations [O]; ``rate`` is Adam's, on gradients clipped to the norm ``grad_clip``."""
    values, optimiser = Value(hidden), adam(rate, grad_clip)

    def init(key: Array) -> ValueState:
        net = values.init(key, jnp.zeros((1, obs_dim)))["params"]
        return ValueState(net, optimiser.init(net))

    def v(params: PyTree, obs: Array) -> Array:
        return jnp.asarray(values.apply({"params": params}, obs))

    def regress(state: ValueState, obs: Array, target: Array) -> tuple[ValueState, Array]:
        def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
            value = 0.5 * 0.5 * jnp.mean((v(params, obs) - target) ** 2)
            return value, {"loss": value}

        net, opt, metrics = descend(loss, state.net, state.opt, optimiser)
        return ValueState(net, opt), metrics["loss"]

    return Values(init, v, regress)

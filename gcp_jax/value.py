"""What on-policy methods share: fields of their configurations, and the value function V(s) with its regression on returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from gcp_jax import ranges
from gcp_jax.critic import adam
from gcp_jax.mesh import descend
from gcp_jax.networks import Value
from gcp_jax.ranges import COUNT, NOT_NEGATIVE, POSITIVE, RATE, SHARE
from gcp_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields that all on-policy methods share; a method's own Config derives from it.

    gamma: discount of one environment step. gae_lambda: λ. epochs, minibatches: passes over a segment and their parts.
    value_hidden, value_lr: V's widths and Adam's rate. value_warmup: first segments that train V alone. grad_clip: largest norm of a
    gradient. scale_rewards: divide by the std of the running discounted return.
    """

    gamma: float = 0.99
    gae_lambda: float = 0.95
    epochs: int = 5
    minibatches: int = 4
    value_hidden: tuple[int, ...] = (256, 256, 256)
    value_lr: float = 1e-3
    value_warmup: int = 0
    grad_clip: float = 1000.0
    scale_rewards: bool = True

    RANGES = {
        **dict.fromkeys(("epochs", "minibatches", "value_hidden"), COUNT),
        **dict.fromkeys(("value_lr", "value_warmup"), NOT_NEGATIVE),
        "gamma": RATE,
        "gae_lambda": SHARE,
        "grad_clip": POSITIVE,
    }

    def __post_init__(self) -> None:
        ranges.check(self, "algorithm.")


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

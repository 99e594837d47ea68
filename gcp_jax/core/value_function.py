"""What on-policy methods share: fields of their configurations, and the value function V(s) with its regression on returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from gcp_jax import config_fields
from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE, POSITIVE_INT, UNIT, UNIT_POSITIVE
from gcp_jax.core.critic import clipped_adam
from gcp_jax.core.networks import ValueNet
from gcp_jax.mesh import gradient_step
from gcp_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields that all on-policy methods share; a method's own Config derives from it.

    gamma: discount of one environment step. gae_lambda: λ. epochs, minibatches: passes over a segment and their parts.
    value_hidden, value_lr: V's widths and Adam's rate. value_warmup_segments: first segments that train V alone. grad_clip: largest norm of a
    gradient. scale_rewards: divide by the std of the running discounted return.
    """

    gamma: float = 0.99
    gae_lambda: float = 0.95
    epochs: int = 5
    minibatches: int = 4
    value_hidden: tuple[int, ...] = (256, 256, 256)
    value_lr: float = 1e-3
    value_warmup_segments: int = 0
    grad_clip: float = 1000.0
    scale_rewards: bool = True

    RANGES = {
        **dict.fromkeys(("epochs", "minibatches", "value_hidden"), POSITIVE_INT),
        **dict.fromkeys(("value_lr", "value_warmup_segments"), NON_NEGATIVE),
        "gamma": UNIT_POSITIVE,
        "gae_lambda": UNIT,
        "grad_clip": POSITIVE,
    }

    def __post_init__(self) -> None:
        config_fields.check(self, "algorithm.")


class ValueState(NamedTuple):
    """V's parameters and their optimizer."""

    net: PyTree
    opt: PyTree


class ValueFunction(NamedTuple):
    """init:    (key) -> ValueState
    v:       (params, obs [..., O]) -> [...]
    regress: (state, obs [B, O], target [B]) -> (state, loss []), one Adam step on ½·½ mean (V − R)²
    """

    init: Callable[[Array], ValueState]
    v: Callable[[PyTree, Array], Array]
    td_step: Callable[[ValueState, Array, Array], tuple[ValueState, Array]]


def make_value_function(
    obs_dim: int, *, hidden: Sequence[int], rate: float, grad_clip: float
) -> ValueFunction:
    """V on normalized observations [O]; ``rate`` is Adam's, on gradients clipped to the norm ``grad_clip``."""
    values, optimizer = ValueNet(hidden), clipped_adam(rate, grad_clip)

    def init(key: Array) -> ValueState:
        net = values.init(key, jnp.zeros((1, obs_dim)))["params"]
        return ValueState(net, optimizer.init(net))

    def v(params: PyTree, obs: Array) -> Array:
        return jnp.asarray(values.apply({"params": params}, obs))

    def td_step(state: ValueState, obs: Array, target: Array) -> tuple[ValueState, Array]:
        def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
            value = 0.5 * 0.5 * jnp.mean((v(params, obs) - target) ** 2)
            return value, {"loss": value}

        net, opt, metrics = gradient_step(loss, state.net, state.opt, optimizer)
        return ValueState(net, opt), metrics["loss"]

    return ValueFunction(init, v, td_step)

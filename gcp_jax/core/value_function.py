"""The value function V(s) of the on-policy methods and its regression on returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax

from gcp_jax import config_fields
from gcp_jax.config_fields import (
    NON_NEGATIVE,
    POSITIVE,
    POSITIVE_INT,
    UNIT,
    UNIT_POSITIVE,
    field,
)
from gcp_jax.core import optim
from gcp_jax.core.networks import ValueNet
from gcp_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of every on-policy method; a method's own ``Config`` derives from it."""

    gamma: float = field(0.97, UNIT_POSITIVE, "γ: discount of one environment step [.99, .999]")
    gae_lambda: float = field(0.95, UNIT, "λ of generalized advantage estimation [.95]")
    epochs: int = field(5, POSITIVE_INT, "passes over a segment [5–10]")
    minibatches: int = field(4, POSITIVE_INT, "parts of a segment; one update each")
    value_hidden: tuple[int, ...] = field(
        (256, 256, 256), POSITIVE_INT, "widths of V [256, 256, 256]"
    )
    value_lr: float = field(1e-3, NON_NEGATIVE, "Adam's learning rate of V [1e-3]")
    value_warmup_segments: int = field(
        0, NON_NEGATIVE, "first segments, from which only V learns [0–2]"
    )
    grad_clip: float = field(1000.0, POSITIVE, "largest norm of a gradient, of every network")
    scale_rewards: bool = field(
        True, None, "divide rewards by the standard deviation of the running discounted return"
    )

    def __post_init__(self) -> None:
        config_fields.check(self, "algorithm.")

    @property
    def first_policy_update(self) -> int:
        """The first update of a run, counted from 0, that changes the policy."""
        return self.value_warmup_segments * self.epochs * self.minibatches


class ValueState(NamedTuple):
    """V's parameters and its optimizer's state."""

    params: PyTree
    opt_state: PyTree


@dataclasses.dataclass(frozen=True)
class ValueFunction:
    """V(s) on normalized observations."""

    net: ValueNet
    obs_dim: int
    optimizer: optax.GradientTransformation
    loss_weight: float

    def init(self, key: Array) -> ValueState:
        """Draw a new value function."""
        params = self.net.init(key, jnp.zeros((1, self.obs_dim)))["params"]
        return ValueState(params=params, opt_state=self.optimizer.init(params))

    def v(self, params: PyTree, obs: Array) -> Array:
        """V(s): obs [..., O] to [...]."""
        return jnp.asarray(self.net.apply({"params": params}, obs))

    def loss(self, params: PyTree, obs: Array, value_target: Array) -> Array:
        """c · mean (V(s) − R)² with c = ``loss_weight``, for normalized obs [B, O] and R [B]."""
        return self.loss_weight * jnp.mean((self.v(params, obs) - value_target) ** 2)

    def td_step(
        self, state: ValueState, obs: Array, value_target: Array
    ) -> tuple[ValueState, Array]:
        """Take one Adam step on ``loss``: (state, loss [])."""

        def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
            value = self.loss(params, obs, value_target)
            return value, {"value_loss": value}

        params, opt_state, metrics = optim.gradient_step(
            loss, state.params, state.opt_state, self.optimizer, name="value"
        )
        return ValueState(params=params, opt_state=opt_state), metrics["value_loss"]


def make_value_function(
    obs_dim: int,
    *,
    hidden: Sequence[int],
    learning_rate: float,
    grad_clip: float,
    loss_weight: float = 1.0,
) -> ValueFunction:
    """Build V on normalized observations [O], learned by Adam on clipped gradients.

    Args:
      obs_dim: O.
      hidden: widths of the network.
      learning_rate: Adam's.
      grad_clip: largest norm of the gradient.
      loss_weight: c in the loss c · mean (V(s) − R)². As V has an optimizer of its own, c changes
        only what is clipped and what Adam's ε is compared with.
    """
    return ValueFunction(
        net=ValueNet(hidden),
        obs_dim=obs_dim,
        optimizer=optim.clipped_adam(learning_rate, grad_clip),
        loss_weight=loss_weight,
    )

"""Behavior cloning of the replay, for methods whose base policy keeps learning (QC, EXPO, FQL)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import optax

from gcp_jax.core import optim
from gcp_jax.core.policy import Policy
from gcp_jax.types import Array, PyTree, Transition


class BCState(NamedTuple):
    """A cloned policy's network, its average, which is what samples, and its optimizer's state."""

    params: PyTree
    target_params: PyTree
    opt_state: PyTree


@dataclasses.dataclass(frozen=True)
class BCUpdater:
    """Behavior cloning of the chunks in the replay, with averaged parameters."""

    policy: Policy
    optimizer: optax.GradientTransformation
    tau: float  # averaging rate

    def init(self, params: PyTree) -> BCState:
        """Start from the parameters of a policy's network."""
        return BCState(params=params, target_params=params, opt_state=self.optimizer.init(params))

    def loss(
        self, params: PyTree, obs: Array, transitions: Transition, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """The policy's cloning loss, with metrics, for normalized obs [B, O]."""
        losses = self.policy.bc_loss(params, obs, transitions.action, transitions.mask, key)
        loss = jnp.mean(losses)
        return loss, {"imitation_loss": loss}

    def update(
        self, state: BCState, obs: Array, transitions: Transition, key: Array
    ) -> tuple[BCState, dict[str, Array]]:
        """Take one step on ``loss`` and move the average: (state, metrics).

        Args:
          state: the policy's state.
          obs: the transitions' observations, normalized, [B, O].
          transitions: whose actions are cloned, in raw units, masked by ``mask``.
          key: a random key; consumed.
        """
        params, opt_state, metrics = optim.gradient_step(
            lambda params: self.loss(params, obs, transitions, key),
            state.params,
            state.opt_state,
            self.optimizer,
            name="base",
        )
        target_params = optax.incremental_update(params, state.target_params, self.tau)
        new_state = BCState(params=params, target_params=target_params, opt_state=opt_state)
        return new_state, metrics


def make_bc_updater(
    policy: Policy, *, learning_rate: float, tau: float, grad_clip: float
) -> BCUpdater:
    """Build the cloning of ``policy``, by Adam on clipped gradients with averaging rate ``tau``."""
    return BCUpdater(policy=policy, optimizer=optim.clipped_adam(learning_rate, grad_clip), tau=tau)

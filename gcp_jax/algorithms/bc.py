"""BC: behavior cloning of chunks by flow matching or diffusion; what every finetuning starts from.

Flow matching (Lipman et al. 2023, arXiv 2210.02747; Chi et al. 2023, arXiv 2303.04137 for chunks):

    L(θ) = mean ‖v_θ(s, x_t, t) − (a − z)‖²,   x_t = (1 − t) z + t a,   z ~ N(0, I),   t ~ U[0, 1]

The steps of a chunk that come after the end of its episode are masked. The averaged weights are
evaluated and exported.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gcp_jax import config_fields
from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE, Bounds, field
from gcp_jax.core import optim
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy
from gcp_jax.mesh import batch_mean
from gcp_jax.types import (
    Algorithm,
    Array,
    Batch,
    BatchSource,
    Metrics,
    Params,
    Transition,
    identity_preprocess,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """BC's settings."""

    learning_rate: float = field(3e-4, POSITIVE, "AdamW's learning rate [3e-4]")
    weight_decay: float = field(1e-4, NON_NEGATIVE, "AdamW's weight decay")
    ema_decay: float = field(
        0.995,
        Bounds(0, 1, high_open=True),
        "decay of the averaged weights after a warm-up of (1 + n)/(10 + n) at update n",
    )

    def __post_init__(self) -> None:
        config_fields.check(self, "algorithm.")


class State(NamedTuple):
    """What BC learns, for one seed."""

    params: Params
    ema_params: Params  # averaged
    opt_state: Params
    normalizer: Normalizer  # frozen
    updates: Array  # int32 []


@dataclasses.dataclass(frozen=True)
class BC:
    """BC's loss, its average and its update."""

    config: Config
    policy: Policy
    optimizer: optax.GradientTransformation

    def init(self, key: Array, pretrained: Params) -> State:
        """Start from random weights and the observations' statistics, {"normalizer"}."""
        params = self.policy.init(key)
        return State(
            params=params,
            ema_params=params,
            opt_state=self.optimizer.init(params),
            normalizer=pretrained["normalizer"],
            updates=jnp.int32(0),
        )

    def export(self, state: State) -> Params:
        """What is evaluated and deployed: the averaged weights."""
        return {"net": state.ema_params, "normalizer": state.normalizer}

    def act(self, state: State, obs: Array, key: Array) -> tuple[Array, Params]:
        """The policy's deterministic sampler: raw observations [B, O] to chunks [B, h, A]."""
        return self.policy.eval_policy(self.export(state), obs, key), {}

    def loss(
        self, params: Params, obs: Array, transitions: Transition, key: Array
    ) -> tuple[Array, Metrics]:
        """L(θ), with metrics, for normalized obs [B, O]."""
        losses = self.policy.bc_loss(params, obs, transitions.action, transitions.mask, key)
        loss = jnp.mean(losses)
        return loss, {"imitation_loss": batch_mean(loss)}

    def average(self, state: State, params: Params) -> Params:
        """The averaged weights after an update has made ``params``."""
        decay = jnp.minimum(self.config.ema_decay, (1.0 + state.updates) / (10.0 + state.updates))
        return jax.tree.map(
            lambda old, new: decay * old + (1.0 - decay) * new, state.ema_params, params
        )

    def update(self, state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        """One step of AdamW."""
        obs = state.normalizer(batch.transitions.obs)
        params, opt_state, metrics = optim.gradient_step(
            lambda params: self.loss(params, obs, batch.transitions, key),
            state.params,
            state.opt_state,
            self.optimizer,
            name="policy",
        )
        state = state._replace(
            params=params,
            ema_params=self.average(state, params),
            opt_state=opt_state,
            updates=state.updates + 1,
        )
        return state, metrics


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """Build BC of ``policy``, learning from ``source``."""
    bc = BC(
        config=config,
        policy=policy,
        optimizer=optax.adamw(config.learning_rate, weight_decay=config.weight_decay),
    )
    return Algorithm(
        init=bc.init,
        act=bc.act,
        preprocess_segment=identity_preprocess,
        update=bc.update,
        eval_policy=policy.eval_policy,
        export=bc.export,
        source=source,
    )

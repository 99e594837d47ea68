"""Behaviour cloning by flow matching on chunks (algorithms.md §1; Lipman et al. 2023, Chi et al. 2023).

    L(θ) = mean ‖v_θ(s, x_t, t) − (a − z)‖²,   x_t = (1−t) z + t a,   z ~ N(0, I),   t ~ U[0, 1]

masked where a chunk runs past the episode's end; what is evaluated and exported is the EMA of the weights.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gcp_jax import config_fields
from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE, Bounds
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy
from gcp_jax.mesh import batch_mean, gradient_step
from gcp_jax.types import Algorithm, Array, Batch, BatchSource, PyTree, identity_preprocess


@dataclasses.dataclass(frozen=True)
class Config:
    """learning_rate, weight_decay: AdamW. ema: decay of the averaged weights, warmed up as (1+n)/(10+n)."""

    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    ema_decay: float = 0.995

    RANGES = {
        "learning_rate": POSITIVE,
        "weight_decay": NON_NEGATIVE,
        "ema_decay": Bounds(0, 1, below=True),
    }

    def __post_init__(self) -> None:
        config_fields.check(self, "algorithm.")


class State(NamedTuple):
    """Online and averaged parameters, optimizer, normalizer (frozen), updates done."""

    net: PyTree
    ema: PyTree
    opt: PyTree
    normalizer: Normalizer
    step: Array


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """Cloning as an Algorithm; ``pretrained`` is {"normalizer": Normalizer}."""
    optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)

    def init(key: Array, pretrained: PyTree) -> State:
        net = policy.init(key)
        return State(net, net, optimizer.init(net), pretrained["normalizer"], jnp.int32(0))

    def export(state: State) -> PyTree:
        return {"net": state.ema, "normalizer": state.normalizer}

    def act(state: State, obs: Array, key: Array) -> tuple[Array, PyTree]:
        return policy.eval_policy(export(state), obs, key), {}

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        data = batch.transitions
        obs = state.normalizer(data.obs)

        def loss(net: PyTree) -> tuple[Array, dict[str, Array]]:
            value = jnp.mean(policy.bc_loss(net, obs, data.action, data.mask, key))
            return value, {"imitation_loss": batch_mean(value)}

        net, opt, metrics = gradient_step(loss, state.net, state.opt, optimizer)
        decay = jnp.minimum(config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, net)
        return State(net, ema, opt, state.normalizer, state.step + 1), metrics

    return Algorithm(init, act, identity_preprocess, update, policy.eval_policy, export, source)

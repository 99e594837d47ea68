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

from gcp_jax import ranges
from gcp_jax.mesh import batch_mean, descend
from gcp_jax.networks import Normaliser
from gcp_jax.policy import Policy
from gcp_jax.ranges import NOT_NEGATIVE, POSITIVE, Range
from gcp_jax.types import Algorithm, Array, Batch, PyTree, Source, unprepared


@dataclasses.dataclass(frozen=True)
class Config:
    """learning_rate, weight_decay: AdamW. ema: decay of the averaged weights, warmed up as (1+n)/(10+n)."""

    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    ema: float = 0.995

    RANGES = {"learning_rate": POSITIVE, "weight_decay": NOT_NEGATIVE, "ema": Range(0, 1, below=True)}

    def __post_init__(self) -> None:
        ranges.check(self, "algorithm.")


class State(NamedTuple):
    """Online and averaged parameters, optimiser, normaliser (frozen), updates done."""

    net: PyTree
    ema: PyTree
    opt: PyTree
    normaliser: Normaliser
    step: Array


def make(config: Config, policy: Policy, source: Source) -> Algorithm:
    """Cloning as an Algorithm; ``pretrained`` is {"normaliser": Normaliser}."""
    optimiser = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)

    def init(key: Array, pretrained: PyTree) -> State:
        net = policy.init(key)
        return State(net, net, optimiser.init(net), pretrained["normaliser"], jnp.int32(0))

    def export(state: State) -> PyTree:
        return {"net": state.ema, "normaliser": state.normaliser}

    def act(state: State, obs: Array, key: Array) -> tuple[Array, PyTree]:
        return policy.greedy(export(state), obs, key), {}

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        data = batch.transitions
        obs = state.normaliser(data.obs)

        def loss(net: PyTree) -> tuple[Array, dict[str, Array]]:
            value = jnp.mean(policy.imitate(net, obs, data.action, data.mask, key))
            return value, {"imitation_loss": batch_mean(value)}

        net, opt, metrics = descend(loss, state.net, state.opt, optimiser)
        decay = jnp.minimum(config.ema, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, net)
        return State(net, ema, opt, state.normaliser, state.step + 1), metrics

    return Algorithm(init, act, unprepared, update, policy.greedy, export, source)

"""QC: best-of-N on a cloned flow with chunked critics (Q-chunking, arXiv 2507.07969; algorithms.md §7).

The flow keeps cloning the replay. Acting, deploying and bootstrapping all take the best of N of its samples,

    π(s) = argmax_{a_1 … a_N ~ β(s)} Q̄(s, a),        y = reward + discount · max_{a'_1 … a'_N ~ β(s')} Q̄(s', a').
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE_INT, UNIT
from gcp_jax.core import cloning, critic
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy
from gcp_jax.types import Algorithm, Array, Batch, BatchSource, PyTree, identity_preprocess


@dataclasses.dataclass(frozen=True)
class Config(critic.Config):
    """samples: N [8–32]. base_lr, base_tau: Adam's rate and the averaging rate of the flow."""

    samples: int = 16
    base_lr: float = 3e-4
    base_tau: float = 0.005

    RANGES = {"samples": POSITIVE_INT, "base_lr": NON_NEGATIVE, "base_tau": UNIT}


class State(NamedTuple):
    """The flow, the critics, updates done."""

    base: cloning.BCState
    critic: critic.CriticState
    normalizer: Normalizer
    step: Array


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """QC as an Algorithm; ``pretrained`` is a deployed policy {"net", "normalizer"}."""
    specs = policy.specs
    critics = critic.make_critic(
        config, specs.obs_dim, specs.flat_action_dim, policy.config.compute
    )
    cloner = cloning.make_bc_updater(
        policy, learning_rate=config.base_lr, ema=config.base_tau, grad_clip=config.grad_clip
    )

    def init(key: Array, pretrained: PyTree) -> State:
        return State(
            cloner.init(pretrained["net"]),
            critics.init(key),
            pretrained["normalizer"],
            jnp.int32(0),
        )

    def ranked(net: PyTree, params: PyTree, obs: Array, key: Array) -> tuple[Array, Array]:
        """N samples [B, N, D] for normalized obs [B, O] and their values [B, N]."""
        sample_key, pool_key = jax.random.split(key)
        action = policy.sample_n(net, obs, sample_key, config.samples)
        return action, critics.aggregate_q(params, obs[:, None], action, pool_key)

    def greedy(deployed: PyTree, obs: Array, key: Array) -> Array:
        action, value = ranked(
            deployed["net"], deployed["critic"], deployed["normalizer"](obs), key
        )
        return policy.unflatten(critic.argmax_action(action, value))

    def act(state: State, obs: Array, key: Array) -> tuple[Array, PyTree]:
        """Until the critics are warm, the first sample."""
        action, value = ranked(state.base.target, state.critic.target, state.normalizer(obs), key)
        value = jnp.where(state.step > config.critic_warmup_updates, value, 0.0)
        return policy.unflatten(critic.argmax_action(action, value)), {}

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        target_key, clone_key = jax.random.split(key)
        data, obs = batch.transitions, state.normalizer(batch.transitions.obs)
        _, following = ranked(
            state.base.target, state.critic.target, state.normalizer(data.next_obs), target_key
        )
        y = data.reward + data.discount * jnp.max(following, -1)
        critic_state, metrics = critics.td_step(state.critic, obs, policy.flatten(data.action), y)
        base, cloned = cloner.improve(state.base, obs, data, clone_key)
        base = critic.where_tree(state.step < config.critic_warmup_updates, state.base, base)
        return State(base, critic_state, state.normalizer, state.step + 1), metrics | cloned

    def export(state: State) -> PyTree:
        return {
            "net": state.base.target,
            "normalizer": state.normalizer,
            "critic": state.critic.target,
        }

    return Algorithm(
        init,
        act,
        identity_preprocess,
        update,
        greedy,
        export,
        source,
        critic.make_q_fn(critics, policy),
    )

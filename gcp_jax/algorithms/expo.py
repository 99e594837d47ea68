"""EXPO: an expressive base and a small edit policy (arXiv 2507.07986; algorithms.md §6).

The base keeps cloning the replay; an edit policy Δ ~ tanh-Gaussian(s, a) proposes ã = a + βΔ. What acts, is deployed and
bootstraps is the *on-the-fly* policy: of N samples of the base and their N edits the one with the highest value,

    π(s) = argmax_{a ∈ {a_i, ã_i}} min of two Q̄(s, a),     y = reward + discount · max_{a' ∈ {a'_i, ã'_i}} min of two Q̄(s', a'),
    L(Δ) = E[α log π(Δ | s, a) − mean_m Q_m(s, a + βΔ)].

The entropy is that of the unit edit. (The released code measures it on βΔ, where its target −d/2 is out of reach for β < .303,
so that the temperature grows without bound and edits stay uniform.)
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE, POSITIVE_INT, UNIT
from gcp_jax.core import cloning, critic, tanh_gaussian
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy
from gcp_jax.types import Algorithm, Array, Batch, BatchSource, PyTree, identity_preprocess


@dataclasses.dataclass(frozen=True)
class Config(tanh_gaussian.Config):
    """samples: N. edit_scale: β [.05–.7]. base_lr, base_tau: Adam's rate and the averaging rate of the base. ``aggregate`` is
    how the edit's loss reads the critics; what acts and bootstraps always takes the smaller of two."""

    samples: int = 8
    edit_scale: float = 0.05
    base_lr: float = 3e-4
    base_tau: float = 0.005
    target_entropy: float = -0.5

    RANGES = {
        "samples": POSITIVE_INT,
        "edit_scale": POSITIVE,
        "base_lr": NON_NEGATIVE,
        "base_tau": UNIT,
    }


class State(NamedTuple):
    """Base, edit policy, critics, updates done."""

    base: cloning.BCState
    edit: tanh_gaussian.ActorState
    critic: critic.CriticState
    normalizer: Normalizer
    step: Array


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """EXPO as an Algorithm; ``pretrained`` is a deployed policy {"net", "normalizer"}."""
    specs = policy.specs
    critics = critic.make_critic(
        config, specs.obs_dim, specs.flat_action_dim, policy.config.compute
    )
    editor = tanh_gaussian.make_actor(
        config, (specs.obs_dim, specs.flat_action_dim), specs.flat_action_dim
    )
    cloner = cloning.make_bc_updater(
        policy, learning_rate=config.base_lr, ema=config.base_tau, grad_clip=config.grad_clip
    )

    def init(key: Array, pretrained: PyTree) -> State:
        edit_key, critic_key = jax.random.split(key)
        learned = (cloner.init(pretrained["net"]), editor.init(edit_key), critics.init(critic_key))
        return State(*learned, pretrained["normalizer"], jnp.int32(0))

    def edited(action: Array, u: Array) -> Array:
        return jnp.clip(action + config.edit_scale * u, -1.0, 1.0)

    def candidates(deployed: PyTree, obs: Array, key: Array) -> tuple[Array, Array]:
        """N base samples, then their edits, [B, 2N, D], and their values [B, 2N]; obs normalized [B, O]."""
        sample_key, edit_key, pair_key = jax.random.split(key, 3)
        action = policy.sample_n(deployed["net"], obs, sample_key, config.samples)
        u, _ = editor.draw(deployed["edit"], (obs[:, None], action), edit_key)
        both = jnp.concatenate([action, edited(action, u)], axis=1)
        return both, critics.min_of_two(deployed["critic"], obs[:, None], both, pair_key)

    def export(state: State) -> PyTree:
        learned = {"net": state.base.target, "edit": state.edit.net, "critic": state.critic.target}
        return {**learned, "normalizer": state.normalizer}

    def greedy(deployed: PyTree, obs: Array, key: Array) -> Array:
        both, value = candidates(deployed, deployed["normalizer"](obs), key)
        return policy.unflatten(critic.argmax_action(both, value))

    def act(state: State, obs: Array, key: Array) -> tuple[Array, PyTree]:
        """Until the critics are warm, a sample of the base."""
        both, value = candidates(export(state), state.normalizer(obs), key)
        value = jnp.where(state.step > config.critic_warmup_updates, value, 0.0)
        return policy.unflatten(critic.argmax_action(both, value)), {}

    def edit_step(
        state: State, obs: Array, key: Array
    ) -> tuple[tanh_gaussian.ActorState, dict[str, Array]]:
        sample_key, draw_key, pool_key = jax.random.split(key, 3)
        action = policy.sample_n(state.base.target, obs, sample_key, 1)[:, 0]

        def worth(u: Array) -> Array:
            return critics.aggregate_q(state.critic.net, obs, edited(action, u), pool_key)

        return editor.improve(state.edit, (obs, action), worth, draw_key)

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        target_key, clone_key, edit_key = jax.random.split(key, 3)
        data, obs = batch.transitions, state.normalizer(batch.transitions.obs)
        _, following = candidates(export(state), state.normalizer(data.next_obs), target_key)
        y = data.reward + data.discount * jnp.max(following, axis=1)
        critic_state, metrics = critics.td_step(state.critic, obs, policy.flatten(data.action), y)
        state = state._replace(critic=critic_state)
        base, cloned = cloner.improve(state.base, obs, data, clone_key)
        edit, learned = edit_step(state, obs, edit_key)
        before = (state.base, state.edit)
        base, edit = critic.where_tree(
            state.step < config.critic_warmup_updates, before, (base, edit)
        )
        return state._replace(base=base, edit=edit, step=state.step + 1), metrics | cloned | learned

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

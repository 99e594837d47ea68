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

from gcp_jax import critic, imitation, soft
from gcp_jax.networks import Normaliser
from gcp_jax.policy import Policy
from gcp_jax.ranges import COUNT, NOT_NEGATIVE, POSITIVE, SHARE
from gcp_jax.types import Algorithm, Array, Batch, PyTree, Source, unprepared


@dataclasses.dataclass(frozen=True)
class Config(soft.Config):
    """samples: N. edit_scale: β [.05–.7]. base_lr, base_ema: Adam's rate and the averaging rate of the base. ``aggregate`` is
    how the edit's loss reads the critics; what acts and bootstraps always takes the smaller of two."""

    samples: int = 8
    edit_scale: float = 0.05
    base_lr: float = 3e-4
    base_ema: float = 0.005
    target_entropy: float = -0.5

    RANGES = {"samples": COUNT, "edit_scale": POSITIVE, "base_lr": NOT_NEGATIVE, "base_ema": SHARE}


class State(NamedTuple):
    """Base, edit policy, critics, updates done."""

    base: imitation.CloneState
    edit: soft.SoftState
    critic: critic.CriticState
    normaliser: Normaliser
    step: Array


def make(config: Config, policy: Policy, source: Source) -> Algorithm:
    """EXPO as an Algorithm; ``pretrained`` is a deployed policy {"net", "normaliser"}."""
    specs = policy.specs
    critics = critic.make(config, specs.obs_dim, specs.flat_action_dim, policy.config.compute)
    editor = soft.make(config, (specs.obs_dim, specs.flat_action_dim), specs.flat_action_dim)
    cloner = imitation.make(policy, learning_rate=config.base_lr, ema=config.base_ema, grad_clip=config.grad_clip)

    def init(key: Array, pretrained: PyTree) -> State:
        edit_key, critic_key = jax.random.split(key)
        learned = (cloner.init(pretrained["net"]), editor.init(edit_key), critics.init(critic_key))
        return State(*learned, pretrained["normaliser"], jnp.int32(0))

    def edited(action: Array, u: Array) -> Array:
        return jnp.clip(action + config.edit_scale * u, -1.0, 1.0)

    def candidates(deployed: PyTree, obs: Array, key: Array) -> tuple[Array, Array]:
        """N base samples, then their edits, [B, 2N, D], and their values [B, 2N]; obs normalised [B, O]."""
        sample_key, edit_key, pair_key = jax.random.split(key, 3)
        action = policy.draw(deployed["net"], obs, sample_key, config.samples)
        u, _ = editor.draw(deployed["edit"], (obs[:, None], action), edit_key)
        both = jnp.concatenate([action, edited(action, u)], axis=1)
        return both, critics.smallest(deployed["critic"], obs[:, None], both, pair_key)

    def export(state: State) -> PyTree:
        learned = {"net": state.base.target, "edit": state.edit.net, "critic": state.critic.target}
        return {**learned, "normaliser": state.normaliser}

    def greedy(deployed: PyTree, obs: Array, key: Array) -> Array:
        both, value = candidates(deployed, deployed["normaliser"](obs), key)
        return policy.unflatten(critic.choose(both, value))

    def act(state: State, obs: Array, key: Array) -> tuple[Array, PyTree]:
        """Until the critics are warm, a sample of the base."""
        both, value = candidates(export(state), state.normaliser(obs), key)
        value = jnp.where(state.step > config.critic_warmup, value, 0.0)
        return policy.unflatten(critic.choose(both, value)), {}

    def edit_step(state: State, obs: Array, key: Array) -> tuple[soft.SoftState, dict[str, Array]]:
        sample_key, draw_key, pool_key = jax.random.split(key, 3)
        action = policy.draw(state.base.target, obs, sample_key, 1)[:, 0]

        def worth(u: Array) -> Array:
            return critics.pooled(state.critic.net, obs, edited(action, u), pool_key)

        return editor.improve(state.edit, (obs, action), worth, draw_key)

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        target_key, clone_key, edit_key = jax.random.split(key, 3)
        data, obs = batch.transitions, state.normaliser(batch.transitions.obs)
        _, following = candidates(export(state), state.normaliser(data.next_obs), target_key)
        y = data.reward + data.discount * jnp.max(following, axis=1)
        critic_state, metrics = critics.regress(state.critic, obs, policy.flatten(data.action), y)
        state = state._replace(critic=critic_state)
        base, cloned = cloner.improve(state.base, obs, data, clone_key)
        edit, learned = edit_step(state, obs, edit_key)
        before = (state.base, state.edit)
        base, edit = critic.hold(state.step < config.critic_warmup, before, (base, edit))
        return state._replace(base=base, edit=edit, step=state.step + 1), metrics | cloned | learned

    return Algorithm(init, act, unprepared, update, greedy, export, source, critic.value(critics, policy))

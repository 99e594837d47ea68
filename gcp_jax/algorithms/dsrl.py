"""DSRL: steering a frozen policy in its latent noise (arXiv 2506.15799; algorithms.md §4).

``a = ODE(s, w)`` is a deterministic map from noise, so that a tanh-Gaussian policy over ``w ∈ [−m, m]`` steers it.

    sac   plain SAC whose action is w:   y = reward + discount · [Q̄(s', w') − α log π(w'|s')]
    na    noise aliasing: the critic Q^A judges executed actions, and a second one, Q^W, is distilled from it
          y = reward + discount · [Q̄^A(s', ODE(s', w')) − α log π(w'|s')],    Q^W(s, w) → Q^A(s, ODE(s, w)),  w ~ N(0, I)
          and the actor maximises Q^W(s, w) − α log π(w|s)

Densities are those of the unit action u = w/m. Where the released code differs: here both modes keep to m, the data before the
first update comes from one pass of the sampler on N(0, I), and a time limit still bootstraps.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.config_fields import POSITIVE, POSITIVE_INT
from gcp_jax.core import critic, tanh_gaussian
from gcp_jax.core import denoising as chains
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy
from gcp_jax.types import Algorithm, Array, Batch, BatchSource, PyTree, identity_preprocess


@dataclasses.dataclass(frozen=True)
class Config(tanh_gaussian.Config):
    """mode: "na" or "sac". bound: m [1–2.5]. distill_steps: steps of Q^W for each of Q^A ("na")."""

    mode: str = "na"
    noise_bound: float = 1.5
    distill_steps: int = 10

    RANGES = {"noise_bound": POSITIVE, "distill_steps": POSITIVE_INT}

    def __post_init__(self) -> None:
        super().__post_init__()
        critic.check_choice(self, mode=("na", "sac"))


class State(NamedTuple):
    """The frozen base, the noise actor, Q^A ("sac": Q(s, w)), Q^W ("sac": None), updates done."""

    base: PyTree
    actor: tanh_gaussian.ActorState
    critic: critic.CriticState
    latent: critic.CriticState | None
    normalizer: Normalizer
    step: Array


def replay_needs(config: Config) -> dict[str, object]:
    """SAC learns from the noise it drew, which belongs to whole chunks."""
    return {"gamma": config.gamma, "aligned": config.mode == "sac"}


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """DSRL as an Algorithm; ``pretrained`` is a deployed policy {"net", "normalizer"}."""
    specs = policy.specs
    critics = critic.make_critic(
        config, specs.obs_dim, specs.flat_action_dim, policy.config.compute
    )
    actor = tanh_gaussian.make_actor(config, (specs.obs_dim,), specs.flat_action_dim)

    def init(key: Array, pretrained: PyTree) -> State:
        actor_key, critic_key, latent_key = jax.random.split(key, 3)
        latent = critics.init(latent_key) if config.mode == "na" else None
        nets = (actor.init(actor_key), critics.init(critic_key), latent)
        return State(pretrained["net"], *nets, pretrained["normalizer"], jnp.int32(0))

    def prior(key: Array, count: int) -> Array:
        return chains.sample_noise(key, count, (specs.flat_action_dim,))

    def act(state: State, obs: Array, key: Array) -> tuple[Array, PyTree]:
        """Until the critics are warm, the base policy itself: w ~ N(0, I)."""
        steer_key, prior_key = jax.random.split(key)
        obs = state.normalizer(obs)
        u, _ = actor.draw(state.actor.net, (obs,), steer_key)
        w = jnp.where(
            state.step > config.critic_warmup_updates,
            config.noise_bound * u,
            prior(prior_key, len(obs)),
        )
        return policy.unflatten(policy.sample(state.base, obs, w)), {
            "w": w
        } if config.mode == "sac" else {}

    def greedy(deployed: PyTree, obs: Array, key: Array) -> Array:
        obs = deployed["normalizer"](obs)
        w = config.noise_bound * actor.mode(deployed["noise"], (obs,))
        return policy.unflatten(policy.sample(deployed["net"], obs, w))

    def judged(state: State, obs: Array, w: Array) -> Array:
        """What the critic Q^A or Q is asked about: the executed action, or the noise itself."""
        return policy.sample(state.base, obs, w) if config.mode == "na" else w

    def critic_step(
        state: State, batch: Batch, key: Array
    ) -> tuple[critic.CriticState, dict[str, Array]]:
        draw_key, pool_key = jax.random.split(key)
        data = batch.transitions
        obs, following = state.normalizer(data.obs), state.normalizer(data.next_obs)
        u, log_density = actor.draw(state.actor.net, (following,), draw_key)
        worth = critics.aggregate_q(
            state.critic.target,
            following,
            judged(state, following, config.noise_bound * u),
            pool_key,
        )
        y = data.reward + data.discount * (worth - state.actor.alpha * log_density)
        action = data.extras["w"] if config.mode == "sac" else policy.flatten(data.action)
        return critics.td_step(state.critic, obs, action, y)

    def distill(
        state: State, latent: critic.CriticState, obs: Array, key: Array
    ) -> tuple[critic.CriticState, Array]:
        """``distill_steps`` steps of Q^W(s, w) → Q^A(s, ODE(s, w)): (Q^W, the mean loss)."""

        def step(latent: critic.CriticState, key: Array) -> tuple[critic.CriticState, Array]:
            noise_key, pool_key = jax.random.split(key)
            w = prior(noise_key, len(obs))
            y = critics.aggregate_q(
                state.critic.net, obs, policy.sample(state.base, obs, w), pool_key
            )
            latent, metrics = critics.td_step(latent, obs, w, y)
            return latent, metrics["critic_loss"]

        latent, losses = jax.lax.scan(step, latent, jax.random.split(key, config.distill_steps))
        return latent, jnp.mean(losses)

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        critic_key, distill_key, actor_key, pool_key = jax.random.split(key, 4)
        obs = state.normalizer(batch.transitions.obs)
        critic_state, metrics = critic_step(state, batch, critic_key)
        state = state._replace(critic=critic_state)
        steering = state.critic
        if state.latent is not None:
            steering, metrics["distill_loss"] = distill(state, state.latent, obs, distill_key)
            state = state._replace(latent=steering)
        improved, learned = actor.improve(
            state.actor,
            (obs,),
            lambda u: critics.aggregate_q(steering.net, obs, config.noise_bound * u, pool_key),
            actor_key,
        )
        improved = critic.where_tree(
            state.step < config.critic_warmup_updates, state.actor, improved
        )
        return state._replace(actor=improved, step=state.step + 1), metrics | learned

    def export(state: State) -> PyTree:
        return {"net": state.base, "normalizer": state.normalizer, "noise": state.actor.net}

    value = (
        critic.make_q_fn(critics, policy) if config.mode == "na" else None
    )  # of actions; the other mode's judges latents
    return Algorithm(init, act, identity_preprocess, update, greedy, export, source, value)

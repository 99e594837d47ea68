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

from gcp_jax import chain as chains
from gcp_jax import critic, soft
from gcp_jax.networks import Normaliser
from gcp_jax.policy import Policy
from gcp_jax.ranges import COUNT, POSITIVE
from gcp_jax.types import Algorithm, Array, Batch, PyTree, Source, unprepared


@dataclasses.dataclass(frozen=True)
class Config(soft.Config):
    """mode: "na" or "sac". bound: m [1–2.5]. distil_steps: steps of Q^W for each of Q^A ("na")."""

    mode: str = "na"
    bound: float = 1.5
    distil_steps: int = 10

    RANGES = {"bound": POSITIVE, "distil_steps": COUNT}

    def __post_init__(self) -> None:
        super().__post_init__()
        critic.one_of(self, mode=("na", "sac"))


class State(NamedTuple):
    """The frozen base, the noise actor, Q^A ("sac": Q(s, w)), Q^W ("sac": None), updates done."""

    base: PyTree
    actor: soft.SoftState
    critic: critic.CriticState
    latent: critic.CriticState | None
    normaliser: Normaliser
    step: Array


def replay_needs(config: Config) -> dict[str, object]:
    """SAC learns from the noise it drew, which belongs to whole chunks."""
    return {"gamma": config.gamma, "aligned": config.mode == "sac"}


def make(config: Config, policy: Policy, source: Source) -> Algorithm:
    """DSRL as an Algorithm; ``pretrained`` is a deployed policy {"net", "normaliser"}."""
    specs = policy.specs
    critics = critic.make(config, specs.obs_dim, specs.flat_action_dim, policy.config.compute)
    actor = soft.make(config, (specs.obs_dim,), specs.flat_action_dim)

    def init(key: Array, pretrained: PyTree) -> State:
        actor_key, critic_key, latent_key = jax.random.split(key, 3)
        latent = critics.init(latent_key) if config.mode == "na" else None
        nets = (actor.init(actor_key), critics.init(critic_key), latent)
        return State(pretrained["net"], *nets, pretrained["normaliser"], jnp.int32(0))

    def prior(key: Array, count: int) -> Array:
        return chains.draw(key, count, (specs.flat_action_dim,))

    def act(state: State, obs: Array, key: Array) -> tuple[Array, PyTree]:
        """Until the critics are warm, the base policy itself: w ~ N(0, I)."""
        steer_key, prior_key = jax.random.split(key)
        obs = state.normaliser(obs)
        u, _ = actor.draw(state.actor.net, (obs,), steer_key)
        w = jnp.where(state.step > config.critic_warmup, config.bound * u, prior(prior_key, len(obs)))
        return policy.unflatten(policy.sample(state.base, obs, w)), {"w": w} if config.mode == "sac" else {}

    def greedy(deployed: PyTree, obs: Array, key: Array) -> Array:
        obs = deployed["normaliser"](obs)
        w = config.bound * actor.mode(deployed["noise"], (obs,))
        return policy.unflatten(policy.sample(deployed["net"], obs, w))

    def judged(state: State, obs: Array, w: Array) -> Array:
        """What the critic Q^A or Q is asked about: the executed action, or the noise itself."""
        return policy.sample(state.base, obs, w) if config.mode == "na" else w

    def critic_step(state: State, batch: Batch, key: Array) -> tuple[critic.CriticState, dict[str, Array]]:
        draw_key, pool_key = jax.random.split(key)
        data = batch.transitions
        obs, following = state.normaliser(data.obs), state.normaliser(data.next_obs)
        u, log_density = actor.draw(state.actor.net, (following,), draw_key)
        worth = critics.pooled(state.critic.target, following, judged(state, following, config.bound * u), pool_key)
        y = data.reward + data.discount * (worth - state.actor.alpha * log_density)
        action = data.extras["w"] if config.mode == "sac" else policy.flatten(data.action)
        return critics.regress(state.critic, obs, action, y)

    def distil(state: State, latent: critic.CriticState, obs: Array, key: Array) -> tuple[critic.CriticState, Array]:
        """``distil_steps`` steps of Q^W(s, w) → Q^A(s, ODE(s, w)): (Q^W, the mean loss)."""

        def step(latent: critic.CriticState, key: Array) -> tuple[critic.CriticState, Array]:
            noise_key, pool_key = jax.random.split(key)
            w = prior(noise_key, len(obs))
            y = critics.pooled(state.critic.net, obs, policy.sample(state.base, obs, w), pool_key)
            latent, metrics = critics.regress(latent, obs, w, y)
            return latent, metrics["critic_loss"]

        latent, losses = jax.lax.scan(step, latent, jax.random.split(key, config.distil_steps))
        return latent, jnp.mean(losses)

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        critic_key, distil_key, actor_key, pool_key = jax.random.split(key, 4)
        obs = state.normaliser(batch.transitions.obs)
        critic_state, metrics = critic_step(state, batch, critic_key)
        state = state._replace(critic=critic_state)
        steering = state.critic
        if state.latent is not None:
            steering, metrics["distil_loss"] = distil(state, state.latent, obs, distil_key)
            state = state._replace(latent=steering)
        improved, learned = actor.improve(
            state.actor, (obs,), lambda u: critics.pooled(steering.net, obs, config.bound * u, pool_key), actor_key
        )
        improved = critic.hold(state.step < config.critic_warmup, state.actor, improved)
        return state._replace(actor=improved, step=state.step + 1), metrics | learned

    def export(state: State) -> PyTree:
        return {"net": state.base, "normaliser": state.normaliser, "noise": state.actor.net}

    value = (
        critic.value(critics, policy) if config.mode == "na" else None
    )  # of actions; the other mode's judges latents
    return Algorithm(init, act, unprepared, update, greedy, export, source, value)

"""DPPO: diffusion policy policy optimization (arXiv 2409.00588; algorithms.md §3), and ReinFlow's learned noise (arXiv 2505.22094).

PPO over pairs (chunk, denoising step). The last K' of the K steps are trained, earlier ones are the frozen base's:

    A      = GAE(λ) of V(s) over chunks, cut at time limits, normalized over the minibatch
    r_k    = exp(lp_k − lp_k^old),   lp_k = mean over the chunk's dimensions of log N(x_{k+1}; μ_k, σ_k²) cut to [−5, 2]
    ε_k    = ε_0 + (ε − ε_0)(e^{3k/(K'−1)} − 1)/(e³ − 1),   k = 0 the noisiest trained step
    L      = −mean min(r_k γ_d^{K'−1−k} A, clip(r_k, 1 − ε_k, 1 + ε_k) γ_d^{K'−1−k} A) + ½·½ (V − R)²

With ``noise="learned"`` (``reinflow``) a network gives σ, the whole chain has one ratio with clip ε, and L gains −c_H mean log σ.
Where released code differs: GAE is cut at a time limit and bootstraps from the true successor, and ε_k is ε for K' = 1.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax import config_fields
from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE, UNIT_POSITIVE, Bounds
from gcp_jax.core import denoising as chains
from gcp_jax.core import reinflow, returns, value_function
from gcp_jax.core.critic import check_choice, clipped_adam, where_tree
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy
from gcp_jax.mesh import batch_mean, gradient_step
from gcp_jax.types import Algorithm, Array, Batch, BatchSource, PyTree, Segment

LOG_DENSITY = (-5.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Config(value_function.Config):
    """num_finetuned_steps: K', 0 trains all. denoising_gamma: γ_d. clip, clip_base: ε and ε_0. min_std: least σ_k, sampled and scored.
    actor_lr: of Adam. max_kl: an approximate KL above it ends the segment's updates. noise: "sde" or "learned"; noise_low,
    noise_high: range of the learned σ; entropy_weight: of its bonus."""

    num_finetuned_steps: int = 0
    denoising_gamma: float = 0.99
    clip: float = 0.01
    clip_base: float = 0.01
    min_std: float = 0.1
    actor_lr: float = 1e-4
    max_kl: float = 1.0
    noise: str = "sde"
    noise_low: float = 0.1
    noise_high: float = 0.24
    entropy_weight: float = 0.03

    RANGES = {
        **dict.fromkeys(
            ("num_finetuned_steps", "min_std", "actor_lr", "entropy_weight"), NON_NEGATIVE
        ),
        **dict.fromkeys(("clip", "clip_base", "max_kl"), POSITIVE),
        **dict.fromkeys(("noise_low", "noise_high"), Bounds(1e-3)),
        "denoising_gamma": UNIT_POSITIVE,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, noise=("sde", "learned"))
        config_fields.check(
            self,
            "algorithm.",
            {"noise_high": Bounds(self.noise_low), "clip": Bounds(self.clip_base)},
        )


class State(NamedTuple):
    """θ and the noise net (None for "sde"), the frozen base, V, the actor's optimizer, the returns' moments, segments done."""

    actor: PyTree  # {"net", "noise"}
    base: PyTree
    value: value_function.ValueState
    actor_opt: PyTree
    normalizer: Normalizer
    returns: returns.Moments
    segments: Array
    stopped: Array  # the KL went beyond max_kl in this segment


def rollout_needs(config: Config) -> dict[str, object]:
    """Passes over each segment."""
    return {"gamma": config.gamma, "epochs": config.epochs, "minibatches": config.minibatches}


def clip_schedule(config: Config, steps: int) -> Array:
    """ε_k of the ``steps`` trained denoising steps, [K']."""
    share = (
        (jnp.exp(3.0 * jnp.linspace(0.0, 1.0, steps)) - 1.0) / (jnp.e**3 - 1.0)
        if steps > 1
        else jnp.ones(1)
    )
    return config.clip_base + (config.clip - config.clip_base) * share


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """DPPO as an Algorithm; ``pretrained`` is a deployed policy {"net", "normalizer"}."""
    specs, steps = policy.specs, policy.config.steps
    if config.num_finetuned_steps > steps:
        raise ValueError(
            f"algorithm.num_finetuned_steps is {config.num_finetuned_steps}, more than policy.steps ({steps})."
        )
    frozen, learned = steps - (config.num_finetuned_steps or steps), config.noise == "learned"
    sigma = reinflow.make_learned_noise(
        specs.obs_dim, specs.flat_action_dim, low=config.noise_low, high=config.noise_high
    )
    values = value_function.make_value_function(
        specs.obs_dim, hidden=config.value_hidden, rate=config.value_lr, grad_clip=config.grad_clip
    )
    optimizer = clipped_adam(config.actor_lr, config.grad_clip)

    def init(key: Array, pretrained: PyTree) -> State:
        value_key, noise_key = jax.random.split(key)
        actor = {"net": pretrained["net"], "noise": sigma.init(noise_key) if learned else None}
        fresh = (returns.Moments(*[jnp.float32(0.0)] * 3), jnp.int32(0), jnp.bool_(False))
        nets = (actor, pretrained["net"], values.init(value_key), optimizer.init(actor))
        return State(*nets, pretrained["normalizer"], *fresh)

    def stochastic_step(actor: PyTree, obs: Array, inner: int = 0) -> chains.StochasticStep:
        """The denoising step: the family's own with a floor on σ, or ReinFlow's."""
        if learned:
            return sigma.stochastic_step(
                actor["noise"], policy.deterministic_step(actor["net"], obs, inner), obs, inner
            )
        return chains.with_min_std(policy.stochastic_step(actor["net"], obs, inner), config.min_std)

    def score(walk: chains.Chain) -> Array:
        """lp of every trained step [..., K'], or of the whole chain [..., 1]."""
        each = jnp.mean(jnp.clip(walk.log_densities, *LOG_DENSITY), -1)
        return reinflow.reinflow_log_density(walk)[..., None] if learned else each

    def act(state: State, obs: Array, key: Array) -> tuple[Array, PyTree]:
        """Chains of the K' trained steps; the steps before them are the base's."""
        noise, obs = (
            chains.sample_noise(key, len(obs), (steps + 1, specs.flat_action_dim)),
            state.normalizer(obs),
        )
        base, actor = (
            stochastic_step({**state.actor, "net": state.base}, obs),
            stochastic_step(state.actor, obs),
        )
        walk = chains.two_stage_chain(base, actor, noise, policy.times, frozen)
        return policy.unflatten(policy.action(walk.points)), {
            "chain": walk.points,
            "log_density": score(walk),
        }

    def prepare(state: State, segment: Segment) -> tuple[State, Segment]:
        """Rewards scaled, V of both ends, GAE; the state's counters for a new segment."""
        data = returns.fold_chunk(segment.steps, config.gamma)
        moments = returns.update_moments(state.returns, data)
        data = data._replace(reward=data.reward / (moments.std if config.scale_rewards else 1.0))
        v_t, v_tp1 = (
            values.v(state.value.net, state.normalizer(obs)) for obs in (data.obs, data.next_obs)
        )
        advantage = returns.chunk_gae(data, v_t, v_tp1, config.gae_lambda)
        state = state._replace(
            returns=moments, segments=state.segments + 1, stopped=jnp.zeros_like(state.stopped)
        )
        return state, segment._replace(
            extras={**segment.extras, "advantage": advantage, "return": advantage + v_t}
        )

    def actor_loss(actor: PyTree, obs: Array, extras: PyTree) -> tuple[Array, dict[str, Array]]:
        walk = chains.rescore_chain(
            stochastic_step(actor, obs, 1), extras["chain"], policy.times[frozen:]
        )
        log_ratio = score(walk) - extras["log_density"]
        ratio, count = jnp.exp(log_ratio), log_ratio.shape[-1]
        discount = config.denoising_gamma ** jnp.arange(count - 1, -1, -1.0)
        advantage = returns.normalize_advantage(extras["advantage"])[:, None] * discount[None]
        epsilon = clip_schedule(config, count)[None]
        loss = -jnp.mean(
            jnp.minimum(
                ratio * advantage, jnp.clip(ratio, 1.0 - epsilon, 1.0 + epsilon) * advantage
            )
        )
        kl = ratio - 1.0 - log_ratio
        metrics = {"policy_loss": loss, "ratio": jnp.mean(ratio), "approx_kl": batch_mean(kl)}
        metrics |= {f"update_kl_step_{k}": jnp.mean(kl[:, k]) for k in range(count)}
        metrics["clip_fraction"] = jnp.mean(jnp.abs(ratio - 1.0) > epsilon)
        if learned:
            loss -= config.entropy_weight * jnp.mean(jnp.log(walk.std))
        return loss, metrics

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        obs, extras = state.normalizer(batch.transitions.obs), batch.transitions.extras
        fitted, value_loss = values.td_step(state.value, obs, extras["return"])
        old, loss = (state.actor, state.actor_opt), partial(actor_loss, obs=obs, extras=extras)
        actor, opt, metrics = gradient_step(loss, *old, optimizer)
        actor, opt = where_tree(state.segments <= config.value_warmup_segments, old, (actor, opt))
        stopped = state.stopped | (metrics["approx_kl"] > config.max_kl)
        new = where_tree(stopped, state, state._replace(actor=actor, actor_opt=opt, value=fitted))
        metrics["actor_gradient_norm"] = metrics.pop("gradient_norm")
        metrics |= {
            "value_loss": value_loss,
            "stopped": jnp.float32(stopped),
            "reward_scale": state.returns.std,
        }
        return new._replace(stopped=stopped), metrics

    def export(state: State) -> PyTree:
        return {"net": state.actor["net"], "normalizer": state.normalizer} | (
            {"early": state.base} if frozen else {}
        )

    def greedy(deployed: PyTree, obs: Array, key: Array) -> Array:
        """The deterministic sampler whose first steps are the frozen base's."""
        early, late = (
            policy.deterministic_step(deployed[name], deployed["normalizer"](obs))
            for name in ("early", "net")
        )
        z = chains.sample_noise(key, len(obs), (specs.flat_action_dim,))
        return policy.unflatten(chains.two_stage_ode(early, late, z, policy.times, frozen))

    def heads(state: State, obs: Array, chunk: Array) -> Array:
        """V(s), in the unit of the rewards, for every chunk: [1, B, G]."""
        v = values.v(state.value.net, state.normalizer(obs)) * (
            state.returns.std if config.scale_rewards else 1.0
        )
        return jnp.broadcast_to(v[None, :, None], (1, *chunk.shape[:2]))

    return Algorithm(
        init, act, prepare, update, greedy if frozen else policy.eval_policy, export, source, heads
    )

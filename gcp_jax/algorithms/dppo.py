"""DPPO: diffusion policy policy optimization (Ren et al. 2024, arXiv 2409.00588).

PPO over pairs of a chunk and a denoising step. The last K' of the K denoising steps are trained;
the steps before them are those of the frozen base policy. k = 0 is the noisiest trained step:

    log-density    lp_k = mean over D of clip(log N(x_{k+1}; μ_k, σ_k²), −5, 2)
    ratio          r_k = exp(lp_k − lp_k^old)
    advantage      A = GAE(λ) of V(s) over chunks, cut at time limits, normalized in the minibatch
    clip           ε_k = ε_0 + (ε − ε_0) (e^{3k/(K'−1)} − 1)/(e³ − 1)
    actor loss     −mean min(r_k A_k, clip(r_k, 1 − ε_k, 1 + ε_k) A_k),   A_k = γ_d^{K'−1−k} A
    value loss     ½ · ½ mean (V(s) − R)²

With ``noise="learned"`` (ReinFlow, Zhang et al. 2025, arXiv 2505.22094) a network gives σ, the
whole chain has one ratio with clip ε, and the actor loss gains −c_H mean log σ.

Differences from the released code: GAE is cut at a time limit and bootstraps from the true next
observation; ε_k = ε if K' = 1, where the released formula is 0/0.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gcp_jax import config_fields
from gcp_jax.config_fields import (
    NON_NEGATIVE,
    POSITIVE,
    POSITIVE_INT,
    UNIT,
    UNIT_POSITIVE,
    Bounds,
    field,
)
from gcp_jax.core import denoising, optim, reinflow, returns, value_function
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy
from gcp_jax.core.tree import where_tree
from gcp_jax.mesh import batch_mean
from gcp_jax.types import Algorithm, Array, Batch, BatchSource, Metrics, Params, Segment

NOISES = ("sde", "learned")
LOG_DENSITY = (-5.0, 2.0)
"""Bounds of the log-density of one number, as released."""
VALUE_LOSS_WEIGHT = 0.5 * 0.5
"""PPO's coefficient of the value loss, ½, times the ½ of ½ (V − R)²."""
RUN_DEFAULTS = {"finetune.unroll_chunks": 16}
"""Defaults of a run of this method that differ from those of other methods."""


@dataclasses.dataclass(frozen=True)
class Config(value_function.Config):
    """DPPO's settings, besides those of all on-policy methods."""

    gae_lambda: float = field(0.95, UNIT, "λ of generalized advantage estimation [.95]")
    epochs: int = field(10, POSITIVE_INT, "passes over a segment [5–10]")
    minibatches: int = field(8, POSITIVE_INT, "parts of a segment; one update each")
    value_hidden: tuple[int, ...] = field((128, 128, 128), POSITIVE_INT, "widths of V [256 × 3]")
    num_finetuned_steps: int = field(
        0,
        NON_NEGATIVE,
        "K': last denoising steps that are trained; 0 trains all of them [10 of 20]",
    )
    denoising_gamma: float = field(0.99, UNIT_POSITIVE, "γ_d: discount of a denoising step [.99]")
    clip: float = field(0.01, POSITIVE, "ε: clip of the ratio of the last step [.01]")
    clip_base: float = field(
        0.01, POSITIVE, "ε_0: clip of the ratio of the noisiest trained step [.01, sparse .001]"
    )
    min_std: float = field(
        0.05, NON_NEGATIVE, "least σ_k, in sampling and in densities, if noise is 'sde' [.1]"
    )
    actor_lr: float = field(1e-4, NON_NEGATIVE, "Adam's learning rate of the actor [1e-4]")
    max_kl: float = field(
        1.0, POSITIVE, "approximate KL above which the updates of a segment stop [1]"
    )
    noise: str = field("sde", NOISES, "σ of a denoising step: the sampler's, or learned (ReinFlow)")
    noise_low: float = field(0.1, Bounds(1e-3), "least learned σ [.1]")
    noise_high: float = field(0.24, Bounds(1e-3), "largest learned σ [.24]")
    entropy_weight: float = field(
        0.03, NON_NEGATIVE, "c_H: weight of the entropy bonus of the learned σ [.03]"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = {"noise_high": Bounds(self.noise_low), "clip": Bounds(self.clip_base)}
        config_fields.check_bounds(self, "algorithm.", bounds)


class State(NamedTuple):
    """What DPPO learns, for one seed, and the frozen base policy."""

    actor: Params  # {"net": θ, "noise": the learned σ's, None if noise is "sde"}
    base: Params
    value: value_function.ValueState
    actor_opt_state: Params
    normalizer: Normalizer
    returns: returns.Moments  # of the running discounted return
    segments: Array  # int32 []: segments seen
    stopped: Array  # bool []: the KL exceeded max_kl in this segment


def rollout_needs(config: Config) -> dict[str, object]:
    """How the segment becomes minibatches."""
    return {"gamma": config.gamma, "epochs": config.epochs, "minibatches": config.minibatches}


def clip_schedule(config: Config, steps: int) -> Array:
    """ε_k of the ``steps`` trained denoising steps, [K']."""
    if steps == 1:
        growth = jnp.ones(1)
    else:
        growth = (jnp.exp(3.0 * jnp.linspace(0.0, 1.0, steps)) - 1.0) / (jnp.e**3 - 1.0)
    return config.clip_base + (config.clip - config.clip_base) * growth


@dataclasses.dataclass(frozen=True)
class DPPO:
    """DPPO's equations, one method each.

    Observations named ``obs`` are raw in the methods of ``Algorithm`` (``act``, ``eval_policy``,
    ``q_values``) and normalized, [B, O], everywhere else.
    """

    config: Config
    policy: Policy
    learned_noise: reinflow.LearnedNoise
    value: value_function.ValueFunction
    optimizer: optax.GradientTransformation

    @property
    def num_frozen_steps(self) -> int:
        """K − K', the first denoising steps, which are the base policy's."""
        steps = self.policy.config.steps
        return steps - (self.config.num_finetuned_steps or steps)

    @property
    def learns_noise(self) -> bool:
        """Whether σ is learned, which gives the whole chain one ratio."""
        return self.config.noise == "learned"

    def init(self, key: Array, pretrained: Params) -> State:
        """Start from a pretrained base policy, {"net", "normalizer"}."""
        value_key, noise_key = jax.random.split(key)
        noise = self.learned_noise.init(noise_key) if self.learns_noise else None
        actor = {"net": pretrained["net"], "noise": noise}
        return State(
            actor=actor,
            base=pretrained["net"],
            value=self.value.init(value_key),
            actor_opt_state=self.optimizer.init(actor),
            normalizer=pretrained["normalizer"],
            returns=returns.Moments(
                total=jnp.float32(0.0), mean=jnp.float32(0.0), deviation=jnp.float32(0.0)
            ),
            segments=jnp.int32(0),
            stopped=jnp.bool_(False),
        )

    def stochastic_step(
        self, actor: Params, obs: Array, inner: int = 0
    ) -> denoising.StochasticStep:
        """N(μ_k, σ_k²) of the actor: the sampler's with σ_k ≥ ``min_std``, or ReinFlow's.

        ``inner`` is the number of axes of the samples between those of ``obs`` and the last.
        """
        if self.learns_noise:
            mean_step = self.policy.deterministic_step(actor["net"], obs, inner)
            return self.learned_noise.stochastic_step(actor["noise"], mean_step, obs, inner)
        step = self.policy.stochastic_step(actor["net"], obs, inner)
        return denoising.with_min_std(step, self.config.min_std)

    def log_density(self, chain: denoising.Chain) -> Array:
        """lp of every trained denoising step, [..., K'], or of the whole chain, [..., 1]."""
        if self.learns_noise:
            return reinflow.reinflow_log_density(chain)[..., None]
        return jnp.mean(jnp.clip(chain.log_densities, *LOG_DENSITY), -1)

    def act(self, state: State, obs: Array, key: Array) -> tuple[Array, Params]:
        """Sample chunks [B, h, A], with the trained part of their chains and its lp as extras."""
        obs = state.normalizer(obs)
        shape = (self.policy.config.steps + 1, self.policy.specs.flat_action_dim)
        noise = denoising.sample_noise(key, len(obs), shape)
        chain = denoising.two_stage_chain(
            self.stochastic_step({**state.actor, "net": state.base}, obs),
            self.stochastic_step(state.actor, obs),
            noise,
            self.policy.times,
            self.num_frozen_steps,
        )
        chunk = self.policy.unflatten(self.policy.action(chain.points))
        return chunk, {"chain": chain.points, "log_density": self.log_density(chain)}

    def preprocess_segment(self, state: State, segment: Segment) -> tuple[State, Segment]:
        """Add "advantage" and "return" [L, N] to the segment's extras; start its updates.

        Rewards are divided by the standard deviation of the running discounted return.
        """
        transitions = returns.fold_chunk(segment.steps, self.config.gamma)
        moments = returns.update_moments(state.returns, transitions)
        scale = moments.std if self.config.scale_rewards else 1.0
        transitions = transitions._replace(reward=transitions.reward / scale)
        value_t = self.value.v(state.value.params, state.normalizer(transitions.obs))
        value_tp1 = self.value.v(state.value.params, state.normalizer(transitions.next_obs))
        advantage = returns.chunk_gae(transitions, value_t, value_tp1, self.config.gae_lambda)
        state = state._replace(
            returns=moments,
            segments=state.segments + 1,
            stopped=jnp.zeros_like(state.stopped),
        )
        extras = {**segment.extras, "advantage": advantage, "return": advantage + value_t}
        return state, segment._replace(extras=extras)

    def actor_loss(self, actor: Params, obs: Array, extras: Params) -> tuple[Array, Metrics]:
        """PPO's clipped loss over pairs (chunk, denoising step), with metrics."""
        times = self.policy.times[self.num_frozen_steps :]
        chain = denoising.rescore_chain(self.stochastic_step(actor, obs, 1), extras["chain"], times)
        log_ratio = self.log_density(chain) - extras["log_density"]  # [B, K'] or [B, 1]
        ratio = jnp.exp(log_ratio)
        count = log_ratio.shape[-1]
        discount = self.config.denoising_gamma ** jnp.arange(count - 1, -1, -1.0)
        advantage = returns.normalize_advantage(extras["advantage"])[:, None] * discount[None]
        clip = clip_schedule(self.config, count)[None]
        clipped_ratio = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
        loss = -jnp.mean(jnp.minimum(ratio * advantage, clipped_ratio * advantage))

        kl = ratio - 1.0 - log_ratio
        metrics = {"policy_loss": loss, "ratio": jnp.mean(ratio), "approx_kl": batch_mean(kl)}
        for k in range(count):
            metrics[f"update_kl_step_{k}"] = jnp.mean(kl[:, k])
        metrics["clip_fraction"] = jnp.mean(jnp.abs(ratio - 1.0) > clip)
        if self.learns_noise:
            loss -= self.config.entropy_weight * jnp.mean(jnp.log(chain.std))
        return loss, metrics

    def update_actor(
        self, state: State, obs: Array, extras: Params
    ) -> tuple[Params, Params, Metrics]:
        """One step on ``actor_loss``: (actor, optimizer's state, metrics).

        The actor stays as it is during the first ``value_warmup_segments`` segments.
        """
        actor, opt_state, metrics = optim.gradient_step(
            lambda actor: self.actor_loss(actor, obs, extras),
            state.actor,
            state.actor_opt_state,
            self.optimizer,
            name="actor",
        )
        actor, opt_state = where_tree(
            state.segments <= self.config.value_warmup_segments,
            (state.actor, state.actor_opt_state),
            (actor, opt_state),
        )
        return actor, opt_state, metrics

    def update(self, state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        """One step of V and of the actor, unless the updates of this segment have stopped.

        They stop with the first whose approximate KL exceeds ``max_kl``, which is not taken.
        """
        obs = state.normalizer(batch.transitions.obs)
        extras = batch.transitions.extras
        value, value_loss = self.value.td_step(state.value, obs, extras["return"])
        actor, opt_state, metrics = self.update_actor(state, obs, extras)
        stopped = state.stopped | (metrics["approx_kl"] > self.config.max_kl)
        updated = state._replace(actor=actor, actor_opt_state=opt_state, value=value)
        state = where_tree(stopped, state, updated)._replace(stopped=stopped)
        metrics |= {
            "value_loss": value_loss,
            "stopped": jnp.float32(stopped),
            "reward_scale": state.returns.std,
        }
        return state, metrics

    def export(self, state: State) -> Params:
        """What is deployed: the actor's network, and the base's if it makes the first steps."""
        params = {"net": state.actor["net"], "normalizer": state.normalizer}
        if self.num_frozen_steps:
            params["early"] = state.base
        return params

    def eval_policy(self, params: Params, obs: Array, key: Array) -> Array:
        """The deterministic sampler: raw observations [B, O] to chunks [B, h, A]."""
        if not self.num_frozen_steps:
            return self.policy.eval_policy(params, obs, key)
        obs = params["normalizer"](obs)
        action = denoising.two_stage_ode(
            self.policy.deterministic_step(params["early"], obs),
            self.policy.deterministic_step(params["net"], obs),
            denoising.sample_noise(key, len(obs), (self.policy.specs.flat_action_dim,)),
            self.policy.times,
            self.num_frozen_steps,
        )
        return self.policy.unflatten(action)

    def q_values(self, state: State, obs: Array, chunk: Array) -> Array:
        """V(s), in units of the reward, for every chunk [B, G, h, A]: [1, B, G]."""
        scale = state.returns.std if self.config.scale_rewards else 1.0
        value = self.value.v(state.value.params, state.normalizer(obs)) * scale
        return jnp.broadcast_to(value[None, :, None], (1, *chunk.shape[:2]))


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """Build DPPO for ``policy``, learning from ``source``.

    Raises:
      ValueError: if more denoising steps are to be trained than the policy has.
    """
    if config.num_finetuned_steps > policy.config.steps:
        raise ValueError(
            f"algorithm.num_finetuned_steps is {config.num_finetuned_steps}, more than "
            f"policy.steps ({policy.config.steps})."
        )
    obs_dim = policy.specs.obs_dim
    dppo = DPPO(
        config=config,
        policy=policy,
        learned_noise=reinflow.make_learned_noise(
            obs_dim,
            policy.specs.flat_action_dim,
            low=config.noise_low,
            high=config.noise_high,
        ),
        value=value_function.make_value_function(
            obs_dim,
            hidden=config.value_hidden,
            learning_rate=config.value_lr,
            grad_clip=config.grad_clip,
            loss_weight=VALUE_LOSS_WEIGHT,
        ),
        optimizer=optim.clipped_adam(config.actor_lr, config.grad_clip),
    )
    return Algorithm(
        init=dppo.init,
        act=dppo.act,
        preprocess_segment=dppo.preprocess_segment,
        update=dppo.update,
        eval_policy=dppo.eval_policy,
        export=dppo.export,
        source=source,
        q_values=dppo.q_values,
    )

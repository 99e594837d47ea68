"""OGPO: off-policy generative policy optimization (arXiv 2605.03065; algorithms.md §2).

Acting is a two-level decision process: the environment, and inside each chunk the K denoising steps. OGPO cuts at the
boundary: the denoising episode ends in the off-policy critic's value ``Q̄(s, a_K)`` as its only reward. From any replay
state G chains are drawn from the averaged policy θ̄, and the whole chain is improved by a group-relative PPO step

    A_j = Q̄(s, a_j) − mean_j' Q̄(s, a_j'),     r_j = exp(lp_θ(chain_j) − lp_θ̄(chain_j)),
    L(θ) = −mean min(r A, clip(r, 1−ε, 1+ε) A) + λ·L_FM(transitions of successful episodes),

with no gradient through critic or sampler. ``lp`` is divided by (K+1) and by the chunk's dimensions. The critics regress
on ``y = reward + discount · mean_m Q̄_m(s', a')``, a' a sample of θ̄. The defaults are OGPO+CA.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gcp_jax import config_fields
from gcp_jax.config_fields import (
    FINITE,
    NON_NEGATIVE,
    POSITIVE,
    POSITIVE_INT,
    UNIT,
    UNIT_POSITIVE,
    Bounds,
)
from gcp_jax.core import returns
from gcp_jax.core.critic import argmax_action, clipped_adam, where_tree
from gcp_jax.core.critic import make_q_ensemble as critic_heads
from gcp_jax.core.denoising import Chain
from gcp_jax.core.networks import Normalizer, ValueNet
from gcp_jax.core.policy import Policy
from gcp_jax.mesh import batch_mean, gradient_step, sample_keys
from gcp_jax.types import (
    Algorithm,
    Array,
    Batch,
    BatchSource,
    PyTree,
    Transition,
    identity_preprocess,
)

BASELINES = ("group", "leave_one_out", "value")
EXTRACTIONS = ("ppo", "awr", "awfm", "fpo", "backprop")


@dataclasses.dataclass(frozen=True)
class Config:
    """Defaults are OGPO+CA; the authors' constants where they differ are in brackets.

    Schedule
        gamma: discount of one environment step. chains: G [32]. actor_states: states of the batch the actor uses [all].
        actor_lr: [4.5e-5], critic_lr: Adam. lr_cycle: updates of one cosine cycle of the actor's rate between 2/4.5 of it
        and it [50k]; 0 keeps it constant. clip: ε on the normalized ratio. actor_tau, critic_tau: rates of θ̄ and φ̄.
        best_of: N chunks drawn when acting, the best by the min of two random critics is run; 1 draws one. deploy_best_of: the
        same of the deterministic sampler when evaluated and deployed; 1 deploys the policy without its critics.
    Stabilizers
        success_weight: λ; 0 removes the success-buffer term (OGPO without +). success_critic: one more critic step, on the
        success batch. conservative: sign consensus of the critics (CA). target_samples: next actions averaged in the
        target [8 for Q-variance reduction]. chi2: coefficient of β [0.1]; 0 switches χ² off; chi2_alpha: α;
        max_reward: R_max of its upper clip. slow_tau: rate of the slow reference.
    Ablations
        baseline: what is subtracted from Q. group_std: divide by the group's std. no_negative: drop negative
        advantages. forward_kl: weight of KL(π_slow ‖ π_θ). critic_warmup_updates: first updates that leave the actor alone;
        calql: weight of the Cal-QL regularizer during them. extraction: the rule that turns advantages into a policy
        loss; temperature: of the advantage weights exp(A/temperature) of "awr" and "awfm".
    """

    gamma: float = 0.99
    chains: int = 16
    actor_states: int = 64
    critics: int = 5
    critic_hidden: tuple[int, ...] = (128, 128, 128)
    actor_lr: float = 1e-4
    critic_lr: float = 3e-4
    lr_cycle: int = 0
    grad_clip: float = 1000.0
    clip: float = 0.01
    actor_tau: float = 0.005
    critic_tau: float = 0.02
    best_of: int = 8
    deploy_best_of: int = 1
    success_weight: float = 1.0
    success_critic: bool = False
    conservative: bool = True
    target_samples: int = 1
    chi2: float = 0.0
    chi2_alpha: float = 5.0
    max_reward: float = 5.0
    slow_tau: float = 5e-4
    baseline: str = "group"
    group_std: bool = False
    no_negative: bool = False
    forward_kl: float = 0.0
    critic_warmup_updates: int = 0
    calql: float = 0.0
    extraction: str = "ppo"
    temperature: float = 1.0

    RANGES = {
        **dict.fromkeys(("actor_tau", "critic_tau", "slow_tau"), UNIT),
        "gamma": UNIT_POSITIVE,
        **dict.fromkeys(("chains", "critics"), Bounds(2)),
        **dict.fromkeys(
            ("actor_states", "critic_hidden", "best_of", "deploy_best_of", "target_samples"),
            POSITIVE_INT,
        ),
        **dict.fromkeys(
            ("actor_lr", "critic_lr", "lr_cycle", "success_weight", "critic_warmup_updates"),
            NON_NEGATIVE,
        ),
        **dict.fromkeys(("chi2", "chi2_alpha", "forward_kl", "calql"), NON_NEGATIVE),
        **dict.fromkeys(("grad_clip", "clip", "temperature"), POSITIVE),
        "max_reward": FINITE,
    }

    def __post_init__(self) -> None:
        for name, allowed in (("baseline", BASELINES), ("extraction", EXTRACTIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"algorithm.{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}."
                )
        config_fields.check(self, "algorithm.")
        if self.chi2 and self.conservative:
            raise ValueError(
                "algorithm.chi2 blends the critics itself; set algorithm.conservative=False with it."
            )
        if self.calql and not self.critic_warmup_updates:
            raise ValueError(
                "algorithm.calql acts during critic_warmup_updates; set algorithm.critic_warmup_updates above 0 with it."
            )

    @property
    def slow_reference(self) -> bool:
        """Does anything use π_slow?"""
        return bool(self.chi2 or self.forward_kl)


class State(NamedTuple):
    """Networks, optimizers, the frozen normalizer, updates done. ``slow`` and ``value`` are None where unused."""

    actor: PyTree
    target: PyTree  # θ̄
    slow: PyTree
    critic: PyTree
    critic_target: PyTree  # φ̄
    value: PyTree
    actor_opt: PyTree
    critic_opt: PyTree
    value_opt: PyTree
    normalizer: Normalizer
    step: Array


def replay_needs(config: Config) -> dict[str, object]:
    """What the replay must carry besides plain transitions (keywords of ``sources.replay``)."""
    return {
        "gamma": config.gamma,
        "success": bool(config.success_weight) or config.success_critic,
        "to_go": bool(config.calql),
    }


def _succeeded(batch: Batch) -> tuple[Transition, Array]:
    """The success view, which the replay was asked to carry (``replay_needs``)."""
    if batch.success is None or batch.success_weight is None:
        raise ValueError("OGPO's success term needs a replay built with success=True.")
    return batch.success, batch.success_weight


def _cosine_cycle(high: float, cycle: int) -> float | optax.Schedule:
    """Rate from 2/4.5 of ``high`` up to it and back every ``cycle`` updates; constant for cycle 0."""
    low = high * 2.0 / 4.5
    return (
        high
        if not cycle
        else lambda n: low + (high - low) * 0.5 * (1.0 - jnp.cos(2.0 * jnp.pi * n / cycle))
    )


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """OGPO as an Algorithm; ``pretrained`` is a deployed policy {"net", "normalizer"}."""
    specs, choosy = policy.specs, config.deploy_best_of > 1
    critics = critic_heads(
        config.critics,
        specs.obs_dim,
        specs.flat_action_dim,
        config.critic_hidden,
        policy.config.compute,
    )
    q_values = critics.q
    values = ValueNet(config.critic_hidden)
    actor_optimizer = clipped_adam(
        _cosine_cycle(config.actor_lr, config.lr_cycle), config.grad_clip
    )
    critic_optimizer = clipped_adam(config.critic_lr, config.grad_clip)

    def v_values(params: PyTree, obs: Array) -> Array:
        return jnp.asarray(values.apply({"params": params}, obs))

    def init(key: Array, pretrained: PyTree) -> State:
        critic_key, value_key = jax.random.split(key)
        net, critic, obs = (
            pretrained["net"],
            critics.init(critic_key),
            jnp.zeros((1, specs.obs_dim)),
        )
        slow = net if config.slow_reference else None
        value = values.init(value_key, obs)["params"] if config.baseline == "value" else None
        return State(
            *(net, net, slow, critic, critic, value),
            *(
                actor_optimizer.init(net),
                critic_optimizer.init(critic),
                critic_optimizer.init(value),
            ),
            *(pretrained["normalizer"], jnp.int32(0)),
        )

    def act(state: State, obs: Array, key: Array) -> tuple[Array, PyTree]:
        """θ̄'s SDE draws N chunks; the argmax of the min over 2 random target critics is run, once they are warm."""
        sample_key, pair_key = jax.random.split(key)
        obs = state.normalizer(obs)
        action = policy.action(
            policy.sample_chain_points(state.target, obs, sample_key, config.best_of)
        )
        score = critics.min_of_two(state.critic_target, obs[:, None], action, pair_key)
        score = jnp.where(state.step > config.critic_warmup_updates, score, 0.0)
        return policy.unflatten(argmax_action(action, score)), {}

    def greedy(deployed: PyTree, obs: Array, key: Array) -> Array:
        sample_key, pair_key = jax.random.split(key)
        obs = deployed["normalizer"](obs)
        action = policy.sample_n(deployed["net"], obs, sample_key, config.deploy_best_of)
        return policy.unflatten(
            argmax_action(
                action, critics.min_of_two(deployed["critic"], obs[:, None], action, pair_key)
            )
        )

    def pessimism(state: State, obs: Array, chain: Array) -> tuple[Array, Array, Array]:
        """Q̄ of chains [B, G, …] blended by their drift from π_slow (χ²): (Q_pess, ρ, β)."""
        q = q_values(state.critic_target, obs[:, None], policy.action(chain))
        drift = policy.log_density(state.actor, obs[:, None], chain) - policy.log_density(
            state.slow, obs[:, None], chain
        )
        ratio = jax.lax.stop_gradient(jnp.exp(drift))
        weight = jax.nn.sigmoid(config.chi2_alpha * (ratio - 1.0))
        blend = (1.0 - weight) * jnp.mean(q, 0) + weight * jnp.min(q, 0)
        return blend, ratio, config.chi2 * batch_mean(jnp.std(q, 0))

    def targets(state: State, batch: Transition, key: Array) -> Array:
        """y = reward + discount · mean_m Q̄_m(s', a'), a' ~ SDE(θ̄), averaged over ``target_samples`` draws; [B]."""
        obs = state.normalizer(batch.next_obs)
        chain = policy.sample_chain_points(state.target, obs, key, config.target_samples)
        if config.chi2:
            following = pessimism(state, obs, chain)[0]
        else:
            following = jnp.mean(
                q_values(state.critic_target, obs[:, None], policy.action(chain)), 0
            )
        return batch.reward + batch.discount * jnp.mean(following, -1)

    def critic_step(
        state: State, batch: Transition, weight: Array, to_go: Array | None, key: Array
    ) -> tuple[State, dict]:
        target_key, calql_key = jax.random.split(key)
        y = targets(state, batch, target_key)
        obs, action = state.normalizer(batch.obs), policy.flatten(batch.action)

        def loss(critic: PyTree) -> tuple[Array, dict[str, Array]]:
            q = q_values(critic, obs, action)
            error = jnp.mean((q - y[None]) ** 2, 0)
            value = jnp.mean(weight * error)
            if config.calql and to_go is not None:
                warming = state.step < config.critic_warmup_updates
                value += jnp.where(warming, config.calql, 0.0) * calibrated(
                    critic, state, obs, q, to_go, calql_key
                )
            return value, {"critic_loss": value, "q": jnp.mean(q), "q_std": jnp.mean(jnp.std(q, 0))}

        critic, opt, metrics = gradient_step(loss, state.critic, state.critic_opt, critic_optimizer)
        target = optax.incremental_update(critic, state.critic_target, config.critic_tau)
        metrics["critic_gradient_norm"] = metrics.pop("gradient_norm")
        return state._replace(critic=critic, critic_opt=opt, critic_target=target), metrics

    def calibrated(
        critic: PyTree, state: State, obs: Array, q_data: Array, to_go: Array, key: Array
    ) -> Array:
        """Cal-QL (Nakamoto et al. 2023, eq. 5.1): push down max(Q(s, a_π), realised return), push up Q(s, a)."""
        action = policy.action(policy.sample_chain_points(state.target, obs, key, 1))[:, 0]
        floor = jnp.where(jnp.isnan(to_go), -jnp.inf, to_go)
        return jnp.mean(jnp.maximum(q_values(critic, obs, action), floor[None]) - q_data)

    def advantages(state: State, obs: Array, chain: Array) -> tuple[Array, Array]:
        """Advantage of each chain [B, G] and the upper clip of the ratio; obs normalized [B, O]."""
        upper = jnp.float32(1.0 + config.clip)
        if config.chi2:
            q, ratio, beta = pessimism(state, obs, chain)
            upper = jnp.minimum(upper, 1.0 + config.max_reward / beta)
            heads = (q - beta * ratio)[None]
        else:
            heads = q_values(state.critic_target, obs[:, None], policy.action(chain))
        heads = heads if config.conservative else jnp.mean(heads, 0, keepdims=True)
        if config.baseline == "value":
            centred = heads - v_values(state.value, obs)[None, :, None]
        elif config.baseline == "leave_one_out":
            centred = returns.leave_one_out_advantage(heads)
        else:
            centred = returns.group_advantage(heads)
        advantage = returns.sign_consensus_advantage(centred) if config.conservative else centred[0]
        if config.group_std:
            advantage = advantage / (jnp.std(heads.mean(0), -1, keepdims=True) + 1e-6)
        return (jnp.maximum(advantage, 0.0) if config.no_negative else advantage), upper

    def extraction_loss(
        net: PyTree,
        state: State,
        obs: Array,
        drawn: Chain,
        advantage: Array,
        upper: Array,
        key: Array,
    ) -> tuple[Array, dict[str, Array]]:
        """The policy loss of one batch of chains [B, G, K+1, D] of θ̄, by ``config.extraction``."""
        wide, chain = obs[:, None], drawn.points
        weight = jnp.minimum(jnp.exp(advantage / config.temperature), 100.0)
        if config.extraction == "backprop":
            action = policy.sample(net, wide, chain[..., 0, :])
            return -jnp.mean(q_values(state.critic_target, wide, action)), {}
        if config.extraction in ("awfm", "fpo"):
            return matching_loss(
                net, state, wide, policy.action(chain), advantage, weight, upper, key
            )
        ratio = jnp.exp(policy.log_density(net, wide, chain) - drawn.log_density)
        if config.extraction == "awr":
            return -jnp.mean(weight * ratio), ratio_metrics(ratio, upper)
        return clipped(ratio, advantage, upper), ratio_metrics(ratio, upper)

    def clipped(ratio: Array, advantage: Array, upper: Array) -> Array:
        return -jnp.mean(
            jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - config.clip, upper) * advantage)
        )

    def ratio_metrics(ratio: Array, upper: Array) -> dict[str, Array]:
        outside = (ratio < 1.0 - config.clip) | (ratio > upper)
        return {
            "ratio": jnp.mean(ratio),
            "ratio_deviation": jnp.mean(jnp.abs(ratio - 1.0)),
            "clip_fraction": jnp.mean(outside),
        }

    def matching_loss(
        net: PyTree,
        state: State,
        obs: Array,
        action: Array,
        advantage: Array,
        weight: Array,
        upper: Array,
        key: Array,
    ) -> tuple[Array, dict[str, Array]]:
        """Rules without likelihoods: advantage-weighted flow matching, or FPO's ratio exp(L_FM,old − L_FM,new)."""

        def draw(key: Array) -> tuple[Array, Array]:
            noise_key, time_key = jax.random.split(key)
            return jax.random.normal(noise_key, action.shape[1:]), jax.random.uniform(
                time_key, action.shape[1:-1]
            )

        z, t = jax.vmap(draw)(sample_keys(key, action.shape[0]))
        mask = jnp.ones((*action.shape[:-1], specs.chunk))
        new = policy.imitation_loss(net, obs, action, mask, z, t)
        if config.extraction == "awfm":
            return jnp.mean(weight * new), {}
        ratio = jnp.exp(policy.imitation_loss(state.target, obs, action, mask, z, t) - new)
        return clipped(ratio, advantage, upper), ratio_metrics(ratio, upper)

    def actor_step(
        state: State, batch: Batch, key: Array
    ) -> tuple[dict[str, PyTree], dict[str, Array]]:
        """The fields of a state whose actor has taken one step, and its metrics."""
        chain_key, imitate_key, kl_key, match_key = jax.random.split(key, 4)
        stride = max(source.batch_size // config.actor_states, 1)
        obs = state.normalizer(batch.transitions.obs[::stride])
        drawn = policy.sample_chains(state.target, obs, chain_key, config.chains)
        advantage, upper = advantages(state, obs, drawn.points)

        def loss(net: PyTree) -> tuple[Array, dict[str, Array]]:
            value, metrics = extraction_loss(net, state, obs, drawn, advantage, upper, match_key)
            metrics = {**metrics, "policy_loss": value}
            if config.success_weight:
                imitation = success_loss(net, state, batch, imitate_key)
                value, metrics["imitation_loss"] = (
                    value + config.success_weight * imitation,
                    imitation,
                )
            if config.forward_kl:
                slow = policy.sample_chain_points(state.slow, obs, kl_key, 1)
                value -= config.forward_kl * jnp.mean(policy.log_density(net, obs[:, None], slow))
            return value, metrics

        net, opt, metrics = gradient_step(loss, state.actor, state.actor_opt, actor_optimizer)
        metrics["actor_gradient_norm"] = metrics.pop("gradient_norm")
        metrics["advantage"] = jnp.mean(jnp.abs(advantage))
        metrics["advantage_nonzero_fraction"] = jnp.mean(advantage != 0.0)
        slow = (
            optax.incremental_update(net, state.slow, config.slow_tau)
            if config.slow_reference
            else None
        )
        target = optax.incremental_update(net, state.target, config.actor_tau)
        return {"actor": net, "actor_opt": opt, "target": target, "slow": slow}, metrics

    def success_loss(net: PyTree, state: State, batch: Batch, key: Array) -> Array:
        """λ's term: flow matching on transitions of episodes that succeeded, weighted mean."""
        good, weight = _succeeded(batch)
        each = policy.bc_loss(net, state.normalizer(good.obs), good.action, good.mask, key)
        return jnp.mean(weight * each)

    def value_step(state: State, batch: Batch, key: Array) -> dict[str, PyTree]:
        """The fields of a state in which V(s) regresses on mean_m Q̄_m(s, a), a ~ SDE(θ̄): the baseline "value"."""
        obs = state.normalizer(batch.transitions.obs)
        action = policy.action(policy.sample_chain_points(state.target, obs, key, 1))
        y = jnp.mean(q_values(state.critic_target, obs[:, None], action), (0, 2))

        def loss(value: PyTree) -> tuple[Array, dict[str, Array]]:
            return jnp.mean((v_values(value, obs) - y) ** 2), {}

        value, opt, _ = gradient_step(loss, state.value, state.value_opt, critic_optimizer)
        return {"value": value, "value_opt": opt}

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        """Every step but the success critic's reads the state that the update began with: none waits for another, and their
        gradients cross between devices in one all-reduce."""
        critic_key, success_key, value_key, actor_key = jax.random.split(key, 4)
        improved, actor_metrics = actor_step(state, batch, actor_key)
        if config.critic_warmup_updates:
            kept = {name: getattr(state, name) for name in improved}
            improved = where_tree(state.step < config.critic_warmup_updates, kept, improved)
        if config.baseline == "value":
            improved |= value_step(state, batch, value_key)
        ones = jnp.ones_like(batch.transitions.reward)
        learned, metrics = critic_step(
            state, batch.transitions, ones, batch.return_to_go, critic_key
        )
        if config.success_critic:
            learned, _ = critic_step(learned, *_succeeded(batch), None, success_key)
        return learned._replace(**improved, step=state.step + 1), metrics | actor_metrics

    def export(state: State) -> PyTree:
        plain = {"net": state.target, "normalizer": state.normalizer}
        return {**plain, "critic": state.critic_target} if choosy else plain

    def value(state: State, obs: Array, chunk: Array) -> Array:
        return q_values(state.critic_target, state.normalizer(obs)[:, None], policy.flatten(chunk))

    return Algorithm(
        init,
        act,
        identity_preprocess,
        update,
        greedy if choosy else policy.eval_policy,
        export,
        source,
        value,
    )

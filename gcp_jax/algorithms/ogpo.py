"""OGPO: off-policy generative policy optimization (arXiv 2605.03065).

Acting is a decision process on two levels: the environment, and within each chunk the K denoising
steps. OGPO cuts between them: a denoising chain x_0, ..., x_K has as its only reward the value
Q̄(s, a), a = x_K, of the off-policy critics. From any state in the replay G chains are sampled from
the averaged policy θ̄, and whole chains are improved by a group-relative PPO step:

    critic target   y = r + γ mean_m Q̄_m(s', a'),   a' ~ SDE(θ̄)
    advantage       A_j = Q̄(s, a_j) − mean_j' Q̄(s, a_j'),   j = 1..G
    ratio           ρ_j = exp(lp_θ(chain_j) − lp_θ̄(chain_j))
    actor loss      −mean min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) + λ L_BC(successful transitions)

without a gradient through the critics or the sampler. lp, the log-density of a chain, is divided by
(K + 1) and by the dimensions of the chunk. The defaults are OGPO+CA of the paper: with the success
term (+) and the conservative advantage (CA), which is 0 unless all critics agree on its sign. With
χ² regularization, pessimism grows with the drift ρ_s = exp(lp_θ − lp_slow) from a slow reference:

    w = sigmoid(α (ρ_s − 1)),   Q_pess = (1 − w) mean_m Q̄_m + w min_m Q̄_m
    β = χ² mean(std_m Q̄_m),   advantage of Q_pess − β ρ_s,   upper clip min(1 + ε, 1 + R_max/β)

Difference from the released code: the density of a chain is that of its unclipped last point, which
is also the one that is stored, so that the first ratio is 1.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from gcp_jax.algorithms.ogpo_config import ActorState, Config, State, replay_needs
from gcp_jax.algorithms.ogpo_critics import OGPOCritics, make_critics
from gcp_jax.algorithms.ogpo_extraction import Advantages, Extraction
from gcp_jax.core import adaptive_rate, critic, optim, value_function
from gcp_jax.core.gradient_signal import Balance, Signal
from gcp_jax.core.policy import Policy
from gcp_jax.core.tree import where_tree
from gcp_jax.mesh import all_mean, batch_mean
from gcp_jax.types import (
    Algorithm,
    Array,
    Batch,
    BatchSource,
    Metrics,
    Params,
    Transition,
    identity_preprocess,
)

__all__ = ["OGPO", "ActorState", "Config", "State", "make", "replay_needs"]


def success_batch(batch: Batch) -> tuple[Transition, Array]:
    """The transitions of successful episodes and their weights [B].

    Raises:
      ValueError: if the replay was not built with them (see ``replay_needs``).
    """
    if batch.success is None or batch.success_weight is None:
        raise ValueError("OGPO's success term needs a replay built with success=True.")
    return batch.success, batch.success_weight


def cosine_cycle(high: float, cycle: int) -> float | optax.Schedule:
    """A learning rate from 2/4.5 of ``high`` to ``high`` and back every ``cycle`` updates.

    It is constant if ``cycle`` is 0.
    """
    if not cycle:
        return high
    low = high * 2.0 / 4.5

    def schedule(step: Array) -> Array:
        return low + (high - low) * 0.5 * (1.0 - jnp.cos(2.0 * jnp.pi * step / cycle))

    return schedule


@dataclasses.dataclass(frozen=True)
class OGPO:
    """OGPO's updates, one method each; those of the critics and the policy loss are in its parts.

    Observations named ``obs`` are raw in the methods of ``Algorithm`` (``act``, ``eval_policy``,
    ``update``) and normalized, [B, O], everywhere else. Actions are flattened chunks, [..., D].
    """

    config: Config
    policy: Policy
    source: BatchSource
    critics: OGPOCritics
    value: value_function.ValueFunction
    extraction: Extraction
    actor_optimizer: optax.GradientTransformation

    def init(self, key: Array, pretrained: Params) -> State:
        """Start from a pretrained policy, {"net", "normalizer"}."""
        critic_key, value_key = jax.random.split(key)
        net = pretrained["net"]
        uses_value = self.config.baseline == "value"
        return State(
            actor=ActorState(
                params=net,
                target_params=net,
                slow_params=net if self.config.uses_slow_reference else None,
                opt_state=self.actor_optimizer.init(net),
                rate_factor=jnp.float32(1.0) if self.config.target_clip_fraction else None,
                balance=Balance.empty() if self.config.balance_gradients else None,
                signal=Signal.empty(net) if self.config.measure_snr else None,
            ),
            critic=self.critics.critic.init(critic_key),
            value=self.value.init(value_key) if uses_value else None,
            normalizer=pretrained["normalizer"],
            updates=jnp.int32(0),
        )

    def act(self, state: State, obs: Array, key: Array) -> tuple[Array, Params]:
        """The best of N samples of θ̄, or the first one until the critics have warmed up."""
        sample_key, pair_key = jax.random.split(key)
        obs = state.normalizer(obs)
        action = self.critics.sample_action(
            state.actor.target_params, obs, sample_key, self.config.best_of
        )
        q = self.critics.critic.min_of_two(
            state.critic.target_params, obs[:, None], action, pair_key
        )
        warm = state.updates > self.config.critic_warmup_updates
        q = jnp.where(warm, q, 0.0)
        return self.policy.unflatten(critic.argmax_action(action, q)), {}

    def imitation_loss(self, params: Params, state: State, batch: Batch, key: Array) -> Array:
        """L_BC: the cloning loss on transitions of successful episodes, a weighted mean, [].

        With ``imitation_data="replay"`` it is the mean over all transitions of the batch.
        """
        if self.config.clones_successes:
            transitions, weight = success_batch(batch)
        else:
            transitions, weight = batch.transitions, jnp.float32(1.0)
        losses = self.policy.bc_loss(
            params,
            state.normalizer(transitions.obs),
            transitions.action,
            transitions.mask,
            key,
        )
        return jnp.mean(weight * losses)

    def slow_log_density(self, params: Params, state: State, obs: Array, key: Array) -> Array:
        """E lp_θ of chains of the slow reference, []: −KL(slow ‖ θ) up to a constant."""
        points = self.policy.sample_chain_points(state.actor.slow_params, obs, key, 1)
        return jnp.mean(self.policy.log_density(params, obs[:, None], points))

    def update_actor(self, state: State, batch: Batch, key: Array) -> tuple[ActorState, Metrics]:
        """One step of θ on chains of θ̄ from states of the batch, then of its averages."""
        chain_key, bc_key, kl_key, noise_key = jax.random.split(key, 4)
        stride = max(self.source.batch_size // self.config.actor_states, 1)
        obs = state.normalizer(batch.transitions.obs[::stride])
        actor = state.actor
        chain = self.policy.sample_chains(
            actor.target_params,
            obs,
            chain_key,
            self.config.chains,
            per_start=self.config.shared_noise,
        )
        advantages = self.extraction.advantages(state, obs, chain.points)

        def policy_loss(params: Params) -> tuple[Array, Metrics]:
            value, metrics = self.extraction.loss(params, state, obs, chain, advantages, noise_key)
            metrics = {**metrics, "policy_loss": value}
            if self.config.forward_kl:
                log_density = self.slow_log_density(params, state, obs, kl_key)
                value -= self.config.forward_kl * log_density
            return value, metrics

        def imitation_loss(params: Params) -> tuple[Array, Metrics]:
            value = self.imitation_loss(params, state, batch, bc_key)
            return value, {"imitation_loss": value}

        actor, gradient, metrics = self.actor_gradient(actor, policy_loss, imitation_loss)
        params, opt_state, norm = optim.apply_gradient(
            gradient,
            actor.params,
            actor.opt_state,
            self.actor_optimizer,
            name="actor",
            scale=actor.rate_factor,
        )
        metrics |= norm
        if actor.rate_factor is not None:
            metrics["actor_rate_factor"] = actor.rate_factor
            actor = actor._replace(
                rate_factor=self.adapt_rate(actor.rate_factor, advantages, metrics)
            )
        metrics["advantage_abs_mean"] = jnp.mean(jnp.abs(advantages.advantage))
        metrics["advantage_nonzero_fraction"] = jnp.mean(advantages.advantage != 0.0)
        return self.average(actor, params, opt_state), metrics

    def actor_gradient(
        self, actor: ActorState, policy_loss: optim.LossFn, imitation_loss: optim.LossFn
    ) -> tuple[ActorState, Params, Metrics]:
        """The gradient of the policy loss plus ``success_weight`` times that of cloning.

        Returns:
          The actor with what it keeps about its gradients, the gradient, and the metrics of both
          losses with the norms of their gradients.
        """
        gradient, metrics = optim.mean_gradient(policy_loss, actor.params)
        metrics["policy_gradient_norm"] = optax.tree.norm(gradient)
        if actor.signal is not None:
            signal = actor.signal.add(gradient)
            metrics["policy_gradient_snr"] = signal.snr
            actor = actor._replace(signal=signal)
        weight = self.config.success_weight
        if not weight:
            return actor, gradient, metrics

        imitation_gradient, imitation_metrics = optim.mean_gradient(imitation_loss, actor.params)
        metrics |= imitation_metrics
        metrics["imitation_gradient_norm"] = optax.tree.norm(imitation_gradient)
        if actor.balance is None:
            gradient = jax.tree.map(lambda x, y: x + weight * y, gradient, imitation_gradient)
            return actor, gradient, metrics
        balance = actor.balance.add(
            policy_norm=metrics["policy_gradient_norm"],
            imitation_norm=metrics["imitation_gradient_norm"],
        )
        gradient = balance.weighted_sum(gradient, imitation_gradient, weight=weight)
        return actor._replace(balance=balance), gradient, metrics

    def adapt_rate(self, factor: Array, advantages: Advantages, metrics: Metrics) -> Array:
        """The factor of ``actor_lr`` for the next update; the same if no chain took part."""
        adapted = adaptive_rate.adapted_factor(
            factor,
            clip_fraction=all_mean(metrics["clip_fraction"]),
            target=self.config.target_clip_fraction,
        )
        used = batch_mean(self.extraction.used_chains(advantages.advantage))
        return jnp.where(used > 0.0, adapted, factor)

    def average(self, actor: ActorState, params: Params, opt_state: Params) -> ActorState:
        """The actor's state after a step to ``params``, with its averages moved."""
        slow_params = None
        if self.config.uses_slow_reference:
            slow_params = optax.incremental_update(params, actor.slow_params, self.config.slow_tau)
        return actor._replace(
            params=params,
            target_params=optax.incremental_update(
                params, actor.target_params, self.config.actor_tau
            ),
            slow_params=slow_params,
            opt_state=opt_state,
        )

    def update_value(
        self, state: State, value: value_function.ValueState, batch: Batch, key: Array
    ) -> value_function.ValueState:
        """One step of V(s) on mean_m Q̄_m(s, a), a ~ SDE(θ̄): the baseline "value"."""
        obs = state.normalizer(batch.transitions.obs)
        action = self.critics.sample_action(state.actor.target_params, obs, key, 1)
        q = self.critics.critic.q(state.critic.target_params, obs[:, None], action)
        value, _ = self.value.td_step(value, obs, jnp.mean(q, (0, 2)))
        return value

    def update(self, state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        """One step of the actor, of V and of the critics.

        Each reads the state that the update began with, so that their gradients can cross between
        devices in one all-reduce; only the step on the success batch follows the critics' first.
        """
        if self.config.calql and batch.return_to_go is None:
            raise ValueError(
                "algorithm.calql needs returns to go, which the batches lack; make every source of "
                "batches with to_go=True."
            )
        critic_key, success_key, value_key, actor_key = jax.random.split(key, 4)
        actor, actor_metrics = self.update_actor(state, batch, actor_key)
        if self.config.critic_warmup_updates:
            warming_up = state.updates < self.config.critic_warmup_updates
            actor = where_tree(warming_up, state.actor, actor)
        value = state.value
        if value is not None:
            value = self.update_value(state, value, batch, value_key)

        critic_state, metrics = self.critics.update(
            state,
            batch.transitions,
            weight=jnp.ones_like(batch.transitions.reward),
            to_go=batch.return_to_go,
            key=critic_key,
        )
        if self.config.success_critic:
            transitions, weight = success_batch(batch)
            critic_state, _ = self.critics.update(
                state._replace(critic=critic_state),
                transitions,
                weight=weight,
                to_go=None,
                key=success_key,
            )
        state = state._replace(
            actor=actor, critic=critic_state, value=value, updates=state.updates + 1
        )
        return state, metrics | actor_metrics

    def export(self, state: State) -> Params:
        """What is deployed: θ̄, and the target critics if they choose among its samples."""
        params = {"net": state.actor.target_params, "normalizer": state.normalizer}
        if self.config.deploy_best_of > 1:
            params["critic"] = state.critic.target_params
        return params

    def eval_policy(self, params: Params, obs: Array, key: Array) -> Array:
        """The best of ``deploy_best_of`` samples of the ODE: obs [B, O] to chunks [B, h, A]."""
        if not self.config.deploy_best_of > 1:
            return self.policy.eval_policy(params, obs, key)
        sample_key, pair_key = jax.random.split(key)
        obs = params["normalizer"](obs)
        count = self.config.deploy_best_of
        action = self.policy.sample_n(params["net"], obs, sample_key, count)
        q = self.critics.critic.min_of_two(params["critic"], obs[:, None], action, pair_key)
        return self.policy.unflatten(critic.argmax_action(action, q))


def make(config: Config, policy: Policy, source: BatchSource) -> Algorithm:
    """Build OGPO for ``policy``, learning from ``source``."""
    critics = make_critics(config, policy)
    value = value_function.make_value_function(
        policy.specs.obs_dim,
        hidden=config.critic_hidden,
        learning_rate=config.critic_lr,
        grad_clip=config.grad_clip,
    )
    ogpo = OGPO(
        config=config,
        policy=policy,
        source=source,
        critics=critics,
        value=value,
        extraction=Extraction(config=config, policy=policy, critics=critics, value=value),
        actor_optimizer=optim.clipped_adam(
            cosine_cycle(config.actor_lr, config.lr_cycle), config.grad_clip
        ),
    )
    return Algorithm(
        init=ogpo.init,
        act=ogpo.act,
        preprocess_segment=identity_preprocess,
        update=ogpo.update,
        eval_policy=ogpo.eval_policy,
        export=ogpo.export,
        source=source,
        q_values=critic.make_q_fn(critics.critic, policy),
    )

"""OGPO's policy extraction: from the critics to a policy loss (see ``gcp_jax.algorithms.ogpo``).

Chains are those of the averaged policy θ̄. With ρ = exp(lp_θ − lp_θ̄) and w = min(exp(A/T), 100):

    "ppo"        −mean min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)
    "awr"        −mean w ρ
    "awfm"       mean w L_BC,θ(s, a): advantage-weighted flow matching
    "fpo"        as "ppo" with ρ = exp(L_BC,θ̄ − L_BC,θ) on shared noise (arXiv 2507.21053)
    "backprop"   −mean Q̄(s, ODE_θ(s, x_0)), through the sampler
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.algorithms.ogpo_config import Config, State
from gcp_jax.algorithms.ogpo_critics import OGPOCritics
from gcp_jax.core import optim, returns, value_function
from gcp_jax.core.denoising import Chain
from gcp_jax.core.policy import Policy
from gcp_jax.mesh import batch_mean, sample_keys
from gcp_jax.types import Array, Metrics, Params

MAX_WEIGHT = 100.0
"""Largest weight exp(A/T)."""


class Advantages(NamedTuple):
    """Advantages of G chains a state, and the upper clip of their ratios."""

    advantage: Array  # [B, G]
    clip_high: Array  # []


class Samples(NamedTuple):
    """Chains of an actor step with their states, [B, G] of them or a block [N]."""

    obs: Array  # normalized, [B, 1, O] or [N, O]
    chain: Chain  # of θ̄, leaves [B, G, ...] or [N, ...]
    advantage: Array  # [B, G] or [N]
    used: Array  # like advantage, bool: which take part in the loss


class Ratios(NamedTuple):
    """Ratios of chains, and the interval to which PPO clips them."""

    ratio: Array  # ρ
    low: Array | float
    high: Array | float

    def ppo_loss(self, advantage: Array) -> Array:
        """−mean min(ρ A, clip(ρ, low, high) A), [], for A of the shape of ρ."""
        clipped = jnp.clip(self.ratio, self.low, self.high)
        return -jnp.mean(jnp.minimum(self.ratio * advantage, clipped * advantage))

    def metrics(self, used: Array) -> Metrics:
        """Means over all chains of ρ, of its distance from 1 and of whether it is outside of the
        interval, each counted as 0 where a chain is not ``used``.
        """
        outside = (self.ratio < self.low) | (self.ratio > self.high)
        return {
            "ratio": jnp.mean(used * self.ratio),
            "ratio_deviation": jnp.mean(used * jnp.abs(self.ratio - 1.0)),
            "clip_fraction": jnp.mean(used * outside),
        }


@dataclasses.dataclass(frozen=True)
class Extraction:
    """The rules that turn values into a policy loss, one method each.

    Observations named ``obs`` are normalized, [B, O]. Actions are flattened chunks, [..., D];
    points of chains are [B, G, K+1, D].
    """

    config: Config
    policy: Policy
    critics: OGPOCritics
    value: value_function.ValueFunction

    def advantages(self, state: State, obs: Array, points: Array) -> Advantages:
        """A_j of each chain by the switches of the configuration.

        Chains are compared within groups: all chains of a state, or those that share x_0.
        """
        config = self.config
        clip_high = jnp.float32(1.0 + config.clip)
        if config.chi2:
            pessimistic = self.critics.pessimistic_q(state, obs, points)
            clip_high = jnp.minimum(clip_high, 1.0 + config.max_reward / pessimistic.beta)
            q = (pessimistic.q - pessimistic.beta * pessimistic.drift)[None]
        else:
            q = self.critics.critic.q(
                state.critic.target_params, obs[:, None], self.policy.action(points)
            )
        if not config.conservative:
            q = jnp.mean(q, 0, keepdims=True)
        chains_shape = q.shape[1:]
        if config.shared_noise > 1:
            q = q.reshape(*q.shape[:-1], -1, config.shared_noise)
        advantage = self.subtract_baseline(state, obs, q)
        if config.conservative:
            advantage = returns.sign_consensus_advantage(advantage)
        else:
            advantage = advantage[0]
        if config.group_std:
            q_mean = q.mean(0)
            advantage = returns.divide_by_std(
                advantage,
                std=jnp.std(q_mean, -1, keepdims=True),
                level=jnp.mean(q_mean, -1, keepdims=True),
                epsilon=1e-6,
            )
        if config.no_negative:
            advantage = jnp.maximum(advantage, 0.0)
        return Advantages(advantage=advantage.reshape(chains_shape), clip_high=clip_high)

    def subtract_baseline(self, state: State, obs: Array, q: Array) -> Array:
        """q [M, B, ..., G] less its baseline: the group's mean, the other chains', or V(s)."""
        if state.value is not None:
            value = self.value.v(state.value.params, obs)
            return q - value.reshape(1, -1, *(1,) * (q.ndim - 2))
        if self.config.baseline == "leave_one_out":
            return returns.leave_one_out_advantage(q)
        return returns.group_advantage(q)

    def bc_losses_of(self, obs: Array, action: Array, key: Array) -> Callable[[Params], Array]:
        """Draw one noise and time for each action [B, G, D]; ``key`` is consumed.

        Returns:
          A function of a policy's parameters that returns its cloning losses [B, G] on them.
        """

        def draw(key: Array) -> tuple[Array, Array]:
            noise_key, time_key = jax.random.split(key)
            z = jax.random.normal(noise_key, action.shape[1:])
            t = jax.random.uniform(time_key, action.shape[1:-1])
            return z, t

        z, t = jax.vmap(draw)(sample_keys(key, action.shape[0]))
        mask = jnp.ones((*action.shape[:-1], self.policy.specs.chunk))
        return lambda params: self.policy.imitation_loss(params, obs, action, mask, z, t)

    def loss(
        self,
        params: Params,
        state: State,
        obs: Array,
        chain: Chain,
        advantages: Advantages,
        key: Array,
    ) -> tuple[Array, Metrics]:
        """The policy loss on chains of θ̄, by ``extraction``, with the metrics of its ratios.

        The metrics are means over the chains of all devices that take part in the loss
        (``used_chains``); 0 if there are none. The chains are taken in ``actor_blocks`` blocks, one
        after the other, those that take part first, and the blocks without any are not computed.

        Raises:
          ValueError: when traced, if the chains are no whole number of blocks.
        """
        used = self.used_chains(advantages.advantage)
        samples = Samples(
            obs=obs[:, None],
            chain=chain,
            advantage=advantages.advantage,
            used=used,
        )

        def block_loss(params: Params, block: Samples) -> tuple[Array, Metrics]:
            return self.block_loss(params, state, block, advantages.clip_high, key)

        def mean_over_used(metrics: Metrics) -> Metrics:
            used_fraction = batch_mean(used)
            used_fraction = jnp.where(used_fraction > 0.0, used_fraction, 1.0)
            return {name: value / used_fraction for name, value in metrics.items()}

        blocks = self.config.blocks_of(used.size)
        if blocks == 1:
            value, metrics = block_loss(params, samples)
            return value, mean_over_used(metrics)
        size = used.size // blocks
        used_blocks = (jnp.sum(used) + size - 1) // size
        order = jnp.argsort(~used.ravel())

        def split(x: Array) -> Array:
            """[B, G, ...] to [blocks, size, ...], the used chains first."""
            chains = jnp.broadcast_to(x, (*used.shape, *x.shape[2:])).reshape(-1, *x.shape[2:])
            return chains[order].reshape(blocks, size, *x.shape[2:])

        value, metrics = optim.mean_over_blocks(
            block_loss, params, jax.tree.map(split, samples), used=used_blocks
        )
        return value, mean_over_used(metrics)

    def used_chains(self, advantage: Array) -> Array:
        """Which chains take part in the loss, bool: PPO's loss and gradient are 0 where A = 0."""
        if self.config.extraction in ("ppo", "fpo"):
            return advantage != 0.0
        return jnp.full(advantage.shape, True)

    def block_loss(
        self, params: Params, state: State, samples: Samples, clip_high: Array, key: Array
    ) -> tuple[Array, Metrics]:
        """``loss`` of one block; its metrics count chains that are not used as 0."""
        extraction = self.config.extraction
        obs = samples.obs
        chain = samples.chain
        if extraction == "backprop":
            action = self.policy.sample(params, obs, chain.points[..., 0, :])
            q = self.critics.critic.q(state.critic.target_params, obs, action)
            return -jnp.mean(q), {}

        advantage = samples.advantage
        weight = jnp.minimum(jnp.exp(advantage / self.config.temperature), MAX_WEIGHT)
        if extraction in ("awfm", "fpo"):
            action = self.policy.action(chain.points)
            losses_of = self.bc_losses_of(obs, action, key)
            if extraction == "awfm":
                return jnp.mean(weight * losses_of(params)), {}
            log_ratio = losses_of(state.actor.target_params) - losses_of(params)
        else:
            log_ratio = self.policy.log_density(params, obs, chain.points) - chain.log_density
        ratios = Ratios(ratio=jnp.exp(log_ratio), low=1.0 - self.config.clip, high=clip_high)
        metrics = ratios.metrics(samples.used)
        if extraction == "awr":
            return -jnp.mean(weight * ratios.ratio), metrics
        return ratios.ppo_loss(advantage), metrics

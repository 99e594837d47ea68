"""Diagnostics that mean the same for every method, once per segment, on states that it visited.

action_std             standard deviation of the deployed policy's samples of one state, averaged
                       over dimensions and states
base_action_rmse       root mean square difference of the deployed policy's and the base policy's
                       action from the same key
ratio_step_i           likelihood ratio of denoising step i between deployed and base network,
                       averaged over chains of the deployed policy; the log-ratio is divided by the
                       number of dimensions and clipped to ±LOG_RATIO_CLIP; 1 if the base is frozen
kl_step_i              KL(deployed ‖ base) of denoising step i on these chains; 0 if it is frozen
critic_sign_agreement  fraction of sampled actions that all critics place on the same side of the
                       state's mean value
q_minus_return         mean of Q(s, a) − the discounted return from (s, a), over chunks whose
                       episode terminated in the segment
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gcp_jax.core import denoising, returns
from gcp_jax.core.policy import Policy
from gcp_jax.learner.loop import Diagnose
from gcp_jax.mesh import all_sum, batch_mean, data_size
from gcp_jax.types import (
    Algorithm,
    Array,
    Deployed,
    Metrics,
    PRNGKey,
    PyTree,
    Segment,
    Step,
    Transition,
)

LOGGED_STEPS = 20  # denoising steps of which numbers are logged
STATES = 32  # of the segment, over all devices
SAMPLES = 8  # actions of each state
LOG_RATIO_CLIP = 20.0  # else the ratio of a policy far from its base would overflow


def make_diagnose(algorithm: Algorithm, policy: Policy, gamma: float) -> Diagnose:
    """Build the diagnostics of a method.

    Args:
      algorithm: the method.
      policy: the policy that it finetunes.
      gamma: discount of one environment step.
    """
    return _Diagnostics(algorithm=algorithm, policy=policy, gamma=gamma).diagnose


@dataclasses.dataclass(frozen=True, eq=False)
class _Diagnostics:
    """The diagnostics of a method, one method each; ``make_diagnose`` describes the fields."""

    algorithm: Algorithm
    policy: Policy
    gamma: float

    def diagnose(self, state: PyTree, base: Deployed, segment: Segment, key: PRNGKey) -> Metrics:
        """All diagnostics, as scalars."""
        sample_key, chain_key = jax.random.split(key)
        deployed = self.algorithm.export(state)
        obs = _spread_states(segment.steps.obs[:, :, 0])
        action = _sample_actions(partial(self.algorithm.eval_policy, deployed), obs, sample_key)
        base_action = _sample_actions(partial(self.policy.eval_policy, base), obs, sample_key)
        metrics = {
            "action_std": batch_mean(jnp.std(action, 1)),
            "base_action_rmse": jnp.sqrt(batch_mean((action - base_action) ** 2)),
        }
        metrics |= self._compare_steps(deployed, base, obs, chain_key)
        q_values = self.algorithm.q_values
        if q_values is None:
            return metrics
        q = q_values(state, obs, action)
        if q.shape[0] > 1:
            metrics["critic_sign_agreement"] = _sign_agreement(q)
        metrics["q_minus_return"] = self._q_minus_return(partial(q_values, state), segment.steps)
        return metrics

    def _compare_steps(
        self, deployed: Deployed, base: Deployed, obs: Array, key: PRNGKey
    ) -> Metrics:
        """``ratio_step_i`` and ``kl_step_i``, on one chain for each raw observation [B, O]."""
        policy = self.policy
        points = policy.sample_chain_points(deployed["net"], deployed["normalizer"](obs), key, 1)[
            :, 0
        ]

        def rescore(params: Deployed) -> denoising.Chain:
            step = policy.stochastic_step(params["net"], params["normalizer"](obs), 1)
            return denoising.rescore_chain(step, points, policy.times)

        new = rescore(deployed)
        old = rescore(base)
        log_ratio = jnp.mean(new.log_densities - old.log_densities, -1)
        ratio = jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_CLIP, LOG_RATIO_CLIP))
        kl = denoising.step_kl(new, old)
        metrics: Metrics = {}
        for i in logged_steps(policy.config.steps):
            metrics[f"ratio_step_{i}"] = batch_mean(ratio[:, i])
            metrics[f"kl_step_{i}"] = batch_mean(kl[:, i])
        return metrics

    def _q_minus_return(self, q_values: Callable[[Array, Array], Array], steps: Step) -> Array:
        """Mean of Q(s, a) − return over the chunks whose return is known; NaN if there is none."""
        transitions = returns.fold_chunk(steps, self.gamma)
        known, return_t = _returns_within_segment(transitions)
        obs = transitions.obs.reshape(-1, transitions.obs.shape[-1])
        chunk = transitions.action.reshape(-1, 1, *transitions.action.shape[-2:])
        q = jnp.mean(q_values(obs, chunk), 0).reshape(return_t.shape)
        total: Array = all_sum(jnp.sum(jnp.where(known, q - return_t, 0.0)))
        count: Array = all_sum(jnp.sum(known, dtype=jnp.float32))
        return total / jnp.where(count > 0, count, jnp.nan)


def logged_steps(steps: int) -> list[int]:
    """The denoising steps of which numbers are logged: all K, or ``LOGGED_STEPS`` spread ones.

    The first and the last are among them. A long chain then takes no more tracing than a short one.
    """
    if steps <= LOGGED_STEPS:
        return list(range(steps))
    return [round(i * (steps - 1) / (LOGGED_STEPS - 1)) for i in range(LOGGED_STEPS)]


def _spread_states(obs: Array) -> Array:
    """Take about STATES evenly spaced states over all devices, of obs [L, N, O]: [B, O].

    They are the same on any number of devices.
    """
    states = jnp.swapaxes(obs, 0, 1).reshape(-1, obs.shape[-1])
    stride = max(len(states) * data_size() // STATES, 1)
    return states[::stride]


def _sample_actions(act: Callable[[Array, PRNGKey], Array], obs: Array, key: PRNGKey) -> Array:
    """Sample chunks [B, SAMPLES, h, A] for obs [B, O]; key is consumed."""
    chunk = act(jnp.repeat(obs, SAMPLES, axis=0), key)
    return chunk.reshape(len(obs), SAMPLES, *chunk.shape[1:])


def _sign_agreement(q: Array) -> Array:
    """``critic_sign_agreement`` of values [M, B, SAMPLES]."""
    advantage = returns.sign_consensus_advantage(returns.group_advantage(q))
    return batch_mean(advantage != 0.0)


def _returns_within_segment(transitions: Transition) -> tuple[Array, Array]:
    """Discounted returns of chunk transitions [L, N].

    Returns:
      Whether the episode terminates within the segment, and the return [L, N], which is meaningful
      only if it does.
    """
    Carry = tuple[Array, Array]

    def step(later: Carry, inputs: tuple[Array, ...]) -> tuple[Carry, Carry]:
        known_tp1, return_tp1 = later
        reward, discount, terminated, truncated = inputs
        known = terminated | (known_tp1 & ~truncated)
        return_t = reward + discount * return_tp1
        return (known, return_t), (known, return_t)

    first = (transitions.terminated[0] & False, transitions.reward[0] * 0.0)
    inputs: Any = (
        transitions.reward,
        transitions.discount,
        transitions.terminated,
        transitions.truncated,
    )
    _, (known, return_t) = jax.lax.scan(step, first, inputs, reverse=True)
    return known, return_t

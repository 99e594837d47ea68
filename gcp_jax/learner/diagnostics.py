"""Numbers that mean the same for every method, measured once a segment on states it visited.

action_std         standard deviation of the deployed policy's samples for one state, mean over dimensions
base_action_rmse    root mean square difference of deployed and base action from the same key
ratio_step_i, kl_step_i   of denoising step i, the deployed policy's network against the base's along its own chains: the mean
                      likelihood ratio (log-ratio divided by the dimensions, held within ± LOG_RATIO) and KL(deployed ‖ base); 1 and 0 where
                      the base is frozen
agreement             share of sampled actions on which all critics agree that they are above, or below, the state's mean
q_minus_return        mean of Q(s, a) − the return realised from (s, a), over episodes that ended by themselves in the segment
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from gcp_jax.core import denoising as chains
from gcp_jax.core import returns
from gcp_jax.core.policy import Policy
from gcp_jax.learner.loop import Diagnose
from gcp_jax.mesh import all_sum, batch_mean, data_size
from gcp_jax.types import Algorithm, Array, PyTree, Segment, Step

STATES = 32  # of the segment
SAMPLES = 8  # actions for each of them
LOG_RATIO = 20.0  # a policy far from its base would overflow the ratio, and a number that is not finite stops a run
MAY_BE_MISSING = ("train/q_minus_return",)  # NaN where no episode ended


def make(algorithm: Algorithm, policy: Policy, gamma: float) -> Diagnose:
    """The measurements of a method that finetunes ``policy``; gamma is the discount of one environment step."""

    def diagnose(state: PyTree, base: PyTree, segment: Segment, key: Array) -> dict[str, Array]:
        sample_key, chain_key = jax.random.split(key)
        deployed, obs = algorithm.export(state), _some(segment.steps.obs[:, :, 0])
        action = _samples(partial(algorithm.eval_policy, deployed), obs, sample_key)
        original = _samples(partial(policy.eval_policy, base), obs, sample_key)
        found = {
            "action_std": batch_mean(jnp.std(action, 1)),
            "base_action_rmse": jnp.sqrt(batch_mean((action - original) ** 2)),
        }
        found |= _steps(policy, deployed, base, obs, chain_key)
        if algorithm.value is not None:
            q = algorithm.value(state, obs, action)
            if q.shape[0] > 1:
                found["agreement"] = batch_mean(
                    returns.sign_consensus_advantage(returns.group_advantage(q)) != 0.0
                )
            found["q_minus_return"] = _gap(algorithm, state, segment.steps, gamma)
        return found

    return diagnose


def _some(obs: Array) -> Array:
    """About STATES states over all devices of obs [L, N, O], evenly spread and the same on any number of devices: [B, O]."""
    states = jnp.swapaxes(obs, 0, 1).reshape(-1, obs.shape[-1])
    return states[:: max(len(states) * data_size() // STATES, 1)]


def _samples(act: Callable[[Array, Array], Array], obs: Array, key: Array) -> Array:
    """[B, SAMPLES, h, A] for obs [B, O]; key is consumed."""
    chunk = act(jnp.repeat(obs, SAMPLES, axis=0), key)
    return chunk.reshape(len(obs), SAMPLES, *chunk.shape[1:])


def _steps(
    policy: Policy, deployed: PyTree, base: PyTree, obs: Array, key: Array
) -> dict[str, Array]:
    chain = policy.sample_chain_points(deployed["net"], deployed["normalizer"](obs), key, 1)[:, 0]
    new, old = (
        chains.rescore_chain(
            policy.stochastic_step(p["net"], p["normalizer"](obs), 1), chain, policy.times
        )
        for p in (deployed, base)
    )
    log_ratio = jnp.mean(new.log_densities - old.log_densities, -1)
    ratio = jnp.exp(jnp.clip(log_ratio, -LOG_RATIO, LOG_RATIO))
    kl = chains.step_kl(new, old)
    found: dict[str, Array] = {}
    for i in range(policy.config.steps):
        found |= {f"ratio_step_{i}": batch_mean(ratio[:, i]), f"kl_step_{i}": batch_mean(kl[:, i])}
    return found


def _gap(algorithm: Algorithm, state: PyTree, steps: Step, gamma: float) -> Array:
    """Mean over devices of Q(s, a) − realised return of the chunks whose episode terminated within the segment."""
    assert algorithm.value is not None
    rows = returns.fold_chunk(steps, gamma)

    def back(
        following: tuple[Array, Array], row: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        known_tp1, return_tp1 = following
        reward, discount, terminated, truncated = row
        known = terminated | (known_tp1 & ~truncated)
        total = reward + discount * return_tp1
        return (known, total), (known, total)

    first = (rows.terminated[0] & False, rows.reward[0] * 0.0)
    inputs = (rows.reward, rows.discount, rows.terminated, rows.truncated)
    known, total = jax.lax.scan(back, first, inputs, reverse=True)[1]
    flat = rows.obs.reshape(-1, rows.obs.shape[-1])
    chunk = rows.action.reshape(-1, 1, *rows.action.shape[-2:])
    q = jnp.mean(algorithm.value(state, flat, chunk), 0).reshape(total.shape)
    gap, count = (
        all_sum(jnp.sum(jnp.where(known, q - total, 0.0))),
        all_sum(jnp.sum(known, dtype=jnp.float32)),
    )
    return gap / jnp.where(count > 0, count, jnp.nan)

"""Returns and advantages. Arrays are time-major; names carry the time (``reward_t``, ``discount_t``)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.mesh import all_sum, batch_mean, zeros_like
from gcp_jax.types import Array, PyTree, Step, Transition


def fold_chunk(steps: Step, gamma: float, extras: PyTree | None = None) -> Transition:
    """Fold windows of h environment steps [..., h] into chunk transitions [...].

    ``reward = Σ_{i<n} γ^i r_i`` and ``discount = γ^n (1 − terminated)`` over the n executed steps: those up to and with
    the first end. ``next_obs`` is the true successor of the last of them; a truncated window still bootstraps from it.
    """
    ended = steps.terminated | steps.truncated
    before = jnp.cumsum(ended, -1) - ended
    mask = (steps.executed & (before == 0)).astype(jnp.float32)
    count = jnp.sum(mask, -1)
    last = jnp.maximum(count.astype(jnp.int32) - 1, 0)
    powers = gamma ** jnp.arange(mask.shape[-1], dtype=jnp.float32).reshape(
        (1,) * (mask.ndim - 1) + (-1,)
    )

    def at_last(x: Array) -> Array:
        index = last.reshape(last.shape + (1,) * (x.ndim - last.ndim))
        return jnp.take_along_axis(x, index, axis=last.ndim).squeeze(last.ndim)

    terminated = at_last(steps.terminated)
    return Transition(
        obs=steps.obs[..., 0, :],
        action=steps.action,
        mask=mask,
        reward=jnp.sum(jnp.where(mask > 0, powers * steps.reward, 0.0), -1),
        discount=gamma**count * (1.0 - terminated),
        next_obs=at_last(steps.next_obs),
        terminated=terminated,
        truncated=at_last(steps.truncated) & ~terminated,
        extras={} if extras is None else extras,
    )


def gae(
    *,
    reward_t: Array,
    discount_t: Array,
    truncated_t: Array,
    value_t: Array,
    value_tp1: Array,
    lambda_: float,
) -> Array:
    """Generalised advantage estimation (Schulman et al. 2016) over chunk transitions; all [T, ...], returns [T, ...].

    ``δ_t = r_t + d_t V(s'_t) − V(s_t)`` with s' the true successor, ``A_t = δ_t + λ d_t (1 − truncated_t) A_{t+1}``:
    a time limit bootstraps from its successor but cuts the recursion, a termination (d_t = 0) does both.
    """
    delta_t = reward_t + discount_t * value_tp1 - value_t
    decay_t = lambda_ * discount_t * (1.0 - truncated_t)

    def step(advantage_tp1: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, decay = inputs
        advantage = delta + decay * advantage_tp1
        return advantage, advantage

    _, advantage_t = jax.lax.scan(step, zeros_like(delta_t[0]), (delta_t, decay_t), reverse=True)
    return advantage_t


def chunk_gae(data: Transition, value_t: Array, value_tp1: Array, lambda_: float) -> Array:
    """``gae`` of folded chunk transitions [T, ...], with V of their ``obs`` and ``next_obs``."""
    return gae(
        reward_t=data.reward,
        discount_t=data.discount,
        truncated_t=data.truncated,
        value_t=value_t,
        value_tp1=value_tp1,
        lambda_=lambda_,
    )


def normalize_advantage(advantage: Array) -> Array:
    """Advantages [B] less their mean and divided by their standard deviation over the batch of all devices."""
    centred = advantage - batch_mean(advantage)
    return centred / (jnp.sqrt(batch_mean(centred**2)) + 1e-8)


class Moments(NamedTuple):
    """Running number, mean and sum of squared deviations of a stream of numbers, all scalars."""

    total: Array
    mean: Array
    deviation: Array

    @property
    def std(self) -> Array:
        """Standard deviation; 1 before there are two numbers or where they are all the same."""
        variance = self.deviation / jnp.maximum(self.total, 1.0)
        return jnp.sqrt(jnp.where(variance > 1e-8, variance, 1.0))

    def merge(self, x: Array) -> Moments:
        """With the numbers x of all devices taken in (Chan, Golub & LeVeque 1983, eq. 1.5)."""
        count = all_sum(jnp.float32(x.size))
        mean = batch_mean(x)
        deviation = all_sum(jnp.sum((x - mean) ** 2))
        total = self.total + count
        shift = mean - self.mean
        between = shift**2 * self.total * count / total
        return Moments(
            total, self.mean + shift * count / total, self.deviation + deviation + between
        )


def running_return(*, reward_t: Array, decay_t: Array) -> Array:
    """``R_t = decay_{t−1} R_{t−1} + r_t`` from R_{−1} = 0, the discounted return so far; all [T, ...].

    Its standard deviation is what rewards are divided by (reward scaling, Engstrom et al. 2020). decay: 0 after an end.
    """

    def step(carried: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, decay = inputs
        total = carried + reward
        return decay * total, total

    return jax.lax.scan(step, zeros_like(reward_t[0]), (reward_t, decay_t))[1]


def update_moments(moments: Moments, data: Transition) -> Moments:
    """With the running returns of chunk transitions [T, ...] taken in; the running sum restarts at each call."""
    decay = data.discount * (1.0 - data.truncated)
    return moments.merge(running_return(reward_t=data.reward, decay_t=decay))


def group_advantage(q: Array) -> Array:
    """A_j = Q_j − mean_j' Q_j' over the group (last axis); no division by the group's std. Any leading axes."""
    return q - jnp.mean(q, -1, keepdims=True)


def leave_one_out_advantage(q: Array) -> Array:
    """A_j = Q_j − mean of the other G−1 of the group (RLOO/LOOP); the group advantage times G/(G−1)."""
    group = q.shape[-1]
    return group_advantage(q) * (group / (group - 1))


def sign_consensus_advantage(advantages: Array) -> Array:
    """Sign consensus over the ensemble (OGPO+CA): advantages [M, ...] of each head -> [...].

    The smallest where every head is positive, the largest where every head is negative, 0 where they disagree.
    """
    low, high = jnp.min(advantages, 0), jnp.max(advantages, 0)
    return jnp.where(low > 0, low, jnp.where(high < 0, high, 0.0))


def monte_carlo_return(
    *, reward_t: Array, ended_t: Array, outcome_t: Array, gamma: float
) -> tuple[Array, Array, Array]:
    """What became of each step's episode, once it is known; all arrays [T, ...], time-major.

    ended: the step ended its episode; outcome: a fact of that last step (success, say). Returns
    (known_t, outcome_t, return_t): whether the episode has ended within the array, its outcome, and
    ``G_t = r_t + γ (1 − ended_t) G_{t+1}`` (meaningful only where known).
    """

    Carry = tuple[Array, Array, Array]

    def step(after: Carry, inputs: Carry) -> tuple[Carry, Carry]:
        known_tp1, outcome_tp1, return_tp1 = after
        reward, ended, outcome = inputs
        known = ended | known_tp1
        fact = jnp.where(ended, outcome, outcome_tp1)
        total = reward + gamma * jnp.where(ended, 0.0, return_tp1)
        return (known, fact, total), (known, fact, total)

    unknown = zeros_like(ended_t[0])
    first = (unknown, unknown, unknown.astype(reward_t.dtype))
    return jax.lax.scan(step, first, (reward_t, ended_t, outcome_t), reverse=True)[1]

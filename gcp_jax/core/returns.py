"""Returns and advantages. Arrays are time-major; ``x_t`` is x at time t, ``x_tp1`` at t + 1."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.mesh import all_sum, batch_mean, zeros_varying_like
from gcp_jax.types import Array, PyTree, Step, Transition

ROUNDING = 1e-5  # a float32 std up to this, relative to the mean, is that of rounded sums


def fold_chunk(steps: Step, gamma: float, extras: PyTree | None = None) -> Transition:
    """Fold windows of h environment steps into chunk transitions.

    ``reward = Σ_{i<n} γ^i r_i`` and ``discount = γ^n (1 − terminated)`` over the n executed steps,
    which are those up to the first end, included. ``next_obs`` is the true successor of the last of
    them; a truncated window still bootstraps from it.

    Args:
      steps: leaves [..., h, ...].
      gamma: γ, discount of one environment step.
      extras: extras of the transitions, leaves [..., ...]; None: {}.

    Returns:
      Transitions [...].
    """
    ended = steps.terminated | steps.truncated
    earlier_ends = jnp.cumsum(ended, -1) - ended
    mask = (steps.executed & (earlier_ends == 0)).astype(jnp.float32)
    count = jnp.sum(mask, -1)
    last = jnp.maximum(count.astype(jnp.int32) - 1, 0)
    exponents = jnp.arange(mask.shape[-1], dtype=jnp.float32)
    powers = gamma ** exponents.reshape((1,) * (mask.ndim - 1) + (-1,))

    def at_last(x: Array) -> Array:
        """x [..., h, ...] at the last executed step, [..., ...]."""
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
    """Generalized advantage estimation (Schulman et al. 2016) over chunk transitions.

    ``δ_t = r_t + d_t V(s'_t) − V(s_t)`` with s' the true successor, and
    ``A_t = δ_t + λ d_t (1 − truncated_t) A_{t+1}``. A time limit bootstraps from its successor and
    ends the recursion; a termination (d_t = 0) ends both.

    Args:
      reward_t: r_t [T, ...].
      discount_t: d_t [T, ...].
      truncated_t: bool [T, ...].
      value_t: V(s_t) [T, ...].
      value_tp1: V(s'_t) [T, ...].
      lambda_: λ.

    Returns:
      A_t [T, ...].
    """
    delta_t = reward_t + discount_t * value_tp1 - value_t
    decay_t = lambda_ * discount_t * (1.0 - truncated_t)

    def step(advantage_tp1: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, decay = inputs
        advantage = delta + decay * advantage_tp1
        return advantage, advantage

    first = zeros_varying_like(delta_t[0])
    _, advantage_t = jax.lax.scan(step, first, (delta_t, decay_t), reverse=True)
    return advantage_t


def chunk_gae(transitions: Transition, value_t: Array, value_tp1: Array, lambda_: float) -> Array:
    """``gae`` of chunk transitions [T, ...], given V of their ``obs`` and ``next_obs``."""
    return gae(
        reward_t=transitions.reward,
        discount_t=transitions.discount,
        truncated_t=transitions.truncated,
        value_t=value_t,
        value_tp1=value_tp1,
        lambda_=lambda_,
    )


def divide_by_std(x: Array, *, std: Array, level: Array, epsilon: float) -> Array:
    """x / (std + ε); 0 if the std is no more than the rounding of numbers of size ``level``."""
    changes = std > ROUNDING * jnp.abs(level)
    return jnp.where(changes, x / (std + epsilon), 0.0)


def normalize_advantage(advantage: Array) -> Array:
    """Subtract the mean of advantages [B] and divide by their std, over all devices' samples."""
    mean = batch_mean(advantage)
    centered = advantage - mean
    std = jnp.sqrt(batch_mean(centered**2))
    return divide_by_std(centered, std=std, level=mean, epsilon=1e-8)


class Moments(NamedTuple):
    """Running count, mean and sum of squared deviations of a stream of numbers, all scalars."""

    total: Array
    mean: Array
    deviation: Array

    @classmethod
    def empty(cls) -> Moments:
        """Of no numbers."""
        return cls(total=jnp.float32(0.0), mean=jnp.float32(0.0), deviation=jnp.float32(0.0))

    @property
    def std(self) -> Array:
        """Standard deviation; 1 before there are two numbers, or if all numbers are equal."""
        variance = self.deviation / jnp.maximum(self.total, 1.0)
        rounding = jnp.maximum(1e-8, (ROUNDING * self.mean) ** 2)
        return jnp.sqrt(jnp.where(variance > rounding, variance, 1.0))

    def update(self, x: Array) -> Moments:
        """Include the numbers x of all devices (Chan, Golub & LeVeque 1983, eq. 1.5)."""
        count = all_sum(jnp.float32(x.size))
        mean = batch_mean(x)
        deviation = all_sum(jnp.sum((x - mean) ** 2))
        total = self.total + count
        shift = mean - self.mean
        between = shift**2 * self.total * count / total
        return Moments(
            total=total,
            mean=self.mean + shift * count / total,
            deviation=self.deviation + deviation + between,
        )


def running_return(*, reward_t: Array, decay_t: Array) -> Array:
    """Discounted return so far: ``R_t = decay_{t−1} R_{t−1} + r_t`` from R_{−1} = 0, all [T, ...].

    Rewards are divided by its standard deviation (reward scaling, Engstrom et al. 2020). decay_t
    is 0 if step t ended the episode.
    """

    def step(carried: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, decay = inputs
        total = carried + reward
        return decay * total, total

    _, return_t = jax.lax.scan(step, zeros_varying_like(reward_t[0]), (reward_t, decay_t))
    return return_t


def update_moments(moments: Moments, transitions: Transition) -> Moments:
    """Include the running returns of chunk transitions [T, ...]; they restart at each call."""
    decay_t = transitions.discount * (1.0 - transitions.truncated)
    return moments.update(running_return(reward_t=transitions.reward, decay_t=decay_t))


def group_advantage(q: Array) -> Array:
    """A_j = Q_j − mean_j' Q_j' over the group (last axis), without dividing by the group's std."""
    return q - jnp.mean(q, -1, keepdims=True)


def leave_one_out_advantage(q: Array) -> Array:
    """A_j = Q_j − mean of the other G−1 values of the group, the last axis (RLOO, LOOP).

    It is the group advantage times G/(G−1).
    """
    group = q.shape[-1]
    return group_advantage(q) * (group / (group - 1))


def sign_consensus_advantage(advantages: Array) -> Array:
    """Sign consensus over the ensemble (OGPO+CA): advantages [M, ...] of the critics -> [...].

    The smallest if all critics' are positive, the largest if all are negative, else 0.
    """
    low = jnp.min(advantages, 0)
    high = jnp.max(advantages, 0)
    return jnp.where(low > 0, low, jnp.where(high < 0, high, 0.0))


class EpisodeOutcome(NamedTuple):
    """How the episode of each step ended; leaves [T, ...]."""

    known_t: Array  # bool: the episode ends within the array
    outcome_t: Array  # bool: its outcome; False if not known
    return_t: Array  # discounted return from the step on; meaningful only if known


def monte_carlo_return(
    *, reward_t: Array, ended_t: Array, outcome_t: Array, gamma: float
) -> EpisodeOutcome:
    """Propagate how each episode ended to its earlier steps.

    ``G_t = r_t + γ (1 − ended_t) G_{t+1}``.

    Args:
      reward_t: r_t [T, ...].
      ended_t: bool [T, ...]: the step ended its episode.
      outcome_t: bool [T, ...]: a fact about that last step, e.g. success.
      gamma: γ.
    """

    def step(
        later: EpisodeOutcome, inputs: tuple[Array, Array, Array]
    ) -> tuple[EpisodeOutcome, EpisodeOutcome]:
        reward, ended, outcome = inputs
        result = EpisodeOutcome(
            known_t=ended | later.known_t,
            outcome_t=jnp.where(ended, outcome, later.outcome_t),
            return_t=reward + gamma * jnp.where(ended, 0.0, later.return_t),
        )
        return result, result

    unknown = zeros_varying_like(ended_t[0])
    first = EpisodeOutcome(
        known_t=unknown, outcome_t=unknown, return_t=unknown.astype(reward_t.dtype)
    )
    _, result = jax.lax.scan(step, first, (reward_t, ended_t, outcome_t), reverse=True)
    return result

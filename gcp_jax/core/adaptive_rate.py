"""A learning rate that keeps the fraction of clipped ratios at a target.

A PPO loss bounds how far a policy moves only where its gradient points outwards; how far it moves
is decided by the learning rate, whose right value depends on the width of the network, on the clip
and on how fast θ̄ follows. The factor f of the learning rate is therefore integrated,

    f ← f · exp(SPEED · clip((target − clip fraction)/target, −1, 1)),   within FACTOR_RANGE,

as rsl_rl's adaptive rate does for a target KL (Schwarke et al. 2025, arXiv 2509.10771), but a
little after every update instead of by a factor of 1.5 after every minibatch: the ratio answers to
a change of the rate only after the 1/τ updates in which θ̄ follows.
"""

from __future__ import annotations

import jax.numpy as jnp

from gcp_jax.types import Array

SPEED = 0.01  # largest change of log f by one update
FACTOR_RANGE = (1e-3, 10.0)


def adapted_factor(factor: Array, *, clip_fraction: Array, target: float) -> Array:
    """The factor f of the learning rate for the next update, [].

    Args:
      factor: f of this update [].
      clip_fraction: fraction of ratios outside of the clip [].
      target: the fraction to keep, above 0.
    """
    error = jnp.clip((target - clip_fraction) / target, -1.0, 1.0)
    return jnp.clip(factor * jnp.exp(SPEED * error), *FACTOR_RANGE)

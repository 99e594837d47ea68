"""How large the gradients of an actor's losses are, and how much of one is signal.

Gradients g_t of successive updates come from independent samples, at almost the same parameters.
Then E⟨g_t, g_{t−1}⟩ = |ḡ|² and E|g_t|² = |ḡ|² + |noise|², and the signal-to-noise ratio is

    SNR = |ḡ| / |noise| = sqrt(E⟨g_t, g_{t−1}⟩ / (E|g_t|² − E⟨g_t, g_{t−1}⟩)),

with the expectations averaged over the last updates.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gcp_jax.core.tree import where_tree
from gcp_jax.types import Array, PyTree

DECAY = 0.98  # of the averages: the last 50 updates


class Average(NamedTuple):
    """An exponential average of a number, without bias towards its beginning."""

    total: Array  # []
    weight: Array  # []

    @classmethod
    def empty(cls) -> Average:
        """The average of nothing yet."""
        return cls(total=jnp.float32(0.0), weight=jnp.float32(0.0))

    def add(self, x: Array) -> Average:
        """The average with one more number x []."""
        return Average(
            total=DECAY * self.total + (1.0 - DECAY) * x,
            weight=DECAY * self.weight + (1.0 - DECAY),
        )

    @property
    def mean(self) -> Array:
        """The average []; 0 if it is empty."""
        return self.total / jnp.where(self.weight > 0.0, self.weight, 1.0)


class Signal(NamedTuple):
    """What the signal-to-noise ratio of a gradient is computed from."""

    gradient: PyTree  # g_{t−1}
    product: Average  # ⟨g_t, g_{t−1}⟩
    square: Average  # |g_t|²

    @classmethod
    def empty(cls, params: PyTree) -> Signal:
        """Before the first gradient with respect to ``params``."""
        return cls(
            gradient=jax.tree.map(jnp.zeros_like, params),
            product=Average.empty(),
            square=Average.empty(),
        )

    def add(self, gradient: PyTree) -> Signal:
        """With the gradient of one more update; one that is 0 is left out."""
        square = optax.tree.vdot(gradient, gradient)
        product = self.product.add(optax.tree.vdot(gradient, self.gradient))
        is_first = self.square.weight == 0.0
        new = Signal(
            gradient=gradient,
            product=where_tree(is_first, self.product, product),
            square=self.square.add(square),
        )
        signal: Signal = where_tree(square > 0.0, new, self)
        return signal

    @property
    def snr(self) -> Array:
        """The signal-to-noise ratio []; 0 where the products average below 0."""
        signal = jnp.maximum(self.product.mean, 0.0)
        noise = jnp.maximum(self.square.mean - signal, jnp.finfo(jnp.float32).tiny)
        return jnp.sqrt(signal / noise)


class Balance(NamedTuple):
    """Averages of the norms of two gradients, by which each is divided before they are added."""

    policy: Average
    imitation: Average

    @classmethod
    def empty(cls) -> Balance:
        """Before the first gradients."""
        return cls(policy=Average.empty(), imitation=Average.empty())

    def add(self, *, policy_norm: Array, imitation_norm: Array) -> Balance:
        """With the norms of one more update."""
        return Balance(
            policy=self.policy.add(policy_norm), imitation=self.imitation.add(imitation_norm)
        )

    def weighted_sum(self, policy: PyTree, imitation: PyTree, *, weight: float) -> PyTree:
        """policy/|policy| + weight · imitation/|imitation|, by the averaged norms."""
        policy_scale = _inverse(self.policy.mean)
        imitation_scale = weight * _inverse(self.imitation.mean)
        return jax.tree.map(lambda x, y: policy_scale * x + imitation_scale * y, policy, imitation)


def _inverse(norm: Array) -> Array:
    """1/norm; 0 where the norm is 0."""
    return jnp.where(norm > 0.0, 1.0 / jnp.where(norm > 0.0, norm, 1.0), 0.0)

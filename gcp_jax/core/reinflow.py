"""ReinFlow: a flow's deterministic steps with a learned noise (arXiv 2505.22094; algorithms.md §3).

    x_{k+1} ~ N(clip(x_k + v_k/K, ±1), σ_θ(s, t_k)²),    σ_θ = low + (high − low) · sigmoid f_θ(s, t)
    lp      = Σ_k log N(x_{k+1}; ·) / (K+1) / D

Where the released code differs: chains are scored on the time grid they were sampled on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax.core.denoising import Chain, DeterministicStep, StochasticStep
from gcp_jax.core.networks import ActorNet, sinusoidal_embedding
from gcp_jax.types import Array, PyTree

TIME_DIM = 32
HIDDEN = (64, 64)
LAST_SCALE = 1e-4  # of the last kernel: σ starts in the middle of its range


class LearnedNoise(NamedTuple):
    """init: (key) -> params
    std:  (params, obs [..., O], t [...]) -> σ [..., D] in [low, high], leading axes of one rank that broadcast
    """

    init: Callable[[Array], PyTree]
    std: Callable[[PyTree, Array, Array], Array]

    def stochastic_step(
        self, params: PyTree, advance: DeterministicStep, obs: Array, inner: int = 0
    ) -> StochasticStep:
        """The stochastic step around ``advance``; ``inner`` as in ``Policy``."""
        wide = obs.reshape(*obs.shape[:-1], *(1,) * inner, obs.shape[-1])
        return lambda x, t: (jnp.clip(advance(x, t), -1.0, 1.0), self.std(params, wide, t))


def make_learned_noise(obs_dim: int, action_dim: int, *, low: float, high: float) -> LearnedNoise:
    """σ_θ between ``low`` and ``high`` for normalized observations [O] and flattened actions [D]."""
    net = ActorNet((obs_dim, TIME_DIM), action_dim, HIDDEN, LAST_SCALE)

    def init(key: Array) -> PyTree:
        return net.init(key, jnp.zeros((1, obs_dim)), jnp.zeros((1, TIME_DIM)))["params"]

    def std(params: PyTree, obs: Array, t: Array) -> Array:
        share = jax.nn.sigmoid(
            jnp.asarray(net.apply({"params": params}, obs, sinusoidal_embedding(t, TIME_DIM)))
        )
        return low + (high - low) * share

    return LearnedNoise(init, std)


def reinflow_log_density(walk: Chain) -> Array:
    """lp of the whole chain given its first point, [...]."""
    steps, dims = walk.mean.shape[-2:]
    return jnp.sum(walk.log_densities, (-2, -1)) / (steps + 1) / dims

"""ReinFlow: a flow's deterministic steps with learned noise (Zhang et al. 2025, arXiv 2505.22094).

    x_{k+1} ~ N(clip(x_k + v_k/K, ±1), σ_θ(s, t_k)²),   σ_θ = low + (high − low) · sigmoid f_θ(s, t)
    log-density of a chain    Σ_k log N(x_{k+1}; ·) / (K+1) / D

Difference from the released code: chains are scored on the time grid on which they were sampled.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gcp_jax.core.denoising import Chain, DeterministicStep, StochasticStep
from gcp_jax.core.networks import ActorNet, apply_net, sinusoidal_embedding
from gcp_jax.types import Array, Params, PRNGKey

TIME_DIM = 32
HIDDEN = (64, 64)
LAST_SCALE = 1e-4  # of the last kernel: σ starts in the middle of its range


@dataclasses.dataclass(frozen=True)
class LearnedNoise:
    """σ_θ(s, t), a standard deviation for each dimension of the flattened action."""

    net: ActorNet
    low: float  # smallest σ
    high: float  # largest σ

    def init(self, key: PRNGKey) -> Params:
        """Initialize θ; key is consumed."""
        obs = jnp.zeros((1, self.net.sizes[0]))
        time = jnp.zeros((1, TIME_DIM))
        params: Params = self.net.init(key, obs, time)["params"]
        return params

    def std(self, params: Params, obs: Array, t: Array) -> Array:
        """σ [..., D] of obs [..., O] and t [...]; leading axes have one rank and broadcast."""
        logits = apply_net(self.net, params, obs, sinusoidal_embedding(t, TIME_DIM))
        return self.low + (self.high - self.low) * jax.nn.sigmoid(logits)

    def stochastic_step(
        self, params: Params, flow_step: DeterministicStep, obs: Array, inner: int = 0
    ) -> StochasticStep:
        """The flow's step with learned noise.

        Args:
          params: θ.
          flow_step: the deterministic step of the flow.
          obs: normalized observations [..., O].
          inner: number of axes that the points have between those of ``obs`` and their last.
        """
        obs = obs.reshape(*obs.shape[:-1], *(1,) * inner, obs.shape[-1])

        def step(x: Array, t: Array) -> tuple[Array, Array]:
            return jnp.clip(flow_step(x, t), -1.0, 1.0), self.std(params, obs, t)

        return step


def make_learned_noise(obs_dim: int, action_dim: int, *, low: float, high: float) -> LearnedNoise:
    """σ_θ in [low, high] for normalized observations [O] and flattened actions [D]."""
    net = ActorNet(
        sizes=(obs_dim, TIME_DIM), out_dim=action_dim, hidden=HIDDEN, last_scale=LAST_SCALE
    )
    return LearnedNoise(net=net, low=low, high=high)


def reinflow_log_density(chain: Chain) -> Array:
    """Normalized log-density [...] of a chain given its first point."""
    steps, dims = chain.mean.shape[-2:]
    return jnp.sum(chain.log_densities, (-2, -1)) / (steps + 1) / dims

"""Generative control policies over flattened chunks.

A ``Policy`` provides the functions that algorithms need, whatever its family is. They work on
flattened chunks, D = h·A, and on normalized observations. Leading axes of observations and of
samples broadcast: obs [B, 1, O] beside samples [B, G, D].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import config_fields
from gcp_jax.config_fields import FINITE, POSITIVE_INT, field
from gcp_jax.core import denoising, diffusion, flow
from gcp_jax.core.networks import DenoisingNet, Normalizer, apply_net
from gcp_jax.mesh import sample_keys
from gcp_jax.types import Array, Deployed, Params, PRNGKey, Specs

SCHEMES = {"flow": flow.SCHEMES, "diffusion": diffusion.SCHEMES}
MIN_HALF_RANGE = 0.05  # so that finetuning can move what demonstrations hold still


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """The policy's network and sampler.

    Networks see each action dimension's range, from ``low`` to ``high``, as [-1, 1], and their
    actions never leave it.
    """

    family: str = field("flow", ("flow", "diffusion"), "generative family")
    chunk: int = field(4, POSITIVE_INT, "h: environment steps of one action chunk")
    hidden: tuple[int, ...] = field((128, 128, 128), POSITIVE_INT, "widths of the network")
    steps: int = field(5, denoising.DENOISING_STEPS, "K: denoising steps")
    sigma: float = field(
        0.05, denoising.SIGMA, "noise of a flow's SDE; smallest std of a diffusion's step"
    )
    scheme: str = field(
        "auto", None, "flow: paper, marginal; diffusion: ddpm, ddim; auto: the family's first"
    )
    train_steps: int = field(
        0, diffusion.TRAIN_STEPS, "T: noise levels of a diffusion, a multiple of K; 0: K"
    )
    compute: str = field(
        "float32", ("float32", "bfloat16"), "dtype in which this network and the critics compute"
    )
    low: tuple[float, ...] = field((), FINITE, "[A] lower ends of the action range; (): -1")
    high: tuple[float, ...] = field((), FINITE, "[A] upper ends of the action range; (): 1")

    def __post_init__(self) -> None:
        config_fields.check(self, "policy.")
        if len(self.low) != len(self.high) or any(
            low >= high for low, high in zip(self.low, self.high, strict=True)
        ):
            raise ValueError(
                f"policy.low is {self.low} and policy.high {self.high}; "
                "give both ends of every action dimension, low below high."
            )
        if self.family == "flow" and self.train_steps:
            raise ValueError(
                f"policy.train_steps is {self.train_steps}; only policy.family='diffusion' has any."
            )
        _ = self.sampler  # checks the fields that the sampler shares

    @property
    def sampler(self) -> denoising.Sampler:
        """How actions and chains are sampled."""
        scheme = SCHEMES[self.family][0] if self.scheme == "auto" else self.scheme
        if self.family == "flow":
            return flow.FlowSampler(steps=self.steps, sigma=self.sigma, scheme=scheme)
        return diffusion.DiffusionSampler(
            steps=self.steps, sigma=self.sigma, scheme=scheme, train_steps=self.train_steps
        )


class Policy(NamedTuple):
    """A generative policy, as pure functions of its network's parameters.

    ``obs`` is normalized, [..., O]. ``inner`` is the number of axes that samples have between the
    axes of ``obs`` and their last: 1 for the points [..., K, D] of a chain, else 0.
    """

    # (key) -> params
    init: Callable[[PRNGKey], Params]
    # (params, obs, z [..., D]) -> action [..., D] of the deterministic sampler
    sample: Callable[[Params, Array, Array], Array]
    # (params, obs, noise [..., K+1, D]) -> Chain of the stochastic sampler
    sample_chain: Callable[[Params, Array, Array], denoising.Chain]
    # (points of a chain [..., K+1, D]) -> action [..., D]
    action: Callable[[Array], Array]
    # (params, obs, points of a chain [..., K+1, D]) -> [...], normalized, of the whole chain
    log_density: Callable[[Params, Array, Array], Array]
    # (params, obs, action [..., D], mask [..., h], z [..., D], t [...]) -> losses [...]
    imitation_loss: Callable[..., Array]
    # (params, obs, inner=0) -> the stochastic denoising step
    stochastic_step: Callable[..., denoising.StochasticStep]
    # (params, obs, inner=0) -> the deterministic denoising step
    deterministic_step: Callable[..., denoising.DeterministicStep]
    config: PolicyConfig
    specs: Specs

    @property
    def times(self) -> Array:
        """Start times of the denoising steps [K]."""
        return self.config.sampler.times

    def untrained(self, key: PRNGKey) -> Deployed:
        """A policy with random parameters and an identity normalizer."""
        width = self.specs.obs_dim
        normalizer = Normalizer(mean=jnp.zeros(width), std=jnp.ones(width))
        return {"net": self.init(key), "normalizer": normalizer}

    def flatten(self, chunk: Array) -> Array:
        """The environment's chunk [..., h, A] as networks see it, [..., D]."""
        if self.config.low:
            middle, half = self._action_range(chunk.ndim)
            chunk = (chunk - middle) / half
        return chunk.reshape(*chunk.shape[:-2], self.specs.flat_action_dim)

    def unflatten(self, action: Array) -> Array:
        """The inverse of ``flatten``, [..., D] -> [..., h, A]."""
        chunk = action.reshape(*action.shape[:-1], self.specs.chunk, self.specs.action_dim)
        if not self.config.low:
            return chunk
        middle, half = self._action_range(chunk.ndim)
        return middle + half * chunk

    def _action_range(self, ndim: int) -> tuple[Array, Array]:
        """Middle and half of the action range, [1, ..., A] of rank ``ndim``."""
        shape = (1,) * (ndim - 1) + (-1,)
        low = jnp.asarray(self.config.low).reshape(shape)
        high = jnp.asarray(self.config.high).reshape(shape)
        return 0.5 * (low + high), 0.5 * (high - low)

    def sample_chains(
        self, params: Params, obs: Array, key: PRNGKey, count: int, *, per_start: int = 1
    ) -> denoising.Chain:
        """Sample ``count`` chains for each obs [B, O], leaves [B, count, ...].

        There is one key per state; key is consumed. Each ``per_start`` successive chains, a divisor
        of ``count``, start from the same x_0 and differ by the noise of their steps only.
        """
        shape = (count, self.config.steps + 1, self.specs.flat_action_dim)
        noise = denoising.sample_noise(key, obs.shape[0], shape)
        if per_start > 1:
            starts = jnp.repeat(noise[:, ::per_start, :1], per_start, axis=1)
            noise = jnp.concatenate([starts, noise[:, :, 1:]], axis=2)
        return self.sample_chain(params, obs[:, None], noise)

    def sample_chain_points(self, params: Params, obs: Array, key: PRNGKey, count: int) -> Array:
        """The points of ``sample_chains``, [B, count, K+1, D]."""
        return self.sample_chains(params, obs, key, count).points

    def sample_n(self, params: Params, obs: Array, key: PRNGKey, count: int) -> Array:
        """Sample ``count`` actions for each obs [B, O] by the deterministic sampler.

        Returns:
          Actions [B, count, D]; key is consumed.
        """
        shape = (count, self.specs.flat_action_dim)
        z = denoising.sample_noise(key, obs.shape[0], shape)
        return self.sample(params, obs[:, None], z)

    def bc_loss(self, params: Params, obs: Array, chunk: Array, mask: Array, key: PRNGKey) -> Array:
        """Imitation loss of each sample, with fresh noise and times.

        Args:
          params: the network's parameters.
          obs: normalized observations [B, O].
          chunk: demonstrated chunks [B, h, A].
          mask: 1 where the chunk's step was executed, [B, h].
          key: a random key; consumed.

        Returns:
          Losses [B].
        """

        def sample_inputs(key: PRNGKey) -> tuple[Array, Array]:
            noise_key, time_key = jax.random.split(key)
            z = jax.random.normal(noise_key, (self.specs.flat_action_dim,))
            return z, jax.random.uniform(time_key)

        z, t = jax.vmap(sample_inputs)(sample_keys(key, obs.shape[0]))
        return self.imitation_loss(params, obs, self.flatten(chunk), mask, z, t)

    def eval_policy(self, deployed: Deployed, obs: Array, key: PRNGKey) -> Array:
        """The policy that is evaluated and deployed: the deterministic sampler from fresh noise.

        Args:
          deployed: {"net": params, "normalizer": Normalizer}.
          obs: raw observations [N, O].
          key: a random key; consumed.

        Returns:
          Chunks [N, h, A].
        """
        z = denoising.sample_noise(key, obs.shape[0], (self.specs.flat_action_dim,))
        return self.unflatten(self.sample(deployed["net"], deployed["normalizer"](obs), z))


@dataclasses.dataclass(frozen=True)
class _DenoisingPolicy:
    """The functions of a ``Policy``, of a denoising network and a sampler."""

    net: DenoisingNet
    sampler: denoising.Sampler
    specs: Specs

    def init(self, key: PRNGKey) -> Params:
        obs = jnp.zeros((1, self.specs.obs_dim))
        action = jnp.zeros((1, self.specs.flat_action_dim))
        params: Params = self.net.init(key, obs, action, jnp.zeros((1,)))["params"]
        return params

    def bind(self, params: Params, obs: Array, inner: int = 0) -> denoising.DenoisingFn:
        """The network at these observations, which are encoded once for all denoising steps."""
        encoded = apply_net(self.net, params, obs, method="encode")
        encoded = encoded.reshape(*encoded.shape[:-1], *(1,) * inner, encoded.shape[-1])

        def denoise(x: Array, t: Array) -> Array:
            return apply_net(self.net, params, encoded, x, t, method="denoise")

        return denoise

    def stochastic_step(
        self, params: Params, obs: Array, inner: int = 0
    ) -> denoising.StochasticStep:
        return self.sampler.stochastic_step(self.bind(params, obs, inner))

    def deterministic_step(
        self, params: Params, obs: Array, inner: int = 0
    ) -> denoising.DeterministicStep:
        return self.sampler.deterministic_step(self.bind(params, obs, inner))

    def sample(self, params: Params, obs: Array, z: Array) -> Array:
        step = self.deterministic_step(params, obs)
        return denoising.integrate_ode(step, z, self.sampler.times)

    def sample_chain(self, params: Params, obs: Array, noise: Array) -> denoising.Chain:
        step = self.stochastic_step(params, obs)
        return denoising.sample_chain(step, noise, self.sampler.times)

    def log_density(self, params: Params, obs: Array, points: Array) -> Array:
        step = self.stochastic_step(params, obs, inner=1)
        return denoising.rescore_chain(step, points, self.sampler.times).log_density

    def imitation_loss(
        self, params: Params, obs: Array, action: Array, mask: Array, z: Array, t: Array
    ) -> Array:
        mask = jnp.repeat(mask, self.specs.action_dim, axis=-1)
        return self.sampler.loss(self.bind(params, obs), action=action, z=z, t=t, mask=mask)


def make_policy(config: PolicyConfig, specs: Specs) -> Policy:
    """Build a policy of ``config.family``.

    Raises:
      ValueError: ``config.low`` and ``config.high`` have another number of dimensions than actions.
    """
    if len(config.low) not in (0, specs.action_dim):
        raise ValueError(
            f"policy.low and policy.high have {len(config.low)} dimensions; "
            f"actions have {specs.action_dim}."
        )
    net = DenoisingNet(
        obs_dim=specs.obs_dim,
        out_dim=specs.flat_action_dim,
        hidden=config.hidden,
        dtype=config.compute,
    )
    functions = _DenoisingPolicy(net=net, sampler=config.sampler, specs=specs)
    return Policy(
        init=functions.init,
        sample=functions.sample,
        sample_chain=functions.sample_chain,
        action=denoising.chain_action,
        log_density=functions.log_density,
        imitation_loss=functions.imitation_loss,
        stochastic_step=functions.stochastic_step,
        deterministic_step=functions.deterministic_step,
        config=config,
        specs=specs,
    )


def rescaled_to_actions(config: PolicyConfig, action: np.ndarray) -> PolicyConfig:
    """Set the action range to that of demonstrated actions.

    Args:
      config: the policy.
      action: actions [T, A].

    Returns:
      ``config`` with the range of each dimension, which is at least 2·MIN_HALF_RANGE wide.
    """
    low = action.min(0)
    high = action.max(0)
    middle = 0.5 * (low + high)
    half = np.maximum(0.5 * (high - low), MIN_HALF_RANGE)
    return dataclasses.replace(
        config,
        low=tuple(float(x) for x in middle - half),
        high=tuple(float(x) for x in middle + half),
    )

"""Generative control policies over flattened chunks.

A ``Policy`` hides its family behind the functions every algorithm needs; algorithms flatten chunks to D = h·A and pass
normalized observations. Leading axes of ``obs`` and of the samples broadcast: [B, 1, O] beside [B, G, D].
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import config_fields
from gcp_jax.config_fields import FINITE, POSITIVE_INT
from gcp_jax.core import denoising as chains
from gcp_jax.core import diffusion, flow
from gcp_jax.core.networks import DenoisingNet, Normalizer
from gcp_jax.mesh import sample_keys
from gcp_jax.types import Array, PyTree, Specs

FAMILIES = {"flow": flow, "diffusion": diffusion}
COMPUTE = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """The policy's network and sampler. ``family`` is "flow" or "diffusion", ``chunk`` is h, ``steps`` is K; for ``sigma``,
    ``scheme`` ("auto": the family's first) and ``train_steps`` (diffusions only) see ``flow.Sampler`` and
    ``diffusion.Sampler``. ``compute`` is "float32" or "bfloat16", in which this network and critics are evaluated. ``low`` and
    ``high`` [A] are the ends of the range of each action dimension that networks see as [-1, 1] and never leave; () is the
    environment's own, ±1."""

    family: str = "flow"
    chunk: int = 4
    hidden: tuple[int, ...] = (128, 128, 128)
    steps: int = 5
    sigma: float = 0.05
    scheme: str = "auto"
    train_steps: int = 0
    compute: str = "float32"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    RANGES = {
        "chunk": POSITIVE_INT,
        "hidden": POSITIVE_INT,
        "low": FINITE,
        "high": FINITE,
        **diffusion.DiffusionSampler.RANGES,
    }

    def __post_init__(self) -> None:
        config_fields.check(self, "policy.")
        if self.family not in FAMILIES:
            raise ValueError(f"policy.family is {self.family!r}; allowed: {', '.join(FAMILIES)}.")
        if self.compute not in COMPUTE:
            raise ValueError(f"policy.compute is {self.compute!r}; allowed: {', '.join(COMPUTE)}.")
        if len(self.low) != len(self.high) or not all(map(operator.lt, self.low, self.high)):
            raise ValueError(
                f"policy.low is {self.low} and policy.high {self.high}; give both ends of every action dimension, low below high."
            )
        if not self.hidden:
            raise ValueError("policy.hidden is (); give at least one width, e.g. (128, 128, 128).")
        if self.family == "flow" and self.train_steps:
            raise ValueError(
                f"policy.train_steps is {self.train_steps}; only policy.family='diffusion' has any."
            )
        _ = self.sampler

    @property
    def sampler(self) -> chains.Sampler:
        """How chains are drawn."""
        scheme = FAMILIES[self.family].SCHEMES[0] if self.scheme == "auto" else self.scheme
        if self.family == "flow":
            return flow.FlowSampler(self.steps, self.sigma, scheme)
        return diffusion.DiffusionSampler(self.steps, self.sigma, scheme, self.train_steps)


class Policy(NamedTuple):
    """A generative policy as pure functions of its network parameters.

    init:           (key) -> params
    sample:         (params, obs, z [..., D]) -> action [..., D]                deterministic sampler
    walk:           (params, obs, noise [..., K+1, D]) -> chain.Walk            stochastic sampler
    action:         (chain) -> action [..., D]
    log_density:    (params, obs, chain) -> [...]                               normalized, of the whole chain
    imitation_loss: (params, obs, action, mask [..., h], z, t [...]) -> [...]   per sample
    transition:     (params, obs, inner) -> chain.Transition                    its stochastic denoising step
    advance:        (params, obs, inner) -> chain.Advance                       its deterministic one

    ``inner`` counts the axes that samples have between those of ``obs`` and their last: 1 for points [..., K, D] of a chain.
    """

    init: Callable[[Array], PyTree]
    sample: Callable[[PyTree, Array, Array], Array]
    sample_chain: Callable[[PyTree, Array, Array], chains.Chain]
    action: Callable[[Array], Array]
    log_density: Callable[[PyTree, Array, Array], Array]
    imitation_loss: Callable[..., Array]
    stochastic_step: Callable[..., chains.StochasticStep]
    deterministic_step: Callable[..., chains.DeterministicStep]
    config: PolicyConfig
    specs: Specs

    @property
    def times(self) -> Array:
        """[K] the times at which denoising steps start."""
        return self.config.sampler.times

    def untrained(self, key: Array) -> PyTree:
        """What is deployed before any cloning: random parameters, observations as they are."""
        width = self.specs.obs_dim
        return {"net": self.init(key), "normalizer": Normalizer(jnp.zeros(width), jnp.ones(width))}

    def flatten(self, chunk: Array) -> Array:
        """The environment's chunk [..., h, A] as networks see it, [..., D]: every action dimension's range as [-1, 1]."""
        if self.config.low:
            middle, half = self._range(chunk.ndim)
            chunk = (chunk - middle) / half
        return chunk.reshape(*chunk.shape[:-2], self.specs.flat_action_dim)

    def unflatten(self, action: Array) -> Array:
        """The inverse of ``flatten``, [..., D] -> [..., h, A]."""
        chunk = action.reshape(*action.shape[:-1], self.specs.chunk, self.specs.action_dim)
        if not self.config.low:
            return chunk
        middle, half = self._range(chunk.ndim)
        return middle + half * chunk

    def _range(self, ndim: int) -> tuple[Array, Array]:
        low, high = (
            jnp.asarray(end).reshape(*(1,) * (ndim - 1), -1)
            for end in (self.config.low, self.config.high)
        )
        return 0.5 * (low + high), 0.5 * (high - low)

    def sample_chains(self, params: PyTree, obs: Array, key: Array, count: int) -> chains.Chain:
        """``count`` chains for each normalized obs [B, O], with one key a state, leaves [B, count, …]; key is consumed."""
        shape = (count, self.config.steps + 1, self.specs.flat_action_dim)
        return self.sample_chain(
            params, obs[:, None], chains.sample_noise(key, obs.shape[0], shape)
        )

    def sample_chain_points(self, params: PyTree, obs: Array, key: Array, count: int) -> Array:
        """The points of ``draw_walks``, [B, count, K+1, D]."""
        return self.sample_chains(params, obs, key, count).points

    def sample_n(self, params: PyTree, obs: Array, key: Array, count: int) -> Array:
        """``count`` actions of the deterministic sampler for each normalized obs [B, O]: [B, count, D]; key is consumed."""
        shape = (count, self.specs.flat_action_dim)
        return self.sample(params, obs[:, None], chains.sample_noise(key, obs.shape[0], shape))

    def bc_loss(self, params: PyTree, obs: Array, chunk: Array, mask: Array, key: Array) -> Array:
        """Imitation loss of each sample [B] with fresh noise and times: obs [B, O], chunk [B, h, A], mask [B, h]."""

        def draw(key: Array) -> tuple[Array, Array]:
            noise_key, time_key = jax.random.split(key)
            return jax.random.normal(noise_key, (self.specs.flat_action_dim,)), jax.random.uniform(
                time_key
            )

        z, t = jax.vmap(draw)(sample_keys(key, obs.shape[0]))
        return self.imitation_loss(params, obs, self.flatten(chunk), mask, z, t)

    def eval_policy(self, deployed: PyTree, obs: Array, key: Array) -> Array:
        """What is evaluated and deployed: the deterministic sampler from fresh noise, obs [N, O] -> chunks [N, h, A].

        deployed: {"net": params, "normalizer": Normalizer}, the content of an artifact.
        """
        z = chains.sample_noise(key, obs.shape[0], (self.specs.flat_action_dim,))
        return self.unflatten(self.sample(deployed["net"], deployed["normalizer"](obs), z))


MIN_HALF_RANGE = (
    0.05  # half of the least range: what demonstrations hold still can still be finetuned
)


def rescaled_to_actions(config: PolicyConfig, action: np.ndarray) -> PolicyConfig:
    """``config`` with the range that the actions [T, A] span in each dimension."""
    low, high = action.min(0), action.max(0)
    middle, half = 0.5 * (low + high), np.maximum(0.5 * (high - low), MIN_HALF_RANGE)
    return dataclasses.replace(
        config, low=tuple(map(float, middle - half)), high=tuple(map(float, middle + half))
    )


def make_policy(config: PolicyConfig, specs: Specs) -> Policy:
    """Build a policy of ``config.family``. Raises ValueError for a range of another number of dimensions."""
    if len(config.low) not in (0, specs.action_dim):
        raise ValueError(
            f"policy.low and policy.high have {len(config.low)} dimensions; actions have {specs.action_dim}."
        )
    net = DenoisingNet(specs.obs_dim, specs.flat_action_dim, config.hidden, dtype=config.compute)
    sampler = config.sampler

    def init(key: Array) -> PyTree:
        shapes = [(1, specs.obs_dim), (1, specs.flat_action_dim), (1,)]
        return net.init(key, *[jnp.zeros(shape) for shape in shapes])["params"]

    def bound(params: PyTree, obs: Array, inner: int = 0) -> chains.DenoisingFn:
        encoded = jnp.asarray(net.apply({"params": params}, obs, method="encode"))
        encoded = encoded.reshape(*encoded.shape[:-1], *(1,) * inner, encoded.shape[-1])
        return lambda x, t: jnp.asarray(
            net.apply({"params": params}, encoded, x, t, method="denoise")
        )

    def stochastic_step(params: PyTree, obs: Array, inner: int = 0) -> chains.StochasticStep:
        return sampler.stochastic_step(bound(params, obs, inner))

    def deterministic_step(params: PyTree, obs: Array, inner: int = 0) -> chains.DeterministicStep:
        return sampler.deterministic_step(bound(params, obs, inner))

    def imitation_loss(
        params: PyTree, obs: Array, action: Array, mask: Array, z: Array, t: Array
    ) -> Array:
        mask = jnp.repeat(mask, specs.action_dim, axis=-1)
        return sampler.loss(bound(params, obs), action=action, z=z, t=t, mask=mask)

    return Policy(
        init=init,
        sample=lambda params, obs, z: chains.integrate_ode(
            deterministic_step(params, obs), z, sampler.times
        ),
        sample_chain=lambda params, obs, noise: chains.sample_chain(
            stochastic_step(params, obs), noise, sampler.times
        ),
        action=chains.chain_action,
        log_density=lambda params, obs, chain: (
            chains.rescore_chain(stochastic_step(params, obs, 1), chain, sampler.times).log_density
        ),
        imitation_loss=imitation_loss,
        stochastic_step=stochastic_step,
        deterministic_step=deterministic_step,
        config=config,
        specs=specs,
    )

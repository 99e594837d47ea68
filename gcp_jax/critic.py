"""The critic ensemble of the off-policy methods: Q_m(s, a), m = 1 … M, its average φ̄, and its regression on targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gcp_jax import ranges
from gcp_jax.mesh import descend
from gcp_jax.networks import ensemble
from gcp_jax.policy import Policy
from gcp_jax.ranges import COUNT, NOT_NEGATIVE, POSITIVE, RATE, SHARE, Range
from gcp_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields that all methods with critics share; a method's own Config derives from it.

    gamma: discount of one environment step. critics: M. critic_hidden, critic_lr: widths and Adam's rate. critic_ema: rate of
    φ̄. critic_warmup: first updates during which only the critics learn. grad_clip: largest norm of a gradient. aggregate: the
    ensemble's value is its "mean" or the "min" of two critics taken at random; the mean is better on sparse rewards (OGPO).
    """

    gamma: float = 0.99
    critics: int = 5
    critic_hidden: tuple[int, ...] = (128, 128, 128)
    critic_lr: float = 3e-4
    critic_ema: float = 0.02
    critic_warmup: int = 0
    grad_clip: float = 1000.0
    aggregate: str = "mean"

    RANGES = {
        "gamma": RATE,
        "critics": Range(2),
        "critic_hidden": COUNT,
        "critic_lr": NOT_NEGATIVE,
        "critic_ema": SHARE,
        "critic_warmup": NOT_NEGATIVE,
        "grad_clip": POSITIVE,
    }

    def __post_init__(self) -> None:
        ranges.check(self, "algorithm.")
        one_of(self, aggregate=("mean", "min"))


def one_of(config: object, **allowed: tuple[str, ...]) -> None:
    """Raise ValueError, in one line, for the first field that is none of its choices."""
    for name, choices in allowed.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"algorithm.{name} is {getattr(config, name)!r}; allowed: {', '.join(choices)}.")


class CriticState(NamedTuple):
    """φ, φ̄ and the optimiser."""

    net: PyTree
    target: PyTree
    opt: PyTree


class Critics(NamedTuple):
    """init:     (key) -> CriticState
    q:        (params, obs [..., O], action [..., D]) -> [M, ...], leading axes broadcast
    smallest: (params, obs, action, key) -> [...] the smaller of two different critics taken at random
    pooled:   (params, obs, action, key) -> [...] the ensemble's value by ``aggregate``
    regress:  (state, obs [B, O], action [B, D], y [B]) -> (state, metrics), one step on mean_m mean (Q_m − y)²
    """

    init: Callable[[Array], CriticState]
    q: Callable[[PyTree, Array, Array], Array]
    smallest: Callable[[PyTree, Array, Array, Array], Array]
    pooled: Callable[[PyTree, Array, Array, Array], Array]
    regress: Callable[..., tuple[CriticState, dict[str, Array]]]


def choose(action: Array, score: Array) -> Array:
    """The action [B, N, D] with the highest score [B, N]: [B, D]."""
    return jnp.take_along_axis(action, jnp.argmax(score, -1)[:, None, None], 1)[:, 0]


def adam(rate: float | optax.Schedule, grad_clip: float) -> optax.GradientTransformation:
    """Adam on gradients clipped by their global norm."""
    return optax.chain(optax.clip_by_global_norm(grad_clip), optax.adam(rate))


def two_of(key: Array, members: int) -> Array:
    """Two different indices below ``members``, [2]."""
    first, skip = jax.random.randint(key, (2,), 0, jnp.array([members, members - 1]))
    return jnp.stack([first, (first + 1 + skip) % members])


class Heads(NamedTuple):
    """M value functions without a way to learn: init (key) -> params; ``q`` and ``smallest`` as in ``Critics``."""

    init: Callable[[Array], PyTree]
    q: Callable[[PyTree, Array, Array], Array]
    smallest: Callable[[PyTree, Array, Array, Array], Array]


def heads(members: int, obs_dim: int, action_dim: int, hidden: tuple[int, ...], compute: str = "float32") -> Heads:
    """The ensemble's networks on observations [O] and flattened actions [D], evaluated in ``compute``."""
    every, pair = (ensemble(n, obs_dim, action_dim, hidden, compute) for n in (members, 2))

    def init(key: Array) -> PyTree:
        return every.init(key, jnp.zeros((1, obs_dim)), jnp.zeros((1, action_dim)))["params"]

    def q(params: PyTree, obs: Array, action: Array) -> Array:
        return jnp.asarray(every.apply({"params": params}, obs, action))

    def smallest(params: PyTree, obs: Array, action: Array, key: Array) -> Array:
        index = two_of(key, members)
        two = jax.tree.map(lambda x: x[index], params)
        return jnp.min(jnp.asarray(pair.apply({"params": two}, obs, action)), 0)

    return Heads(init, q, smallest)


def make(config: Config, obs_dim: int, action_dim: int, compute: str = "float32") -> Critics:
    """The ensemble on observations [O] and flattened actions [D], evaluated in ``compute``."""
    net_init, q, smallest = heads(config.critics, obs_dim, action_dim, config.critic_hidden, compute)
    optimiser = adam(config.critic_lr, config.grad_clip)

    def init(key: Array) -> CriticState:
        net = net_init(key)
        return CriticState(net, net, optimiser.init(net))

    def pooled(params: PyTree, obs: Array, action: Array, key: Array) -> Array:
        return jnp.mean(q(params, obs, action), 0) if config.aggregate == "mean" else smallest(params, obs, action, key)

    def regress(state: CriticState, obs: Array, action: Array, y: Array) -> tuple[CriticState, dict[str, Array]]:
        def loss(net: PyTree) -> tuple[Array, dict[str, Array]]:
            values = q(net, obs, action)
            value = jnp.mean((values - y[None]) ** 2)
            spread = jnp.mean(jnp.std(values, 0))
            return value, {"critic_loss": value, "q": jnp.mean(values), "q_spread": spread}

        net, opt, metrics = descend(loss, state.net, state.opt, optimiser)
        metrics["critic_gradient_norm"] = metrics.pop("gradient_norm")
        return CriticState(net, optax.incremental_update(net, state.target, config.critic_ema), opt), metrics

    return Critics(init, q, smallest, pooled, regress)


def value(critics: Critics, policy: Policy) -> Callable[[Any, Array, Array], Array]:
    """``Algorithm.value`` of a method whose state has a ``normaliser`` and a ``critic``: Q̄_m(s, a) of whole chunks."""

    def judge(state: Any, obs: Array, chunk: Array) -> Array:
        return critics.q(state.critic.target, state.normaliser(obs)[:, None], policy.flatten(chunk))

    return judge


def hold(warming: Array, before: PyTree, after: PyTree) -> PyTree:
    """``before`` where the scalar ``warming`` is true, else ``after``."""
    return jax.tree.map(lambda old, new: jnp.where(warming, old, new), before, after)

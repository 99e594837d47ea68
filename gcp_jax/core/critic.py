"""The critic ensemble of the off-policy methods: Q_m(s, a), m = 1 … M, its average φ̄, and its regression on targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gcp_jax import config_fields
from gcp_jax.config_fields import NON_NEGATIVE, POSITIVE, POSITIVE_INT, UNIT, UNIT_POSITIVE, Bounds
from gcp_jax.core.networks import make_critic_ensemble
from gcp_jax.core.policy import Policy
from gcp_jax.mesh import gradient_step
from gcp_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields that all methods with critics share; a method's own Config derives from it.

    gamma: discount of one environment step. critics: M. critic_hidden, critic_lr: widths and Adam's rate. critic_tau: rate of
    φ̄. critic_warmup_updates: first updates during which only the critics learn. grad_clip: largest norm of a gradient. aggregate: the
    ensemble's value is its "mean" or the "min" of two critics taken at random; the mean is better on sparse rewards (OGPO).
    """

    gamma: float = 0.99
    critics: int = 5
    critic_hidden: tuple[int, ...] = (128, 128, 128)
    critic_lr: float = 3e-4
    critic_tau: float = 0.02
    critic_warmup_updates: int = 0
    grad_clip: float = 1000.0
    aggregate: str = "mean"

    RANGES = {
        "gamma": UNIT_POSITIVE,
        "critics": Bounds(2),
        "critic_hidden": POSITIVE_INT,
        "critic_lr": NON_NEGATIVE,
        "critic_tau": UNIT,
        "critic_warmup_updates": NON_NEGATIVE,
        "grad_clip": POSITIVE,
    }

    def __post_init__(self) -> None:
        config_fields.check(self, "algorithm.")
        check_choice(self, aggregate=("mean", "min"))


def check_choice(config: object, **allowed: tuple[str, ...]) -> None:
    """Raise ValueError, in one line, for the first field that is none of its choices."""
    for name, choices in allowed.items():
        if getattr(config, name) not in choices:
            raise ValueError(
                f"algorithm.{name} is {getattr(config, name)!r}; allowed: {', '.join(choices)}."
            )


class CriticState(NamedTuple):
    """φ, φ̄ and the optimizer."""

    net: PyTree
    target: PyTree
    opt: PyTree


class Critic(NamedTuple):
    """init:     (key) -> CriticState
    q:        (params, obs [..., O], action [..., D]) -> [M, ...], leading axes broadcast
    smallest: (params, obs, action, key) -> [...] the smaller of two different critics taken at random
    pooled:   (params, obs, action, key) -> [...] the ensemble's value by ``aggregate``
    regress:  (state, obs [B, O], action [B, D], y [B]) -> (state, metrics), one step on mean_m mean (Q_m − y)²
    """

    init: Callable[[Array], CriticState]
    q: Callable[[PyTree, Array, Array], Array]
    min_of_two: Callable[[PyTree, Array, Array, Array], Array]
    aggregate_q: Callable[[PyTree, Array, Array, Array], Array]
    td_step: Callable[..., tuple[CriticState, dict[str, Array]]]


def argmax_action(action: Array, score: Array) -> Array:
    """The action [B, N, D] with the highest score [B, N]: [B, D]."""
    return jnp.take_along_axis(action, jnp.argmax(score, -1)[:, None, None], 1)[:, 0]


def clipped_adam(rate: float | optax.Schedule, grad_clip: float) -> optax.GradientTransformation:
    """Adam on gradients clipped by their global norm."""
    return optax.chain(optax.clip_by_global_norm(grad_clip), optax.adam(rate))


def random_pair(key: Array, members: int) -> Array:
    """Two different indices below ``members``, [2]."""
    first, skip = jax.random.randint(key, (2,), 0, jnp.array([members, members - 1]))
    return jnp.stack([first, (first + 1 + skip) % members])


class QEnsemble(NamedTuple):
    """M value functions without a way to learn: init (key) -> params; ``q`` and ``smallest`` as in ``Critics``."""

    init: Callable[[Array], PyTree]
    q: Callable[[PyTree, Array, Array], Array]
    min_of_two: Callable[[PyTree, Array, Array, Array], Array]


def make_q_ensemble(
    members: int, obs_dim: int, action_dim: int, hidden: tuple[int, ...], compute: str = "float32"
) -> QEnsemble:
    """The ensemble's networks on observations [O] and flattened actions [D], evaluated in ``compute``."""
    every, pair = (
        make_critic_ensemble(n, obs_dim, action_dim, hidden, compute) for n in (members, 2)
    )

    def init(key: Array) -> PyTree:
        return every.init(key, jnp.zeros((1, obs_dim)), jnp.zeros((1, action_dim)))["params"]

    def q(params: PyTree, obs: Array, action: Array) -> Array:
        return jnp.asarray(every.apply({"params": params}, obs, action))

    def min_of_two(params: PyTree, obs: Array, action: Array, key: Array) -> Array:
        index = random_pair(key, members)
        two = jax.tree.map(lambda x: x[index], params)
        return jnp.min(jnp.asarray(pair.apply({"params": two}, obs, action)), 0)

    return QEnsemble(init, q, min_of_two)


def make_critic(config: Config, obs_dim: int, action_dim: int, compute: str = "float32") -> Critic:
    """The ensemble on observations [O] and flattened actions [D], evaluated in ``compute``."""
    net_init, q, min_of_two = make_q_ensemble(
        config.critics, obs_dim, action_dim, config.critic_hidden, compute
    )
    optimizer = clipped_adam(config.critic_lr, config.grad_clip)

    def init(key: Array) -> CriticState:
        net = net_init(key)
        return CriticState(net, net, optimizer.init(net))

    def aggregate_q(params: PyTree, obs: Array, action: Array, key: Array) -> Array:
        return (
            jnp.mean(q(params, obs, action), 0)
            if config.aggregate == "mean"
            else min_of_two(params, obs, action, key)
        )

    def td_step(
        state: CriticState, obs: Array, action: Array, y: Array
    ) -> tuple[CriticState, dict[str, Array]]:
        def loss(net: PyTree) -> tuple[Array, dict[str, Array]]:
            values = q(net, obs, action)
            value = jnp.mean((values - y[None]) ** 2)
            spread = jnp.mean(jnp.std(values, 0))
            return value, {"critic_loss": value, "q": jnp.mean(values), "q_std": spread}

        net, opt, metrics = gradient_step(loss, state.net, state.opt, optimizer)
        metrics["critic_gradient_norm"] = metrics.pop("gradient_norm")
        return CriticState(
            net, optax.incremental_update(net, state.target, config.critic_tau), opt
        ), metrics

    return Critic(init, q, min_of_two, aggregate_q, td_step)


def make_q_fn(critics: Critic, policy: Policy) -> Callable[[Any, Array, Array], Array]:
    """``Algorithm.value`` of a method whose state has a ``normalizer`` and a ``critic``: Q̄_m(s, a) of whole chunks."""

    def judge(state: Any, obs: Array, chunk: Array) -> Array:
        return critics.q(state.critic.target, state.normalizer(obs)[:, None], policy.flatten(chunk))

    return judge


def where_tree(warming: Array, before: PyTree, after: PyTree) -> PyTree:
    """``before`` where the scalar ``warming`` is true, else ``after``."""
    return jax.tree.map(lambda old, new: jnp.where(warming, old, new), before, after)

"""The critic ensemble of the off-policy methods, its averaged copy, and its regression on targets.

Q_m(s, a), m = 1..M          the critics, with parameters φ
Q̄_m(s, a)                    the target critics, with averaged parameters φ̄
loss                         mean_m mean (Q_m(s, a) − y)²
φ̄ ← (1 − τ) φ̄ + τ φ         after each step
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gcp_jax import config_fields
from gcp_jax.config_fields import (
    NON_NEGATIVE,
    POSITIVE,
    POSITIVE_INT,
    UNIT,
    UNIT_POSITIVE,
    Bounds,
    field,
)
from gcp_jax.core import optim
from gcp_jax.core.networks import make_critic_ensemble
from gcp_jax.core.policy import Policy
from gcp_jax.types import Array, PyTree

AGGREGATES = ("mean", "min")


@dataclasses.dataclass(frozen=True)
class EnsembleConfig:
    """The settings of every method with critics; a method's own ``Config`` derives from it."""

    gamma: float = field(0.97, UNIT_POSITIVE, "γ: discount of one environment step [.95–.999]")
    critics: int = field(5, Bounds(2), "M: critics in the ensemble [2–10]")
    critic_hidden: tuple[int, ...] = field((128, 128, 128), POSITIVE_INT, "widths of a critic")
    critic_lr: float = field(1e-3, NON_NEGATIVE, "Adam's learning rate of the critics [3e-4]")
    critic_tau: float = field(0.05, UNIT, "τ: averaging rate of the target critics [.005–.05]")
    critic_warmup_updates: int = field(
        256, NON_NEGATIVE, "first updates, during which only the critics learn"
    )
    grad_clip: float = field(1000.0, POSITIVE, "largest norm of a gradient, of every network")

    def __post_init__(self) -> None:
        config_fields.check(self, "algorithm.")

    @property
    def first_policy_update(self) -> int:
        """The first update of a run, counted from 0, that changes the policy."""
        return self.critic_warmup_updates


@dataclasses.dataclass(frozen=True)
class Config(EnsembleConfig):
    """The settings of a method that can choose how the ensemble becomes one value."""

    aggregate: str = field(
        "mean", AGGREGATES, "value of the ensemble: its mean, or the smaller of two random critics"
    )


class CriticState(NamedTuple):
    """The critics, their average and their optimizer's state."""

    params: PyTree  # φ, leaves [M, ...]
    target_params: PyTree  # φ̄
    opt_state: PyTree


def argmax_action(action: Array, score: Array) -> Array:
    """Return the action [B, D], out of ``action`` [B, N, D], with the highest score [B, N]."""
    return jnp.take_along_axis(action, jnp.argmax(score, -1)[:, None, None], 1)[:, 0]


def random_pair(key: Array, members: int) -> Array:
    """Draw two different indices below ``members``, uniformly: int32 [2]; ``key`` is consumed."""
    first, skip = jax.random.randint(key, (2,), 0, jnp.array([members, members - 1]))
    return jnp.stack([first, (first + 1 + skip) % members])


@dataclasses.dataclass(frozen=True)
class QEnsemble:
    """M networks Q_m(s, a). Leading axes of observations and actions broadcast."""

    net: nn.Module  # all M networks, evaluated as one batched product
    pair_net: nn.Module  # two of them
    members: int  # M
    obs_dim: int
    action_dim: int  # D, of a flattened chunk

    def init(self, key: Array) -> PyTree:
        """Draw initial parameters, leaves [M, ...]."""
        obs = jnp.zeros((1, self.obs_dim))
        action = jnp.zeros((1, self.action_dim))
        return self.net.init(key, obs, action)["params"]

    def q(self, params: PyTree, obs: Array, action: Array) -> Array:
        """Q_m(s, a) of every critic, [M, ...], for normalized obs [..., O] and action [..., D]."""
        return jnp.asarray(self.net.apply({"params": params}, obs, action))

    def min_of_two(self, params: PyTree, obs: Array, action: Array, key: Array) -> Array:
        """The smaller of two different critics drawn at random, once for the batch: [...]."""
        index = random_pair(key, self.members)
        pair = jax.tree.map(lambda x: x[index], params)
        return jnp.min(jnp.asarray(self.pair_net.apply({"params": pair}, obs, action)), 0)


def make_q_ensemble(
    members: int, obs_dim: int, action_dim: int, hidden: tuple[int, ...], compute: str = "float32"
) -> QEnsemble:
    """Build M networks on observations [O] and flattened actions [D], evaluated in ``compute``."""
    return QEnsemble(
        net=make_critic_ensemble(members, obs_dim, action_dim, hidden, compute),
        pair_net=make_critic_ensemble(2, obs_dim, action_dim, hidden, compute),
        members=members,
        obs_dim=obs_dim,
        action_dim=action_dim,
    )


@dataclasses.dataclass(frozen=True)
class Critic:
    """An ensemble that learns. ``q`` and ``min_of_two`` are those of ``QEnsemble``."""

    ensemble: QEnsemble
    optimizer: optax.GradientTransformation
    tau: float  # averaging rate of φ̄
    aggregate: str  # "mean" or "min"

    def init(self, key: Array) -> CriticState:
        """Draw new critics; their average starts as a copy of them."""
        params = self.ensemble.init(key)
        return CriticState(
            params=params, target_params=params, opt_state=self.optimizer.init(params)
        )

    def q(self, params: PyTree, obs: Array, action: Array) -> Array:
        """Q_m(s, a) of every critic, [M, ...], for normalized obs [..., O] and action [..., D]."""
        return self.ensemble.q(params, obs, action)

    def min_of_two(self, params: PyTree, obs: Array, action: Array, key: Array) -> Array:
        """The smaller of two different critics drawn at random, once for the batch: [...]."""
        return self.ensemble.min_of_two(params, obs, action, key)

    def aggregate_q(self, params: PyTree, obs: Array, action: Array, key: Array) -> Array:
        """The value of the ensemble, by ``aggregate``: the mean or ``min_of_two``, [...]."""
        if self.aggregate == "mean":
            return jnp.mean(self.q(params, obs, action), 0)
        return self.min_of_two(params, obs, action, key)

    def td_loss(
        self, params: PyTree, obs: Array, action: Array, td_target: Array
    ) -> tuple[Array, dict[str, Array]]:
        """mean_m mean (Q_m(s, a) − y)², with metrics, for obs [B, O], action [B, D], y [B]."""
        q = self.q(params, obs, action)
        loss = jnp.mean((q - td_target[None]) ** 2)
        q_std = jnp.mean(jnp.std(q, 0))
        return loss, {"critic_loss": loss, "q": jnp.mean(q), "q_std": q_std}

    def td_step(
        self, state: CriticState, obs: Array, action: Array, td_target: Array
    ) -> tuple[CriticState, dict[str, Array]]:
        """Take one step on ``td_loss`` and move the average."""
        return self.step(state, lambda params: self.td_loss(params, obs, action, td_target))

    def step(self, state: CriticState, loss: optim.LossFn) -> tuple[CriticState, dict[str, Array]]:
        """Take one step on ``loss(params)`` and move the average: (state, metrics)."""
        params, opt_state, metrics = optim.gradient_step(
            loss, state.params, state.opt_state, self.optimizer, name="critic"
        )
        target_params = optax.incremental_update(params, state.target_params, self.tau)
        return CriticState(params=params, target_params=target_params, opt_state=opt_state), metrics


def make_critic(config: Config, obs_dim: int, action_dim: int, compute: str = "float32") -> Critic:
    """Build critics of observations [O] and flattened actions [D], evaluated in ``compute``."""
    return Critic(
        ensemble=make_q_ensemble(
            config.critics, obs_dim, action_dim, config.critic_hidden, compute
        ),
        optimizer=optim.clipped_adam(config.critic_lr, config.grad_clip),
        tau=config.critic_tau,
        aggregate=config.aggregate,
    )


def make_q_fn(critic: Critic, policy: Policy) -> Callable[[Any, Array, Array], Array]:
    """Build ``Algorithm.q_values``: the target critics' values of whole chunks.

    Returns:
      A function of (state, raw obs [B, O], chunks [B, G, h, A]) that returns Q̄_m [M, B, G]. The
      state has fields ``normalizer`` and ``critic``.
    """

    def q_values(state: Any, obs: Array, chunk: Array) -> Array:
        normalized = state.normalizer(obs)[:, None]
        return critic.q(state.critic.target_params, normalized, policy.flatten(chunk))

    return q_values

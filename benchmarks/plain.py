"""OGPO's update written as plainly as possible, as the reference of ``benchmarks.update``.

One critic after another, one denoising step after another, whole concatenated inputs, textbook
optax, and nothing of this package but its random numbers and its parameters. It computes what
``gcp_jax.algorithms.ogpo`` computes with the default switches (OGPO+CA) and the flow "paper".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gcp_jax.algorithms.ogpo import Config, State
from gcp_jax.core.denoising import NOISE_CLIP, sample_noise
from gcp_jax.core.policy import Policy
from gcp_jax.mesh import sample_keys
from gcp_jax.types import Array, Batch, Params, PRNGKey, Transition

TIME_DIM = 32  # of the time embedding


def dense(layer: Params, x: Array) -> Array:
    """x [..., I] -> [..., O]."""
    y: Array = x @ layer["kernel"] + layer["bias"]
    return y


def layer_norm(layer: Params, x: Array) -> Array:
    """x [..., H] with mean 0 and variance 1, scaled and shifted."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    y: Array = centred / jnp.sqrt(variance + 1e-6) * layer["scale"] + layer["bias"]
    return y


def velocity(net: Params, obs: Array, x: Array, t: float | Array) -> Array:
    """v(s, x_t, t) of the flow's network: obs [..., O], x [..., D], t [...] -> [..., D]."""
    frequency = jnp.exp(-jnp.log(1e4) * jnp.arange(TIME_DIM // 2) / (TIME_DIM // 2 - 1))
    angle = 1000.0 * jnp.broadcast_to(t, x.shape[:-1])[..., None] * frequency
    time = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
    time = dense(net["time_layers_1"], jax.nn.gelu(dense(net["time_layers_0"], time)))
    obs = jnp.broadcast_to(obs, (*x.shape[:-1], obs.shape[-1]))
    y = jax.nn.gelu(dense(net["first"], jnp.concatenate([obs, x, time], -1)))
    for index in range(sum(name.startswith("layers_") for name in net)):
        y = jax.nn.gelu(dense(net[f"layers_{index}"], y))
    return dense(net["last"], y)


def q_value(critic: Params, obs: Array, action: Array) -> Array:
    """Q(s, a) of one critic: obs [..., O], action [..., D] -> [...]."""
    obs = jnp.broadcast_to(obs, (*action.shape[:-1], obs.shape[-1]))
    y = dense(critic["SplitDense_0"], jnp.concatenate([obs, action], -1))
    layers = sum(name.startswith("Dense_") for name in critic)
    y = jax.nn.gelu(layer_norm(critic["LayerNorm_0"], y))
    for index in range(layers - 1):
        y = dense(critic[f"Dense_{index}"], y)
        y = jax.nn.gelu(layer_norm(critic[f"LayerNorm_{index + 1}"], y))
    return dense(critic[f"Dense_{layers - 1}"], y)[..., 0]


def q_values(critics: Params, obs: Array, action: Array) -> Array:
    """Q_m(s, a) of every critic, one after another: [M, ...]."""
    count = len(jax.tree.leaves(critics)[0])
    one = [jax.tree.map(lambda x, m=m: x[m], critics) for m in range(count)]
    return jnp.stack([q_value(critic, obs, action) for critic in one])


class PlainOGPO:
    """The update of ``ogpo.OGPO.update``, from the same state, batch and key."""

    def __init__(self, config: Config, policy: Policy, batch_size: int) -> None:
        self.config = config
        self.policy = policy
        self.batch_size = batch_size
        self.actor_optimizer = self._adam(config.actor_lr)
        self.critic_optimizer = self._adam(config.critic_lr)

    def _adam(self, learning_rate: float) -> optax.GradientTransformation:
        clip = optax.clip_by_global_norm(self.config.grad_clip)
        return optax.chain(clip, optax.adam(learning_rate))

    def step(self, net: Params, obs: Array, x: Array, index: int) -> tuple[Array, Array]:
        """Mean and standard deviation of the denoising step ``index`` from x [..., D]."""
        steps = self.policy.config.steps
        sigma = self.policy.config.sigma
        t = index / steps
        v = velocity(net, obs, x, t)
        mean = x + (v + 0.5 * sigma**2 * (t * v - x)) / steps
        return jnp.clip(mean, -1.0, 1.0), sigma * jnp.sqrt(1.0 - jnp.float32(t))

    def sample(self, net: Params, obs: Array, key: PRNGKey, count: int) -> list[Array]:
        """The points x_0, ..., x_K of ``count`` chains a state, each [B, count, D]."""
        steps = self.policy.config.steps
        width = self.policy.specs.flat_action_dim
        noise = sample_noise(key, len(obs), (count, steps + 1, width))
        points = [noise[:, :, 0]]
        for index in range(steps):
            mean, std = self.step(net, obs[:, None], points[-1], index)
            epsilon = jnp.clip(noise[:, :, index + 1], -NOISE_CLIP, NOISE_CLIP)
            points.append(mean + std * epsilon)
        return points

    def log_density(self, net: Params, obs: Array, points: list[Array]) -> Array:
        """log-density of chains over (K + 1) and D, [B, G]."""
        total = -0.5 * points[0] ** 2 - 0.5 * jnp.log(2.0 * jnp.pi)
        for index in range(len(points) - 1):
            mean, std = self.step(net, obs[:, None], points[index], index)
            error = (points[index + 1] - mean) / std
            total += -0.5 * error**2 - jnp.log(std) - 0.5 * jnp.log(2.0 * jnp.pi)
        return total.sum(-1) / (len(points) * points[0].shape[-1])

    def action(self, points: list[Array]) -> Array:
        """The action that a chain ends in, [B, G, D]."""
        return jnp.clip(points[-1], -1.0, 1.0)

    def imitation_loss(
        self, net: Params, obs: Array, transitions: Transition, weight: Array, key: PRNGKey
    ) -> Array:
        """Weighted flow-matching loss of a batch, []."""
        action = self.policy.flatten(transitions.action)

        def draw(key: PRNGKey) -> tuple[Array, Array]:
            noise_key, time_key = jax.random.split(key)
            return jax.random.normal(noise_key, action.shape[1:]), jax.random.uniform(time_key)

        z, t = jax.vmap(draw)(sample_keys(key, len(obs)))
        x = (1.0 - t[:, None]) * z + t[:, None] * action
        mask = jnp.repeat(transitions.mask, self.policy.specs.action_dim, -1)
        error = mask * (velocity(net, obs, x, t) - (action - z)) ** 2
        return jnp.mean(weight * error.sum(-1) / jnp.maximum(mask.sum(-1), 1.0))

    def actor_loss(self, net: Params, state: State, batch: Batch, key: PRNGKey) -> Array:
        """−mean min(ρ A, clip(ρ) A) + λ L_BC, []."""
        config = self.config
        chain_key, bc_key, _, _ = jax.random.split(key, 4)
        stride = max(self.batch_size // config.actor_states, 1)
        obs = state.normalizer(batch.transitions.obs[::stride])
        old = state.actor.target_params
        points = self.sample(old, obs, chain_key, config.chains)
        q = q_values(state.critic.target_params, obs[:, None], self.action(points))
        advantages = q - q.mean(-1, keepdims=True)
        low = advantages.min(0)
        high = advantages.max(0)
        advantage = jnp.where(low > 0, low, jnp.where(high < 0, high, 0.0))
        ratio = jnp.exp(self.log_density(net, obs, points) - self.log_density(old, obs, points))
        clipped = jnp.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
        loss = -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))
        assert batch.success is not None and batch.success_weight is not None
        success_obs = state.normalizer(batch.success.obs)
        return loss + config.success_weight * self.imitation_loss(
            net, success_obs, batch.success, batch.success_weight, bc_key
        )

    def critic_step(
        self, state: State, transitions: Transition, weight: Array, key: PRNGKey
    ) -> State:
        """One step of the critics on transitions [B] of the given weights [B]."""
        config = self.config
        target_key, _ = jax.random.split(key)
        obs = state.normalizer(transitions.obs)
        next_obs = state.normalizer(transitions.next_obs)
        points = self.sample(state.actor.target_params, next_obs, target_key, config.target_samples)
        next_q = q_values(state.critic.target_params, next_obs[:, None], self.action(points))
        td_target = transitions.reward + transitions.discount * next_q.mean((0, 2))
        action = self.policy.flatten(transitions.action)

        def loss(critics: Params) -> Array:
            error = (q_values(critics, obs, action) - td_target) ** 2
            return jnp.mean(weight * error.mean(0))

        critic = state.critic
        gradient = jax.grad(loss)(critic.params)
        change, opt_state = self.critic_optimizer.update(gradient, critic.opt_state, critic.params)
        params = optax.apply_updates(critic.params, change)
        average = optax.incremental_update(params, critic.target_params, config.critic_tau)
        return state._replace(
            critic=critic._replace(params=params, target_params=average, opt_state=opt_state)
        )

    def update(self, state: State, batch: Batch, key: PRNGKey) -> State:
        """One step of the actor and of the critics, and one of the critics on successes."""
        critic_key, success_key, _, actor_key = jax.random.split(key, 4)
        actor = state.actor
        gradient = jax.grad(self.actor_loss)(actor.params, state, batch, actor_key)
        change, opt_state = self.actor_optimizer.update(gradient, actor.opt_state, actor.params)
        params = optax.apply_updates(actor.params, change)
        average = optax.incremental_update(params, actor.target_params, self.config.actor_tau)
        stepped = actor._replace(params=params, target_params=average, opt_state=opt_state)
        warm = state.updates >= self.config.critic_warmup_updates

        def choose(new: Any, old: Any) -> Any:
            return jnp.where(warm, new, old)

        new = self.critic_step(
            state, batch.transitions, jnp.ones_like(batch.transitions.reward), critic_key
        )
        if self.config.success_critic:
            assert batch.success is not None and batch.success_weight is not None
            new = self.critic_step(new, batch.success, batch.success_weight, success_key)
        return new._replace(actor=jax.tree.map(choose, stepped, actor), updates=state.updates + 1)

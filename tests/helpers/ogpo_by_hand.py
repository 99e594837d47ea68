"""OGPO on a policy whose every density is known in closed form, and its update in float64 numpy."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from gcp_jax.algorithms import ogpo
from gcp_jax.core import denoising as chain_lib
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy, PolicyConfig
from gcp_jax.types import Batch, Specs, Transition

SPECS = Specs(obs_dim=2, action_dim=1, chunk=2)
STD = 0.2
STATES = 8
NORMALISER = Normalizer(jnp.array([0.5, -0.5]), jnp.array([2.0, 0.5]))
SMALL = ogpo.Config(
    critics=3,
    critic_hidden=(8,),
    chains=4,
    actor_states=STATES,
    best_of=4,
    actor_lr=0.01,
    critic_lr=0.01,
    gamma=0.99,
    actor_tau=0.005,
    critic_tau=0.02,
    critic_warmup_updates=0,
)


def plain(**changes):
    """SMALL as plain OGPO: neither the success term nor sign consensus, unless asked for."""
    return dataclasses.replace(SMALL, **{"success_weight": 0.0, "conservative": False, **changes})


def wave(shape, speed):
    return 0.9 * np.sin(speed * np.arange(1, np.prod(shape) + 1)).reshape(shape)


def affine_mean(bias, obs, x):
    return bias.reshape((1,) * (x.ndim - 1) + (-1,)) + 0.5 * x + 0.3 * obs


def affine_chain(bias, obs, states, count):
    """[states, count, 2, D] for obs [states, 1, D]."""
    shape = (states, count, SPECS.flat_action_dim)
    start = wave(shape, 1.7)
    return start, affine_mean(bias, obs, start) + STD * wave(shape, 2.9)


def affine_policy():
    def walk(params, obs, noise):
        start, end = affine_chain(params["bias"], obs, *noise.shape[:2])
        points = jnp.stack([jnp.asarray(start, jnp.float32), end], -2)
        mean = affine_mean(params["bias"], obs, points[..., 0, :])
        return chain_lib.Chain(points, mean[..., None, :], jnp.full((*mean.shape[:-1], 1, 1), STD))

    def log_density(params, obs, chain):
        x, y = chain[..., 0, :], chain[..., 1, :]
        steps = chain_lib.normal_log_density(y, affine_mean(params["bias"], obs, x), STD)
        return (
            jnp.sum(chain_lib.normal_log_density(x, 0.0, 1.0) + steps, -1)
            / 2
            / SPECS.flat_action_dim
        )

    def imitation_loss(params, obs, action, mask, z, t):
        error = (affine_mean(params["bias"], obs, jnp.zeros_like(action)) - action) ** 2
        return jnp.sum(error * mask, -1) / jnp.maximum(jnp.sum(mask, -1), 1.0)

    return Policy(
        init=None,
        sample=lambda params, obs, z: affine_mean(params["bias"], obs, z),
        sample_chain=walk,
        action=chain_lib.chain_action,
        log_density=log_density,
        imitation_loss=imitation_loss,
        stochastic_step=None,
        deterministic_step=None,
        config=PolicyConfig(chunk=2, steps=1),
        specs=SPECS,
    )


AFFINE = affine_policy()


def transitions(seed):
    rng = np.random.default_rng(seed)
    obs, following, action = rng.standard_normal((3, STATES, 2)).astype(np.float32)
    terminated = np.arange(STATES) % 4 == 3
    return Transition(
        obs=jnp.asarray(obs),
        action=jnp.asarray(np.clip(action, -1, 1))[..., None],
        mask=jnp.asarray(
            np.where(np.arange(STATES)[:, None] % 3 == 2, [1.0, 0.0], [1.0, 1.0]), jnp.float32
        ),
        reward=jnp.asarray(rng.standard_normal(STATES), jnp.float32),
        discount=jnp.asarray(0.9 * ~terminated, jnp.float32),
        next_obs=jnp.asarray(following),
        terminated=jnp.asarray(terminated),
        truncated=jnp.zeros(STATES, bool),
    )


def training_batch():
    """Transitions, those of successful episodes with weights, and returns to go, half unknown."""
    to_go = jnp.asarray(
        np.where(np.arange(STATES) % 2, np.nan, np.linspace(-1, 1, STATES)), jnp.float32
    )
    weight = jnp.asarray((np.arange(STATES) % 4 != 1) / 0.75, jnp.float32)
    return Batch(transitions(0), success=transitions(1), success_weight=weight, return_to_go=to_go)


def make(config, policy=AFFINE):
    """OGPO beside a source of which it reads the batch size alone."""
    return ogpo.make(config, policy, SimpleNamespace(batch_size=STATES))


def apart(algorithm):
    """A state in the midst of training: θ, θ̄ and π_slow differ, and so do φ and φ̄."""
    state, other = (
        algorithm.init(
            jax.random.key(seed), {"net": {"bias": jnp.zeros(2)}, "normalizer": NORMALISER}
        )
        for seed in (0, 1)
    )
    actor, target, slow = (
        {"bias": jnp.array(bias)} for bias in ([0.05, -0.02], [0.0, 0.01], [-0.1, 0.08])
    )
    uses_slow = state.actor.slow_params is not None
    return state._replace(
        actor=state.actor._replace(
            params=actor, target_params=target, slow_params=slow if uses_slow else None
        ),
        critic=state.critic._replace(target_params=other.critic.target_params),
    )


class ByHand:
    """The quantities of one update, by the paper's formulas, all from the state before it."""

    def __init__(self, config, before, batch):
        self.config, self.before, self.batch = config, before, batch
        self.obs = self.normalize(batch.transitions.obs)
        stride = max(STATES // config.actor_states, 1)
        self.actor_obs = self.obs[::stride]

    @staticmethod
    def normalize(obs):
        return (np.asarray(obs, np.float64) - np.asarray(NORMALISER.mean)) / np.asarray(
            NORMALISER.std
        )

    @staticmethod
    def mlp(x, first, norm, last):
        y = x @ np.asarray(first["kernel"], np.float64) + first["bias"]
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6) * norm[
            "scale"
        ] + norm["bias"]
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        return (y @ np.asarray(last["kernel"], np.float64) + last["bias"])[..., 0]

    def q(self, critic, obs, action):
        """[M, …] for obs [B, O] and action [B, D] or [B, G, D]."""
        critic = jax.tree.map(np.asarray, critic)
        if action.ndim == 3:
            obs = np.broadcast_to(obs[:, None], (*action.shape[:2], obs.shape[-1]))
        x = np.concatenate([obs, action], -1)
        members = [
            jax.tree.map(lambda leaf, m=m: leaf[m], critic) for m in range(self.config.critics)
        ]
        return np.stack(
            [self.mlp(x, p["SplitDense_0"], p["LayerNorm_0"], p["Dense_0"]) for p in members]
        )

    def v(self, obs):
        params = jax.tree.map(np.asarray, self.before.value.params)
        return self.mlp(obs, params["Dense_0"], params["LayerNorm_0"], params["Dense_1"])

    @staticmethod
    def chains(net, obs, count):
        start, end = affine_chain(
            np.asarray(net["bias"], np.float64), obs[:, None], len(obs), count
        )
        return start, end, np.clip(end, -1, 1)

    @staticmethod
    def density(bias, obs, start, end):
        """[B, G], divided by the two entries of the chain and its dimensions."""
        steps = stats.norm.logpdf(
            end, affine_mean(np.asarray(bias, np.float64), obs[:, None], start), STD
        )
        return (stats.norm.logpdf(start) + steps).sum(-1) / 2 / SPECS.flat_action_dim

    def pessimism(self, critic_target, obs, start, end):
        """(Q_pess, ρ, β) of χ² regularization."""
        q = self.q(critic_target, obs, np.clip(end, -1, 1))
        log_ratio = [
            self.density(net["bias"], obs, start, end)
            for net in (self.before.actor.params, self.before.actor.slow_params)
        ]
        ratio = np.exp(log_ratio[0] - log_ratio[1])
        weight = 1 / (1 + np.exp(-self.config.chi2_alpha * (ratio - 1)))
        return (
            (1 - weight) * q.mean(0) + weight * q.min(0),
            ratio,
            self.config.chi2 * q.std(0).mean(),
        )

    def next_chains(self, following):
        """Chains from the next states, each the best of several by the smaller of two critics."""
        count, best_of = self.config.target_samples, self.config.target_best_of
        chains = self.chains(self.before.actor.target_params, following, count * best_of)
        if best_of == 1:
            return chains
        assert self.config.critics == 2  # so that the random pair is known
        q = self.q(self.before.critic.target_params, following, chains[2]).min(0)
        best = q.reshape(STATES, count, best_of).argmax(-1) + best_of * np.arange(count)
        return [np.take_along_axis(part, best[..., None], 1) for part in chains]

    def targets(self):
        following = self.normalize(self.batch.transitions.next_obs)
        start, end, action = self.next_chains(following)
        if self.config.chi2:
            value = self.pessimism(self.before.critic.target_params, following, start, end)[0]
        else:
            value = self.q(self.before.critic.target_params, following, action).mean(0)
        return np.asarray(self.batch.transitions.reward) + np.asarray(
            self.batch.transitions.discount
        ) * value.mean(-1)

    def critic(self):
        q = self.q(
            self.before.critic.params, self.obs, np.asarray(self.batch.transitions.action)[..., 0]
        )
        loss = np.mean((q - self.targets()) ** 2)
        if self.config.calql:
            proposed = self.q(
                self.before.critic.params,
                self.obs,
                self.chains(self.before.actor.target_params, self.obs, 1)[2],
            )[..., 0]
            to_go = np.nan_to_num(np.asarray(self.batch.return_to_go), nan=-np.inf)
            loss += self.config.calql * np.mean(np.maximum(proposed, to_go) - q)
        return {"critic_loss": loss, "q": q.mean(), "q_std": q.std(0).mean()}

    def advantages(self, start, end):
        config, upper = self.config, 1 + self.config.clip
        if config.chi2:
            q, ratio, beta = self.pessimism(
                self.before.critic.target_params, self.actor_obs, start, end
            )
            heads, upper = (q - beta * ratio)[None], min(upper, 1 + config.max_reward / beta)
        else:
            heads = self.q(self.before.critic.target_params, self.actor_obs, np.clip(end, -1, 1))
            heads = heads if config.conservative else heads.mean(0, keepdims=True)
        chains = heads.shape[1:]
        if config.shared_noise > 1:
            heads = heads.reshape(*heads.shape[:2], -1, config.shared_noise)
        group = heads.shape[-1]
        baseline = {
            "group": heads.mean(-1, keepdims=True),
            "leave_one_out": (heads.sum(-1, keepdims=True) - heads) / (group - 1),
            "value": (
                self.v(self.actor_obs).reshape(1, -1, *(1,) * (heads.ndim - 2))
                if config.baseline == "value"
                else 0
            ),
        }[config.baseline]
        centred = heads - baseline
        advantage = np.where(
            (centred > 0).all(0), centred.min(0), np.where((centred < 0).all(0), centred.max(0), 0)
        )
        if config.group_std:
            advantage = advantage / (heads.mean(0).std(-1, keepdims=True) + 1e-6)
        advantage = advantage.reshape(chains)
        return np.maximum(advantage, 0) if config.no_negative else advantage, upper

    def matching(self, bias, action):
        return np.mean(
            (
                affine_mean(np.asarray(bias, np.float64), self.actor_obs[:, None], 0 * action)
                - action
            )
            ** 2,
            -1,
        )

    def policy_loss(self, bias, start, end, advantage, upper):
        """The extraction rule's loss and the ratios it used (None where it uses none)."""
        config, action, target = (
            self.config,
            np.clip(end, -1, 1),
            self.before.actor.target_params["bias"],
        )
        weight = np.minimum(np.exp(advantage / config.temperature), 100)
        if config.extraction == "backprop":
            sampled = affine_mean(bias, self.actor_obs[:, None], start)
            return -self.q(self.before.critic.target_params, self.actor_obs, sampled).mean(), None
        if config.extraction == "awfm":
            return np.mean(weight * self.matching(bias, action)), None
        if config.extraction == "fpo":
            ratio = np.exp(self.matching(target, action) - self.matching(bias, action))
        else:
            ratio = np.exp(
                self.density(bias, self.actor_obs, start, end)
                - self.density(target, self.actor_obs, start, end)
            )
        if config.extraction == "awr":
            return -np.mean(weight * ratio), ratio
        clipped = np.clip(ratio, 1 - config.clip, upper)
        loss = -np.mean(np.minimum(ratio * advantage, clipped * advantage))
        return loss, ratio[advantage != 0]

    def imitation(self, bias):
        good, weight = self.batch.success, self.batch.success_weight
        if self.config.imitation_data == "replay":
            good, weight = self.batch.transitions, np.ones(STATES)
        weight = np.asarray(weight)
        mask = np.asarray(good.mask)
        error = (bias + 0.3 * self.normalize(good.obs) - np.asarray(good.action)[..., 0]) ** 2
        return np.sum(weight * (error * mask).sum(-1) / mask.sum(-1)) / weight.sum()

    def actor(self):
        config, start_bias = self.config, np.asarray(self.before.actor.params["bias"], np.float64)
        start, end, _ = self.chains(self.before.actor.target_params, self.actor_obs, config.chains)
        advantage, upper = self.advantages(start, end)

        def loss(bias):
            value = self.policy_loss(bias, start, end, advantage, upper)[0]
            if config.forward_kl:
                from_slow = self.chains(self.before.actor.slow_params, self.actor_obs, 1)[:2]
                value -= config.forward_kl * self.density(bias, self.actor_obs, *from_slow).mean()
            return value

        def gradient_of(loss):
            small = 1e-5 * np.eye(2)
            changes = [loss(start_bias + step) - loss(start_bias - step) for step in small]
            return np.array(changes) / 2e-5

        gradient = gradient_of(loss)
        norms = {"policy_gradient_norm": np.linalg.norm(gradient)}
        if config.success_weight:
            imitation = gradient_of(self.imitation)
            norms["imitation_gradient_norm"] = np.linalg.norm(imitation)
            scales = np.ones(2)
            if config.balance_gradients:
                scales /= [norms["policy_gradient_norm"], norms["imitation_gradient_norm"]]
            gradient = scales[0] * gradient + config.success_weight * scales[1] * imitation
        value, ratio = self.policy_loss(start_bias, start, end, advantage, upper)
        result = norms | {
            "policy_loss": value,
            "actor_gradient_norm": np.linalg.norm(gradient),
            "advantage_abs_mean": np.abs(advantage).mean(),
            "advantage_nonzero_fraction": (advantage != 0).mean(),
        }
        if config.success_weight:
            result["imitation_loss"] = self.imitation(start_bias)
        if ratio is not None:
            result |= {
                "ratio": ratio.mean(),
                "ratio_deviation": np.abs(ratio - 1).mean(),
                "clip_fraction": ((ratio < 1 - config.clip) | (ratio > upper)).mean(),
            }
        return result

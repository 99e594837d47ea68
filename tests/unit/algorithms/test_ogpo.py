"""OGPO's update against the paper's formulas in float64 numpy, on a policy whose every density is
known in closed form.
"""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.off_policy import assert_every_switch_is_tested
from scipy import stats

from gcp_jax.algorithms import ogpo, ogpo_config, ogpo_critics, ogpo_extraction
from gcp_jax.core import denoising as chain_lib
from gcp_jax.core import flow
from gcp_jax.core import policy as policy_lib
from gcp_jax.core.networks import Normalizer, ValueNet, make_critic_ensemble
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


# The policy: x_0 and the noise are fixed waves, x_1 ~ N(bias + x_0/2 + 0.3 s, STD²). Written once
# for jax and for numpy.


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


@pytest.fixture(scope="module")
def batch():
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


CONFIGS = {
    "OGPO+CA": SMALL,
    "plain": plain(),
    "no clipping": plain(clip=10.0),
    "success term": plain(success_weight=0.7),
    "imitation of the replay": plain(success_weight=0.7, imitation_data="replay"),
    "balanced gradients": plain(success_weight=0.7, balance_gradients=True),
    "shared noise": plain(shared_noise=2),
    "shared noise, value baseline": plain(shared_noise=2, baseline="value"),
    "shared noise, group std": plain(shared_noise=2, group_std=True, conservative=True),
    "fewer states": plain(actor_states=STATES // 2),
    "several target samples": plain(target_samples=3),
    "best next action": plain(critics=2, target_samples=2, target_best_of=3),
    "best next action, chi2": plain(critics=2, chi2=0.5, target_best_of=3),
    "leave one out": plain(baseline="leave_one_out"),
    "value baseline": plain(baseline="value"),
    "conservative value baseline": plain(baseline="value", conservative=True),
    "group std": plain(group_std=True, conservative=True),
    "no negative": plain(no_negative=True),
    "chi2": plain(chi2=0.5),
    "chi2, low ceiling": plain(chi2=5.0, max_reward=0.001, clip=0.05),
    "forward KL": plain(forward_kl=0.3),
    "Cal-QL": plain(critic_warmup_updates=5, calql=0.6),
    "advantage-weighted ratio": plain(extraction="awr", temperature=0.2),
    "advantage-weighted matching": plain(extraction="awfm", temperature=0.2),
    "FPO": plain(extraction="fpo"),
    "back-propagation": plain(extraction="backprop"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_equal_the_papers_formulas(name, batch):
    config = CONFIGS[name]
    algorithm = make(config)
    before = apart(algorithm)
    _, metrics = algorithm.update(before, batch, jax.random.key(0))
    by_hand = ByHand(config, before, batch)
    expected = by_hand.critic() | by_hand.actor()
    assert metrics.keys() == expected.keys() | {"critic_gradient_norm"}
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], value, rtol=2e-4, atol=2e-6, err_msg=key)


def adam_step(loss, params, rate):
    optimizer = optax.adam(rate)
    change, _ = optimizer.update(jax.grad(loss)(params), optimizer.init(params))
    return optax.apply_updates(params, change)


def assert_trees_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
    )


def test_critics_take_an_adam_step_on_the_squared_error_and_their_average_follows(batch):
    config = plain(critic_tau=0.1)
    algorithm = make(config)
    before = apart(algorithm)
    after, _ = algorithm.update(before, batch, jax.random.key(0))
    y = jnp.asarray(ByHand(config, before, batch).targets(), jnp.float32)
    critics = make_critic_ensemble(3, 2, 2, (8,))

    def loss(critic):
        q = critics.apply(
            {"params": critic}, NORMALISER(batch.transitions.obs), batch.transitions.action[..., 0]
        )
        return jnp.mean((q - y[None]) ** 2)

    stepped = adam_step(loss, before.critic.params, config.critic_lr)
    followed = jax.tree.map(
        lambda old, new: 0.9 * old + 0.1 * new, before.critic.target_params, stepped
    )
    assert_trees_close((after.critic.params, after.critic.target_params), (stepped, followed))


def test_the_value_baseline_regresses_on_the_mean_of_the_critics(batch):
    """V(s) takes an Adam step on (V(s) − mean_m Q̄_m(s, a))², a ~ θ̄, with the critics as this
    update found them.
    """
    config = plain(baseline="value")
    algorithm = make(config)
    before = apart(algorithm)
    after, _ = algorithm.update(before, batch, jax.random.key(0))
    by_hand = ByHand(config, before, batch)
    action = by_hand.chains(before.actor.target_params, by_hand.obs, 1)[2]
    y = jnp.asarray(
        by_hand.q(before.critic.target_params, by_hand.obs, action).mean((0, 2)), jnp.float32
    )

    def loss(value):
        return jnp.mean(
            (ValueNet((8,)).apply({"params": value}, NORMALISER(batch.transitions.obs)) - y) ** 2
        )

    assert_trees_close(after.value.params, adam_step(loss, before.value.params, config.critic_lr))


def test_averages_follow_at_their_rates(batch):
    config = plain(actor_tau=0.25, slow_tau=0.01, forward_kl=0.1)
    algorithm = make(config)
    before = apart(algorithm)
    after, _ = algorithm.update(before, batch, jax.random.key(0))
    new = after.actor.params["bias"]
    np.testing.assert_allclose(
        after.actor.target_params["bias"],
        0.75 * before.actor.target_params["bias"] + 0.25 * new,
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        after.actor.slow_params["bias"],
        0.99 * before.actor.slow_params["bias"] + 0.01 * new,
        rtol=1e-5,
    )
    assert after.updates == before.updates + 1
    assert not np.array_equal(new, before.actor.params["bias"])


def test_an_advantage_on_which_the_critics_disagree_is_zero(batch):
    """Critics of opposite sign: no chain has a consensus, so nothing moves the actor, to the last
    bit.
    """
    algorithm = make(plain(conservative=True, critic_tau=0.0))
    before = apart(algorithm)
    mirrored = jax.tree.map(lambda x: jnp.stack([x[0]] * 3), before.critic.target_params)
    mirrored["Dense_0"] = jax.tree.map(
        lambda x: jnp.stack([x[0], -x[0], x[0]]), before.critic.target_params["Dense_0"]
    )
    after, metrics = algorithm.update(
        before._replace(critic=before.critic._replace(target_params=mirrored)),
        batch,
        jax.random.key(0),
    )
    assert metrics["advantage_nonzero_fraction"] == 0
    np.testing.assert_array_equal(after.actor.params["bias"], before.actor.params["bias"])


def test_the_warm_up_leaves_the_actor_alone(batch):
    algorithm = make(plain(critic_warmup_updates=2, forward_kl=0.1))
    state = apart(algorithm)
    for n in range(3):
        before = state
        state, _ = algorithm.update(state, batch, jax.random.key(n))
        frozen = (before.actor, state.actor)
        same = all(jax.tree.leaves(jax.tree.map(np.array_equal, *frozen)))
        assert same == (n < 2)
        assert not np.array_equal(
            before.critic.params["Dense_0"]["kernel"], state.critic.params["Dense_0"]["kernel"]
        )
    assert state.updates == 3


def test_acting_takes_the_best_of_n_by_the_smaller_of_two_critics():
    """Over many keys exactly the choices of the three pairs of critics appear; before the first
    update, the first chain.
    """
    algorithm = make(SMALL)
    state = apart(algorithm)
    obs = transitions(2).obs[:1]
    by_hand = ByHand(SMALL, state, Batch(transitions(2)))
    candidates = by_hand.chains(state.actor.target_params, by_hand.normalize(obs), SMALL.best_of)[
        2
    ][0]
    q = by_hand.q(state.critic.target_params, by_hand.normalize(obs), candidates[None])[:, 0]
    best = {int(np.argmax(np.minimum(q[i], q[j]))) for i, j in ((0, 1), (0, 2), (1, 2))}
    assert len(best) > 1

    def chosen(state, keys):
        chunks, extras = jax.jit(jax.vmap(lambda key: algorithm.act(state, obs, key)))(keys)
        assert (chunks.shape[1:], extras) == ((1, 2, 1), {})
        distance = np.abs(np.asarray(chunks)[:, 0, None, :, 0] - candidates[None]).max(-1)
        assert distance.min(-1).max() < 1e-6
        return set(distance.argmin(-1))

    keys = jax.random.split(jax.random.key(0), 64)
    assert chosen(state._replace(updates=jnp.int32(1)), keys) == best
    assert chosen(state, keys) == {0}


SWITCHES = {
    "chains": (plain(), 6, "actor gradient"),
    "actor_states": (plain(), 4, "actor gradient"),
    "critics": (plain(), 4, "actor gradient"),
    "critic_hidden": (plain(), (8, 8), "actor gradient"),
    "actor_lr": (plain(), 0.1, "actor"),
    "critic_lr": (plain(), 0.1, "critic"),
    "lr_cycle": (plain(), 10, "actor"),
    "grad_clip": (plain(), 1e-3, "critic gradient"),
    "clip": (plain(), 1.0, "actor gradient"),
    "actor_tau": (plain(), 0.5, "actor average"),
    "critic_tau": (plain(), 0.5, "critic average"),
    "shared_noise": (plain(), 2, "actor gradient"),
    "target_clip_fraction": (plain(target_clip_fraction=0.2), 0.9, "actor rate"),
    "balance_gradients": (plain(success_weight=1.0), True, "actor gradient"),
    "best_of": (plain(), 1, "action"),
    "deploy_best_of": (plain(), 4, "deployed"),
    "success_weight": (plain(), 1.0, "actor gradient"),
    "imitation_data": (plain(success_weight=1.0), "replay", "actor gradient"),
    "success_critic": (plain(), True, "critic"),
    "conservative": (plain(), True, "actor gradient"),
    "target_samples": (plain(), 4, "critic gradient"),
    "target_best_of": (plain(), 4, "critic gradient"),
    "chi2": (plain(), 0.5, "critic gradient"),
    "chi2_alpha": (plain(chi2=0.5), 50.0, "critic gradient"),
    "max_reward": (plain(chi2=5.0, clip=1.0), 1e-4, "actor gradient"),
    "slow_tau": (plain(forward_kl=0.1), 0.5, "slow reference"),
    "baseline": (plain(), "leave_one_out", "actor gradient"),
    "group_std": (plain(), True, "actor gradient"),
    "no_negative": (plain(), True, "actor gradient"),
    "forward_kl": (plain(), 1.0, "actor gradient"),
    "critic_warmup_updates": (plain(), 10, "actor"),
    "calql": (plain(critic_warmup_updates=10), 1.0, "critic gradient"),
    "extraction": (plain(), "awr", "actor gradient"),
    "temperature": (plain(extraction="awr"), 0.1, "actor gradient"),
}


PARTS = {
    "actor": lambda state: state.actor.params,
    "actor average": lambda state: state.actor.target_params,
    "actor gradient": lambda state: state.actor.opt_state,
    "actor rate": lambda state: state.actor.rate_factor,
    "slow reference": lambda state: state.actor.slow_params,
    "critic": lambda state: state.critic.params,
    "critic average": lambda state: state.critic.target_params,
    "critic gradient": lambda state: state.critic.opt_state,
}


def outcome(config, batch, part):
    """What an update makes of one part of the state, or the actions the result takes, as one
    vector.
    """
    algorithm = make(config)
    state, _ = algorithm.update(apart(algorithm), batch, jax.random.key(0))
    obs, key = batch.transitions.obs, jax.random.key(1)
    if part == "action":
        result, _ = algorithm.act(state, obs, key)
    elif part == "deployed":
        result = algorithm.eval_policy(algorithm.export(state), obs, key)
    else:
        result = PARTS[part](state)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(result)])


@pytest.fixture(scope="module")
def usual(batch):
    """``outcome``, remembered: most switches start from the same configuration."""
    return functools.cache(lambda config, part: outcome(config, batch, part))


@pytest.mark.slow
@pytest.mark.parametrize("field", SWITCHES)
def test_every_switch_changes_what_it_governs(field, batch, usual):
    """An optimizer's state holds the raw gradient, which Adam's first step would hide."""
    base, value, part = SWITCHES[field]
    changed = outcome(dataclasses.replace(base, **{field: value}), batch, part)
    assert np.abs(usual(base, part) - changed).max() > 1e-6


def test_every_switch_has_its_test():
    """``actor_blocks`` changes memory and time only, which the benchmark of updates states, and
    ``measure_snr`` metrics only.
    """
    elsewhere = ("gamma", "actor_blocks", "measure_snr")
    assert_every_switch_is_tested(SWITCHES, ogpo.Config, elsewhere=elsewhere)


def test_measuring_the_signal_changes_metrics_only(batch):
    """With one batch again and again and no step, successive gradients are equal."""
    config = plain(actor_lr=0.0, critic_lr=0.0, critic_tau=0.0, actor_tau=0.0)

    def run(config):
        algorithm = make(config)
        state = apart(algorithm)
        for _ in range(3):
            state, metrics = algorithm.update(state, batch, jax.random.key(0))
        return state._replace(actor=state.actor._replace(signal=None)), metrics

    state, metrics = run(config)
    measured_state, measured = run(dataclasses.replace(config, measure_snr=True))
    jax.tree.map(np.testing.assert_array_equal, state, measured_state)
    assert measured.keys() - metrics.keys() == {"policy_gradient_snr"}
    assert measured["policy_gradient_snr"] > 100.0


@pytest.mark.parametrize("target", [0.0, 0.2])
def test_the_rate_adapts_until_few_ratios_are_clipped(target, batch):
    """From a rate that is too high for this policy; without a target, it stays there."""
    algorithm = make(plain(actor_lr=0.3, actor_tau=0.05, target_clip_fraction=target))

    def step(state, key):
        state, metrics = algorithm.update(state, batch, key)
        return state, metrics["clip_fraction"]

    keys = jax.random.split(jax.random.key(0), 1000)
    state, clip_fraction = jax.jit(lambda state: jax.lax.scan(step, state, keys))(apart(algorithm))
    settled = np.mean(clip_fraction[-200:])
    if target:
        assert 0.05 < settled < 0.4
        assert state.actor.rate_factor < 0.5
    else:
        assert settled > 0.5
        assert state.actor.rate_factor is None


@pytest.mark.parametrize("conservative", [False, True])
@pytest.mark.parametrize("extraction", ogpo_config.EXTRACTIONS_IN_BLOCKS)
def test_chains_in_blocks_take_the_step_of_all_at_once(extraction, conservative, batch):
    """The gradient, by the state of the optimizer, and the metrics."""

    def step(blocks):
        algorithm = make(
            plain(
                extraction=extraction,
                success_weight=1.0,
                conservative=conservative,
                actor_blocks=blocks,
            )
        )
        state, metrics = algorithm.update(apart(algorithm), batch, jax.random.key(0))
        return state.actor, metrics

    alone = step(1)
    assert (alone[1]["advantage_nonzero_fraction"] < 1.0) == conservative
    for blocks in (0, 4):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), alone, step(blocks))


def extraction_of(config):
    critics = ogpo_critics.make_critics(config, AFFINE)
    return ogpo_extraction.Extraction(config=config, policy=AFFINE, critics=critics, value=None)


def chains_with_advantages(count):
    """States, four chains of each, and advantages of which the last ``count`` are not 0."""
    obs = transitions(0).obs
    params = {"bias": jnp.zeros(2)}
    chain = AFFINE.sample_chains(params, obs, jax.random.key(0), 4)
    advantage = jnp.arange(4.0 * STATES) - (4 * STATES - count) + 1.0
    advantage = jnp.maximum(advantage, 0.0).reshape(STATES, 4)
    advantages = ogpo_extraction.Advantages(advantage=advantage, clip_high=jnp.float32(1.01))
    return params, obs, chain, advantages


@pytest.mark.parametrize(("count", "computed"), [(0, 0), (1, 8), (8, 8), (9, 16), (32, 32)])
def test_blocks_of_chains_without_an_advantage_are_not_computed(count, computed):
    """A mean that is not a number shows whether its chain was computed."""
    params, obs, chain, advantages = chains_with_advantages(count)
    extraction = extraction_of(plain(actor_blocks=4))
    order = np.argsort(advantages.advantage.ravel() == 0.0, kind="stable")

    def loss_with_nan_in(chains):
        rows, columns = np.divmod(chains, 4)
        poisoned = chain._replace(mean=chain.mean.at[rows, columns].set(np.nan))
        return extraction.loss(params, None, obs, poisoned, advantages, jax.random.key(1))

    value, metrics = loss_with_nan_in(order[computed:])
    assert np.isfinite(value)
    assert (metrics["ratio"] == 0.0) == (count == 0)
    if computed:
        assert np.isnan(loss_with_nan_in(order[computed - 1 : computed])[0])


@pytest.mark.parametrize("blocks", [1, 4])
def test_metrics_of_ratios_are_those_of_the_chains_with_an_advantage(blocks):
    params, obs, chain, advantages = chains_with_advantages(9)
    other = chain._replace(mean=chain.mean + 0.3)
    _, metrics = extraction_of(plain(actor_blocks=blocks)).loss(
        params, None, obs, other, advantages, jax.random.key(1)
    )
    ratio = np.exp(chain.log_density - other.log_density)[np.asarray(advantages.advantage) > 0]
    np.testing.assert_allclose(metrics["ratio"], np.mean(ratio), rtol=1e-5)
    np.testing.assert_allclose(metrics["ratio_deviation"], np.mean(np.abs(ratio - 1)), rtol=1e-5)
    clipped = np.mean((ratio < 0.99) | (ratio > 1.01))
    np.testing.assert_allclose(metrics["clip_fraction"], clipped, rtol=1e-5)
    assert clipped > 0


@pytest.mark.parametrize(
    ("extraction", "chains", "blocks"),
    [("ppo", 256, 8), ("ppo", 36, 4), ("awr", 7, 1), ("awfm", 256, 1)],
)
def test_blocks_are_chosen_by_the_number_of_chains(extraction, chains, blocks):
    assert ogpo.Config(extraction=extraction).blocks_of(chains) == blocks


def test_blocks_that_do_not_divide_the_chains_are_refused(batch):
    algorithm = make(plain(actor_blocks=3))
    with pytest.raises(ValueError, match="is 3, which does not divide the 32 chains"):
        algorithm.update(apart(algorithm), batch, jax.random.key(0))


@pytest.mark.parametrize(
    ("config", "needs"),
    [
        (plain(gamma=0.9), {"gamma": 0.9, "success": False, "to_go": False}),
        (plain(success_weight=1.0), {"gamma": 0.99, "success": True, "to_go": False}),
        (
            plain(success_weight=1.0, imitation_data="replay"),
            {"gamma": 0.99, "success": False, "to_go": False},
        ),
        (plain(success_critic=True), {"gamma": 0.99, "success": True, "to_go": False}),
        (
            plain(calql=1.0, critic_warmup_updates=1),
            {"gamma": 0.99, "success": False, "to_go": True},
        ),
    ],
)
def test_the_replay_carries_what_the_switches_need(config, needs):
    assert ogpo.replay_needs(config) == needs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"baseline": "mean"},
            "algorithm.baseline is 'mean'; allowed: group, leave_one_out, value",
        ),
        (
            {"extraction": "sac"},
            "algorithm.extraction is 'sac'; allowed: ppo, awr, awfm, fpo, backprop",
        ),
        ({"chains": 1}, "algorithm.chains is 1; it must be at least 2"),
        ({"actor_states": 0}, "algorithm.actor_states is 0; it must be at least 1"),
        ({"critics": 1}, "algorithm.critics is 1; it must be at least 2"),
        ({"best_of": 0}, "algorithm.best_of is 0; it must be at least 1"),
        ({"target_samples": 0}, "algorithm.target_samples is 0; it must be at least 1"),
        (
            {"actor_blocks": 2, "extraction": "awfm"},
            "algorithm.extraction='awfm' does not support; allowed with it: ppo, awr",
        ),
        (
            {"shared_noise": 3},
            "algorithm.shared_noise is 3, which does not divide the 8 chains of a state",
        ),
        (
            {"target_clip_fraction": 0.2, "extraction": "awfm"},
            "algorithm.extraction='awfm' has no ratios; allowed with it: ppo, awr, fpo",
        ),
        (
            {"balance_gradients": True, "success_weight": 0.0},
            "algorithm.success_weight is 0; set it above 0",
        ),
        ({"chi2": 0.1}, "set algorithm.conservative=False"),
        (
            {"calql": 0.1, "critic_warmup_updates": 0},
            "set algorithm.critic_warmup_updates above 0",
        ),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ogpo.Config(**settings)


@pytest.mark.parametrize("scheme", flow.SCHEMES)
def test_the_first_ratio_is_one(scheme, batch):
    """Stored chains are scored as they were sampled, also where the executed action is clipped, so
    θ = θ̄ gives 1 up to the rounding of a mean, measured in the σ of a step, in which sampling and
    scoring differ.
    """
    policy = policy_lib.make_policy(
        PolicyConfig(chunk=2, hidden=(8,), steps=2, scheme=scheme), SPECS
    )
    algorithm = make(SMALL, policy)
    state = algorithm.init(
        jax.random.key(0), {"net": policy.init(jax.random.key(1)), "normalizer": NORMALISER}
    )
    _, metrics = jax.jit(algorithm.update)(state, batch, jax.random.key(2))
    assert metrics["clip_fraction"] == 0
    assert metrics["ratio_deviation"] < np.finfo(np.float32).eps / np.min(
        policy.config.sampler.std(policy.times)
    )
    assert metrics["actor_gradient_norm"] > 0
    chains = policy.sample_chain_points(
        state.actor.target_params, batch.transitions.obs, jax.random.key(3), 4
    )
    assert np.any(np.abs(chains[..., -1, :]) > 1)


def test_cal_ql_is_never_silently_left_out(batch):
    """A source that does not give the returns to go is refused when the update is traced."""
    algorithm = make(plain(calql=1.0, critic_warmup_updates=1))
    without = batch._replace(return_to_go=None)
    with pytest.raises(ValueError, match="algorithm.calql needs returns to go, which the batches"):
        jax.eval_shape(algorithm.update, apart(algorithm), without, jax.random.key(0))


def test_deployed_is_the_policy_that_acts_and_its_normalizer(batch):
    algorithm = make(SMALL)
    state = apart(algorithm)
    exported = algorithm.export(state)
    assert exported.keys() == {"net", "normalizer"}
    assert exported["net"] is state.actor.target_params
    assert exported["normalizer"] is state.normalizer
    assert algorithm.preprocess_segment(state, batch) == (state, batch)


def test_deploying_the_best_of_n_takes_its_critics_along(batch):
    """The chosen of N deterministic samples has the highest value by the smaller of one of the
    pairs of critics.
    """
    algorithm = make(dataclasses.replace(SMALL, deploy_best_of=5))
    state, obs, key = apart(algorithm), batch.transitions.obs, jax.random.key(3)
    deployed = algorithm.export(state)
    assert deployed.keys() == {"net", "normalizer", "critic"}
    candidates = np.asarray(
        AFFINE.sample_n(state.actor.target_params, NORMALISER(obs), jax.random.split(key)[0], 5)
    )
    by_hand = ByHand(SMALL, state, batch)
    q = by_hand.q(state.critic.target_params, by_hand.normalize(obs), candidates)
    allowed = [np.argmax(np.minimum(q[i], q[j]), -1) for i, j in ((0, 1), (0, 2), (1, 2))]
    expected = [candidates[np.arange(STATES), best] for best in allowed]
    chunk = np.asarray(algorithm.eval_policy(deployed, obs, key))[..., 0]
    assert min(np.abs(chunk - each).max() for each in expected) < 1e-5


@pytest.mark.slow
def test_a_two_mode_prior_concentrates_on_the_rewarded_mode(two_modes, optimized):
    """A one-step task: reward 1 for a positive action. The prior takes either mode half of the
    time.
    """
    specs, count = two_modes.policy.specs, 32
    config = ogpo.Config(
        critics=3, critic_hidden=(32, 32), chains=8, actor_states=count, success_weight=0.0,
        actor_lr=1e-3, actor_tau=0.05, critic_lr=3e-3, critic_tau=0.1, clip=0.05,
        gamma=0.99, critic_warmup_updates=0,
    )  # fmt: skip
    algorithm = ogpo.make(config, two_modes.policy, SimpleNamespace(batch_size=count))

    def step(state, key):
        act_key, update_key = jax.random.split(key)
        action = jax.random.uniform(act_key, (count, 1, 1), minval=-1.0)
        zeros, yes = jnp.zeros((count, specs.obs_dim)), jnp.ones(count, bool)
        reward = (action[:, 0, 0] > 0).astype(jnp.float32)
        bandit = Transition(
            zeros, action, jnp.ones((count, 1)), reward, jnp.zeros(count), zeros, yes, ~yes
        )
        return algorithm.update(state, Batch(bandit), update_key)

    state = algorithm.init(jax.random.key(0), two_modes.deployed)
    keys = jax.random.split(jax.random.key(1), 150)
    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, keys), compiler_options=optimized)(state)
    greedy = jax.jit(two_modes.policy.eval_policy)
    before, after = (
        np.mean(np.asarray(greedy(deployed, jnp.zeros((4000, 1)), jax.random.key(2))) > 0)
        for deployed in (two_modes.deployed, algorithm.export(state))
    )
    assert abs(before - 0.5) < 0.04
    assert after > 0.95

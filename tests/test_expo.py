"""EXPO against its formulas in float64 numpy; samples of the policy and the noise of the edits are known waves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from test_critic import assert_first_adam_step, assert_one_line, heads, mlp, pairs, vector, watch

from gcp_jax import algorithms, critic, imitation, soft
from gcp_jax.algorithms import expo
from gcp_jax.networks import Normaliser
from gcp_jax.policy import Policy, PolicyConfig
from gcp_jax.types import Batch, Specs, Transition

SPECS = Specs(obs_dim=2, action_dim=1, chunk=2)
B, D, N = 8, 2, 5
NORMALISER = Normaliser(jnp.array([0.5, -0.5]), jnp.array([2.0, 0.5]))
SMALL = expo.Config(
    critics=3, critic_hidden=(4,), critic_lr=0.01, critic_ema=0.1, samples=N, base_lr=0.01, base_ema=0.25,
    actor_hidden=(4,), actor_lr=0.01, temperature=0.3, edit_scale=0.4,
)  # fmt: skip
TWO = dataclasses.replace(SMALL, critics=2)  # of two critics "two at random" are always both


# The policy, for jax and for numpy; its samples differ by their places alone and not by the noise they are given.


def wave(shape):
    return 0.9 * np.sin(1.7 * np.arange(1, np.prod(shape) + 1)).reshape(shape)


def sampled(bias, obs, shape):
    return (bias.reshape((1,) * (len(shape) - 1) + (-1,)) + 0.7 * wave(shape) + 0.3 * obs).clip(-1, 1)


def normalise(obs):
    return (np.asarray(obs, np.float64) - np.asarray(NORMALISER.mean)) / np.asarray(NORMALISER.std)


def matching(params, obs, action, mask, z, t):
    """Per sample: the masked mean of (bias + 0.3 s − a)²."""
    error = (params["bias"][None] + 0.3 * obs - action) ** 2
    return (error * mask).sum(-1) / mask.sum(-1)


POLICY = Policy(
    **{
        **dict.fromkeys(Policy._fields),
        "sample": lambda params, obs, z: sampled(params["bias"], obs, z.shape),
        "imitation_loss": matching,
        "config": PolicyConfig(chunk=2, steps=1),
        "specs": SPECS,
    }
)


def samples(params, obs, count=N):
    """[B, count, D] for normalised obs [B, O]."""
    return sampled(np.asarray(params["bias"], np.float64), obs[:, None], (len(obs), count, D))


def drawn(net, obs, action):
    """The unit edit u = tanh(μ + σ·wave) [..., D] of the actor ``net`` and log π(u) [...], by change of variables."""
    mean, log_std = np.split(mlp(net, obs, action), 2, -1)
    std = np.exp(np.clip(log_std, -5, 2))
    x = mean + std * wave(mean.shape)
    log_slope = -2 * (np.logaddexp(x, -x) - np.log(2))
    return np.tanh(x), np.sum(stats.norm.logpdf(x, mean, std) - log_slope, -1)


@pytest.fixture
def known_edits(monkeypatch):
    """The noise of every edit is the wave of its shape."""
    squash = soft.squash
    monkeypatch.setattr(soft, "squash", lambda mean, log_std, noise: squash(mean, log_std, wave(noise.shape)))


def transitions(seed=0):
    """A third of the rows terminated, a third hit a time limit; those still have a discount."""
    rng = np.random.default_rng(seed)
    obs, following, action = rng.standard_normal((3, B, 2)).astype(np.float32)
    third = np.arange(B) % 3
    return Transition(
        obs=jnp.asarray(obs),
        action=jnp.asarray(np.clip(action, -1, 1))[..., None],
        mask=jnp.asarray(np.where(np.arange(B)[:, None] % 4 == 2, [1.0, 0.0], [1.0, 1.0]), jnp.float32),
        reward=jnp.asarray(rng.standard_normal(B), jnp.float32),
        discount=jnp.asarray(np.where(third == 0, 0.0, 0.9), jnp.float32),
        next_obs=jnp.asarray(following),
        terminated=jnp.asarray(third == 0),
        truncated=jnp.asarray(third == 1),
    )


def changed(**settings):
    return dataclasses.replace(SMALL, **settings)


def make(config):
    return expo.make(config, POLICY, source=None)


def start(algorithm, step=1):
    """A state in the midst of training: both averages differ from their networks."""
    pretrained = {"net": {"bias": jnp.array([0.1, -0.2])}, "normaliser": NORMALISER}
    state, other = (algorithm.init(jax.random.key(seed), pretrained) for seed in (0, 1))
    averages = {
        "critic": state.critic._replace(target=other.critic.net),
        "base": state.base._replace(target={"bias": jnp.array([-0.05, 0.3])}),
    }
    return state._replace(**averages, step=jnp.int32(step))


def edited(action, u, config=SMALL):
    return np.clip(action + config.edit_scale * u, -1, 1)


def best(q, action):
    """The action [B, N, D] of the highest value [B, N]."""
    return np.take_along_axis(action, np.argmax(q, -1)[:, None, None], 1)[:, 0]


def candidates(state, obs):
    """Samples of the averaged base, then their edits, and what each averaged critic thinks: ([B, 2N, D], [M, B, 2N])."""
    action = samples(state.base.target, obs)
    u, _ = drawn(state.edit.net, obs[:, None], action)
    both = np.concatenate([action, edited(action, u)], 1)
    return both, heads(state.critic.target, obs[:, None], both)


# Acting.


def test_of_the_samples_and_their_edits_the_best_acts_and_is_deployed(known_edits):
    algorithm = make(TWO)
    state, obs = start(algorithm), transitions(2).obs
    action, q = candidates(state, normalise(obs))
    chosen = np.argmax(q.min(0), -1)
    assert min(chosen) < N <= max(chosen)
    assert np.any(np.abs(action[:, :N]) == 1)
    assert np.any(np.abs(action[:, N:]) == 1)
    chunk, extras = algorithm.act(state, obs, jax.random.key(0))
    assert extras == {}
    expected = best(q.min(0), action)
    np.testing.assert_allclose(chunk[..., 0], expected, rtol=1e-4, atol=1e-5)
    deployed = algorithm.export(state)
    assert deployed.keys() == {"net", "normaliser", "critic", "edit"}
    assert deployed["net"] is state.base.target
    np.testing.assert_allclose(
        algorithm.greedy(deployed, obs, jax.random.key(1))[..., 0], expected, rtol=1e-4, atol=1e-5
    )
    assert algorithm.prepare(state, obs) == (state, obs)


def test_the_best_is_that_of_a_random_pair_of_critics(known_edits):
    algorithm = make(SMALL)
    state, obs = start(algorithm), transitions(2).obs
    action, q = candidates(state, normalise(obs))
    expected = np.stack([best(pair, action) for pair in pairs(q)])
    keys, deployed = jax.random.split(jax.random.key(0), 64), algorithm.export(state)
    for choose in (lambda key: algorithm.act(state, obs, key)[0], lambda key: algorithm.greedy(deployed, obs, key)):
        chunks = np.asarray(jax.jit(jax.vmap(choose))(keys))[..., 0]
        distance = np.abs(chunks[:, None] - expected[None]).max((-1, -2))
        assert distance.min(-1).max() < 1e-5
        assert len(np.unique(chunks.round(4), axis=0)) == len(np.unique(expected.round(4), axis=0)) > 1


@pytest.mark.parametrize("warmup", [0, 3])
def test_until_the_critics_are_warm_a_sample_of_the_base_acts(warmup, known_edits):
    algorithm = make(dataclasses.replace(TWO, critic_warmup=warmup))
    obs = transitions(2).obs
    for step in (0, warmup, warmup + 1):
        state = start(algorithm, step)
        action, q = candidates(state, normalise(obs))
        expected = best(q.min(0), action) if step > warmup else action[:, 0]
        chunk, _ = algorithm.act(state, obs, jax.random.key(0))
        np.testing.assert_allclose(chunk[..., 0], expected, rtol=1e-4, atol=1e-5)


def test_samples_and_edits_have_noise_of_their_own(monkeypatch):
    seen, squash = [], soft.squash

    def watched(mean, log_std, noise):
        seen.append(np.asarray(noise))
        return squash(mean, log_std, noise)

    monkeypatch.setattr(soft, "squash", watched)
    policy = POLICY._replace(sample=lambda params, obs, z: (seen.append(np.asarray(z)), z)[1])
    algorithm = expo.make(SMALL, policy, source=None)
    algorithm.act(start(algorithm), transitions(2).obs, jax.random.key(0))
    assert [each.shape for each in seen] == [(B, N, D)] * 2
    assert len(np.unique(seen)) == 2 * B * N * D


# Learning.


def test_an_update_follows_the_papers_formulas(known_edits, monkeypatch):
    """Target with the maximum, cloning of the replay, and α log π(Δ) − mean_m Q(s, a + βΔ): value and gradient."""
    regressions = watch(monkeypatch, critic, "regress")["regress"]
    clones = watch(monkeypatch, imitation, "improve")["improve"]
    algorithm = make(TWO)
    before, data = start(algorithm), transitions()
    after, metrics = algorithm.update(before, Batch(data), jax.random.key(0))
    s = normalise(data.obs)

    # y = reward + discount · max_{a' ∈ {a'_i, ã'_i}} min of two Q̄(s', a')
    ((trained, obs, action, y), (learned, _)) = regressions[0]
    reward, discount = np.asarray(data.reward, np.float64), np.asarray(data.discount, np.float64)
    _, q = candidates(before, normalise(data.next_obs))
    assert np.any(np.argmax(q.min(0), -1) >= N)
    np.testing.assert_allclose(y, reward + discount * q.min(0).max(-1), rtol=1e-4, atol=1e-5)
    assert trained is before.critic
    np.testing.assert_allclose(obs, s, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(action, data.action[..., 0])
    assert after.critic is learned
    flat, mask = (np.asarray(x, np.float64) for x in (data.action[..., 0], data.mask))
    online = heads(before.critic.net, s, flat)

    # The base clones the replay.
    ((cloned, obs, given, _), (improved, _)) = clones[0]
    assert (cloned, given) == (before.base, data)
    np.testing.assert_allclose(obs, s, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after.base, improved)
    bias = np.asarray(before.base.net["bias"], np.float64)

    # The edit, of a sample of the base, climbs the critics as this update left them.
    proposed = samples(before.base.target, s, 1)[:, 0]

    def parts(net):
        u, log_density = drawn(net, s, proposed)
        return log_density, heads(after.critic.net, s, edited(proposed, u)).mean()

    def loss(net):
        log_density, worth = parts(net)
        return TWO.temperature * log_density.mean() - worth

    size = assert_first_adam_step(loss, before.edit.net, after.edit.net, after.edit.opt, TWO.actor_lr)
    log_density, worth = parts(before.edit.net)
    entropy = -log_density.mean() / D
    np.testing.assert_allclose(10 * memory(after.edit.alpha_opt), D * (entropy - TWO.target_entropy), rtol=1e-4)
    expected = {
        "critic_loss": np.mean((online - np.asarray(y)) ** 2), "q": online.mean(), "q_spread": online.std(0).mean(),
        "imitation_loss": matching({"bias": bias}, s, flat, mask, None, None).mean(),
        "actor_loss": loss(before.edit.net), "actor_q": worth, "entropy": entropy, "actor_gradient_norm": size,
    }  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4, atol=1e-6, err_msg=name)
    others = {"critic_gradient_norm", "base_gradient_norm", "temperature"}
    assert metrics.keys() == expected.keys() | others
    assert after.step == before.step + 1


def test_a_termination_does_not_bootstrap_and_a_time_limit_does(monkeypatch):
    regressions = watch(monkeypatch, critic, "regress")["regress"]
    algorithm, data = make(SMALL), transitions()
    algorithm.update(start(algorithm), Batch(data), jax.random.key(0))
    gained = np.abs(np.asarray(regressions[0][0][3] - data.reward))
    assert gained[np.asarray(data.terminated)].max() == 0
    assert gained[np.asarray(data.truncated)].min() > 1e-4


def test_the_entropy_is_that_of_the_unit_edit(known_edits):
    """Whatever β scales it by."""
    found = []
    for scale in (0.05, 0.7):
        algorithm = make(changed(edit_scale=scale))
        found.append(jax.jit(algorithm.update)(start(algorithm), Batch(transitions()), jax.random.key(0))[1])
    assert found[0]["entropy"] == found[1]["entropy"]
    assert found[0]["actor_q"] != found[1]["actor_q"]


def test_the_warm_up_leaves_base_and_edit_alone():
    algorithm = make(changed(critic_warmup=2))
    state, update = start(algorithm, step=0), jax.jit(algorithm.update)
    for n in range(3):
        before = state
        state, _ = update(state, Batch(transitions()), jax.random.key(n))
        same = [
            jax.tree.all(jax.tree.map(np.array_equal, *pair))
            for pair in ((before.base, state.base), (before.edit, state.edit))
        ]
        assert same == [n < 2] * 2
        assert np.abs(vector(before.critic.net) - vector(state.critic.net)).max() > 1e-4
    assert state.step == 3


def test_the_diagnostics_see_the_averaged_critics():
    algorithm = make(SMALL)
    state, obs = start(algorithm), transitions().obs
    chunk = np.random.default_rng(3).standard_normal((B, 3, 2, 1)).astype(np.float32)
    found = algorithm.value(state, obs, jnp.asarray(chunk))
    assert found.shape == (3, B, 3)
    expected = heads(state.critic.target, normalise(obs)[:, None], chunk[..., 0])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# Configuration.


def test_the_replay_carries_plain_transitions():
    assert algorithms.replay_needs(expo, changed(gamma=0.9)) == {"gamma": 0.9}


def memory(opt):
    return optax.tree.get(opt, "mu")


PARTS = {
    "critic": lambda state: state.critic.net,
    "critic gradient": lambda state: memory(state.critic.opt),
    "average": lambda state: state.critic.target,
    "base": lambda state: state.base.net,
    "base average": lambda state: state.base.target,
    "edit": lambda state: state.edit.net,
    "edit gradient": lambda state: memory(state.edit.opt),
    "temperature": lambda state: state.edit.log_alpha,
    "temperature gradient": lambda state: memory(state.edit.alpha_opt),
}
SWITCHES = {
    "critics": (4, "critic gradient"),
    "critic_hidden": ((5,), "critic gradient"),
    "critic_lr": (0.1, "critic"),
    "critic_ema": (0.5, "average"),
    "critic_warmup": (10, "base"),
    "grad_clip": (1e-3, "critic gradient"),
    "aggregate": ("min", "edit gradient"),
    "samples": (2, "critic gradient"),
    "base_lr": (0.1, "base"),
    "base_ema": (0.5, "base average"),
    "edit_scale": (0.05, "edit gradient"),
    "actor_hidden": ((5,), "critic gradient"),
    "actor_lr": (0.1, "edit"),
    "target_entropy": (-1.0, "temperature gradient"),
    "temperature": (1.0, "edit gradient"),
    "temperature_lr": (0.1, "temperature"),
}


@pytest.fixture(scope="module")
def outcome():
    """What an update makes of one part of the state, as one vector."""

    @functools.cache
    def updated(config):
        algorithm = make(config)
        return jax.jit(algorithm.update)(start(algorithm), Batch(transitions()), jax.random.key(0))[0]

    return lambda config, part: vector(PARTS[part](updated(config)))


@pytest.mark.parametrize("field", SWITCHES)
def test_every_switch_changes_what_it_governs(field, outcome):
    """An optimiser's memory holds the raw gradient, which Adam's first step would hide."""
    value, part = SWITCHES[field]
    one, two = outcome(SMALL, part), outcome(changed(**{field: value}), part)
    assert one.shape != two.shape or np.abs(one - two).max() > 1e-6


def test_every_switch_has_its_test():
    """gamma is folded into the transitions, so the replay is told of it."""
    assert SWITCHES.keys() | {"gamma"} == {field.name for field in dataclasses.fields(expo.Config)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "algorithm.samples is 0; it must be at least 1"),
        ({"edit_scale": 0.0}, "algorithm.edit_scale is 0.0; it must be positive"),
        ({"temperature": -1.0}, "algorithm.temperature is -1.0; it must be positive"),
        ({"target_entropy": 1.0}, "algorithm.target_entropy is 1.0 per dimension"),
        ({"critics": 1}, "algorithm.critics is 1; it must be at least 2"),
        ({"critic_warmup": -1}, "algorithm.critic_warmup is -1; it must be at least 0"),
        ({"aggregate": "max"}, "algorithm.aggregate is 'max'; allowed: mean, min"),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        expo.Config(**settings)
    assert_one_line(error)

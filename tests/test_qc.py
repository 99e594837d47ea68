"""QC against its formulas in float64 numpy, on a policy whose samples are known: ``a = bias + wave/2 + 0.3 s``."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_critic import assert_one_line, heads, pairs, vector, watch

from gcp_jax import algorithms, critic, imitation
from gcp_jax.algorithms import qc
from gcp_jax.networks import Normaliser
from gcp_jax.policy import Policy, PolicyConfig
from gcp_jax.types import Batch, Specs, Transition

SPECS = Specs(obs_dim=2, action_dim=1, chunk=2)
B, D, N = 8, 2, 5
NORMALISER = Normaliser(jnp.array([0.5, -0.5]), jnp.array([2.0, 0.5]))
SMALL = qc.Config(critics=3, critic_hidden=(4,), critic_lr=0.01, critic_ema=0.1, samples=N, base_lr=0.01, base_ema=0.25)


# The policy, for jax and for numpy; its samples differ by their places alone and not by the noise they are given.


def wave(shape):
    return 0.9 * np.sin(1.7 * np.arange(1, np.prod(shape) + 1)).reshape(shape)


def sampled(bias, obs, shape):
    return bias.reshape((1,) * (len(shape) - 1) + (-1,)) + 0.5 * wave(shape) + 0.3 * obs


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


def samples(params, obs):
    """[B, N, D] for normalised obs [B, O]."""
    return sampled(np.asarray(params["bias"], np.float64), obs[:, None], (len(obs), N, D))


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
    return qc.make(config, POLICY, source=None)


def start(algorithm, step=1):
    """A state in the midst of training: both averages differ from their networks."""
    pretrained = {"net": {"bias": jnp.array([0.1, -0.2])}, "normaliser": NORMALISER}
    state, other = (algorithm.init(jax.random.key(seed), pretrained) for seed in (0, 1))
    averages = {
        "critic": state.critic._replace(target=other.critic.net),
        "base": state.base._replace(target={"bias": jnp.array([-0.05, 0.3])}),
    }
    return state._replace(**averages, step=jnp.int32(step))


def best(q, action):
    """The action [B, N, D] of the highest value [B, N]."""
    return np.take_along_axis(action, np.argmax(q, -1)[:, None, None], 1)[:, 0]


def values(state, obs):
    """Samples of the averaged flow and what each averaged critic thinks of them: ([B, N, D], [M, B, N])."""
    action = samples(state.base.target, obs)
    return action, heads(state.critic.target, obs[:, None], action)


# Acting.


def test_the_best_of_n_acts_and_is_deployed():
    algorithm = make(SMALL)
    state, obs = start(algorithm), transitions(2).obs
    action, q = values(state, normalise(obs))
    expected = best(q.mean(0), action)
    assert len(set(np.argmax(q.mean(0), -1))) > 1
    chunk, extras = algorithm.act(state, obs, jax.random.key(0))
    assert extras == {}
    np.testing.assert_allclose(chunk[..., 0], expected, rtol=1e-4, atol=1e-5)
    deployed = algorithm.export(state)
    assert deployed.keys() == {"net", "normaliser", "critic"}
    assert deployed["net"] is state.base.target
    np.testing.assert_allclose(
        algorithm.greedy(deployed, obs, jax.random.key(1))[..., 0], expected, rtol=1e-4, atol=1e-5
    )
    assert algorithm.prepare(state, obs) == (state, obs)


def test_the_best_by_the_smaller_of_two_critics_is_that_of_a_pair():
    algorithm = make(changed(aggregate="min"))
    state, obs = start(algorithm), transitions(2).obs
    action, q = values(state, normalise(obs))
    expected = np.stack([best(pair, action) for pair in pairs(q)])
    keys = jax.random.split(jax.random.key(0), 64)
    deployed = algorithm.export(state)
    for chosen in (
        lambda key: algorithm.act(state, obs, key)[0],
        lambda key: algorithm.greedy(deployed, obs, key),
    ):
        chunks = np.asarray(jax.jit(jax.vmap(chosen))(keys))[..., 0]
        distance = np.abs(chunks[:, None] - expected[None]).max((-1, -2))
        assert distance.min(-1).max() < 1e-5
        assert len(np.unique(chunks.round(4), axis=0)) == len(np.unique(expected.round(4), axis=0)) > 1


@pytest.mark.parametrize("warmup", [0, 3])
def test_until_the_critics_are_warm_the_first_sample_acts(warmup):
    algorithm = make(changed(critic_warmup=warmup))
    obs = transitions(2).obs
    for step in (0, warmup, warmup + 1):
        state = start(algorithm, step)
        action, q = values(state, normalise(obs))
        expected = best(q.mean(0), action) if step > warmup else action[:, 0]
        chunk, _ = algorithm.act(state, obs, jax.random.key(0))
        np.testing.assert_allclose(chunk[..., 0], expected, rtol=1e-4, atol=1e-5)


def test_samples_of_a_state_differ():
    """With a policy that heeds its noise, by N samples of their own for each state."""
    policy, seen = POLICY._replace(sample=lambda params, obs, z: (seen.append(np.asarray(z)), z)[1]), []
    algorithm = qc.make(SMALL, policy, source=None)
    algorithm.act(start(algorithm), transitions(2).obs, jax.random.key(0))
    assert seen[0].shape == (B, N, D)
    assert len(np.unique(seen[0])) == B * N * D


# Learning.


@pytest.mark.parametrize("aggregate", ["mean", "min"])
def test_an_update_regresses_on_the_best_next_sample_and_clones_the_replay(aggregate, monkeypatch):
    regressions = watch(monkeypatch, critic, "regress")["regress"]
    clones = watch(monkeypatch, imitation, "improve")["improve"]
    algorithm = make(changed(aggregate=aggregate))
    before, data = start(algorithm), transitions()
    after, metrics = algorithm.update(before, Batch(data), jax.random.key(0))
    ((trained, obs, action, y), (learned, _)) = regressions[0]
    reward, discount = np.asarray(data.reward, np.float64), np.asarray(data.discount, np.float64)
    _, q = values(before, normalise(data.next_obs))
    wanted = [reward + discount * value.max(-1) for value in ([q.mean(0)] if aggregate == "mean" else pairs(q))]
    assert min(np.abs(np.asarray(y) - each).max() for each in wanted) < 1e-4
    np.testing.assert_array_equal(np.asarray(y)[np.asarray(data.terminated)], reward[np.asarray(data.terminated)])
    assert np.abs(np.asarray(y) - reward)[np.asarray(data.truncated)].min() > 1e-4
    assert trained is before.critic
    np.testing.assert_allclose(obs, normalise(data.obs), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(action, data.action[..., 0])
    assert after.critic is learned

    ((cloned, obs, given, _), (improved, _)) = clones[0]
    assert (cloned, given) == (before.base, data)
    np.testing.assert_allclose(obs, normalise(data.obs), rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after.base, improved)
    bias = np.asarray(before.base.net["bias"], np.float64)
    flat, mask = (np.asarray(x, np.float64) for x in (data.action[..., 0], data.mask))
    loss = matching({"bias": bias}, normalise(data.obs), flat, mask, None, None).mean()
    np.testing.assert_allclose(metrics["imitation_loss"], loss, rtol=1e-5)
    online = heads(before.critic.net, normalise(data.obs), flat)
    np.testing.assert_allclose(metrics["critic_loss"], np.mean((online - np.asarray(y)) ** 2), rtol=1e-4)
    np.testing.assert_allclose(metrics["q"], online.mean(), rtol=1e-4, atol=1e-6)
    assert metrics.keys() == {
        "critic_loss", "q", "q_spread", "critic_gradient_norm", "imitation_loss", "base_gradient_norm"
    }  # fmt: skip


def test_the_warm_up_leaves_the_flow_alone():
    algorithm = make(changed(critic_warmup=2))
    state, update = start(algorithm, step=0), jax.jit(algorithm.update)
    for n in range(3):
        before = state
        state, _ = update(state, Batch(transitions()), jax.random.key(n))
        assert jax.tree.all(jax.tree.map(np.array_equal, before.base, state.base)) == (n < 2)
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
    assert algorithms.replay_needs(qc, changed(gamma=0.9)) == {"gamma": 0.9}


def memory(opt):
    return optax.tree.get(opt, "mu")


PARTS = {
    "critic": lambda state: state.critic.net,
    "critic gradient": lambda state: memory(state.critic.opt),
    "average": lambda state: state.critic.target,
    "base": lambda state: state.base.net,
    "base average": lambda state: state.base.target,
}
SWITCHES = {
    "critics": (4, "critic gradient"),
    "critic_hidden": ((5,), "critic gradient"),
    "critic_lr": (0.1, "critic"),
    "critic_ema": (0.5, "average"),
    "critic_warmup": (10, "base"),
    "grad_clip": (1e-3, "critic gradient"),
    "aggregate": ("min", "critic gradient"),
    "samples": (2, "critic gradient"),
    "base_lr": (0.1, "base"),
    "base_ema": (0.5, "base average"),
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
    assert SWITCHES.keys() | {"gamma"} == {field.name for field in dataclasses.fields(qc.Config)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "algorithm.samples is 0; it must be at least 1"),
        ({"critics": 1}, "algorithm.critics is 1; it must be at least 2"),
        ({"critic_warmup": -1}, "algorithm.critic_warmup is -1; it must be at least 0"),
        ({"aggregate": "max"}, "algorithm.aggregate is 'max'; allowed: mean, min"),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        qc.Config(**settings)
    assert_one_line(error)

"""FQL against its formulas in float64 numpy, on a policy ``a = bias + z/2 + 0.3 s`` from which the noise can be read back."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from test_critic import assert_first_adam_step, assert_one_line, heads, mlp, pairs, vector, watch

from gcp_jax import algorithms, critic, imitation
from gcp_jax.algorithms import fql
from gcp_jax.networks import Head, Normaliser
from gcp_jax.policy import Policy, PolicyConfig
from gcp_jax.types import Batch, Specs, Transition

SPECS = Specs(obs_dim=2, action_dim=1, chunk=2)
B, D = 8, 2
NORMALISER = Normaliser(jnp.array([0.5, -0.5]), jnp.array([2.0, 0.5]))
SMALL = fql.Config(
    critics=3, critic_hidden=(4,), critic_lr=0.01, critic_ema=0.1, alpha=0.7,
    actor_hidden=(4,), actor_lr=0.01, base_lr=0.01, base_ema=0.25,
)  # fmt: skip


# The policy, for jax and for numpy.


def ode(bias, obs, z):
    return bias[None] + 0.5 * z + 0.3 * obs


def normalise(obs):
    return (np.asarray(obs, np.float64) - np.asarray(NORMALISER.mean)) / np.asarray(NORMALISER.std)


def matching(params, obs, action, mask, z, t):
    """Per sample: the masked mean of (bias + 0.3 s − a)²."""
    error = (params["bias"][None] + 0.3 * obs - action) ** 2
    return (error * mask).sum(-1) / mask.sum(-1)


POLICY = Policy(
    **{
        **dict.fromkeys(Policy._fields),
        "sample": lambda params, obs, z: ode(params["bias"], obs, z),
        "imitation_loss": matching,
        "config": PolicyConfig(chunk=2, steps=1),
        "specs": SPECS,
    }
)


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
    return fql.make(config, POLICY, source=None)


def start(algorithm, step=1):
    """A state in the midst of training: averages differ from their networks."""
    pretrained = {"net": {"bias": jnp.array([0.1, -0.2])}, "normaliser": NORMALISER}
    state, other = (algorithm.init(jax.random.key(seed), pretrained) for seed in (0, 1))
    averages = {
        "critic": state.critic._replace(target=other.critic.net),
        "base": state.base._replace(target={"bias": jnp.array([-0.05, 0.3])}),
    }
    return state._replace(**averages, step=jnp.int32(step))


def watch_head(monkeypatch):
    """The noise that μ was given, call by call."""
    seen = []

    class Watched(Head):
        def apply(self, params, obs, z):
            seen.append((np.asarray(obs), np.asarray(z)))
            return super().apply(params, obs, z)

    monkeypatch.setattr(fql, "Head", Watched)
    return seen


# Acting.


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_flow_acts_until_the_critics_are_warm_and_then_the_one_step_policy(warmup, monkeypatch):
    seen = watch_head(monkeypatch)
    algorithm = make(changed(critic_warmup=warmup))
    obs = jnp.asarray(np.random.default_rng(0).standard_normal((1500, 2)), jnp.float32)
    for step in (0, warmup):
        state = start(algorithm, step)
        chunk, extras = algorithm.act(state, obs, jax.random.key(step))
        bias = np.asarray(state.base.target["bias"], np.float64)
        z = 2 * (np.asarray(chunk, np.float64)[..., 0] - bias - 0.3 * normalise(obs))
        assert (chunk.shape, extras) == ((1500, 2, 1), {})
        assert all(stats.kstest(column, "norm").pvalue > 1e-3 for column in z.T)
    state = start(algorithm, warmup + 1)
    chunk, _ = algorithm.act(state, obs, jax.random.key(0))
    given, z = seen[-1]
    np.testing.assert_allclose(given, normalise(obs), rtol=1e-5, atol=1e-6)
    assert all(stats.kstest(column, "norm").pvalue > 1e-3 for column in z.T)
    raw = mlp(state.one_step, given, z)
    assert np.abs(raw).max() > 1
    np.testing.assert_allclose(chunk[..., 0], np.clip(raw, -1, 1), rtol=1e-4, atol=1e-5)


def test_the_one_step_policy_is_deployed(monkeypatch):
    seen = watch_head(monkeypatch)
    algorithm = make(SMALL)
    state, obs = start(algorithm), transitions(2).obs
    deployed = algorithm.export(state)
    assert deployed.keys() == {"net", "normaliser", "one_step"}
    assert (deployed["net"], deployed["one_step"]) == (state.base.target, state.one_step)
    chunk = algorithm.greedy(deployed, obs, jax.random.key(1))
    expected = np.clip(mlp(state.one_step, normalise(obs), seen[-1][1]), -1, 1)
    np.testing.assert_allclose(chunk[..., 0], expected, rtol=1e-4, atol=1e-5)
    assert algorithm.prepare(state, obs) == (state, obs)


# Learning.


@pytest.mark.parametrize("aggregate", ["mean", "min"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_an_update_follows_the_papers_formulas(aggregate, warmup, monkeypatch):
    """The target of μ, the flow's cloning, and μ's loss, value and gradient: without the critic's term in the warm-up."""
    regressions = watch(monkeypatch, critic, "regress")["regress"]
    clones = watch(monkeypatch, imitation, "improve")["improve"]
    seen = watch_head(monkeypatch)
    config = changed(aggregate=aggregate, critic_warmup=warmup)
    algorithm = make(config)
    before, data = start(algorithm), transitions()
    seen.clear()
    after, metrics = algorithm.update(before, Batch(data), jax.random.key(3))
    s, following = normalise(data.obs), normalise(data.next_obs)
    (one, z_next), (two, z) = seen
    np.testing.assert_allclose(one, following, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(two, s, rtol=1e-5, atol=1e-6)
    assert len(np.unique([z_next, z])) == 2 * B * D

    def pooled(q):
        return [q.mean(0)] if aggregate == "mean" else pairs(q)

    # y = reward + discount · Q̄(s', μ(s', z'))
    ((trained, obs, action, y), (learned, _)) = regressions[0]
    reward, discount = np.asarray(data.reward, np.float64), np.asarray(data.discount, np.float64)
    taken = np.clip(mlp(before.one_step, following, z_next), -1, 1)
    wanted = [reward + discount * value for value in pooled(heads(before.critic.target, following, taken))]
    assert min(np.abs(np.asarray(y) - each).max() for each in wanted) < 1e-4
    np.testing.assert_array_equal(np.asarray(y)[np.asarray(data.terminated)], reward[np.asarray(data.terminated)])
    assert np.abs(np.asarray(y) - reward)[np.asarray(data.truncated)].min() > 1e-4
    assert trained is before.critic
    np.testing.assert_allclose(obs, s, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(action, data.action[..., 0])
    assert after.critic is learned

    # The flow clones the replay.
    ((cloned, obs, given, _), (improved, _)) = clones[0]
    assert (cloned, given) == (before.base, data)
    np.testing.assert_allclose(obs, s, rtol=1e-5, atol=1e-6)
    assert after.base is improved

    # L(μ) = α mean_d (μ − ODE)² − Q(s, μ)
    goal = ode(np.asarray(after.base.target["bias"], np.float64), s, z)

    def parts(one_step):
        raw = mlp(one_step, s, z)
        values = pooled(heads(after.critic.net, s, np.clip(raw, -1, 1)))
        return np.mean((raw - goal) ** 2), [value.mean() for value in values]

    distance, worths = parts(before.one_step)
    index = int(np.argmin([abs(metrics["actor_q"] - worth) for worth in worths]))

    def loss(one_step):
        distance, worths = parts(one_step)
        return config.alpha * distance - (0 if warmup else worths[index])

    size = assert_first_adam_step(loss, before.one_step, after.one_step, after.opt, SMALL.actor_lr)
    expected = {
        "distil_loss": distance, "actor_q": worths[index], "actor_loss": loss(before.one_step), "actor_gradient_norm": size
    }  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4, atol=1e-6, err_msg=name)
    assert metrics.keys() == expected.keys() | {
        "critic_loss", "q", "q_spread", "critic_gradient_norm", "imitation_loss", "base_gradient_norm"
    }  # fmt: skip
    assert after.step == before.step + 1


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
    assert algorithms.replay_needs(fql, changed(gamma=0.9)) == {"gamma": 0.9}


def memory(opt):
    return optax.tree.get(opt, "mu")


PARTS = {
    "critic": lambda state: state.critic.net,
    "critic gradient": lambda state: memory(state.critic.opt),
    "average": lambda state: state.critic.target,
    "base": lambda state: state.base.net,
    "base average": lambda state: state.base.target,
    "one step": lambda state: state.one_step,
    "actor gradient": lambda state: memory(state.opt),
}
SWITCHES = {
    "critics": (4, "actor gradient"),
    "critic_hidden": ((5,), "actor gradient"),
    "critic_lr": (0.1, "critic"),
    "critic_ema": (0.5, "average"),
    "critic_warmup": (10, "actor gradient"),
    "grad_clip": (1e-3, "critic gradient"),
    "aggregate": ("min", "critic gradient"),
    "alpha": (7.0, "actor gradient"),
    "actor_hidden": ((5,), "critic gradient"),
    "actor_lr": (0.1, "one step"),
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
    assert np.abs(outcome(SMALL, part) - outcome(changed(**{field: value}), part)).max() > 1e-6


def test_every_switch_has_its_test():
    """gamma is folded into the transitions, so the replay is told of it."""
    assert SWITCHES.keys() | {"gamma"} == {field.name for field in dataclasses.fields(fql.Config)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "algorithm.alpha is -1.0; it must be at least 0"),
        ({"alpha": float("nan")}, "algorithm.alpha is nan; it must be at least 0"),
        ({"critics": 1}, "algorithm.critics is 1; it must be at least 2"),
        ({"critic_warmup": -1}, "algorithm.critic_warmup is -1; it must be at least 0"),
        ({"aggregate": "max"}, "algorithm.aggregate is 'max'; allowed: mean, min"),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        fql.Config(**settings)
    assert_one_line(error)

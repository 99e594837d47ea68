"""DSRL against its formulas in float64 numpy, on a policy ``a = bias + w/2 + 0.3 s`` from which the noise can be read back."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from scipy import stats
from test_critic import assert_one_line, heads, mlp, pairs, vector, watch

from gcp_jax import critic, soft
from gcp_jax.algorithms import dsrl
from gcp_jax.networks import Normaliser
from gcp_jax.policy import Policy, PolicyConfig
from gcp_jax.types import Batch, Specs, Transition

SPECS = Specs(obs_dim=2, action_dim=1, chunk=2)
B, D = 64, 2
NORMALISER = Normaliser(jnp.array([0.5, -0.5]), jnp.array([2.0, 0.5]))
BIAS = np.array([0.1, -0.2])
SMALL = dsrl.Config(
    critics=3, critic_hidden=(4,), actor_hidden=(4,), critic_lr=0.01, actor_lr=0.01,
    critic_ema=0.1, temperature=0.3, distil_steps=2, bound=1.25,
)  # fmt: skip
MODES = ("na", "sac")


def ode(obs, w, bias=BIAS):
    return bias.reshape((1,) * (w.ndim - 1) + (-1,)) + 0.5 * w + 0.3 * obs


def noise_of(obs, chunk):
    """The w that ``ode`` made a chunk [..., h, 1] of, from raw observations."""
    return 2 * (np.asarray(chunk, np.float64)[..., 0] - BIAS - 0.3 * normalise(obs))


def normalise(obs):
    return (np.asarray(obs, np.float64) - np.asarray(NORMALISER.mean)) / np.asarray(NORMALISER.std)


POLICY = Policy(
    **{
        **dict.fromkeys(Policy._fields),
        "sample": lambda params, obs, z: ode(obs, z, params["bias"]),
        "config": PolicyConfig(chunk=2, steps=1),
        "specs": SPECS,
    }
)


def changed(**settings):
    return dataclasses.replace(SMALL, **settings)


def start(algorithm, seed=0, step=1):
    """A state in the midst of training: the average critic differs from the critic, log-densities vary in sign."""
    pretrained = {"net": {"bias": jnp.asarray(BIAS, jnp.float32)}, "normaliser": NORMALISER}
    state, other = (algorithm.init(jax.random.key(s), pretrained) for s in (seed, seed + 1))
    return state._replace(critic=state.critic._replace(target=other.critic.net), step=jnp.int32(step))


@pytest.fixture(scope="module")
def batch():
    """A third of the rows terminated, a third hit a time limit; those still have a discount."""
    rng = np.random.default_rng(0)
    obs, following, action, noise = rng.standard_normal((4, B, 2)).astype(np.float32)
    third = np.arange(B) % 3
    return Batch(
        Transition(
            obs=jnp.asarray(obs),
            action=jnp.asarray(np.clip(action, -1, 1))[..., None],
            mask=jnp.ones((B, 2)),
            reward=jnp.asarray(rng.standard_normal(B), jnp.float32),
            discount=jnp.asarray(np.where(third == 0, 0.0, 0.9), jnp.float32),
            next_obs=jnp.asarray(following),
            terminated=jnp.asarray(third == 0),
            truncated=jnp.asarray(third == 1),
            extras={"w": jnp.asarray(noise)},
        )
    )


def make(config):
    return dsrl.make(config, POLICY, source=None)


def steered(state, saturated=20.0):
    """The state with an actor whose mean is far out in both directions."""
    net = dict(state.actor.net)
    last = max(name for name in net if name.startswith("Dense"))
    bias = jnp.array([saturated, -saturated, -1.0, -1.0])
    return state._replace(actor=state.actor._replace(net={**net, last: {**net[last], "bias": bias}}))


# Acting.


@pytest.mark.parametrize(("mode", "warmup"), [("na", 0), ("sac", 3)])
def test_before_the_first_step_of_the_actor_the_noise_is_the_priors_and_then_bounded(mode, warmup):
    algorithm = make(changed(mode=mode, critic_warmup=warmup))
    obs = np.random.default_rng(0).standard_normal((1500, 2)).astype(np.float32)
    act = jax.jit(algorithm.act)
    state, key = start(algorithm), jax.random.key(1)
    chunk, extras = act(state._replace(step=jnp.int32(warmup)), jnp.asarray(obs), key)
    w = noise_of(obs, chunk)
    assert chunk.shape == (1500, 2, 1)
    assert np.abs(w).max() > 2 * SMALL.bound
    assert all(stats.kstest(column, "norm").pvalue > 1e-3 for column in w.T)
    if mode == "sac":
        np.testing.assert_allclose(extras["w"], w, atol=1e-5)
    state = state._replace(step=jnp.int32(warmup + 1))
    chunk, extras = act(state, jnp.asarray(obs), key)
    w = noise_of(obs, chunk)
    mean, log_std = np.split(mlp(state.actor.net, normalise(obs)), 2, -1)
    assert np.abs(w).max() <= SMALL.bound + 1e-5
    inside = np.abs(w).max(-1) < 0.999 * SMALL.bound
    noise = (np.arctanh(w[inside] / SMALL.bound) - mean[inside]) / np.exp(log_std[inside])
    assert inside.mean() > 0.95
    assert np.abs(noise.mean(0)).max() < 0.15
    assert np.abs(noise.std(0) - 1).max() < 0.15
    assert extras.keys() == ({"w"} if mode == "sac" else set())
    if mode == "sac":
        np.testing.assert_allclose(extras["w"], w, atol=1e-5)
    w = noise_of(obs, act(steered(state), jnp.asarray(obs), key)[0])
    np.testing.assert_allclose(w, np.broadcast_to([SMALL.bound, -SMALL.bound], w.shape), atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_deployed_is_the_base_steered_by_the_mode_of_the_actor_within_the_bound(mode):
    algorithm = make(changed(mode=mode))
    state = start(algorithm)
    obs = np.random.default_rng(1).standard_normal((5, 2)).astype(np.float32)
    deployed = algorithm.export(state)
    assert deployed.keys() == {"net", "normaliser", "noise"}
    assert deployed["net"] is state.base
    one, two = (algorithm.greedy(deployed, jnp.asarray(obs), jax.random.key(k)) for k in (0, 1))
    w = SMALL.bound * np.tanh(mlp(state.actor.net, normalise(obs))[:, :D])
    np.testing.assert_allclose(one[..., 0], ode(normalise(obs), w), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(one, two)
    w = noise_of(obs, algorithm.greedy(algorithm.export(steered(state)), jnp.asarray(obs), jax.random.key(0)))
    np.testing.assert_allclose(w, np.broadcast_to([SMALL.bound, -SMALL.bound], w.shape), atol=1e-5)


# Learning.


def uncompiled(step, carry, inputs):
    """``jax.lax.scan`` one step after the other, so that each can be watched."""
    made = []
    for x in inputs:
        carry, out = step(carry, x)
        made.append(out)
    return carry, jnp.stack(made)


@pytest.mark.parametrize(("mode", "aggregate"), [("na", "mean"), ("na", "min"), ("sac", "mean"), ("sac", "min")])
def test_an_update_follows_the_papers_formulas(mode, aggregate, batch, monkeypatch):
    """Targets, distillation and what the actor maximises, from the draws that the update made; loops run uncompiled."""
    regressions, draws = watch(monkeypatch, critic, "regress")["regress"], watch(monkeypatch, soft, "draw", "improve")
    algorithm = make(changed(mode=mode, aggregate=aggregate))
    before, data = start(algorithm), batch.transitions
    monkeypatch.setattr(jax.lax, "scan", uncompiled)
    after, metrics = algorithm.update(before, batch, jax.random.key(3))
    monkeypatch.undo()
    s, following = normalise(data.obs), normalise(data.next_obs)

    def pooled(found, q, scale=1.0, offset=0.0):
        wanted = [q.mean(0)] if aggregate == "mean" else pairs(q)
        assert min(np.abs(np.asarray(found) - (offset + scale * each)).max() for each in wanted) < 2e-4

    # y = reward + discount·[Q̄(s', w' or ODE(s', w')) − α log π(w'|s')]
    ((net, inputs, _), (u, log_density)) = draws["draw"][0]
    assert net is before.actor.net
    np.testing.assert_allclose(inputs[0], following, rtol=1e-5, atol=1e-6)
    u, log_density = np.asarray(u, np.float64), np.asarray(log_density, np.float64)
    assert log_density.min() < 0 < log_density.max()
    judged = ode(following, SMALL.bound * u) if mode == "na" else SMALL.bound * u
    (judge, obs, action, y), (judged_after, _) = regressions[0]
    reward, discount = np.asarray(data.reward, np.float64), np.asarray(data.discount, np.float64)
    pooled(y, heads(before.critic.target, following, judged), discount, reward - discount * 0.3 * log_density)
    assert judge is before.critic
    np.testing.assert_allclose(obs, s, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(action, data.action[..., 0] if mode == "na" else data.extras["w"])
    assert after.critic is judged_after

    # A time limit bootstraps, a termination does not.
    gained = np.abs(np.asarray(y) - reward)
    assert gained[np.asarray(data.terminated)].max() == 0
    assert gained[np.asarray(data.truncated)].min() > 1e-4

    # Q^W(s, w) → Q^A(s, ODE(s, w)), w ~ N(0, I), the critic as this update left it
    distilled = regressions[1:]
    assert len(distilled) == (SMALL.distil_steps if mode == "na" else 0)
    latent, losses, drawn = before.latent, [], []
    for (student, obs, w, y), (learned, _) in distilled:
        assert jax.tree.all(jax.tree.map(np.array_equal, student, latent))
        pooled(y, heads(after.critic.net, s, ode(s, np.asarray(w, np.float64))))
        losses.append(np.mean((heads(student.net, s, w) - np.asarray(y, np.float64)) ** 2))
        drawn.append(np.asarray(w))
        latent = learned
    if mode == "na":
        assert jax.tree.all(jax.tree.map(np.array_equal, after.latent, latent))
        np.testing.assert_allclose(metrics["distil_loss"], np.mean(losses), rtol=1e-4)
        assert stats.kstest(np.ravel(drawn), "norm").pvalue > 1e-3
        assert len(np.unique(drawn)) > 0.99 * np.size(drawn)
    else:
        assert after.latent is None
        assert "distil_loss" not in metrics

    # The actor maximises Q^W(s, w) − α log π, or Q(s, w) − α log π
    (actor, inputs, worth, _), (improved, learned) = draws["improve"][0]
    assert actor is before.actor
    np.testing.assert_allclose(inputs[0], s, rtol=1e-5, atol=1e-6)
    u = np.random.default_rng(5).uniform(-1, 1, (B, D)).astype(np.float32)
    pooled(worth(jnp.asarray(u)), heads((after.latent or after.critic).net, s, SMALL.bound * u))
    jax.tree.map(np.testing.assert_array_equal, after.actor, improved)
    assert {"critic_loss", "actor_loss", "entropy", "temperature"} <= metrics.keys()
    assert metrics["actor_loss"] is learned["actor_loss"]


@pytest.mark.parametrize("mode", MODES)
def test_the_warm_up_leaves_the_actor_and_its_temperature_alone(mode, batch):
    algorithm = make(changed(mode=mode, critic_warmup=2))
    state = start(algorithm, step=0)
    for n in range(3):
        before = state
        state, _ = algorithm.update(state, batch, jax.random.key(n))
        same = jax.tree.all(jax.tree.map(np.array_equal, before.actor, state.actor))
        assert same == (n < 2)
        learning = [(before.critic.net, state.critic.net)]
        learning += [(before.latent.net, state.latent.net)] if mode == "na" else []
        assert all(np.abs(vector(old) - vector(new)).max() > 1e-4 for old, new in learning)
        jax.tree.map(np.testing.assert_array_equal, before.base, state.base)
    assert state.step == 3


def test_two_devices_learn_as_one(batch, devices):
    algorithm = make(SMALL)
    state, key = start(algorithm), jax.random.key(4)

    def update(state, batch):
        after = algorithm.update(state, batch, key)[0]
        opts = (after.critic.opt, after.latent.opt, after.actor.opt, after.actor.alpha_opt)
        return [memory(opt) for opt in opts]

    spread = jax.shard_map(update, mesh=devices(data=2), in_specs=(P(), P("data")), out_specs=P(), check_vma=True)
    one, two = vector(update(state, batch)), vector(jax.jit(spread)(state, batch))
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=2e-5)


def test_only_critics_of_actions_are_shown_to_the_diagnostics():
    algorithm = make(SMALL)
    state = start(algorithm)
    rng = np.random.default_rng(3)
    obs, chunk = rng.standard_normal((4, 2)).astype(np.float32), rng.standard_normal((4, 5, 2, 1)).astype(np.float32)
    found = algorithm.value(state, jnp.asarray(obs), jnp.asarray(chunk))
    expected = heads(state.critic.target, normalise(obs)[:, None], chunk[..., 0])
    assert found.shape == (3, 4, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert make(changed(mode="sac")).value is None
    assert algorithm.prepare(state, obs) == (state, obs)


# Configuration.


@pytest.mark.parametrize(("mode", "aligned"), [("na", False), ("sac", True)])
def test_the_replay_is_aligned_where_it_carries_noise(mode, aligned):
    assert dsrl.replay_needs(changed(mode=mode, gamma=0.9)) == {"gamma": 0.9, "aligned": aligned}


def memory(opt):
    return optax.tree.get(opt, "mu")


PARTS = {
    "critic": lambda state: state.critic.net,
    "critic gradient": lambda state: memory(state.critic.opt),
    "average": lambda state: state.critic.target,
    "latent": lambda state: state.latent.net,
    "actor": lambda state: state.actor.net,
    "actor gradient": lambda state: memory(state.actor.opt),
    "temperature": lambda state: state.actor.log_alpha,
    "temperature gradient": lambda state: memory(state.actor.alpha_opt),
}
SWITCHES = {
    "critics": (4, "actor gradient"),
    "critic_hidden": ((5,), "actor gradient"),
    "critic_lr": (0.1, "critic"),
    "critic_ema": (0.5, "average"),
    "critic_warmup": (10, "actor"),
    "grad_clip": (1e-3, "critic gradient"),
    "aggregate": ("min", "critic gradient"),
    "actor_hidden": ((5,), "critic gradient"),
    "actor_lr": (0.1, "actor"),
    "target_entropy": (-1.0, "temperature gradient"),
    "temperature": (1.0, "critic gradient"),
    "temperature_lr": (0.1, "temperature"),
    "mode": ("na", "critic gradient"),
    "bound": (2.0, "critic gradient"),
    "distil_steps": (1, "latent"),
}


@pytest.fixture(scope="module")
def outcome(batch):
    """What an update makes of one part of the state, as one vector; uncompiled, since most configurations run once."""

    @functools.cache
    def updated(config):
        algorithm = make(config)
        return algorithm.update(start(algorithm), batch, jax.random.key(0))[0]

    return lambda config, part: vector(PARTS[part](updated(config)))


@pytest.mark.parametrize("field", SWITCHES)
def test_every_switch_changes_what_it_governs(field, outcome):
    """An optimiser's memory holds the raw gradient, which Adam's first step would hide."""
    value, part = SWITCHES[field]
    base = changed(mode="na" if field == "distil_steps" else "sac")
    assert np.abs(outcome(base, part) - outcome(dataclasses.replace(base, **{field: value}), part)).max() > 1e-6


def test_every_switch_has_its_test():
    """gamma is folded into the transitions, so the replay is told of it."""
    assert SWITCHES.keys() | {"gamma"} == {field.name for field in dataclasses.fields(dsrl.Config)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "ppo"}, "algorithm.mode is 'ppo'; allowed: na, sac"),
        ({"distil_steps": 0}, "algorithm.distil_steps is 0; it must be at least 1"),
        ({"bound": 0.0}, "algorithm.bound is 0.0; it must be positive"),
        ({"bound": float("nan")}, "algorithm.bound is nan; it must be positive"),
        ({"critics": 1}, "algorithm.critics is 1; it must be at least 2"),
        ({"critic_warmup": -1}, "algorithm.critic_warmup is -1; it must be at least 0"),
        ({"aggregate": "max"}, "algorithm.aggregate is 'max'; allowed: mean, min"),
        ({"temperature": -1.0}, "algorithm.temperature is -1.0; it must be positive"),
        ({"target_entropy": 1.0}, "algorithm.target_entropy is 1.0 per dimension"),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        dsrl.Config(**settings)
    assert_one_line(error)

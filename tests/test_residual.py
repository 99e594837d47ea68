"""Residual policies against their formulas in float64 numpy, on a base policy ``a_b = bias + z/4 + 0.3 s``."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from scipy import stats
from test_critic import assert_first_adam_step, assert_one_line, heads, mlp, pairs, vector, watch

from gcp_jax import algorithms, critic, soft
from gcp_jax.algorithms import residual
from gcp_jax.networks import Normaliser
from gcp_jax.policy import Policy, PolicyConfig
from gcp_jax.types import Batch, Segment, Specs, Step, Transition

SPECS = Specs(obs_dim=2, action_dim=1, chunk=2)
B, D = 64, 2
NORMALISER = Normaliser(jnp.array([0.5, -0.5]), jnp.array([2.0, 0.5]))
BIAS = np.array([0.4, -0.3])
SMALL = residual.Config(
    critics=3, critic_hidden=(4,), actor_hidden=(4,), critic_lr=0.01, actor_lr=0.01, critic_ema=0.1, temperature=0.3,
    scale=0.4, explore_steps=100,
)  # fmt: skip
MODES = ("sac", "td3")


def normalise(obs):
    return (np.asarray(obs, np.float64) - np.asarray(NORMALISER.mean)) / np.asarray(NORMALISER.std)


class Base:
    """The base policy; ``drawn`` notes the actions it gave, each [B, 1, D]."""

    def __init__(self):
        self.drawn = []
        settings = {"sample": self.sample, "config": PolicyConfig(chunk=2, steps=1), "specs": SPECS}
        self.policy = Policy(**{**dict.fromkeys(Policy._fields), **settings})

    def sample(self, params, obs, z):
        action = jnp.clip(params["bias"].reshape((1,) * (z.ndim - 1) + (-1,)) + 0.25 * z + 0.3 * obs, -1.0, 1.0)
        self.drawn.append(action)
        return action

    def taken(self, index):
        """Float64 [B, D]."""
        return np.asarray(self.drawn[index], np.float64)[:, 0]


def changed(**settings):
    return dataclasses.replace(SMALL, **settings)


def make(config, base=None):
    return residual.make(config, (base or Base()).policy, source=None)


def start(algorithm, step=4, env_steps=1000.0):
    """In the midst of training: the average critic differs from the critic, and the residual is no longer near zero."""
    pretrained = {"net": {"bias": jnp.asarray(BIAS, jnp.float32)}, "normaliser": NORMALISER}
    state, other = (algorithm.init(jax.random.key(seed), pretrained) for seed in (0, 1))
    net = dict(state.actor.net)
    last = max(name for name in net if name.startswith("Dense"))
    kernel = np.random.default_rng(7).standard_normal(net[last]["kernel"].shape)
    net[last] = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.array([0.3, -0.2, -0.5, -0.5])}
    return state._replace(
        actor=state.actor._replace(net=net),
        critic=state.critic._replace(target=other.critic.net),
        step=jnp.int32(step),
        env_steps=jnp.float32(env_steps),
    )


def untrained(algorithm):
    pretrained = {"net": {"bias": jnp.asarray(BIAS, jnp.float32)}, "normaliser": NORMALISER}
    return algorithm.init(jax.random.key(0), pretrained)._replace(step=jnp.int32(1))


def mode_of(net, obs, base):
    return np.tanh(mlp(net, obs, base)[..., :D])


def combined(base, u, scale=SMALL.scale):
    return np.clip(base + scale * u, -1, 1)


def observations(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    obs, following, action = rng.standard_normal((3, B, 2)).astype(np.float32)
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
        )
    )


# Acting.


def acted(config, state, count=1500, seed=1):
    """(normalised obs, a_b, chunk) of one call of ``act``, uncompiled."""
    base, obs = Base(), observations(count)
    chunk, extras = make(config, base).act(state, jnp.asarray(obs), jax.random.key(seed))
    assert (chunk.shape, extras) == ((count, 2, 1), {})
    return normalise(obs), base.taken(0), np.asarray(chunk, np.float64)[..., 0]


@pytest.mark.parametrize("mode", MODES)
def test_before_the_actors_first_step_the_base_acts_from_fresh_noise(mode):
    config = changed(mode=mode, critic_warmup=3)
    state = start(make(config), step=3)
    obs, base, chunk = acted(config, state)
    np.testing.assert_array_equal(chunk, base)
    inside = np.abs(base).max(-1) < 1
    z = (base - BIAS - 0.3 * obs)[inside] / 0.25
    assert np.abs(z.mean(0)).max() < 0.25  # cut by the clipping of a_b
    assert len(np.unique(z)) > 0.99 * z.size
    assert np.any(acted(config, state._replace(step=jnp.int32(4)))[2] != base)


def test_sac_adds_a_scaled_draw_of_its_gaussian_and_clips():
    state = start(make(SMALL))
    obs, base, chunk = acted(SMALL, state)
    mean, log_std = np.split(mlp(state.actor.net, obs, base), 2, -1)
    assert np.abs(chunk).max() <= 1
    assert np.any(np.abs(chunk) == 1)
    assert np.abs(chunk - base).max() <= SMALL.scale + 1e-6
    free = (np.abs(chunk) < 1).all(-1) & (np.abs(chunk - base) < 0.999 * SMALL.scale).all(-1)
    noise = (np.arctanh((chunk - base)[free] / SMALL.scale) - mean[free]) / np.exp(log_std[free])
    assert free.mean() > 0.3
    assert np.abs(noise.std(0) - 1).max() < 0.2


@pytest.mark.parametrize(("env_steps", "share"), [(0.0, 0.0), (30.0, 0.3), (100.0, 1.0), (1e6, 1.0)])
def test_progressive_exploration_switches_whole_chunks_on_with_the_share_of_steps_done(env_steps, share):
    _, base, chunk = acted(SMALL, start(make(SMALL), env_steps=env_steps), count=2000)
    on = (chunk != base).any(-1)
    if share in (0.0, 1.0):
        assert np.all(on[(np.abs(base) < 1).all(-1)] == share)
        return
    assert stats.binomtest(int(on.sum()), 2000, share).pvalue > 1e-3
    inside = on & (np.abs(base) < 1).all(-1)
    assert np.all((chunk != base)[inside])


def test_steps_are_counted_where_they_were_executed(devices):
    algorithm = make(SMALL)
    executed = np.random.default_rng(0).random((5, 4, 2)) < 0.7
    rows = jnp.zeros((5, 4, 2))
    steps = Step(rows, rows, rows, rows, rows, rows, rows, jnp.asarray(executed))
    state, segment = start(algorithm, env_steps=7.0), Segment(steps, {})
    after, same = algorithm.prepare(state, segment)
    assert after.env_steps == 7 + executed.sum()
    assert same is segment
    assert after._replace(env_steps=state.env_steps) == state

    def count(state, segment):
        return algorithm.prepare(state, segment)[0].env_steps

    spread = jax.shard_map(count, mesh=devices(data=2), in_specs=(P(), P(None, "data")), out_specs=P())
    assert spread(state, segment) == 7 + executed.sum()


def test_td3_starts_as_the_base():
    """Its residual is exactly zero, so that without noise nothing is added, however far training is said to be."""
    still = changed(mode="td3", noise=0.0)
    algorithm = make(still)
    state = untrained(algorithm)
    _, base, chunk = acted(still, state)
    np.testing.assert_array_equal(chunk, base)
    noisy = make(changed(mode="td3"))
    watched = Base()
    algorithm = make(still, watched)
    deployed, obs, key = algorithm.export(state), jnp.asarray(observations(9)), jax.random.key(0)
    chunk = algorithm.greedy(deployed, obs, key)
    np.testing.assert_array_equal(chunk[..., 0], watched.taken(0).astype(np.float32))
    np.testing.assert_array_equal(chunk, watched.policy.greedy(deployed, obs, key))  # the diagnostics pair them so
    assert np.all(vector(untrained(noisy).actor.net["Dense_0"]) == 0)


def test_sac_starts_near_the_base():
    watched = Base()
    algorithm = make(SMALL, watched)
    chunk = algorithm.greedy(algorithm.export(untrained(algorithm)), jnp.asarray(observations(9)), jax.random.key(0))
    assert 0 < np.abs(np.asarray(chunk)[..., 0] - watched.taken(0)).max() < 0.03


def test_td3_explores_with_noise_that_is_not_cut_and_stays_in_the_unit_box():
    """At any number of environment steps: progressive exploration is SAC's."""
    config = changed(mode="td3", noise=0.2, noise_cut=0.1)
    state = start(make(config), env_steps=0.0)
    obs, base, chunk = acted(config, state)
    u = mode_of(state.actor.net, obs, base)
    free = (np.abs(base) < 0.6) & (np.abs(u) < 0.4)  # where neither the box of u nor that of the action is reached
    noise = ((chunk - base) / config.scale - u)[free]
    assert noise.size > 100
    assert abs(noise.std() / 0.2 - 1) < 0.2
    assert np.abs(noise).max() > 3 * config.noise_cut
    wide = changed(mode="td3", noise=5.0)
    _, base, chunk = acted(wide, state)
    assert np.abs(chunk - base).max() <= wide.scale + 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_deployed_is_the_base_plus_the_scaled_mode_clipped(mode):
    watched = Base()
    algorithm = make(changed(mode=mode, scale=0.8), watched)
    state, obs = start(algorithm, step=0, env_steps=0.0), observations(40)
    deployed = algorithm.export(state)
    assert deployed.keys() == {"net", "normaliser", "residual"}
    assert deployed["net"] is state.base
    chunk = np.asarray(algorithm.greedy(deployed, jnp.asarray(obs), jax.random.key(0)))[..., 0]
    base = watched.taken(0)
    u = mode_of(state.actor.net, normalise(obs), base)
    np.testing.assert_allclose(chunk, combined(base, u, 0.8), rtol=1e-4, atol=1e-5)
    assert np.any(np.abs(base + 0.8 * u) > 1)


# Learning.


@pytest.mark.parametrize(("mode", "aggregate"), [("sac", "mean"), ("sac", "min"), ("td3", "mean"), ("td3", "min")])
def test_an_update_follows_the_papers_formulas(mode, aggregate, batch, monkeypatch):
    """From the base actions and the draws that the update made."""
    critics = watch(monkeypatch, critic, "regress", "pooled")
    actors = watch(monkeypatch, soft, "draw", "improve")
    config, watched = changed(mode=mode, aggregate=aggregate, noise=0.3, noise_cut=0.35), Base()
    algorithm = make(config, watched)
    before, data = start(algorithm), batch.transitions
    after, metrics = algorithm.update(before, batch, jax.random.key(3))
    s, following = normalise(data.obs), normalise(data.next_obs)
    future, present = watched.taken(0), watched.taken(1)

    def pooled(found, q, scale=1.0, offset=0.0):
        wanted = [q.mean(0)] if aggregate == "mean" else pairs(q)
        assert min(np.abs(np.asarray(found) - (offset + scale * each)).max() for each in wanted) < 2e-4

    # y = reward + discount·[Q̄(s', clip(a'_b + scale·u')) − α log π], or with smoothed u' and without the last term
    bonus = 0.0
    if mode == "sac":
        (net, inputs, _), (u, log_density) = actors["draw"][0]
        assert net is before.actor.net
        np.testing.assert_allclose(inputs[0], following, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(inputs[1], np.float64), future)
        u, bonus = np.asarray(u, np.float64), -0.3 * np.asarray(log_density, np.float64)
        assert bonus.min() < 0 < bonus.max()
    else:
        judged = np.asarray(critics["pooled"][0][0][2], np.float64)
        exact = mode_of(before.actor.net, following, future)
        u = (judged - future) / config.scale
        free = (np.abs(judged) < 1) & (np.abs(exact) < 0.6)
        smoothing = (u - exact)[free]
        at_cut = np.abs(np.abs(smoothing) - config.noise_cut) < 1e-4
        assert np.abs(smoothing).max() <= config.noise_cut + 1e-4
        assert abs(at_cut.mean() - 2 * stats.norm.sf(config.noise_cut / config.noise)) < 0.15
        assert np.abs(u).max() <= 1 + 1e-5
    reward, discount = np.asarray(data.reward, np.float64), np.asarray(data.discount, np.float64)
    (judge, obs, action, y), (judged_after, _) = critics["regress"][0]
    q = heads(before.critic.target, following, combined(future, u))
    pooled(y, q, discount, reward + discount * bonus)
    assert judge is before.critic
    np.testing.assert_allclose(obs, s, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(action, data.action[..., 0])
    assert after.critic is judged_after
    gained = np.abs(np.asarray(y) - reward)
    assert gained[np.asarray(data.terminated)].max() == 0
    assert gained[np.asarray(data.truncated)].min() > 1e-4

    # The actor maximises Q(s, clip(a_b + scale·u)) by the critics as this update left them.
    if mode == "sac":
        (actor, inputs, worth, _), (improved, _) = actors["improve"][0]
        assert actor is before.actor
        np.testing.assert_allclose(inputs[0], s, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(inputs[1], np.float64), present)
        u = np.random.default_rng(5).uniform(-1, 1, (B, D)).astype(np.float32)
        pooled(worth(jnp.asarray(u)), heads(after.critic.net, s, combined(present, u)))
        jax.tree.map(np.testing.assert_array_equal, after.actor, improved)
        return

    def losses(net):
        q = heads(after.critic.net, s, combined(present, mode_of(net, s, present)))
        return [-each.mean() for each in ([q.mean(0)] if aggregate == "mean" else pairs(q))]

    which = int(np.argmin(np.abs(np.array(losses(before.actor.net)) - metrics["actor_loss"])))
    np.testing.assert_allclose(metrics["actor_loss"], losses(before.actor.net)[which], rtol=1e-4, atol=1e-5)
    size = assert_first_adam_step(
        lambda net: losses(net)[which], before.actor.net, after.actor.net, after.actor.opt, config.actor_lr
    )
    np.testing.assert_allclose(metrics["actor_gradient_norm"], size, rtol=1e-3)
    assert after.actor.log_alpha == before.actor.log_alpha


@pytest.mark.parametrize(
    ("settings", "learns"),
    [
        ({"mode": "sac", "critic_warmup": 2}, [False] * 2 + [True] * 4),
        ({"mode": "td3", "actor_delay": 2, "critic_warmup": 3}, [False] * 4 + [True, False]),
    ],
)
def test_the_actor_waits_for_the_warm_up_and_for_its_turn_while_the_critics_learn(settings, learns, batch):
    algorithm = make(changed(**settings))
    state, update = start(algorithm, step=0), jax.jit(algorithm.update)
    for n, expected in enumerate(learns):
        before = state
        state, _ = update(state, batch, jax.random.key(n))
        assert jax.tree.all(jax.tree.map(np.array_equal, before.actor, state.actor)) != expected
        assert np.abs(vector(before.critic.net) - vector(state.critic.net)).max() > 1e-4
        jax.tree.map(np.testing.assert_array_equal, before.base, state.base)
    assert state.step == 6


def test_two_devices_learn_as_one(batch, devices):
    algorithm = make(SMALL)
    state, key = start(algorithm), jax.random.key(4)

    def update(state, batch):
        after = algorithm.update(state, batch, key)[0]
        return [memory(after.critic.opt), memory(after.actor.opt), memory(after.actor.alpha_opt)]

    spread = jax.shard_map(update, mesh=devices(data=2), in_specs=(P(), P("data")), out_specs=P(), check_vma=True)
    one, two = vector(update(state, batch)), vector(jax.jit(spread)(state, batch))
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=2e-5)


def test_the_diagnostics_are_shown_the_average_critics():
    algorithm = make(SMALL)
    state, obs = start(algorithm), observations(4)
    chunk = np.random.default_rng(3).standard_normal((4, 5, 2, 1)).astype(np.float32)
    found = algorithm.value(state, jnp.asarray(obs), jnp.asarray(chunk))
    expected = heads(state.critic.target, normalise(obs)[:, None], chunk[..., 0])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# Configuration.


def test_the_replay_is_told_of_gamma_alone():
    assert algorithms.replay_needs(residual, changed(gamma=0.9)) == {"gamma": 0.9}


def memory(opt):
    return optax.tree.get(opt, "mu")


PARTS = {
    "critic": lambda state: state.critic.net,
    "critic gradient": lambda state: memory(state.critic.opt),
    "average": lambda state: state.critic.target,
    "actor": lambda state: state.actor.net,
    "actor gradient": lambda state: memory(state.actor.opt),
    "temperature": lambda state: state.actor.log_alpha,
    "temperature gradient": lambda state: memory(state.actor.alpha_opt),
}
SWITCHES = {
    "critics": ("sac", 4, "actor gradient"),
    "critic_hidden": ("sac", (5,), "actor gradient"),
    "critic_lr": ("sac", 0.1, "critic"),
    "critic_ema": ("sac", 0.5, "average"),
    "critic_warmup": ("sac", 10, "actor"),
    "grad_clip": ("sac", 1e-3, "critic gradient"),
    "aggregate": ("sac", "min", "critic gradient"),
    "actor_hidden": ("sac", (5,), "critic gradient"),
    "actor_lr": ("sac", 0.1, "actor"),
    "target_entropy": ("sac", -1.0, "temperature gradient"),
    "temperature": ("sac", 1.0, "critic gradient"),
    "temperature_lr": ("sac", 0.1, "temperature"),
    "mode": ("sac", "td3", "critic gradient"),
    "scale": ("sac", 0.2, "critic gradient"),
    "explore_steps": ("sac", 10**6, "action"),
    "noise": ("td3", 0.2, "critic gradient"),
    "noise_cut": ("td3", 0.01, "critic gradient"),
    "actor_delay": ("td3", 3, "actor"),
}


@pytest.fixture(scope="module")
def outcome(batch):
    """What an update makes of one part of the state, or ``act`` of it, as one vector; uncompiled, since most run once."""

    @functools.cache
    def updated(config):
        algorithm = make(config)
        return algorithm.update(start(algorithm), batch, jax.random.key(0))[0]

    def read(config, part):
        if part == "action":
            algorithm = make(config)
            return vector(algorithm.act(start(algorithm), batch.transitions.obs, jax.random.key(1))[0])
        return vector(PARTS[part](updated(config)))

    return read


@pytest.mark.parametrize("field", SWITCHES)
def test_every_switch_changes_what_it_governs(field, outcome):
    """An optimiser's memory holds the raw gradient, which Adam's first step would hide."""
    mode, value, part = SWITCHES[field]
    base = changed(mode=mode)
    assert np.abs(outcome(base, part) - outcome(dataclasses.replace(base, **{field: value}), part)).max() > 1e-6


def test_every_switch_has_its_test():
    """gamma is folded into the transitions, so the replay is told of it."""
    assert SWITCHES.keys() | {"gamma"} == {field.name for field in dataclasses.fields(residual.Config)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "ppo"}, "algorithm.mode is 'ppo'; allowed: sac, td3"),
        ({"explore_steps": 0}, "algorithm.explore_steps is 0; it must be at least 1"),
        ({"actor_delay": 0}, "algorithm.actor_delay is 0; it must be at least 1"),
        ({"noise": -0.1}, "algorithm.noise is -0.1; it must be at least 0"),
        ({"noise_cut": -0.1}, "algorithm.noise_cut is -0.1; it must be at least 0"),
        ({"scale": 0.0}, "algorithm.scale is 0.0; it must be positive"),
        ({"critics": 1}, "algorithm.critics is 1; it must be at least 2"),
        ({"aggregate": "max"}, "algorithm.aggregate is 'max'; allowed: mean, min"),
        ({"temperature": 0.0}, "algorithm.temperature is 0.0; it must be positive"),
        ({"target_entropy": 1.0}, "algorithm.target_entropy is 1.0 per dimension"),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        residual.Config(**settings)
    assert_one_line(error)

"""Residual policies against their formulas in float64 numpy, on a base policy ``a_b = bias + z/4 +
0.3 s``.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import off_policy as off
from helpers.by_hand import assert_first_adam_step, heads, mlp, vector, watch
from helpers.off_policy import affine, normalize
from jax.sharding import PartitionSpec as P
from scipy import stats

from gcp_jax import algorithms
from gcp_jax.algorithms import residual
from gcp_jax.core import critic, tanh_gaussian
from gcp_jax.types import Batch, Segment, Step

B, D = 64, 2
BIAS = np.array([0.4, -0.3])
SMALL = residual.Config(
    critics=3,
    critic_hidden=(4,),
    actor_hidden=(4,),
    critic_lr=0.01,
    actor_lr=0.01,
    critic_tau=0.1,
    temperature=0.3,
    scale=0.4,
    explore_steps=100,
    gamma=0.99,
    critic_warmup_updates=0,
    temperature_lr=3e-4,
)
MODES = ("sac", "td3")


class Base:
    """The base policy; ``drawn`` notes the actions it gave, each [B, 1, D]."""

    def __init__(self):
        self.drawn = []
        self.policy = off.policy_of(self.sample)

    def sample(self, params, obs, z):
        action = jnp.clip(affine(params["bias"], obs, z, 0.25), -1.0, 1.0)
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
    """In the midst of training: the average critic differs from the critic, and the residual is no
    longer near zero.
    """
    state = off.midway(algorithm, BIAS, step)
    net = dict(state.actor.params)
    last = max(name for name in net if name.startswith("Dense"))
    kernel = np.random.default_rng(7).standard_normal(net[last]["kernel"].shape)
    net[last] = {
        "kernel": jnp.asarray(kernel, jnp.float32),
        "bias": jnp.array([0.3, -0.2, -0.5, -0.5]),
    }
    return state._replace(actor=state.actor._replace(params=net), env_steps=jnp.float32(env_steps))


def untrained(algorithm):
    return algorithm.init(jax.random.key(0), off.pretrained(BIAS))._replace(updates=jnp.int32(1))


def mode_of(net, obs, base):
    return np.tanh(mlp(net, obs, base)[..., :D])


def combined(base, u, scale=SMALL.scale):
    return np.clip(base + scale * u, -1, 1)


def observations(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def batch():
    return Batch(off.transitions(B))


# Acting.


def acted(config, state, count=1500, seed=1):
    """(normalized obs, a_b, chunk) of one call of ``act``, uncompiled."""
    base, obs = Base(), observations(count)
    chunk, extras = make(config, base).act(state, jnp.asarray(obs), jax.random.key(seed))
    assert (chunk.shape, extras) == ((count, 2, 1), {})
    return normalize(obs), base.taken(0), np.asarray(chunk, np.float64)[..., 0]


@pytest.mark.parametrize("mode", MODES)
def test_before_the_actors_first_step_the_base_acts_from_fresh_noise(mode):
    config = changed(mode=mode, critic_warmup_updates=3)
    state = start(make(config), step=3)
    obs, base, chunk = acted(config, state)
    np.testing.assert_array_equal(chunk, base)
    inside = np.abs(base).max(-1) < 1
    z = (base - BIAS - 0.3 * obs)[inside] / 0.25
    assert np.abs(z.mean(0)).max() < 0.25  # cut by the clipping of a_b
    assert len(np.unique(z)) > 0.99 * z.size
    assert np.any(acted(config, state._replace(updates=jnp.int32(4)))[2] != base)


def test_sac_adds_a_scaled_draw_of_its_gaussian_and_clips():
    state = start(make(SMALL))
    obs, base, chunk = acted(SMALL, state)
    mean, log_std = np.split(mlp(state.actor.params, obs, base), 2, -1)
    assert np.abs(chunk).max() <= 1
    assert np.any(np.abs(chunk) == 1)
    assert np.abs(chunk - base).max() <= SMALL.scale + 1e-6
    free = (np.abs(chunk) < 1).all(-1) & (np.abs(chunk - base) < 0.999 * SMALL.scale).all(-1)
    noise = (np.arctanh((chunk - base)[free] / SMALL.scale) - mean[free]) / np.exp(log_std[free])
    assert free.mean() > 0.3
    assert np.abs(noise.std(0) - 1).max() < 0.2


@pytest.mark.parametrize(
    ("env_steps", "share"), [(0.0, 0.0), (30.0, 0.3), (100.0, 1.0), (1e6, 1.0)]
)
def test_progressive_exploration_switches_whole_chunks_on_with_the_share_of_steps_done(
    env_steps, share
):
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
    after, same = algorithm.preprocess_segment(state, segment)
    assert after.env_steps == 7 + executed.sum()
    assert same is segment
    assert after._replace(env_steps=state.env_steps) == state

    def count(state, segment):
        return algorithm.preprocess_segment(state, segment)[0].env_steps

    spread = jax.shard_map(
        count, mesh=devices(data=2), in_specs=(P(), P(None, "data")), out_specs=P()
    )
    assert spread(state, segment) == 7 + executed.sum()


def test_td3_starts_as_the_base():
    """Its residual is exactly zero, so that without noise nothing is added, however far training is
    said to be.
    """
    still = changed(mode="td3", noise=0.0)
    algorithm = make(still)
    state = untrained(algorithm)
    _, base, chunk = acted(still, state)
    np.testing.assert_array_equal(chunk, base)
    noisy = make(changed(mode="td3"))
    watched = Base()
    algorithm = make(still, watched)
    deployed, obs, key = algorithm.export(state), jnp.asarray(observations(9)), jax.random.key(0)
    chunk = algorithm.eval_policy(deployed, obs, key)
    np.testing.assert_array_equal(chunk[..., 0], watched.taken(0).astype(np.float32))
    np.testing.assert_array_equal(
        chunk, watched.policy.eval_policy(deployed, obs, key)
    )  # the diagnostics pair them so
    assert np.all(vector(untrained(noisy).actor.params["Dense_0"]) == 0)


def test_sac_starts_near_the_base():
    watched = Base()
    algorithm = make(SMALL, watched)
    chunk = algorithm.eval_policy(
        algorithm.export(untrained(algorithm)), jnp.asarray(observations(9)), jax.random.key(0)
    )
    assert 0 < np.abs(np.asarray(chunk)[..., 0] - watched.taken(0)).max() < 0.03


def test_td3_explores_with_noise_that_is_not_cut_and_stays_in_the_unit_box():
    """At any number of environment steps: progressive exploration is SAC's."""
    config = changed(mode="td3", noise=0.2, noise_clip=0.1)
    state = start(make(config), env_steps=0.0)
    obs, base, chunk = acted(config, state)
    u = mode_of(state.actor.params, obs, base)
    free = (np.abs(base) < 0.6) & (
        np.abs(u) < 0.4
    )  # where neither the box of u nor that of the action is reached
    noise = ((chunk - base) / config.scale - u)[free]
    assert noise.size > 100
    assert abs(noise.std() / 0.2 - 1) < 0.2
    assert np.abs(noise).max() > 3 * config.noise_clip
    wide = changed(mode="td3", noise=5.0)
    _, base, chunk = acted(wide, state)
    assert np.abs(chunk - base).max() <= wide.scale + 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_deployed_is_the_base_plus_the_scaled_mode_clipped(mode):
    watched = Base()
    algorithm = make(changed(mode=mode, scale=0.8), watched)
    state, obs = start(algorithm, step=0, env_steps=0.0), observations(40)
    deployed = algorithm.export(state)
    assert deployed.keys() == {"net", "normalizer", "residual"}
    assert deployed["net"] is state.base
    chunk = np.asarray(algorithm.eval_policy(deployed, jnp.asarray(obs), jax.random.key(0)))[..., 0]
    base = watched.taken(0)
    u = mode_of(state.actor.params, normalize(obs), base)
    np.testing.assert_allclose(chunk, combined(base, u, 0.8), rtol=1e-4, atol=1e-5)
    assert np.any(np.abs(base + 0.8 * u) > 1)


# Learning.


@pytest.mark.parametrize(
    ("mode", "aggregate"), [("sac", "mean"), ("sac", "min"), ("td3", "mean"), ("td3", "min")]
)
def test_an_update_follows_the_papers_formulas(mode, aggregate, batch, monkeypatch):
    """From the base actions and the draws that the update made."""
    critics = watch(monkeypatch, critic.Critic, "td_step", "aggregate_q")
    actors = watch(monkeypatch, tanh_gaussian.Actor, "sample", "update")
    config, watched = changed(mode=mode, aggregate=aggregate, noise=0.3, noise_clip=0.35), Base()
    algorithm = make(config, watched)
    before, data = start(algorithm), batch.transitions
    after, metrics = algorithm.update(before, batch, jax.random.key(3))
    s, following = normalize(data.obs), normalize(data.next_obs)
    future, present = watched.taken(0), watched.taken(1)

    # y = reward + discount·[Q̄(s', clip(a'_b + scale·u')) − α log π], or with smoothed u' and
    # without the last term
    bonus = 0.0
    if mode == "sac":
        (net, inputs, _), (u, log_density) = actors["sample"][0]
        assert net is before.actor.params
        np.testing.assert_allclose(inputs[0], following, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(inputs[1], np.float64), future)
        u, bonus = np.asarray(u, np.float64), -0.3 * np.asarray(log_density, np.float64)
        assert bonus.min() < 0 < bonus.max()
    else:
        judged = np.asarray(critics["aggregate_q"][0][0][2], np.float64)
        exact = mode_of(before.actor.params, following, future)
        u = (judged - future) / config.scale
        free = (np.abs(judged) < 1) & (np.abs(exact) < 0.6)
        smoothing = (u - exact)[free]
        at_cut = np.abs(np.abs(smoothing) - config.noise_clip) < 1e-4
        assert np.abs(smoothing).max() <= config.noise_clip + 1e-4
        assert abs(at_cut.mean() - 2 * stats.norm.sf(config.noise_clip / config.noise)) < 0.15
        assert np.abs(u).max() <= 1 + 1e-5
    reward, discount = off.returns(data)
    y = off.regressed(critics["td_step"][0], before, after, data)
    q = heads(before.critic.target_params, following, combined(future, u))
    off.assert_pooled(y, q, aggregate, discount, reward + discount * bonus)
    off.assert_only_time_limits_bootstrap(y, data)

    # The actor maximises Q(s, clip(a_b + scale·u)) by the critics as this update left them.
    if mode == "sac":
        (actor, inputs, worth, _), (improved, _) = actors["update"][0]
        assert actor is before.actor
        np.testing.assert_allclose(inputs[0], s, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(inputs[1], np.float64), present)
        u = np.random.default_rng(5).uniform(-1, 1, (B, D)).astype(np.float32)
        off.assert_pooled(
            worth(jnp.asarray(u)), heads(after.critic.params, s, combined(present, u)), aggregate
        )
        jax.tree.map(np.testing.assert_array_equal, after.actor, improved)
        return

    def losses(net):
        q = heads(after.critic.params, s, combined(present, mode_of(net, s, present)))
        return [-each.mean() for each in off.poolings(q, aggregate)]

    which = int(np.argmin(np.abs(np.array(losses(before.actor.params)) - metrics["actor_loss"])))
    np.testing.assert_allclose(
        metrics["actor_loss"], losses(before.actor.params)[which], rtol=1e-4, atol=1e-5
    )
    size = assert_first_adam_step(
        lambda net: losses(net)[which],
        before.actor.params,
        after.actor.params,
        after.actor.opt_state,
        config.actor_lr,
    )
    np.testing.assert_allclose(metrics["actor_gradient_norm"], size, rtol=1e-3)
    assert after.actor.log_alpha == before.actor.log_alpha


@pytest.mark.parametrize(
    ("settings", "learns"),
    [
        ({"mode": "sac", "critic_warmup_updates": 2}, [False] * 2 + [True] * 4),
        (
            {"mode": "td3", "policy_delay": 2, "critic_warmup_updates": 3},
            [False] * 4 + [True, False],
        ),
    ],
)
def test_the_actor_waits_for_the_warm_up_and_for_its_turn_while_the_critics_learn(
    settings, learns, batch
):
    algorithm = make(changed(**settings))
    state, update = start(algorithm, step=0), jax.jit(algorithm.update)
    off.assert_each_learns_in_its_time(
        update, state, batch, learns, waiting=("actor",), never=("base",)
    )


@pytest.mark.slow
def test_two_devices_learn_as_one(batch, devices):
    def opts(after):
        return after.critic.opt_state, after.actor.opt_state, after.actor.alpha_opt_state

    algorithm = make(SMALL)
    off.assert_two_devices_learn_as_one(algorithm, start(algorithm), batch, devices, opts)


def test_the_diagnostics_are_shown_the_average_critics():
    algorithm = make(SMALL)
    off.assert_diagnostics_see_the_averaged_critics(
        algorithm, start(algorithm), jnp.asarray(observations(4))
    )


# Configuration.


def test_the_replay_needs_gamma_alone():
    assert algorithms.replay_needs(residual, changed(gamma=0.9)) == {"gamma": 0.9}


PARTS = {**off.CRITIC_PARTS, **off.soft_parts("actor")}
OF_TD3 = ("noise", "noise_clip", "policy_delay")
SWITCHES = {
    **off.SOFT_SWITCHES,
    "mode": ("td3", "critic gradient"),
    "scale": (0.2, "critic gradient"),
    "explore_steps": (10**6, "action"),
    "noise": (0.2, "critic gradient"),
    "noise_clip": (0.01, "critic gradient"),
    "policy_delay": (3, "actor"),
}


SAC = changed(mode="sac")


def act(config, batch):
    """The chunks that ``act`` gives, as one vector."""
    algorithm = make(config)
    return vector(algorithm.act(start(algorithm), batch.transitions.obs, jax.random.key(1))[0])


@pytest.fixture(scope="module")
def outcomes(batch):
    return off.Outcomes(make, start, batch, PARTS, base=SAC, switches=SWITCHES)


@pytest.mark.slow
@pytest.mark.parametrize("field", [field for field in SWITCHES if field != "explore_steps"])
def test_every_switch_changes_what_it_governs(field, outcomes):
    base = changed(mode="td3") if field in OF_TD3 else SAC
    outcomes.assert_switch_governs(base, field, *SWITCHES[field])


def test_the_steps_of_exploration_change_how_it_acts(batch):
    steps, _ = SWITCHES["explore_steps"]
    usual = act(SAC, batch)
    assert np.abs(usual - act(changed(explore_steps=steps), batch)).max() > 1e-6


def test_every_switch_has_its_test():
    off.assert_every_switch_is_tested(SWITCHES, residual.Config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "ppo"}, "algorithm.mode is 'ppo'; allowed: sac, td3"),
        ({"explore_steps": 0}, "algorithm.explore_steps is 0; it must be at least 1"),
        ({"policy_delay": 0}, "algorithm.policy_delay is 0; it must be at least 1"),
        ({"noise": -0.1}, "algorithm.noise is -0.1; it must be at least 0"),
        ({"noise_clip": -0.1}, "algorithm.noise_clip is -0.1; it must be at least 0"),
        ({"scale": 0.0}, "algorithm.scale is 0.0; it must be positive"),
        *off.BAD_CRITICS,
        ({"temperature": 0.0}, "algorithm.temperature is 0.0; it must be positive"),
        ({"target_entropy": 1.0}, "algorithm.target_entropy is 1.0; it must be below 0.69"),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    off.assert_refused(residual.Config, settings, message)

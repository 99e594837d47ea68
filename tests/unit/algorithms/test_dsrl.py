"""DSRL against its formulas in float64 numpy, on a policy ``a = bias + w/2 + 0.3 s`` from which the
noise can be read back.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import off_policy as off
from helpers.by_hand import heads, mlp, watch
from helpers.off_policy import affine, normalize
from scipy import stats

from gcp_jax.algorithms import dsrl
from gcp_jax.core import critic, tanh_gaussian
from gcp_jax.types import Batch

B, D = 64, 2
BIAS = np.array([0.1, -0.2])
SMALL = dsrl.Config(
    critics=3,
    critic_hidden=(4,),
    actor_hidden=(4,),
    critic_lr=0.01,
    actor_lr=0.01,
    critic_tau=0.1,
    temperature=0.3,
    distill_steps=2,
    noise_bound=1.25,
    gamma=0.99,
    critic_warmup_updates=0,
    temperature_lr=3e-4,
)
MODES = ("na", "sac")


def ode(obs, w, bias=BIAS):
    return affine(bias, obs, w)


def noise_of(obs, chunk):
    """The w that ``ode`` made a chunk [..., h, 1] of, from raw observations."""
    return 2 * (np.asarray(chunk, np.float64)[..., 0] - BIAS - 0.3 * normalize(obs))


POLICY = off.policy_of(lambda params, obs, z: affine(params["bias"], obs, z))


def changed(**settings):
    return dataclasses.replace(SMALL, **settings)


def start(algorithm, step=1):
    """In the midst of training; log-densities vary in sign."""
    return off.midway(algorithm, BIAS, step)


@pytest.fixture(scope="module")
def batch():
    """With the noise that was executed."""
    noise = np.random.default_rng(1).standard_normal((B, D)).astype(np.float32)
    return Batch(off.transitions(B)._replace(extras={"w": jnp.asarray(noise)}))


def make(config):
    return dsrl.make(config, POLICY, source=None)


def steered(state, saturated=20.0):
    """The state with an actor whose mean is far out in both directions."""
    net = dict(state.actor.params)
    last = max(name for name in net if name.startswith("Dense"))
    bias = jnp.array([saturated, -saturated, -1.0, -1.0])
    return state._replace(
        actor=state.actor._replace(params={**net, last: {**net[last], "bias": bias}})
    )


# Acting.


@pytest.mark.parametrize(("mode", "warmup"), [("na", 0), ("sac", 3)])
def test_before_the_first_step_of_the_actor_the_noise_is_the_priors_and_then_bounded(mode, warmup):
    algorithm = make(changed(mode=mode, critic_warmup_updates=warmup))
    obs = np.random.default_rng(0).standard_normal((1500, 2)).astype(np.float32)
    act = jax.jit(algorithm.act)
    state, key = start(algorithm), jax.random.key(1)
    chunk, extras = act(state._replace(updates=jnp.int32(warmup)), jnp.asarray(obs), key)
    w = noise_of(obs, chunk)
    assert chunk.shape == (1500, 2, 1)
    assert np.abs(w).max() > 2 * SMALL.noise_bound
    assert all(stats.kstest(column, "norm").pvalue > 1e-3 for column in w.T)
    if mode == "sac":
        np.testing.assert_allclose(extras["w"], w, atol=1e-5)
    state = state._replace(updates=jnp.int32(warmup + 1))
    chunk, extras = act(state, jnp.asarray(obs), key)
    w = noise_of(obs, chunk)
    mean, log_std = np.split(mlp(state.actor.params, normalize(obs)), 2, -1)
    assert np.abs(w).max() <= SMALL.noise_bound + 1e-5
    inside = np.abs(w).max(-1) < 0.999 * SMALL.noise_bound
    noise = (np.arctanh(w[inside] / SMALL.noise_bound) - mean[inside]) / np.exp(log_std[inside])
    assert inside.mean() > 0.95
    assert np.abs(noise.mean(0)).max() < 0.15
    assert np.abs(noise.std(0) - 1).max() < 0.15
    assert extras.keys() == ({"w"} if mode == "sac" else set())
    if mode == "sac":
        np.testing.assert_allclose(extras["w"], w, atol=1e-5)
    w = noise_of(obs, act(steered(state), jnp.asarray(obs), key)[0])
    np.testing.assert_allclose(
        w, np.broadcast_to([SMALL.noise_bound, -SMALL.noise_bound], w.shape), atol=1e-5
    )


@pytest.mark.parametrize("mode", MODES)
def test_deployed_is_the_base_steered_by_the_mode_of_the_actor_within_the_bound(mode):
    algorithm = make(changed(mode=mode))
    state = start(algorithm)
    obs = np.random.default_rng(1).standard_normal((5, 2)).astype(np.float32)
    deployed = algorithm.export(state)
    assert deployed.keys() == {"net", "normalizer", "noise"}
    assert deployed["net"] is state.base
    one, two = (
        algorithm.eval_policy(deployed, jnp.asarray(obs), jax.random.key(k)) for k in (0, 1)
    )
    w = SMALL.noise_bound * np.tanh(mlp(state.actor.params, normalize(obs))[:, :D])
    np.testing.assert_allclose(one[..., 0], ode(normalize(obs), w), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(one, two)
    w = noise_of(
        obs,
        algorithm.eval_policy(
            algorithm.export(steered(state)), jnp.asarray(obs), jax.random.key(0)
        ),
    )
    np.testing.assert_allclose(
        w, np.broadcast_to([SMALL.noise_bound, -SMALL.noise_bound], w.shape), atol=1e-5
    )


# Learning.


def uncompiled(step, carry, inputs):
    """``jax.lax.scan`` one step after the other, so that each can be watched."""
    made = []
    for x in inputs:
        carry, out = step(carry, x)
        made.append(out)
    return carry, jnp.stack(made)


@pytest.mark.parametrize(
    ("mode", "aggregate"), [("na", "mean"), ("na", "min"), ("sac", "mean"), ("sac", "min")]
)
def test_an_update_follows_the_papers_formulas(mode, aggregate, batch, monkeypatch):
    """Targets, distillation and what the actor maximises, from the draws that the update made;
    loops run uncompiled.
    """
    regressions, draws = (
        watch(monkeypatch, critic.Critic, "td_step")["td_step"],
        watch(monkeypatch, tanh_gaussian.Actor, "sample", "update"),
    )
    algorithm = make(changed(mode=mode, aggregate=aggregate))
    before, data = start(algorithm), batch.transitions
    monkeypatch.setattr(jax.lax, "scan", uncompiled)
    after, metrics = algorithm.update(before, batch, jax.random.key(3))
    monkeypatch.undo()
    s, following = normalize(data.obs), normalize(data.next_obs)

    # y = reward + discount·[Q̄(s', w' or ODE(s', w')) − α log π(w'|s')]
    ((net, inputs, _), (u, log_density)) = draws["sample"][0]
    assert net is before.actor.params
    np.testing.assert_allclose(inputs[0], following, rtol=1e-5, atol=1e-6)
    u, log_density = np.asarray(u, np.float64), np.asarray(log_density, np.float64)
    assert log_density.min() < 0 < log_density.max()
    judged = ode(following, SMALL.noise_bound * u) if mode == "na" else SMALL.noise_bound * u
    y = off.regressed(
        regressions[0], before, after, data, None if mode == "na" else data.extras["w"]
    )
    reward, discount = off.returns(data)
    q = heads(before.critic.target_params, following, judged)
    off.assert_pooled(y, q, aggregate, discount, reward - discount * 0.3 * log_density)
    off.assert_only_time_limits_bootstrap(y, data)

    # Q^W(s, w) → Q^A(s, ODE(s, w)), w ~ N(0, I), the critic as this update left it
    distilled = regressions[1:]
    assert len(distilled) == (SMALL.distill_steps if mode == "na" else 0)
    latent, losses, drawn = before.latent_critic, [], []
    for (student, obs, w, y), (learned, _) in distilled:
        assert jax.tree.all(jax.tree.map(np.array_equal, student, latent))
        off.assert_pooled(
            y, heads(after.critic.params, s, ode(s, np.asarray(w, np.float64))), aggregate
        )
        losses.append(np.mean((heads(student.params, s, w) - np.asarray(y, np.float64)) ** 2))
        drawn.append(np.asarray(w))
        latent = learned
    if mode == "na":
        assert jax.tree.all(jax.tree.map(np.array_equal, after.latent_critic, latent))
        np.testing.assert_allclose(metrics["distill_loss"], np.mean(losses), rtol=1e-4)
        assert stats.kstest(np.ravel(drawn), "norm").pvalue > 1e-3
        assert len(np.unique(drawn)) > 0.99 * np.size(drawn)
    else:
        assert after.latent_critic is None
        assert "distill_loss" not in metrics

    # The actor maximises Q^W(s, w) − α log π, or Q(s, w) − α log π
    (actor, inputs, worth, _), (improved, learned) = draws["update"][0]
    assert actor is before.actor
    np.testing.assert_allclose(inputs[0], s, rtol=1e-5, atol=1e-6)
    u = np.random.default_rng(5).uniform(-1, 1, (B, D)).astype(np.float32)
    off.assert_pooled(
        worth(jnp.asarray(u)),
        heads((after.latent_critic or after.critic).params, s, SMALL.noise_bound * u),
        aggregate,
    )
    jax.tree.map(np.testing.assert_array_equal, after.actor, improved)
    assert {"critic_loss", "actor_loss", "entropy", "temperature"} <= metrics.keys()
    assert metrics["actor_loss"] is learned["actor_loss"]


@pytest.mark.parametrize("mode", MODES)
def test_the_warm_up_leaves_the_actor_and_its_temperature_alone(mode, batch):
    algorithm = make(changed(mode=mode, critic_warmup_updates=2))
    always = ("critic", "latent_critic") if mode == "na" else ("critic",)
    off.assert_each_learns_in_its_time(
        algorithm.update,
        start(algorithm, step=0),
        batch,
        [False, False, True],
        ("actor",),
        always,
        never=("base",),
    )


@pytest.mark.slow
def test_two_devices_learn_as_one(batch, devices):
    def opts(after):
        return (
            after.critic.opt_state,
            after.latent_critic.opt_state,
            after.actor.opt_state,
            after.actor.alpha_opt_state,
        )

    algorithm = make(SMALL)
    off.assert_two_devices_learn_as_one(algorithm, start(algorithm), batch, devices, opts)


def test_only_critics_of_actions_are_shown_to_the_diagnostics(batch):
    algorithm = make(SMALL)
    state, obs = start(algorithm), batch.transitions.obs[:4]
    off.assert_diagnostics_see_the_averaged_critics(algorithm, state, obs)
    assert make(changed(mode="sac")).q_values is None
    assert algorithm.preprocess_segment(state, obs) == (state, obs)


# Configuration.


@pytest.mark.parametrize(("mode", "aligned"), [("na", False), ("sac", True)])
def test_the_replay_is_aligned_where_it_carries_noise(mode, aligned):
    assert dsrl.replay_needs(changed(mode=mode, gamma=0.9)) == {"gamma": 0.9, "aligned": aligned}


PARTS = {
    **off.CRITIC_PARTS,
    **off.soft_parts("actor"),
    "latent_critic": lambda state: state.latent_critic.params,
}
SWITCHES = {
    **off.SOFT_SWITCHES,
    "mode": ("na", "critic gradient"),
    "noise_bound": (2.0, "critic gradient"),
    "distill_steps": (1, "latent_critic"),
}


SAC = changed(mode="sac")


@pytest.fixture(scope="module")
def outcomes(batch):
    return off.Outcomes(make, start, batch, PARTS, base=SAC, switches=SWITCHES)


@pytest.mark.slow
@pytest.mark.parametrize("field", SWITCHES)
def test_every_switch_changes_what_it_governs(field, outcomes):
    base = changed(mode="na") if field == "distill_steps" else SAC
    outcomes.assert_switch_governs(base, field, *SWITCHES[field])


def test_every_switch_has_its_test():
    off.assert_every_switch_is_tested(SWITCHES, dsrl.Config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "ppo"}, "algorithm.mode is 'ppo'; allowed: na, sac"),
        ({"distill_steps": 0}, "algorithm.distill_steps is 0; it must be at least 1"),
        ({"noise_bound": 0.0}, "algorithm.noise_bound is 0.0; it must be positive"),
        ({"noise_bound": float("nan")}, "algorithm.noise_bound is nan; it must be positive"),
        *off.BAD_CRITICS,
        off.BAD_WARMUP,
        *off.BAD_SOFT,
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    off.assert_refused(dsrl.Config, settings, message)

"""FQL against its formulas in float64 numpy, on a policy ``a = bias + z/2 + 0.3 s`` from which the
noise can be read back.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import off_policy as off
from helpers.by_hand import assert_first_adam_step, heads, mlp, watch
from helpers.off_policy import affine, matching, memory, normalize, transitions
from helpers.off_policy import midway_cloning as start
from scipy import stats

from gcp_jax import algorithms
from gcp_jax.algorithms import fql
from gcp_jax.core import cloning, critic
from gcp_jax.core.networks import ActorNet
from gcp_jax.types import Batch

B, D = 8, 2
SMALL = fql.Config(
    critics=3,
    critic_hidden=(4,),
    critic_lr=0.01,
    critic_tau=0.1,
    alpha=0.7,
    actor_hidden=(4,),
    actor_lr=0.01,
    base_lr=0.01,
    base_tau=0.25,
    gamma=0.99,
    critic_warmup_updates=0,
)


POLICY = off.policy_of(lambda params, obs, z: affine(params["bias"], obs, z), matching)


def changed(**settings):
    return dataclasses.replace(SMALL, **settings)


def make(config):
    return fql.make(config, POLICY, source=None)


def watch_head(monkeypatch):
    """The noise that μ was given, call by call."""
    seen = []

    class Watched(ActorNet):
        def apply(self, params, obs, z):
            seen.append((np.asarray(obs), np.asarray(z)))
            return super().apply(params, obs, z)

    monkeypatch.setattr(fql, "ActorNet", Watched)
    return seen


# Acting.


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_flow_acts_until_the_critics_are_warm_and_then_the_one_step_policy(warmup, monkeypatch):
    seen = watch_head(monkeypatch)
    algorithm = make(changed(critic_warmup_updates=warmup))
    obs = jnp.asarray(np.random.default_rng(0).standard_normal((1500, 2)), jnp.float32)
    for step in (0, warmup):
        state = start(algorithm, step)
        chunk, extras = algorithm.act(state, obs, jax.random.key(step))
        bias = np.asarray(state.base.target_params["bias"], np.float64)
        z = 2 * (np.asarray(chunk, np.float64)[..., 0] - bias - 0.3 * normalize(obs))
        assert (chunk.shape, extras) == ((1500, 2, 1), {})
        assert all(stats.kstest(column, "norm").pvalue > 1e-3 for column in z.T)
    state = start(algorithm, warmup + 1)
    chunk, _ = algorithm.act(state, obs, jax.random.key(0))
    given, z = seen[-1]
    np.testing.assert_allclose(given, normalize(obs), rtol=1e-5, atol=1e-6)
    assert all(stats.kstest(column, "norm").pvalue > 1e-3 for column in z.T)
    raw = mlp(state.one_step_params, given, z)
    assert np.abs(raw).max() > 1
    np.testing.assert_allclose(chunk[..., 0], np.clip(raw, -1, 1), rtol=1e-4, atol=1e-5)


def test_the_one_step_policy_is_deployed(monkeypatch):
    seen = watch_head(monkeypatch)
    algorithm = make(SMALL)
    state, obs = start(algorithm), transitions(seed=2).obs
    deployed = algorithm.export(state)
    assert deployed.keys() == {"net", "normalizer", "one_step"}
    assert (deployed["net"], deployed["one_step"]) == (
        state.base.target_params,
        state.one_step_params,
    )
    chunk = algorithm.eval_policy(deployed, obs, jax.random.key(1))
    expected = np.clip(mlp(state.one_step_params, normalize(obs), seen[-1][1]), -1, 1)
    np.testing.assert_allclose(chunk[..., 0], expected, rtol=1e-4, atol=1e-5)
    assert algorithm.preprocess_segment(state, obs) == (state, obs)


# Learning.


@pytest.mark.parametrize("aggregate", ["mean", "min"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_an_update_follows_the_papers_formulas(aggregate, warmup, monkeypatch):
    """The target of μ, the flow's cloning, and μ's loss, value and gradient: without the critic's
    term in the warm-up.
    """
    regressions = watch(monkeypatch, critic.Critic, "td_step")["td_step"]
    clones = watch(monkeypatch, cloning.BCUpdater, "update")["update"]
    seen = watch_head(monkeypatch)
    config = changed(aggregate=aggregate, critic_warmup_updates=warmup)
    algorithm = make(config)
    before, data = start(algorithm), transitions()
    seen.clear()
    after, metrics = algorithm.update(before, Batch(data), jax.random.key(3))
    s, following = normalize(data.obs), normalize(data.next_obs)
    (one, z_next), (two, z) = seen
    np.testing.assert_allclose(one, following, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(two, s, rtol=1e-5, atol=1e-6)
    assert len(np.unique([z_next, z])) == 2 * B * D

    # y = reward + discount · Q̄(s', μ(s', z'))
    y = off.regressed(regressions[0], before, after, data)
    reward, discount = off.returns(data)
    taken = np.clip(mlp(before.one_step_params, following, z_next), -1, 1)
    off.assert_pooled(
        y,
        heads(before.critic.target_params, following, taken),
        aggregate,
        discount,
        reward,
        atol=1e-4,
    )
    off.assert_only_time_limits_bootstrap(y, data)

    # The flow clones the replay.
    assert after.base is off.cloned(clones[0], before, data)

    # L(μ) = α mean_d (μ − ODE)² − Q(s, μ)
    goal = affine(np.asarray(after.base.target_params["bias"], np.float64), s, z)

    def parts(one_step):
        raw = mlp(one_step, s, z)
        values = off.poolings(heads(after.critic.params, s, np.clip(raw, -1, 1)), aggregate)
        return np.mean((raw - goal) ** 2), [value.mean() for value in values]

    distance, worths = parts(before.one_step_params)
    index = int(np.argmin([abs(metrics["actor_q"] - worth) for worth in worths]))

    def loss(one_step):
        distance, worths = parts(one_step)
        return config.alpha * distance - (0 if warmup else worths[index])

    size = assert_first_adam_step(
        loss,
        before.one_step_params,
        after.one_step_params,
        after.one_step_opt_state,
        SMALL.actor_lr,
    )
    expected = {
        "distill_loss": distance,
        "actor_q": worths[index],
        "actor_loss": loss(before.one_step_params),
        "actor_gradient_norm": size,
    }
    others = {
        "critic_loss",
        "q",
        "q_std",
        "critic_gradient_norm",
        "imitation_loss",
        "base_gradient_norm",
    }
    off.assert_metrics(metrics, expected, others)
    assert after.updates == before.updates + 1


def test_the_diagnostics_see_the_averaged_critics():
    algorithm = make(SMALL)
    off.assert_diagnostics_see_the_averaged_critics(algorithm, start(algorithm), transitions().obs)


# Configuration.


def test_the_replay_carries_plain_transitions():
    assert algorithms.replay_needs(fql, changed(gamma=0.9)) == {"gamma": 0.9}


PARTS = {
    **off.CRITIC_PARTS,
    **off.BASE_PARTS,
    "one step": lambda state: state.one_step_params,
    "actor gradient": lambda state: memory(state.one_step_opt_state),
}
SWITCHES = {
    **off.CRITIC_SWITCHES,
    **off.BASE_SWITCHES,
    "critics": (4, "actor gradient"),
    "critic_hidden": ((5,), "actor gradient"),
    "critic_warmup_updates": (10, "actor gradient"),
    "aggregate": ("min", "critic gradient"),
    "alpha": (7.0, "actor gradient"),
    "actor_hidden": ((5,), "critic gradient"),
    "actor_lr": (0.1, "one step"),
}
OUTCOMES = off.Outcomes(make, start, Batch(transitions()), PARTS, base=SMALL, switches=SWITCHES)


@pytest.mark.slow
@pytest.mark.parametrize("field", SWITCHES)
def test_every_switch_changes_what_it_governs(field):
    OUTCOMES.assert_switch_governs(SMALL, field, *SWITCHES[field])


def test_every_switch_has_its_test():
    off.assert_every_switch_is_tested(SWITCHES, fql.Config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "algorithm.alpha is -1.0; it must be at least 0"),
        ({"alpha": float("nan")}, "algorithm.alpha is nan; it must be at least 0"),
        *off.BAD_CRITICS,
        off.BAD_WARMUP,
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    off.assert_refused(fql.Config, settings, message)

"""QC against its formulas in float64 numpy, on a policy whose samples are known: ``a = bias +
wave/2 + 0.3 s``.
"""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import off_policy as off
from helpers.by_hand import heads, watch
from helpers.off_policy import affine, best, matching, normalize, transitions, wave
from helpers.off_policy import midway_cloning as start

from gcp_jax import algorithms
from gcp_jax.algorithms import qc
from gcp_jax.core import cloning, critic
from gcp_jax.types import Batch

B, D, N = 8, 2, 5
SMALL = qc.Config(
    critics=3,
    critic_hidden=(4,),
    critic_lr=0.01,
    critic_tau=0.1,
    samples=N,
    base_lr=0.01,
    base_tau=0.25,
    gamma=0.99,
    critic_warmup_updates=0,
)


# The policy, for jax and for numpy; its samples differ by their places alone and not by the noise
# they are given.
POLICY = off.policy_of(lambda params, obs, z: affine(params["bias"], obs, wave(z.shape)), matching)


def changed(**settings):
    return dataclasses.replace(SMALL, **settings)


def make(config):
    return qc.make(config, POLICY, source=None)


def values(state, obs):
    """Samples of the averaged flow and what each averaged critic thinks of them: ([B, N, D], [M, B,
    N]).
    """
    bias = np.asarray(state.base.target_params["bias"], np.float64)
    action = affine(bias, obs[:, None], wave((len(obs), N, D)))
    return action, heads(state.critic.target_params, obs[:, None], action)


# Acting.


def test_the_best_of_n_acts_and_is_deployed():
    algorithm = make(SMALL)
    state, obs = start(algorithm), transitions(seed=2).obs
    action, q = values(state, normalize(obs))
    assert len(set(np.argmax(q.mean(0), -1))) > 1
    off.assert_acts_and_deploys(algorithm, state, obs, best(q.mean(0), action), ("critic",))


def test_the_best_by_the_smaller_of_two_critics_is_that_of_a_pair():
    algorithm = make(changed(aggregate="min"))
    state, obs = start(algorithm), transitions(seed=2).obs
    off.assert_best_of_random_pairs(algorithm, state, obs, *values(state, normalize(obs)))


@pytest.mark.parametrize("warmup", [0, 3])
def test_until_the_critics_are_warm_the_first_sample_acts(warmup):
    def options(state, obs):
        action, q = values(state, obs)
        return action, q.mean(0)

    off.assert_first_acts_until_warm(make(changed(critic_warmup_updates=warmup)), warmup, options)


def test_samples_of_a_state_differ():
    """With a policy that heeds its noise, by N samples of their own for each state."""
    policy, seen = (
        POLICY._replace(sample=lambda params, obs, z: (seen.append(np.asarray(z)), z)[1]),
        [],
    )
    algorithm = qc.make(SMALL, policy, source=None)
    algorithm.act(start(algorithm), transitions(seed=2).obs, jax.random.key(0))
    assert seen[0].shape == (B, N, D)
    assert len(np.unique(seen[0])) == B * N * D


# Learning.


@pytest.mark.parametrize("aggregate", ["mean", "min"])
def test_an_update_regresses_on_the_best_next_sample_and_clones_the_replay(aggregate, monkeypatch):
    regressions = watch(monkeypatch, critic.Critic, "td_step")["td_step"]
    clones = watch(monkeypatch, cloning.BCUpdater, "update")["update"]
    algorithm = make(changed(aggregate=aggregate))
    before, data = start(algorithm), transitions()
    after, metrics = algorithm.update(before, Batch(data), jax.random.key(0))
    y = off.regressed(regressions[0], before, after, data)
    reward, discount = off.returns(data)
    _, q = values(before, normalize(data.next_obs))
    wanted = [reward + discount * value.max(-1) for value in off.poolings(q, aggregate)]
    assert min(np.abs(np.asarray(y) - each).max() for each in wanted) < 1e-4
    off.assert_only_time_limits_bootstrap(y, data)

    jax.tree.map(np.testing.assert_array_equal, after.base, off.cloned(clones[0], before, data))
    bias = np.asarray(before.base.params["bias"], np.float64)
    flat, mask = (np.asarray(x, np.float64) for x in (data.action[..., 0], data.mask))
    loss = matching({"bias": bias}, normalize(data.obs), flat, mask, None, None).mean()
    np.testing.assert_allclose(metrics["imitation_loss"], loss, rtol=1e-5)
    online = heads(before.critic.params, normalize(data.obs), flat)
    np.testing.assert_allclose(
        metrics["critic_loss"], np.mean((online - np.asarray(y)) ** 2), rtol=1e-4
    )
    np.testing.assert_allclose(metrics["q"], online.mean(), rtol=1e-4, atol=1e-6)
    assert metrics.keys() == {
        "critic_loss",
        "q",
        "q_std",
        "critic_gradient_norm",
        "imitation_loss",
        "base_gradient_norm",
    }


def test_the_warm_up_leaves_the_flow_alone():
    algorithm = make(changed(critic_warmup_updates=2))
    state, batch = start(algorithm, step=0), Batch(transitions())
    off.assert_each_learns_in_its_time(
        jax.jit(algorithm.update), state, batch, [False, False, True], ("base",)
    )


def test_the_diagnostics_see_the_averaged_critics():
    algorithm = make(SMALL)
    off.assert_diagnostics_see_the_averaged_critics(algorithm, start(algorithm), transitions().obs)


# Configuration.


def test_the_replay_carries_plain_transitions():
    assert algorithms.replay_needs(qc, changed(gamma=0.9)) == {"gamma": 0.9}


PARTS = {**off.CRITIC_PARTS, **off.BASE_PARTS}
SWITCHES = {
    **off.CRITIC_SWITCHES,
    **off.BASE_SWITCHES,
    "critics": (4, "critic gradient"),
    "critic_hidden": ((5,), "critic gradient"),
    "critic_warmup_updates": (10, "base"),
    "aggregate": ("min", "critic gradient"),
    "samples": (2, "critic gradient"),
}
OUTCOMES = off.Outcomes(make, start, Batch(transitions()), PARTS, base=SMALL, switches=SWITCHES)


@pytest.mark.slow
@pytest.mark.parametrize("field", SWITCHES)
def test_every_switch_changes_what_it_governs(field):
    resizes = field in ("critics", "critic_hidden")
    OUTCOMES.assert_switch_governs(SMALL, field, *SWITCHES[field], resizes=resizes)


def test_every_switch_has_its_test():
    off.assert_every_switch_is_tested(SWITCHES, qc.Config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "algorithm.samples is 0; it must be at least 1"),
        *off.BAD_CRITICS,
        off.BAD_WARMUP,
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    off.assert_refused(qc.Config, settings, message)

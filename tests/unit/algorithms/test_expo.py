"""EXPO against its formulas in float64 numpy; samples of the policy and the noise of the edits are
known waves.
"""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import off_policy as off
from helpers.by_hand import assert_first_adam_step, heads, mlp, watch
from helpers.off_policy import affine, best, matching, memory, normalize, transitions, wave
from helpers.off_policy import midway_cloning as start
from scipy import stats

from gcp_jax import algorithms
from gcp_jax.algorithms import expo
from gcp_jax.core import cloning, critic, tanh_gaussian
from gcp_jax.types import Batch

B, D, N = 8, 2, 5
SMALL = expo.Config(
    critics=3,
    critic_hidden=(4,),
    critic_lr=0.01,
    critic_tau=0.1,
    samples=N,
    base_lr=0.01,
    base_tau=0.25,
    actor_hidden=(4,),
    actor_lr=0.01,
    temperature=0.3,
    edit_scale=0.4,
    gamma=0.99,
    critic_warmup_updates=0,
    temperature_lr=3e-4,
)
TWO = dataclasses.replace(SMALL, critics=2)  # of two critics "two at random" are always both


# The policy, for jax and for numpy; its samples differ by their places alone and not by the noise
# they are given.


def sampled(bias, obs, shape):
    return affine(bias, obs, wave(shape), 0.7).clip(-1, 1)


POLICY = off.policy_of(lambda params, obs, z: sampled(params["bias"], obs, z.shape), matching)


def samples(params, obs, count=N):
    """[B, count, D] for normalized obs [B, O]."""
    return sampled(np.asarray(params["bias"], np.float64), obs[:, None], (len(obs), count, D))


def drawn(net, obs, action):
    """The unit edit u = tanh(μ + σ·wave) [..., D] of the actor ``net`` and log π(u) [...], by
    change of variables.
    """
    mean, log_std = np.split(mlp(net, obs, action), 2, -1)
    std = np.exp(np.clip(log_std, -5, 2))
    x = mean + std * wave(mean.shape)
    log_slope = -2 * (np.logaddexp(x, -x) - np.log(2))
    return np.tanh(x), np.sum(stats.norm.logpdf(x, mean, std) - log_slope, -1)


@pytest.fixture
def known_edits(monkeypatch):
    """The noise of every edit is the wave of its shape."""
    squash = tanh_gaussian.squash_gaussian
    monkeypatch.setattr(
        tanh_gaussian,
        "squash_gaussian",
        lambda mean, log_std, noise: squash(mean, log_std, wave(noise.shape)),
    )


def changed(**settings):
    return dataclasses.replace(SMALL, **settings)


def make(config):
    return expo.make(config, POLICY, source=None)


def edited(action, u, config=SMALL):
    return np.clip(action + config.edit_scale * u, -1, 1)


def candidates(state, obs):
    """Samples of the averaged base, then their edits, and what each averaged critic thinks: ([B,
    2N, D], [M, B, 2N]).
    """
    action = samples(state.base.target_params, obs)
    u, _ = drawn(state.edit.params, obs[:, None], action)
    both = np.concatenate([action, edited(action, u)], 1)
    return both, heads(state.critic.target_params, obs[:, None], both)


# Acting.


def test_of_the_samples_and_their_edits_the_best_acts_and_is_deployed(known_edits):
    algorithm = make(TWO)
    state, obs = start(algorithm), transitions(seed=2).obs
    action, q = candidates(state, normalize(obs))
    chosen = np.argmax(q.min(0), -1)
    assert min(chosen) < N <= max(chosen)
    assert np.any(np.abs(action[:, :N]) == 1)
    assert np.any(np.abs(action[:, N:]) == 1)
    off.assert_acts_and_deploys(algorithm, state, obs, best(q.min(0), action), ("critic", "edit"))


def test_the_best_is_that_of_a_random_pair_of_critics(known_edits):
    algorithm = make(SMALL)
    state, obs = start(algorithm), transitions(seed=2).obs
    off.assert_best_of_random_pairs(algorithm, state, obs, *candidates(state, normalize(obs)))


@pytest.mark.parametrize("warmup", [0, 3])
def test_until_the_critics_are_warm_a_sample_of_the_base_acts(warmup, known_edits):
    def options(state, obs):
        action, q = candidates(state, obs)
        return action, q.min(0)

    off.assert_first_acts_until_warm(
        make(dataclasses.replace(TWO, critic_warmup_updates=warmup)), warmup, options
    )


def test_samples_and_edits_have_noise_of_their_own(monkeypatch):
    seen, squash = [], tanh_gaussian.squash_gaussian

    def watched(mean, log_std, noise):
        seen.append(np.asarray(noise))
        return squash(mean, log_std, noise)

    monkeypatch.setattr(tanh_gaussian, "squash_gaussian", watched)
    policy = POLICY._replace(sample=lambda params, obs, z: (seen.append(np.asarray(z)), z)[1])
    algorithm = expo.make(SMALL, policy, source=None)
    algorithm.act(start(algorithm), transitions(seed=2).obs, jax.random.key(0))
    assert [each.shape for each in seen] == [(B, N, D)] * 2
    assert len(np.unique(seen)) == 2 * B * N * D


# Learning.


def test_an_update_follows_the_papers_formulas(known_edits, monkeypatch):
    """Target with the maximum, cloning of the replay, and α log π(Δ) − mean_m Q(s, a + βΔ): value
    and gradient.
    """
    regressions = watch(monkeypatch, critic.Critic, "td_step")["td_step"]
    clones = watch(monkeypatch, cloning.BCUpdater, "update")["update"]
    algorithm = make(TWO)
    before, data = start(algorithm), transitions()
    after, metrics = algorithm.update(before, Batch(data), jax.random.key(0))
    s = normalize(data.obs)

    # y = reward + discount · max_{a' ∈ {a'_i, ã'_i}} min of two Q̄(s', a')
    y = off.regressed(regressions[0], before, after, data)
    reward, discount = off.returns(data)
    _, q = candidates(before, normalize(data.next_obs))
    assert np.any(np.argmax(q.min(0), -1) >= N)
    off.assert_close(y, reward + discount * q.min(0).max(-1))
    flat, mask = (np.asarray(x, np.float64) for x in (data.action[..., 0], data.mask))
    online = heads(before.critic.params, s, flat)

    # The base clones the replay.
    jax.tree.map(np.testing.assert_array_equal, after.base, off.cloned(clones[0], before, data))
    bias = np.asarray(before.base.params["bias"], np.float64)

    # The edit, of a sample of the base, climbs the critics as this update left them.
    proposed = samples(before.base.target_params, s, 1)[:, 0]

    def parts(net):
        u, log_density = drawn(net, s, proposed)
        return log_density, heads(after.critic.params, s, edited(proposed, u)).mean()

    def loss(net):
        log_density, worth = parts(net)
        return TWO.temperature * log_density.mean() - worth

    size = assert_first_adam_step(
        loss, before.edit.params, after.edit.params, after.edit.opt_state, TWO.actor_lr
    )
    log_density, worth = parts(before.edit.params)
    entropy = -log_density.mean() / D
    np.testing.assert_allclose(
        10 * memory(after.edit.alpha_opt_state), D * (entropy - TWO.target_entropy), rtol=1e-4
    )
    expected = {
        "critic_loss": np.mean((online - np.asarray(y)) ** 2),
        "q": online.mean(),
        "q_std": online.std(0).mean(),
        "imitation_loss": matching({"bias": bias}, s, flat, mask, None, None).mean(),
        "actor_loss": loss(before.edit.params),
        "actor_q": worth,
        "entropy": entropy,
        "actor_gradient_norm": size,
    }
    off.assert_metrics(
        metrics, expected, {"critic_gradient_norm", "base_gradient_norm", "temperature"}
    )
    assert after.updates == before.updates + 1


def test_a_termination_does_not_bootstrap_and_a_time_limit_does(monkeypatch):
    regressions = watch(monkeypatch, critic.Critic, "td_step")["td_step"]
    algorithm, data = make(SMALL), transitions()
    algorithm.update(start(algorithm), Batch(data), jax.random.key(0))
    off.assert_only_time_limits_bootstrap(regressions[0][0][3], data)


def test_the_entropy_is_that_of_the_unit_edit(known_edits):
    """Whatever β scales it by."""
    found = []
    for scale in (0.05, 0.7):
        algorithm = make(changed(edit_scale=scale))
        found.append(
            jax.jit(algorithm.update)(start(algorithm), Batch(transitions()), jax.random.key(0))[1]
        )
    assert found[0]["entropy"] == found[1]["entropy"]
    assert found[0]["actor_q"] != found[1]["actor_q"]


def test_the_warm_up_leaves_base_and_edit_alone():
    algorithm = make(changed(critic_warmup_updates=2))
    state, update = start(algorithm, step=0), jax.jit(algorithm.update)
    learns = [False, False, True]
    off.assert_each_learns_in_its_time(
        update, state, Batch(transitions()), learns, waiting=("base", "edit")
    )


def test_the_diagnostics_see_the_averaged_critics():
    algorithm = make(SMALL)
    off.assert_diagnostics_see_the_averaged_critics(algorithm, start(algorithm), transitions().obs)


# Configuration.


def test_the_replay_carries_plain_transitions():
    assert algorithms.replay_needs(expo, changed(gamma=0.9)) == {"gamma": 0.9}


PARTS = {**off.CRITIC_PARTS, **off.BASE_PARTS, **off.soft_parts("edit")}
SWITCHES = {
    **off.CRITIC_SWITCHES,
    **off.BASE_SWITCHES,
    **off.TEMPERATURE_SWITCHES,
    "critics": (4, "critic gradient"),
    "critic_hidden": ((5,), "critic gradient"),
    "critic_warmup_updates": (10, "base"),
    "aggregate": ("min", "edit gradient"),
    "samples": (2, "critic gradient"),
    "edit_scale": (0.05, "edit gradient"),
    "actor_hidden": ((5,), "critic gradient"),
    "actor_lr": (0.1, "edit"),
    "temperature": (1.0, "edit gradient"),
}
OUTCOMES = off.Outcomes(make, start, Batch(transitions()), PARTS, base=SMALL, switches=SWITCHES)


@pytest.mark.slow
@pytest.mark.parametrize("field", SWITCHES)
def test_every_switch_changes_what_it_governs(field):
    resizes = field in ("critics", "critic_hidden")
    OUTCOMES.assert_switch_governs(SMALL, field, *SWITCHES[field], resizes=resizes)


def test_every_switch_has_its_test():
    off.assert_every_switch_is_tested(SWITCHES, expo.Config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "algorithm.samples is 0; it must be at least 1"),
        ({"edit_scale": 0.0}, "algorithm.edit_scale is 0.0; it must be positive"),
        *off.BAD_CRITICS,
        off.BAD_WARMUP,
        *off.BAD_SOFT,
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    off.assert_refused(expo.Config, settings, message)

"""Every setting of OGPO changes what it governs; wrong ones are refused."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from helpers.off_policy import assert_every_switch_is_tested
from helpers.ogpo_by_hand import apart, make, plain, training_batch

from gcp_jax.algorithms import ogpo


@pytest.fixture(scope="module")
def batch():
    return training_batch()


SWITCHES = {
    "chains": (plain(), 6, "actor gradient"),
    "actor_states": (plain(), 4, "actor gradient"),
    "critics": (plain(), 4, "actor gradient"),
    "critic_hidden": (plain(), (8, 8), "actor gradient"),
    "actor_lr": (plain(), 0.1, "actor"),
    "critic_lr": (plain(), 0.1, "critic"),
    "lr_cycle": (plain(), 10, "actor"),
    "grad_clip": (plain(), 1e-3, "critic gradient"),
    "clip": (plain(), 1.0, "actor gradient"),
    "actor_tau": (plain(), 0.5, "actor average"),
    "critic_tau": (plain(), 0.5, "critic average"),
    "shared_noise": (plain(), 2, "actor gradient"),
    "target_clip_fraction": (plain(target_clip_fraction=0.2), 0.9, "actor rate"),
    "balance_gradients": (plain(success_weight=1.0), True, "actor gradient"),
    "best_of": (plain(), 1, "action"),
    "deploy_best_of": (plain(), 4, "deployed"),
    "success_weight": (plain(), 1.0, "actor gradient"),
    "imitation_data": (plain(success_weight=1.0), "replay", "actor gradient"),
    "success_critic": (plain(), True, "critic"),
    "conservative": (plain(), True, "actor gradient"),
    "target_samples": (plain(), 4, "critic gradient"),
    "target_best_of": (plain(), 4, "critic gradient"),
    "chi2": (plain(), 0.5, "critic gradient"),
    "chi2_alpha": (plain(chi2=0.5), 50.0, "critic gradient"),
    "max_reward": (plain(chi2=5.0, clip=1.0), 1e-4, "actor gradient"),
    "slow_tau": (plain(forward_kl=0.1), 0.5, "slow reference"),
    "baseline": (plain(), "leave_one_out", "actor gradient"),
    "group_std": (plain(), True, "actor gradient"),
    "no_negative": (plain(), True, "actor gradient"),
    "forward_kl": (plain(), 1.0, "actor gradient"),
    "critic_warmup_updates": (plain(), 10, "actor"),
    "calql": (plain(critic_warmup_updates=10), 1.0, "critic gradient"),
    "extraction": (plain(), "awr", "actor gradient"),
    "temperature": (plain(extraction="awr"), 0.1, "actor gradient"),
}
PARTS = {
    "actor": lambda state: state.actor.params,
    "actor average": lambda state: state.actor.target_params,
    "actor gradient": lambda state: state.actor.opt_state,
    "actor rate": lambda state: state.actor.rate_factor,
    "slow reference": lambda state: state.actor.slow_params,
    "critic": lambda state: state.critic.params,
    "critic average": lambda state: state.critic.target_params,
    "critic gradient": lambda state: state.critic.opt_state,
}


def outcome(config, batch, part):
    """What an update makes of one part of the state, or the actions the result takes, as one
    vector.
    """
    algorithm = make(config)
    state, _ = algorithm.update(apart(algorithm), batch, jax.random.key(0))
    obs, key = batch.transitions.obs, jax.random.key(1)
    if part == "action":
        result, _ = algorithm.act(state, obs, key)
    elif part == "deployed":
        result = algorithm.eval_policy(algorithm.export(state), obs, key)
    else:
        result = PARTS[part](state)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(result)])


@pytest.fixture(scope="module")
def usual(batch):
    """``outcome``, remembered: most switches start from the same configuration."""
    return functools.cache(lambda config, part: outcome(config, batch, part))


@pytest.mark.slow
@pytest.mark.parametrize("field", SWITCHES)
def test_every_switch_changes_what_it_governs(field, batch, usual):
    """An optimizer's state holds the raw gradient, which Adam's first step would hide."""
    base, value, part = SWITCHES[field]
    changed = outcome(dataclasses.replace(base, **{field: value}), batch, part)
    assert np.abs(usual(base, part) - changed).max() > 1e-6


def test_every_switch_has_its_test():
    """``actor_blocks`` changes memory and time only, which the benchmark of updates states, and
    ``measure_snr`` metrics only.
    """
    elsewhere = ("gamma", "actor_blocks", "measure_snr")
    assert_every_switch_is_tested(SWITCHES, ogpo.Config, elsewhere=elsewhere)


@pytest.mark.parametrize(
    ("config", "needs"),
    [
        (plain(gamma=0.9), {"gamma": 0.9, "success": False, "to_go": False}),
        (plain(success_weight=1.0), {"gamma": 0.99, "success": True, "to_go": False}),
        (
            plain(success_weight=1.0, imitation_data="replay"),
            {"gamma": 0.99, "success": False, "to_go": False},
        ),
        (plain(success_critic=True), {"gamma": 0.99, "success": True, "to_go": False}),
        (
            plain(calql=1.0, critic_warmup_updates=1),
            {"gamma": 0.99, "success": False, "to_go": True},
        ),
    ],
)
def test_the_replay_carries_what_the_switches_need(config, needs):
    assert ogpo.replay_needs(config) == needs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"baseline": "mean"},
            "algorithm.baseline is 'mean'; allowed: group, leave_one_out, value",
        ),
        (
            {"extraction": "sac"},
            "algorithm.extraction is 'sac'; allowed: ppo, awr, awfm, fpo, backprop",
        ),
        ({"chains": 1}, "algorithm.chains is 1; it must be at least 2"),
        ({"actor_states": 0}, "algorithm.actor_states is 0; it must be at least 1"),
        ({"critics": 1}, "algorithm.critics is 1; it must be at least 2"),
        ({"best_of": 0}, "algorithm.best_of is 0; it must be at least 1"),
        ({"target_samples": 0}, "algorithm.target_samples is 0; it must be at least 1"),
        (
            {"actor_blocks": 2, "extraction": "awfm"},
            "algorithm.extraction='awfm' does not support; allowed with it: ppo, awr",
        ),
        (
            {"shared_noise": 3},
            "algorithm.shared_noise is 3, which does not divide the 8 chains of a state",
        ),
        (
            {"target_clip_fraction": 0.2, "extraction": "awfm"},
            "algorithm.extraction='awfm' has no ratios; allowed with it: ppo, awr, fpo",
        ),
        (
            {"balance_gradients": True, "success_weight": 0.0},
            "algorithm.success_weight is 0; set it above 0",
        ),
        ({"chi2": 0.1}, "set algorithm.conservative=False"),
        (
            {"calql": 0.1, "critic_warmup_updates": 0},
            "set algorithm.critic_warmup_updates above 0",
        ),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ogpo.Config(**settings)

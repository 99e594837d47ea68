"""The Python API: a loaded policy as a function of numpy observations, and what it refuses."""

from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.off_policy import small_flow

import gcp_jax
from gcp_jax.run.saved_policy import check_saved_policy, save_policy

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    flow = small_flow()
    folder = tmp_path_factory.mktemp("api") / "policy"
    return save_policy(folder, policy=flow.policy, deployed=flow.deployed, facts={"env": "reach"})


@pytest.fixture(scope="module")
def obs():
    """[6 steps, 4 environments, O]"""
    return np.random.default_rng(1).standard_normal((6, 4, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def loaded(path):
    return gcp_jax.load_policy(path)


@pytest.fixture
def policy(loaded):
    """A policy that is as if just loaded with seed 0."""
    loaded.reset(seed=0)
    return loaded


def play(policy, obs, seed=0):
    """The actions from the start of an episode."""
    policy.reset(seed=seed)
    return np.stack([policy(step) for step in obs])


def test_sizes_and_facts(policy, path):
    assert (policy.obs_dim, policy.action_dim, policy.chunk) == (3, 2, 2)
    assert policy.specs == check_saved_policy(path).policy.specs
    assert policy.facts["env"] == "reach"


def test_one_observation_gives_one_action_and_a_batch_one_each(policy, obs):
    single = policy(obs[0, 0])
    policy.reset()
    batch = policy(obs[0])
    assert single.shape == (2,) and batch.shape == (4, 2)
    assert batch.dtype == np.float32 and np.abs(batch).max() <= 1.0


def test_a_chunk_is_what_the_saved_policy_samples(policy, path, obs):
    saved = check_saved_policy(path)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 0), 0)
    chunk = saved.eval_policy(saved.deployed, obs[0, :1], key)[0]
    policy.reset(seed=7)
    np.testing.assert_allclose(policy(obs[0, 0]), chunk[0], atol=TOLERANCE)
    np.testing.assert_allclose(policy(obs[1, 0]), chunk[1], atol=TOLERANCE)


def test_an_environment_acts_the_same_alone_as_among_others(policy, obs):
    among = play(policy, obs)[:, 0]
    alone = play(policy, obs[:, 0])
    np.testing.assert_allclose(alone, among, atol=TOLERANCE)


def test_the_seed_decides(policy, path, obs):
    one = play(policy, obs, seed=1)
    np.testing.assert_array_equal(one, play(policy, obs, seed=1))
    assert not np.allclose(one, play(policy, obs, seed=2))
    fresh = gcp_jax.load_policy(path, seed=1)
    np.testing.assert_array_equal(np.stack([fresh(step) for step in obs[:2]]), one[:2])


def test_observations_matter_only_when_a_chunk_begins(policy, obs):
    usual = play(policy, obs)
    changed = obs.copy()
    changed[1] += 1.0  # the second step of the first chunk
    np.testing.assert_array_equal(play(policy, changed), usual)
    changed[2] += 1.0  # the first step of the second chunk
    assert not np.allclose(play(policy, changed)[2], usual[2])


def test_reset_begins_a_chunk_and_continues_the_random_numbers(policy, obs):
    usual = play(policy, obs)
    policy.reset(seed=0)
    policy(obs[0])
    policy.reset()
    np.testing.assert_allclose(policy(obs[2]), usual[2], atol=TOLERANCE)


def test_reset_of_some_environments_leaves_the_others(policy, obs):
    usual = play(policy, obs)
    policy.reset(seed=0)
    policy(obs[0])
    policy.reset(np.array([True, False, False, True]))
    after = policy(obs[1])
    np.testing.assert_array_equal(after[1:3], usual[1, 1:3])
    assert not np.allclose(after[[0, 3]], usual[1, [0, 3]])


def test_the_number_of_environments_changes_only_by_a_reset(policy, obs):
    policy(obs[0])
    with pytest.raises(ValueError, match=r"1 observations, but .* 4 environments .* call reset"):
        policy(obs[0, 0])
    policy.reset()
    assert policy(obs[0, 0]).shape == (2,)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.zeros(4), ValueError, r"shape \(4,\); \[3\] or \[N, 3\] is expected"),
        (np.zeros((2, 2, 3)), ValueError, r"shape \(2, 2, 3\)"),
        (np.zeros((0, 3)), ValueError, r"shape \(0, 3\)"),
        (np.float32(1), ValueError, r"shape \(\)"),
        (np.array(["a", "b", "c"]), TypeError, "dtype <U1; numbers are expected"),
        (np.array([None, 1, 2]), TypeError, "dtype object"),
    ],
)
def test_wrong_observations_are_refused_in_one_line(policy, bad, error, message):
    with pytest.raises(error, match=message) as raised:
        policy(bad)
    assert "\n" not in str(raised.value)


def test_a_wrong_reset_is_refused(policy, obs):
    policy(obs[0])
    with pytest.raises(ValueError, match=r"reset\(where\) has shape \(2,\).* 4 environments"):
        policy.reset(np.array([True, False]))


def test_no_policy_is_one_line(tmp_path):
    with pytest.raises(gcp_jax.SavedPolicyError, match="is not a saved policy"):
        gcp_jax.load_policy(tmp_path)


def test_a_configuration_from_defaults_a_file_or_a_record():
    fields = {"env.name": "reach", "finetune.utd": 0.5, "algorithm.name": "qc"}
    config = gcp_jax.make_config(overrides=fields)
    assert (config.env.name, config.algorithm.name, config.finetune.utd) == ("reach", "qc", 0.5)
    again = gcp_jax.make_config(config, {"seeds": 3})
    assert again.algorithm == config.algorithm and again.seeds == 3
    file = gcp_jax.make_config("experiments/configs/reach.py", {"seeds": 2})
    assert file.env.name == "reach" and file.seeds == 2
    with pytest.raises(gcp_jax.ConfigError, match="did you mean 'utd'"):
        gcp_jax.make_config(overrides={"finetune.udt": 1.0})


def test_a_task_is_made_with_its_settings():
    env = gcp_jax.make_env("reach", horizon=12)
    assert env.specs.horizon == 12
    with pytest.raises(gcp_jax.ConfigError, match="horizn"):
        gcp_jax.make_env("reach", horizn=12)


def test_every_public_name_exists_and_no_other():
    for name in gcp_jax.__all__:
        assert getattr(gcp_jax, name) is not None
    assert set(gcp_jax.__all__) <= set(dir(gcp_jax))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gcp_jax.nothing


@pytest.mark.process
def test_importing_the_package_imports_no_jax():
    code = "import sys, gcp_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_whole_chunks_are_sampled_by_a_pure_function(policy, path, obs):
    saved = check_saved_policy(path)
    key = jax.random.key(3)
    before = policy(obs[0])
    chunks = jax.jit(policy.sample_chunks)(obs[1], key)
    np.testing.assert_allclose(
        chunks, saved.eval_policy(saved.deployed, obs[1], key), atol=TOLERANCE
    )
    assert chunks.shape == (4, policy.chunk, policy.action_dim)
    policy.reset(seed=0)
    np.testing.assert_array_equal(policy(obs[0]), before)

"""A run takes the recorded episodes of its own task, and says in what their settings differ."""

import json

import jax
import numpy as np
import pytest
from helpers.by_hand import assert_one_line
from helpers.run_configs import small_config

from gcp_jax.config import ConfigError
from gcp_jax.envs.demos import storage
from gcp_jax.envs.demos.collect import Info
from gcp_jax.experiments import assemble
from gcp_jax.types import Step

EPISODES, STEPS = 3, 5


@pytest.fixture
def folder(tmp_path):
    """Episodes for reach, of 5 steps each."""
    rng = np.random.default_rng(0)
    shape = (STEPS, EPISODES)
    no = np.zeros(shape, bool)
    obs = rng.standard_normal((*shape, 4)).astype(np.float32)
    action = rng.uniform(-1, 1, (*shape, 2)).astype(np.float32)
    steps = Step(obs, action, np.ones(shape, np.float32), obs, no, no, no, ~no)
    info = Info(no[0], np.full(EPISODES, -1), np.full(EPISODES, STEPS), no[0])
    env = small_config().env.to_dict()
    storage.write(tmp_path / "demos", steps, info, {"env": env})
    return tmp_path / "demos"


def described(folder, **env):
    path = folder / "dataset.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "env": {**facts["env"], **env}}))


def task_of(folder, episodes=EPISODES, **choices):
    fields = {"demonstrations.path": str(folder), "demonstrations.episodes": episodes}
    return assemble.make_task(small_config(**fields), film=False, **choices)


@pytest.mark.parametrize("name", ["push_t", "", None, 3])
def test_episodes_of_another_task_are_refused(folder, name):
    described(folder, name=name)
    with pytest.raises(ConfigError, match="of the environment .*, but this run is on") as error:
        task_of(folder)
    assert repr(name) in str(error.value) and "correct env.name" in str(error.value)
    assert_one_line(error)


@pytest.mark.parametrize("env", [None, "reach", []])
def test_a_dataset_that_names_no_task_is_refused(folder, env):
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "env": env}))
    with pytest.raises(ConfigError, match="of the environment None, but this run is on 'reach'"):
        task_of(folder)


def test_settings_that_differ_are_named(folder, capsys):
    task_of(folder)
    assert capsys.readouterr().err == ""
    described(folder, max_step=0.5, unknown=1)
    task_of(folder)
    said = capsys.readouterr().err
    assert "was recorded with env.max_step=0.5, not " in said and "env.unknown=1, not None" in said
    assert said.count("\n") == 1


def test_only_the_selected_episodes_are_learned_from(folder):
    demonstrations, facts = task_of(folder, 2).demonstrate(jax.random.key(0))
    obs = np.load(folder / "obs.npy")
    np.testing.assert_array_equal(demonstrations.steps.obs, obs[: 2 * STEPS])
    assert (facts["episodes"], facts["return"], facts["path"]) == (2, STEPS, str(folder))


def test_the_digest_does_not_depend_on_the_path_or_on_episodes_that_are_left_out(folder, tmp_path):
    def digest(path, episodes):
        fields = {"demonstrations.path": str(path), "demonstrations.episodes": episodes}
        return assemble.dataset_digest(small_config(**fields).demonstrations)

    before = digest(folder, 2)
    demonstrations, _ = task_of(folder, 2).demonstrate(jax.random.key(0))
    assert before == demonstrations.digest() != digest(folder, 3)
    obs = np.load(folder / "obs.npy")
    obs[2 * STEPS] += 1
    np.save(folder / "obs.npy", obs)
    folder.rename(tmp_path / "moved")
    assert digest(tmp_path / "moved", 2) == before
    obs[0] += 1
    np.save(tmp_path / "moved" / "obs.npy", obs)
    assert digest(tmp_path / "moved", 2) != before
    assert assemble.dataset_digest(small_config().demonstrations) == ""


def test_a_run_that_needs_no_demonstrations_reads_none(tmp_path):
    task = task_of(tmp_path / "gone", demonstrations=False)
    with pytest.raises(AssertionError, match="uses no demonstrations"):
        task.demonstrate(jax.random.key(0))

"""A resumed run reads from disk what it still needs, wherever that lies now."""

import json
import shutil

import numpy as np
import pytest
from helpers.run_configs import small_config
from helpers.saved_policies import save_tiny_policy

from gcp_jax.envs.demos import storage
from gcp_jax.envs.demos.collect import Info
from gcp_jax.experiments import run_inputs
from gcp_jax.run.errors import RunError
from gcp_jax.run.folder import check_folder, open_folder
from gcp_jax.run.sizes import Cadence, Cadences
from gcp_jax.run.task import TaskInterface
from gcp_jax.types import Step

CADENCES = Cadences(Cadence("pretrain", 1, 0, 10, 0, 1, 1), Cadence("finetune", 1, 8, 1, 0, 1, 1))


def write_episodes(folder, seed):
    """Four episodes for reach, of five steps each."""
    rng = np.random.default_rng(seed)
    shape = (5, 4)
    no = np.zeros(shape, bool)
    obs = rng.standard_normal((*shape, 4)).astype(np.float32)
    action = rng.uniform(-1, 1, (*shape, 2)).astype(np.float32)
    steps = Step(obs, action, np.ones(shape, np.float32), obs, no, no, no, ~no)
    info = Info(no[0], np.full(4, -1), np.full(4, 5), no[0])
    storage.write(folder, steps, info, {"env": small_config().env.to_dict()})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two datasets."""
    root = tmp_path_factory.mktemp("demos")
    for seed in (0, 1):
        write_episodes(root / str(seed), seed)
    return root / "0", root / "1"


@pytest.fixture
def demos(recorded, tmp_path):
    return shutil.copytree(recorded[0], tmp_path / "demos")


def config_of(path, **fields):
    return small_config(
        **{"demonstrations.path": str(path), "demonstrations.episodes": 4, **fields}
    )


def begin(run, config):
    run.mkdir()
    open_folder(run, config, "", CADENCES, run_inputs.input_digests(config, run))


def check(run, config):
    """Raise RunError if the folder's run is not this one."""
    check_folder(run, config, run_inputs.input_digests(config, run))


def test_a_dataset_may_move_and_its_path_be_spelled_otherwise(demos, tmp_path, monkeypatch):
    run = tmp_path / "run"
    begin(run, config_of(demos))
    check(run, config_of(tmp_path / "." / "run" / ".." / "demos"))
    monkeypatch.chdir(tmp_path)
    check(run, config_of("demos"))
    demos.rename(tmp_path / "moved")
    check(run, config_of("moved"))
    with pytest.raises(storage.DatasetError, match="has no dataset.json"):
        check(run, config_of(demos))


def test_other_data_are_refused_at_any_path(demos, recorded, tmp_path):
    run = tmp_path / "run"
    begin(run, config_of(demos))
    with pytest.raises(RunError, match="began with other data at demonstrations.path"):
        check(run, config_of(recorded[1]))
    shutil.rmtree(demos)
    shutil.copytree(recorded[1], demos)
    with pytest.raises(RunError, match="began with other data at demonstrations.path"):
        check(run, config_of(demos))
    with pytest.raises(RunError, match="holds a run with demonstrations.path="):
        check(run, config_of(""))


def test_a_dataset_that_is_not_needed_any_more_may_be_gone(demos, tmp_path):
    run = tmp_path / "run"
    config = config_of(demos)
    assert run_inputs.needs_demonstrations(config, run)
    begin(run, config)
    save_tiny_policy(run / "policy" / "base")
    assert not run_inputs.needs_demonstrations(config, run)
    mixed = config_of(demos, **{"finetune.demo_fraction": 0.5})
    assert run_inputs.needs_demonstrations(mixed, run)
    shutil.rmtree(demos)
    check(run, config)
    task = run_inputs.task_of_run(config, run, film=False)
    assert isinstance(task, TaskInterface) and task.inputs == {}
    with pytest.raises(storage.DatasetError):
        run_inputs.task_of_run(mixed, run, film=False)
    save_tiny_policy(run / "policy" / "seed_0")
    (run / "summary.json").write_text('{"env_steps": 8}')
    assert not run_inputs.needs_demonstrations(mixed, run)


def test_a_policy_to_start_from_may_move_and_may_not_change(tmp_path):
    run = tmp_path / "run"
    policy = save_tiny_policy(tmp_path / "policy")

    def config(path):
        return small_config(**{"pretrain.saved_policy": str(path)})

    assert not run_inputs.needs_demonstrations(config(policy), run)
    begin(run, config(policy))
    policy = policy.rename(tmp_path / "moved")
    check(run, config(policy))
    text = (policy / "policy.json").read_text()
    (policy / "policy.json").write_text(text.replace('"steps": 3', '"steps": 4'))
    assert (policy / "policy.json").read_text() != text
    with pytest.raises(RunError, match="began with other data at pretrain.saved_policy"):
        check(run, config(policy))
    save_tiny_policy(run / "policy" / "base")
    shutil.rmtree(policy)
    check(run, config(tmp_path / "run" / ".." / "policy"))


def test_a_run_of_a_version_that_recorded_no_inputs_is_found_by_its_path(demos, tmp_path):
    run = tmp_path / "run"
    begin(run, config_of(demos))
    record = json.loads((run / "config.json").read_text())
    del record["inputs"]
    (run / "config.json").write_text(json.dumps(record))
    check(run, config_of(tmp_path / "run" / ".." / "demos"))
    shutil.copytree(demos, tmp_path / "copy")
    with pytest.raises(RunError, match="holds a run with demonstrations.path="):
        check(run, config_of(tmp_path / "copy"))

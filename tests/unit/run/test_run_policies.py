"""The policies in a run's folder: which are replaced, and which are moved aside."""

import json

import jax
import numpy as np
import pytest
from helpers.off_policy import small_flow

from gcp_jax.config import Member
from gcp_jax.run import run_policies, saved_policy

NAME = run_policies.best_name("seed_0")


@pytest.fixture(scope="module")
def flow():
    return small_flow()


def save(run, flow, scale, name=NAME, **facts):
    deployed = {**flow.deployed, "net": jax.tree.map(lambda x: scale * x, flow.deployed["net"])}
    run_policies.save(run, name, flow.policy, deployed, facts, flow.policy.eval_policy)
    return deployed


def facts_of(run, name=NAME):
    return json.loads((run_policies.policy_folder(run, name) / "policy.json").read_text())


def test_a_best_policy_is_replaced_and_leaves_nothing_behind(tmp_path, flow, capsys):
    for scale in (1.0, 2.0, 3.0):
        deployed = save(tmp_path, flow, scale, selection={"env_steps": scale})
    path = run_policies.policy_folder(tmp_path, NAME)
    loaded = saved_policy.load_saved_policy(path)
    jax.tree.map(np.testing.assert_array_equal, loaded.deployed["net"], deployed["net"])
    assert loaded.facts["selection"] == {"env_steps": 3.0}
    assert [each.name for each in path.parent.iterdir()] == ["seed_0"]
    assert capsys.readouterr().err == ""

    before = (path / "arrays.npz").stat().st_mtime_ns
    save(tmp_path, flow, 3.0, selection={"env_steps": 3.0, "fresh": 0.5})
    assert facts_of(tmp_path)["selection"]["fresh"] == 0.5
    assert (path / "arrays.npz").stat().st_mtime_ns == before
    saved_policy.load_saved_policy(path)


def test_a_policy_of_a_stopped_run_is_replaced_by_that_of_its_end(tmp_path, flow, capsys):
    save(tmp_path, flow, 1.0, "seed_0", stopped="why")
    save(tmp_path, flow, 1.0, "seed_0")
    assert "stopped" not in facts_of(tmp_path, "seed_0")
    assert capsys.readouterr().err == ""
    save(tmp_path, flow, 2.0, "seed_0")  # that of the end belongs to no moment
    assert "is not the policy of this run; moved to" in capsys.readouterr().err
    assert (tmp_path / "damaged" / "policy-seed_0").is_dir()


def test_best_policies_are_missed_once_a_run_has_some(tmp_path, flow):
    members = [Member(0, {})]
    save(tmp_path, flow, 1.0, "base")
    save(tmp_path, flow, 1.0, "seed_0")
    assert run_policies.missing_policies(tmp_path, members) == []
    (tmp_path / "policy" / "best").mkdir()
    assert run_policies.missing_policies(tmp_path, members) == [NAME]


def test_why_a_run_stopped_is_forgotten_when_it_goes_on(tmp_path):
    run_policies.record_stop(tmp_path, "below")
    assert json.loads((tmp_path / run_policies.STOP_FILE).read_text()) == {"reason": "below"}
    for _ in range(2):
        run_policies.forget_stop(tmp_path)
    assert not (tmp_path / run_policies.STOP_FILE).exists()

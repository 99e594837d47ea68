"""Packaging the policies of a finished run: what is measured is what the card says."""

import json

import numpy as np
import pytest
from helpers.saved_policies import finished_run_of_reach, save_policy_of_reach

from gcp_jax.config import ConfigError
from gcp_jax.experiments import package_policy, play
from gcp_jax.json_files import problem_of
from gcp_jax.run import packaged_policies, saved_policy
from gcp_jax.run.errors import RunError

EPISODES = 6
SCORE = {
    "success": 0.5,
    "low": 0.2,
    "high": 0.8,
    "episodes": EPISODES,
    "return": -3.0,
    "length": 9.0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run_of_reach(tmp_path_factory.mktemp("runs") / "reach")


@pytest.fixture(scope="module")
def packaged(run, tmp_path_factory):
    """The folder of the packaged policies of a run, in fact evaluated."""
    out = tmp_path_factory.mktemp("packaged")
    package_policy.package(package_policy.read_run(run), episodes=EPISODES, out=out)
    return out


@pytest.fixture
def not_played(monkeypatch):
    monkeypatch.setattr(package_policy, "_score", lambda path, episodes: SCORE)


def card_of(folder):
    return json.loads((folder / "policy.json").read_text())["card"]


def test_a_run_gives_its_clone_and_its_finetuned_policy(run, packaged):
    assert sorted(path.relative_to(packaged).as_posix() for path in packaged.glob("*/*")) == [
        "reach/clone",
        "reach/ogpo",
    ]
    for name, source in (("clone", "base"), ("ogpo", "seed_0")):
        target = packaged / "reach" / name
        assert saved_policy.digest(target) == saved_policy.digest(run / "policy" / source)
        assert sorted(file.name for file in target.iterdir()) == ["arrays.npz", "policy.json"]


def test_the_card_says_what_was_made_and_measured(packaged):
    folder = packaged / "reach" / "ogpo"
    card = card_of(folder)
    assert problem_of(card, packaged_policies.CARD) == ""
    assert (card["method"], card["policy"], card["env_steps"]) == ("ogpo", "seed_0", 640)
    assert card["demonstrations"] == {
        "quality": "mixed",
        "seed": 0,
        "episodes": 200,
        "success": 0.715,
        "noise": 0.3,
    }
    assert card["versions"].keys() == {"gcp-jax", "jax"} and card["commit"] == "3f2c1ab"
    assert card["measured_by"] == "gcp-jax evaluate reach/ogpo --episodes=6 --seed=1000"
    played = play.play(folder, episodes=EPISODES, seed=1000)
    assert card["scores"]["ogpo"]["success"] == np.mean(played.outcome.success)
    assert card["scores"] == card_of(packaged / "reach" / "clone")["scores"]
    assert (played.facts["success"], played.facts["episodes"]) == (
        card["scores"]["ogpo"]["success"],
        EPISODES,
    )


def test_what_is_there_is_kept_unless_it_may_be_replaced(run, tmp_path, not_played):
    read = package_policy.read_run(run)
    assert len(package_policy.package(read, out=tmp_path)) == 2
    before = card_of(tmp_path / "reach" / "ogpo")
    with pytest.raises(RunError, match=r"reach/ogpo exists; --replace makes it again\.$"):
        package_policy.package(read, out=tmp_path)
    assert card_of(tmp_path / "reach" / "ogpo") == before
    other = save_policy_of_reach(tmp_path / "other", seed=5)
    (run / "policy" / "seed_1").symlink_to(other)
    assert len(package_policy.package(read, seed=1, out=tmp_path, replace=True)) == 2
    assert saved_policy.digest(tmp_path / "reach" / "ogpo") == saved_policy.digest(other)
    assert sorted(path.name for path in (tmp_path / "reach").iterdir()) == ["clone", "ogpo"]


def test_methods_share_one_clone(run, tmp_path, not_played, capsys):
    read = package_policy.read_run(run)
    package_policy.package(read, out=tmp_path)
    (tmp_path / "reach" / "ogpo").rename(tmp_path / "reach" / "qc")
    assert package_policy.package(read, out=tmp_path) == [tmp_path / "reach" / "ogpo"]
    assert "reach/clone is this clone already; it is kept" in capsys.readouterr().err


def test_another_clone_is_not_replaced(run, tmp_path, not_played):
    save_policy_of_reach(tmp_path / "reach" / "clone", seed=7)
    with pytest.raises(RunError, match=r"reach/clone exists; --replace makes it again\.$"):
        package_policy.package(package_policy.read_run(run), out=tmp_path)
    assert not (tmp_path / "reach" / "ogpo").exists()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"seed": 999, "seeds": 2}, "has seen the start states of seed 1000"),
        ({"demonstrations.path": "demos/mine"}, "clones a dataset of your own"),
        ({"pretrain.saved_policy": "reach/clone"}, "begins from a saved policy"),
    ],
)
def test_runs_that_cannot_be_described_are_refused(tmp_path, fields, problem):
    folder = finished_run_of_reach(tmp_path / "run", **fields)
    with pytest.raises(RunError, match=problem):
        package_policy.read_run(folder)


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        package_policy.read_run(tmp_path)
    folder = finished_run_of_reach(tmp_path / "run")
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**record, "commit": None}))
    with pytest.raises(RunError, match="'commit' is None; a string is expected; train the run aga"):
        package_policy.read_run(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(RunError, match="is not finished; finish it by its command"):
        package_policy.read_run(folder)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^package_policy: .*holds no run"):
        package_policy.main([str(tmp_path)])

"""The policies that come with gcp-jax load, are small and are described; names are found."""

import json
import shutil

import numpy as np
import pytest
from helpers.run_configs import small_config
from helpers.saved_policies import save_policy_of_reach, save_tiny_policy

import gcp_jax
from gcp_jax import envs
from gcp_jax.core.policy import PolicyConfig
from gcp_jax.experiments import run_inputs
from gcp_jax.json_files import problem_of
from gcp_jax.launch import expand
from gcp_jax.run import packaged_policies, saved_policy
from gcp_jax.run.adopted_policy import adopt_policy
from gcp_jax.run.errors import RunError
from gcp_jax.run.saved_policy import SavedPolicyError
from gcp_jax.run.training import Training

NAMES = packaged_policies.names()


def test_some_are_packaged_each_with_its_clone():
    tasks = {name.split("/")[0] for name in NAMES}
    assert "peg_insert/ogpo" in NAMES and tasks <= set(envs.names())
    assert {f"{task}/clone" for task in tasks} <= set(NAMES)


def test_together_they_are_small_and_nothing_else_lies_among_them():
    files = [path for path in packaged_policies.ROOT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < packaged_policies.MAX_TOTAL_BYTES
    expected = [f"{name}/{file}" for name in NAMES for file in ("arrays.npz", "policy.json")]
    found = [path.relative_to(packaged_policies.ROOT).as_posix() for path in files]
    assert sorted(found) == expected


@pytest.mark.parametrize("name", NAMES)
def test_it_is_intact_and_fits_its_task(name):
    saved = saved_policy.check_saved_policy(name)
    assert saved_policy.is_intact(packaged_policies.ROOT / name)
    task, method = name.split("/")
    assert saved.facts["env"]["name"] == task
    env = gcp_jax.make_env(**saved.facts["env"])
    assert (env.specs.obs_dim, env.specs.action_dim) == saved.policy.specs[:2]
    assert method in ("clone", saved.facts["config"]["algorithm"]["name"])


@pytest.mark.parametrize("name", NAMES)
def test_plain_numpy_reads_it(name):
    folder = packaged_policies.ROOT / name
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        dtypes = {arrays[key].dtype for key in arrays.files}
    assert dtypes == {np.dtype("float32")}
    assert "/tmp" not in (folder / "policy.json").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_its_card_is_complete(name):
    card = packaged_policies.read_card(name)
    facts = json.loads((packaged_policies.ROOT / name / "policy.json").read_text())
    task, method = name.split("/")
    assert problem_of(card, packaged_policies.CARD) == "" and card["method"] == method
    assert card["command"].startswith("gcp-jax train ") and f"{task}" in card["command"]
    assert not card["commit"].endswith("-dirty") and card["versions"].keys() > {"gcp-jax", "jax"}
    assert {"clone", facts["config"]["algorithm"]["name"]} == card["scores"].keys()
    own = card["scores"][method]
    assert (facts["success"], facts["episodes"]) == (own["success"], own["episodes"])
    assert card["measured_by"] == f"gcp-jax evaluate {name} --episodes=512 --seed=1000"
    assert facts["seeds"] == [1000]
    for score in card["scores"].values():
        assert 0.0 <= score["low"] <= score["success"] <= score["high"] <= 1.0
        assert score["episodes"] >= 512


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A working directory, and two packaged policies that are not trained."""
    root = tmp_path / "packaged"
    for name in ("toy/clone", "toy/qc"):
        save_tiny_policy(root / name)
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    monkeypatch.setattr(packaged_policies, "ROOT", root)
    return root


def test_a_name_is_found_and_said(packaged, capsys):
    assert packaged_policies.names() == ["toy/clone", "toy/qc"]
    assert packaged_policies.locate("toy/qc") == packaged / "toy/qc"
    loaded = gcp_jax.load_policy("toy/qc")
    assert loaded.obs_dim == saved_policy.check_saved_policy(packaged / "toy/qc").policy.specs[0]
    assert saved_policy.digest("toy/qc") == saved_policy.digest(packaged / "toy/qc")
    assert saved_policy.saved_policy_config("toy/qc").hidden
    said = "toy/qc is the policy of that name that comes with gcp-jax\n"
    assert capsys.readouterr().err == said


def test_what_lies_at_that_path_comes_first_and_is_said(packaged, tmp_path, capsys):
    path = save_policy_of_reach(tmp_path / "working" / "toy" / "qc")
    assert saved_policy.digest("toy/qc") == saved_policy.digest(path)
    assert gcp_jax.load_policy("toy/qc").obs_dim == 4
    said = "toy/qc is what lies at that path here, not the packaged policy of that name\n"
    assert capsys.readouterr().err == said
    shutil.rmtree(path)
    path.mkdir()
    with pytest.raises(SavedPolicyError, match=r"^toy/qc is not a saved policy: policy.json is mi"):
        gcp_jax.load_policy("toy/qc")


def test_a_folder_is_read_without_a_word(packaged, capsys):
    gcp_jax.load_policy(packaged / "toy" / "qc")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("path", "closest"), [("toy/qd", "toy/qc"), ("nothing", ""), ("ty/clone", "toy/clone")]
)
def test_an_unknown_name_gets_the_names_and_the_closest(packaged, path, closest):
    hint = f"did you mean '{closest}'? " if closest else ""
    with pytest.raises(SavedPolicyError) as error:
        saved_policy.check_saved_policy(path)
    assert str(error.value) == (
        f"{path} is not a saved policy: there is no such folder, nor a packaged policy; "
        f"{hint}allowed: toy/clone, toy/qc."
    )


@pytest.mark.parametrize("path", ["runs/first/policy/seed_0", "/nowhere/qc"])
def test_what_can_be_no_name_gets_no_names(packaged, path):
    with pytest.raises(SavedPolicyError, match=rf"^{path} is not a saved policy: policy.json is m"):
        saved_policy.check_saved_policy(path)


def test_a_run_and_a_sweep_begin_from_a_name(packaged, tmp_path, monkeypatch, capsys):
    save_policy_of_reach(packaged / "reach" / "clone")
    fields = {"pretrain.saved_policy": "reach/clone"}
    config = adopt_policy(small_config(**fields), fields, tmp_path / "run")
    assert config.policy == PolicyConfig(chunk=4, hidden=(8,), steps=2)
    assert config.pretrain.saved_policy == "reach/clone"
    assert "reach/clone is the policy of that name that comes" in capsys.readouterr().err
    file = tmp_path / "reach.py"
    file.write_text(
        "from gcp_jax.experiments.run_config import defaults\n"
        "def get_config():\n    return defaults(env='reach')\n"
    )
    assert expand.configure(str(file), fields, {}).policy == config.policy


def test_a_run_from_a_name_resumes_by_the_content_that_it_began_with(packaged, tmp_path):
    save_policy_of_reach(packaged / "reach" / "clone")
    fields = {"pretrain.saved_policy": "reach/clone"}
    folder = tmp_path / "run"

    def begin():
        config = adopt_policy(small_config(**fields), fields, folder)
        return Training(config, run_inputs.task_of_run(config, folder), folder, "").pretrain()

    base = begin()
    assert saved_policy.digest(base) == saved_policy.digest("reach/clone")
    here = save_policy_of_reach(tmp_path / "working" / "reach" / "clone")
    assert begin() == base  # what lies there now is the same policy
    shutil.rmtree(here)
    save_policy_of_reach(here, seed=1)
    with pytest.raises(RunError, match=r"pretrain\.saved_policy"):
        begin()


def test_a_run_whose_packaged_policy_is_there_does_not_take_its_own_copy(packaged, tmp_path):
    """A run reads its copy only if the policy that it began from is gone."""
    save_policy_of_reach(packaged / "reach" / "clone")
    copy = save_tiny_policy(tmp_path / "run" / "policy" / "base")
    fields = {"pretrain.saved_policy": "reach/clone"}
    config = adopt_policy(small_config(**fields), fields, tmp_path / "run")
    assert config.policy.hidden == (8,)
    shutil.rmtree(packaged / "reach")
    config = adopt_policy(small_config(**fields), fields, tmp_path / "run")
    assert config.policy == saved_policy.saved_policy_config(copy)

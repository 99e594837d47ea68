"""A saved policy gives back the same actions, or one clear error."""

import json
import os

import jax
import numpy as np
import pytest
from helpers.off_policy import small_flow

from gcp_jax.run.saved_policy import (
    FORMAT,
    SavedPolicyError,
    check_saved_policy,
    load_saved_policy,
    save_policy,
)


@pytest.fixture(scope="module")
def flow():
    return small_flow()


@pytest.fixture(scope="module")
def saved(flow, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "runs" / "policy"
    return save_policy(
        path, policy=flow.policy, deployed=flow.deployed, facts={"env": "reach", "success": 0.5}
    )


@pytest.fixture
def copy_of_saved(saved, tmp_path):
    """A copy of the saved policy, to be damaged."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_a_loaded_policy_gives_the_same_actions(saved, flow):
    policy, deployed, obs = flow
    loaded = load_saved_policy(saved)
    assert (loaded.policy.config, loaded.policy.specs) == (policy.config, policy.specs)
    assert loaded.facts.items() >= {"env": "reach", "success": 0.5, "format": FORMAT}.items()
    jax.tree.map(np.testing.assert_array_equal, loaded.deployed, deployed)
    key = jax.random.key(5)
    np.testing.assert_array_equal(
        loaded.eval_policy(loaded.deployed, obs, key), policy.eval_policy(deployed, obs, key)
    )


def test_saving_leaves_two_files_and_no_scratch(saved):
    assert sorted(os.listdir(saved)) == ["arrays.npz", "policy.json"]
    assert os.listdir(saved.parent) == ["policy"]


def test_a_saved_policy_is_never_overwritten(saved, flow):
    before = (saved / "arrays.npz").read_bytes()
    with pytest.raises(FileExistsError, match="a saved policy is never overwritten"):
        save_policy(saved, policy=flow.policy, deployed=flow.deployed, facts={})
    assert (saved / "arrays.npz").read_bytes() == before


def test_a_failed_save_leaves_nothing(flow, tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_policy(
            tmp_path / "policy", policy=flow.policy, deployed=flow.deployed, facts={"env": object()}
        )
    assert os.listdir(tmp_path) == []


def change_arrays(path, change):
    with np.load(path / "arrays.npz") as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(path / "arrays.npz", **arrays)


def change_meta(path, change):
    meta = json.loads((path / "policy.json").read_text())
    change(meta)
    (path / "policy.json").write_text(json.dumps(meta))


def truncate(path, name, size):
    (path / name).write_bytes((path / name).read_bytes()[:size])


def flip(path, name, position):
    content = bytearray((path / name).read_bytes())
    content[position] ^= 0xFF
    (path / name).write_bytes(content)


DAMAGES = {
    "no arrays": (lambda p: (p / "arrays.npz").unlink(), "arrays.npz is missing"),
    "no description": (lambda p: (p / "policy.json").unlink(), "policy.json is missing"),
    "empty arrays": (lambda p: truncate(p, "arrays.npz", 0), "damaged"),
    "half of the arrays": (lambda p: truncate(p, "arrays.npz", 3000), "damaged"),
    "the last byte lost": (lambda p: truncate(p, "arrays.npz", -1), "damaged"),
    "a flipped byte": (lambda p: flip(p, "arrays.npz", 500), "damaged"),
    "a flipped directory entry": (lambda p: flip(p, "arrays.npz", -100), "damaged"),
    "half of the description": (lambda p: truncate(p, "policy.json", 40), "damaged"),
    "a description in no encoding": (
        lambda p: (p / "policy.json").write_bytes(b"\xff\xfe\xfa"),
        "damaged",
    ),
    "a list for a description": (
        lambda p: (p / "policy.json").write_text("[]"),
        "a saved policy of format None",
    ),
    "another format": (
        lambda p: change_meta(p, lambda m: m.update(format=99)),
        "a saved policy of format 99, this version reads 2",
    ),
    "the format before": (
        lambda p: change_meta(p, lambda m: m.update(format=1)),
        "a saved policy of format 1, this version reads 2; load it with the version that saved it",
    ),
    "an unknown family": (
        lambda p: change_meta(p, lambda m: m["policy"].update(family="vae")),
        "policy.family is 'vae'",
    ),
    "an unknown setting": (
        lambda p: change_meta(p, lambda m: m["policy"].update(width=3)),
        "does not hold what",
    ),
    "an unknown setting of a long name": (
        lambda p: change_meta(p, lambda m: m["policy"].update({"wide " * 1000: 3})),
        "does not hold what",
    ),
    "no sizes": (lambda p: change_meta(p, lambda m: m.pop("specs")), "does not hold what"),
    "a missing array": (
        lambda p: change_arrays(p, lambda a: a.pop("net/last/kernel")),
        "other names or shapes",
    ),
    "one array too many": (
        lambda p: change_arrays(p, lambda a: a.update({"net/more": a["net/last/bias"]})),
        "other names",
    ),
    "another shape": (
        lambda p: change_arrays(p, lambda a: a.update({"net/last/bias": np.zeros(7)})),
        "other names or shapes",
    ),
    "no normalizer": (
        lambda p: change_arrays(p, lambda a: a.pop("normalizer/std")),
        "does not hold what",
    ),
    "a changed weight": (
        lambda p: change_arrays(p, lambda a: a["net/last/bias"].__iadd__(0.1)),
        "gives other actions",
    ),
    "a changed normalizer": (
        lambda p: change_arrays(p, lambda a: a["normalizer/mean"].__iadd__(0.5)),
        "gives other actions",
    ),
    "a weight that is not a number": (
        lambda p: change_arrays(p, lambda a: a["net/last/bias"].fill(np.nan)),
        "other actions",
    ),
    "another sampler": (
        lambda p: change_meta(p, lambda m: m["policy"].update(steps=9)),
        "gives other actions",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_policy_gives_one_clear_line(copy_of_saved, damage):
    harm, message = DAMAGES[damage]
    harm(copy_of_saved)
    with pytest.raises(SavedPolicyError, match=message) as error:
        load_saved_policy(copy_of_saved)
    assert str(copy_of_saved) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(copy_of_saved))


def test_a_missing_folder_is_not_a_saved_policy(tmp_path):
    with pytest.raises(SavedPolicyError, match="is not a saved policy: policy.json is missing"):
        load_saved_policy(tmp_path / "nowhere")


def test_a_policy_is_checked_without_computing_an_action(copy_of_saved, flow):
    checked = check_saved_policy(copy_of_saved)
    jax.tree.map(np.testing.assert_array_equal, checked.deployed, flow.deployed)
    change_arrays(copy_of_saved, lambda a: a["net/last/bias"].__iadd__(0.1))
    check_saved_policy(copy_of_saved)
    truncate(copy_of_saved, "arrays.npz", 3000)
    with pytest.raises(SavedPolicyError, match="damaged"):
        check_saved_policy(copy_of_saved)

"""A run's folder is opened only by the run that it belongs to."""

import json

import pytest
from helpers.run_configs import small_config

from gcp_jax.run import folder as folder_lib
from gcp_jax.run import metrics
from gcp_jax.run.errors import RunError
from gcp_jax.run.folder import open_folder, run_folder_lock

COMMAND = "gcp-jax train"


@pytest.fixture
def begun(tmp_path):
    """The folder of a run that has just begun."""
    open_folder(tmp_path, small_config(), COMMAND)
    return tmp_path


def change_config_json(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("old_format", [0, 2])
def test_a_folder_of_another_format_is_refused(begun, old_format):
    change_config_json(begun, format=old_format)
    message = (
        f"holds a run of format {old_format}, this version reads 3; finish it with the version"
    )
    with pytest.raises(RunError, match=message) as error:
        open_folder(begun, small_config(), COMMAND)
    assert "\n" not in str(error.value)


def test_other_versions_are_a_warning(begun, capsys):
    versions = json.loads((begun / "config.json").read_text())["versions"]
    change_config_json(begun, versions={**versions, "jax": "0.0.1"})
    open_folder(begun, small_config(), COMMAND)
    warning = (
        f"this run began with jax 0.0.1, now it is {versions['jax']}: the last bits may differ"
    )
    assert capsys.readouterr().err == warning + "\n"


def test_another_configuration_is_refused(begun):
    with pytest.raises(RunError, match="a run with finetune.utd=0.1, not 0.2; use the same"):
        open_folder(begun, small_config(**{"finetune.utd": 0.2}), COMMAND)


def test_free_fields_may_differ(begun):
    open_folder(begun, small_config(**{"video": False, "checkpoint.keep": 7}), COMMAND)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("epoch 1\n")
    with pytest.raises(RunError, match="holds a metrics.jsonl, but no config.json"):
        open_folder(tmp_path, small_config(), COMMAND)
    assert not (tmp_path / "config.json").exists()


def test_the_rows_of_a_clone_are_adopted(tmp_path):
    with metrics.make_writers(["jsonl"], tmp_path, {}) as writer:
        writer.write({"stage": "pretrain", "seed": 0, "env_steps": 0, "updates": 1})
    open_folder(tmp_path, small_config(), COMMAND)
    assert (tmp_path / "config.json").exists()


def test_a_folder_in_use_is_refused(tmp_path):
    in_use = pytest.raises(RunError, match="is in use by another process")
    with run_folder_lock(tmp_path), in_use, run_folder_lock(tmp_path):
        pass
    with run_folder_lock(tmp_path):
        pass


def test_differences_name_fields_by_their_path():
    saved = {"a": 1, "b": {"c": [1, 2], "d": 3}, "video": True}
    current = {"a": 1, "b": {"c": (1, 2), "d": 4}, "video": False, "e": 5}
    assert list(folder_lib.differences(saved, current)) == [("b.d", 3, 4), ("e", None, 5)]


def test_a_finished_run_that_shall_continue_names_its_clone(begun):
    (begun / "summary.json").write_text("{}")
    message = f"it is finished; .* --config.pretrain.saved_policy={begun}/policy/base"
    with pytest.raises(RunError, match=message):
        open_folder(begun, small_config(**{"finetune.env_steps": 77}), COMMAND)

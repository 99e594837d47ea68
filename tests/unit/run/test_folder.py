"""A run's folder is opened only by the run that it belongs to."""

import json
from pathlib import Path

import pytest
from helpers.run_configs import small_config

from gcp_jax.run import folder as folder_lib
from gcp_jax.run import metrics
from gcp_jax.run.errors import RunError
from gcp_jax.run.folder import check_path, open_folder, refuse_foreign_folder, run_folder_lock
from gcp_jax.run.sizes import Cadence, Cadences

COMMAND = "gcp-jax train"
DECAYS = ("warn", "stop", "restore")  # finetune.on_decay
CADENCES = Cadences(Cadence("pretrain", 1, 0, 10, 0, 1, 1), Cadence("finetune", 1, 8, 1, 0, 1, 1))


@pytest.fixture
def begun(tmp_path):
    """The folder of a run that has just begun."""
    open_folder(tmp_path, small_config(), COMMAND, CADENCES, {})
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
        open_folder(begun, small_config(), COMMAND, CADENCES, {})
    assert "\n" not in str(error.value)


def test_other_versions_are_a_warning(begun, capsys):
    versions = json.loads((begun / "config.json").read_text())["versions"]
    change_config_json(begun, versions={**versions, "jax": "0.0.1"})
    open_folder(begun, small_config(), COMMAND, CADENCES, {})
    warning = (
        f"this run began with jax 0.0.1, now it is {versions['jax']}: the last bits may differ"
    )
    assert capsys.readouterr().err == warning + "\n"


def test_another_configuration_is_refused(begun):
    with pytest.raises(RunError, match="a run with finetune.utd=0.1, not 0.2; use the same"):
        open_folder(begun, small_config(**{"finetune.utd": 0.2}), COMMAND, CADENCES, {})


def test_free_fields_may_differ(begun):
    open_folder(
        begun, small_config(**{"video": False, "checkpoint.keep": 7}), COMMAND, CADENCES, {}
    )


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("epoch 1\n")
    with pytest.raises(RunError, match="holds a metrics.jsonl, but no config.json"):
        open_folder(tmp_path, small_config(), COMMAND, CADENCES, {})
    assert not (tmp_path / "config.json").exists()


def test_the_rows_of_a_clone_are_adopted(tmp_path):
    with metrics.make_writers(["jsonl"], tmp_path, {}) as writer:
        writer.write({"stage": "pretrain", "seed": 0, "env_steps": 0, "updates": 1})
    open_folder(tmp_path, small_config(), COMMAND, CADENCES, {})
    assert (tmp_path / "config.json").exists()


def test_a_folder_in_use_is_refused(tmp_path):
    in_use = pytest.raises(RunError, match="is in use by another process")
    with run_folder_lock(tmp_path), in_use, run_folder_lock(tmp_path):
        pass
    with run_folder_lock(tmp_path):
        pass


def test_a_warning_and_a_stop_may_replace_each_other_and_setting_back_may_not():
    """A run of before there was the field was one that only warned."""
    warn, stop, restore, absent = (
        {"finetune": finetune} for finetune in (*({"on_decay": x} for x in DECAYS), {"envs": None})
    )
    assert not list(folder_lib.differences(warn, stop))
    assert not list(folder_lib.differences(absent, stop))
    found = list(folder_lib.differences(warn, restore))
    assert found == [("finetune.on_decay", "warn", "restore")]
    assert list(folder_lib.differences(restore, stop))
    hashes = [
        folder_lib.config_hash(small_config(**{"finetune.on_decay": value})) for value in DECAYS
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_differences_name_fields_by_their_path():
    saved = {"a": 1, "b": {"c": [1, 2], "d": 3}, "video": True}
    current = {"a": 1, "b": {"c": (1, 2), "d": 4}, "video": False, "e": 5}
    assert list(folder_lib.differences(saved, current)) == [("b.d", 3, 4), ("e", None, 5)]


def test_other_files_than_a_runs_are_refused(tmp_path):
    """A wrong --run_dir is a common slip."""
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(RunError, match="holds a notes.txt, but no config.json"):
        open_folder(tmp_path, small_config(), COMMAND, CADENCES, {})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(RunError, match="run is a file; choose another --run_dir"):
        folder_lib.check_folder(tmp_path / "run", small_config(), {})


def test_a_policy_of_a_seed_is_refused_where_no_run_has_begun(tmp_path):
    (tmp_path / "policy" / "seed_0").mkdir(parents=True)
    with pytest.raises(RunError, match="holds a policy/seed_0, but no config.json"):
        open_folder(tmp_path, small_config(), COMMAND, CADENCES, {})


def test_what_a_worker_leaves_and_hidden_files_are_no_other_content(tmp_path):
    for name in (".worker", ".gitkeep", "alive", "attempts.jsonl", "log.txt", "failed.txt"):
        (tmp_path / name).touch()
    (tmp_path / "policy" / "base").mkdir(parents=True)
    open_folder(tmp_path, small_config(), COMMAND, CADENCES, {})


def test_a_benchmark_or_sweep_is_not_begun_in_another_folder(tmp_path):
    refuse_foreign_folder(tmp_path / "new", "sweep.json")
    (tmp_path / ".lock").touch()
    refuse_foreign_folder(tmp_path, "sweep.json")
    (tmp_path / "config.json").touch()
    with pytest.raises(RunError, match="holds a config.json, but no sweep.json"):
        refuse_foreign_folder(tmp_path, "sweep.json")
    (tmp_path / "sweep.json").touch()
    refuse_foreign_folder(tmp_path, "sweep.json")


@pytest.mark.parametrize("path", ["a\nb", "a\x1bb", "a\udcffb"])
def test_a_path_that_is_not_text_is_refused(path):
    with pytest.raises(RunError, match="holds a character that is not text") as error:
        check_path(Path(path))
    assert str(error.value).isprintable()


def test_an_address_is_refused():
    with pytest.raises(RunError, match="looks like the address of a remote store"):
        check_path(Path("gs://bucket/run"))


def test_a_path_of_patterns_is_refused_for_several_hosts(monkeypatch):
    check_path(Path("peg [v2]"))
    monkeypatch.setattr("gcp_jax.run.distributed.count", lambda: 2)
    check_path(Path("peg v2"))
    with pytest.raises(RunError, match="it may hold none of"):
        check_path(Path("peg [v2]"))


CHANGED = {"my_method": "new", "gcp_jax": "same"}


@pytest.fixture
def code(monkeypatch):
    """The code of the runs of a test, which it may change."""
    digests = {"my_method": "old", "gcp_jax": "same"}
    monkeypatch.setattr(folder_lib, "code_digests", lambda config: dict(digests))
    return digests


def test_a_run_with_other_code_is_refused(tmp_path, code):
    open_folder(tmp_path, small_config(), COMMAND, CADENCES, {})
    code |= CHANGED
    message = r"other code: my_method.py changed since it began.*--config.allow_changed_code=True"
    with pytest.raises(RunError, match=message) as error:
        open_folder(tmp_path, small_config(), COMMAND, CADENCES, {})
    assert "\n" not in str(error.value)


def test_changed_code_can_be_allowed_and_is_recorded(tmp_path, code, capsys):
    open_folder(tmp_path, small_config(), COMMAND, CADENCES, {})
    code |= CHANGED
    open_folder(tmp_path, small_config(allow_changed_code=True), COMMAND, CADENCES, {})
    assert (
        "my_method.py changed since this run began (allow_changed_code)" in capsys.readouterr().err
    )
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["code"] == CHANGED
    assert record["earlier_code"] == [{"my_method": "old", "gcp_jax": "same"}]
    open_folder(tmp_path, small_config(), COMMAND, CADENCES, {})


def test_a_run_of_a_version_that_recorded_no_code_is_resumed(begun):
    path = begun / "config.json"
    record = json.loads(path.read_text())
    del record["code"]
    path.write_text(json.dumps(record))
    open_folder(begun, small_config(), COMMAND, CADENCES, {})


def test_null_is_no_code(tmp_path, code):
    """It is read as if nothing had been recorded."""
    open_folder(tmp_path, small_config(), COMMAND, CADENCES, {})
    change_config_json(tmp_path, code=None)
    open_folder(tmp_path, small_config(), COMMAND, CADENCES, {})
    change_config_json(tmp_path, code={"my_method": "old"}, earlier_code=None)
    code |= CHANGED
    open_folder(tmp_path, small_config(allow_changed_code=True), COMMAND, CADENCES, {})


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"success": 1.0}'])
def test_only_a_whole_summary_is_one(tmp_path, content):
    assert folder_lib.finished_summary(tmp_path) == {}
    (tmp_path / "summary.json").write_text(content)
    expected = {"success": 1.0} if "success" in content else {}
    assert folder_lib.finished_summary(tmp_path) == expected


def test_a_finished_run_that_shall_continue_names_its_clone(begun):
    (begun / "summary.json").write_text("{}")
    message = f"it is finished; .* --config.pretrain.saved_policy={begun}/policy/base"
    with pytest.raises(RunError, match=message):
        other = small_config(**{"finetune.env_steps": 77_777})
        open_folder(begun, other, COMMAND, CADENCES, {})

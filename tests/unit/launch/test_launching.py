"""Launches in this process: what is skipped, retried, resumed, and recorded."""

from __future__ import annotations

import json
import shutil

import pytest
from helpers import counting
from helpers.damage import truncate
from helpers.saved_policies import save_tiny_policy
from helpers.sweeps import (
    REACH,
    InProcess,
    counting_sweep,
    describe,
    launch,
    results,
    steps,
)

from gcp_jax.config import ConfigError, to_dict
from gcp_jax.launch import Sweep, grid, launcher, manifest, status, worker
from gcp_jax.launch.expand import expand
from gcp_jax.launch.launcher import LaunchSummary, clone_id, run_folder
from gcp_jax.launch.worker import Job, JobResult
from gcp_jax.run import metrics, saved_policy
from gcp_jax.run.errors import Decayed, RunError

FAILURES = "demonstrations.path"  # says how ``helpers.counting`` fails


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert launch(counting_sweep(), folder).summary == LaunchSummary(4, 0, {})
    return folder


def test_a_second_launch_does_nothing(undisturbed):
    before = steps(undisturbed)
    assert launch(counting_sweep(), undisturbed).summary == LaunchSummary(0, 4, {})
    assert steps(undisturbed) == before


def test_a_grown_sweep_runs_what_is_new(undisturbed, tmp_path):
    folder = tmp_path / "grown"
    shutil.copytree(undisturbed, folder)
    rates = grid("algorithm.critic_lr", (1e-4, 3e-4, 1e-3, 3e-3, 1e-2))
    assert launch(counting_sweep(rates), folder).summary == LaunchSummary(1, 4, {})
    assert len(manifest.read_manifest(folder)["runs"]) == 5


def test_a_stopped_launch_resumes(undisturbed, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        launch(counting_sweep(), tmp_path, InProcess(limit=2))
    assert launch(counting_sweep(), tmp_path).summary == LaunchSummary(2, 2, {})
    assert results(tmp_path) == results(undisturbed)


def test_a_run_that_fails_is_retried_and_stops_no_other(tmp_path):
    sweep = counting_sweep(grid(FAILURES, ("", "fail once", "fail")))
    summary, lines = launch(sweep, tmp_path, retries=2)
    ids = {run.values[FAILURES]: run.id for run in expand(sweep)}
    assert summary == LaunchSummary(2, 0, {ids["fail"]: "counted wrongly"})
    assert sum(ids["fail"] in line for line in lines) == 3
    assert sum(ids["fail once"] in line for line in lines) == 1
    traceback = (run_folder(tmp_path, ids["fail"]) / "error.txt").read_text()
    assert "counted wrongly" in traceback


def test_a_disk_that_is_full_for_a_run_fails_that_run(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(counting, "write_json", full)
        summary, _ = launch(counting_sweep(), tmp_path, retries=0)
    assert len(summary.failed) == 4
    assert all("No space left on device" in error for error in summary.failed.values())
    assert launch(counting_sweep(), tmp_path).summary == LaunchSummary(4, 0, {})


def test_folders_of_something_else_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no sweep"):
        manifest.read_manifest(tmp_path)
    (tmp_path / "sweep.json").write_text('{"format": 0}')
    with pytest.raises(ConfigError, match="holds a sweep of format 0, this version reads 1"):
        manifest.read_manifest(tmp_path)


def test_a_manifest_lists_the_runs_and_the_commands_of_all_launches(tmp_path):
    describe(counting_sweep(), tmp_path)
    describe(counting_sweep(grid("algorithm.critic_lr", (1e-2,))), tmp_path)
    content = manifest.read_manifest(tmp_path)
    assert len(content["runs"]) == 5 and len(content["commands"]) == 2


def test_runs_of_other_methods_share_a_clone():
    runs = expand(Sweep(REACH, (grid("algorithm.name", ("ogpo", "dsrl")),)))
    seeds = expand(Sweep(REACH, (grid("seed", (0, 1)),)))
    assert clone_id(runs[0]) == clone_id(runs[1]) != ""
    assert clone_id(seeds[0]) != clone_id(seeds[1])
    assert clone_id(runs[0], "helpers.counting:count") == ""


def test_an_attempt_raises_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    [run] = expand(Sweep(REACH))
    job = Job(run.id, str(tmp_path / "file"), {}, "", entry_point="helpers.counting:count")
    assert worker.run_job(job).status == "failed"
    missing = job._replace(folder=str(tmp_path / "run"), entry_point="nowhere:none")
    result = worker.run_job(missing)
    assert isinstance(result, JobResult) and result.status == "failed"


def decays(job):
    raise Decayed("stopped at 64 of 160 env steps")


def test_a_run_that_decayed_is_not_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "load_entry_point", lambda name: decays)
    [run] = expand(Sweep(REACH))
    job = Job(run.id, str(tmp_path / "run"), {}, "", entry_point="any:one")
    result = worker.run_job(job)
    assert result == JobResult("decayed", "stopped at 64 of 160 env steps")
    assert status.run_status(tmp_path / "run", {}).state == "failed"


@pytest.mark.parametrize(
    ("content", "finished"), [(None, False), ("", False), ("{", False), ("[]", False), ("{}", True)]
)
def test_a_cut_summary_is_none(tmp_path, content, finished):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    assert launcher.is_finished(tmp_path) == finished


def test_a_finished_training_without_its_policies_is_not_done(tmp_path):
    [run] = expand(Sweep(REACH))
    folder = run_folder(tmp_path, run.id)
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")

    def is_done(sweep):
        return launcher._JobLedger(sweep, tmp_path, None, 0, print)._is_done(run)

    assert not is_done(Sweep(REACH))
    assert is_done(counting_sweep())
    for name in ("base", "seed_0"):
        save_tiny_policy(folder / "policy" / name)
    assert is_done(Sweep(REACH))
    truncate(folder / "policy" / "seed_0" / "arrays.npz")
    assert not is_done(Sweep(REACH))


def test_a_sweep_with_other_code_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    runs = expand(Sweep(REACH))
    folder = run_folder(tmp_path, runs[0].id)
    folder.mkdir(parents=True)
    record = {
        "format": metrics.RUN_FORMAT,
        "config": to_dict(runs[0].config),
        "code": {"my_method": "old"},
    }
    (folder / "config.json").write_text(json.dumps(record))
    monkeypatch.setattr(launcher, "code_digests", lambda config: {"my_method": "new"})
    with pytest.raises(RunError, match=r"with other code: my_method.py changed since it began"):
        launcher.check_resumable(runs, tmp_path)
    launcher.check_resumable(runs, tmp_path, "helpers.counting:count")
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_what_is_no_clone_is_replaced_when_one_is_adopted(tmp_path):
    clone, folder = tmp_path / "clone", tmp_path / "run"
    save_tiny_policy(clone / "policy" / "base")
    for name in ("metrics.jsonl", "eval.jsonl"):
        (clone / name).touch()
    (folder / "policy" / "base").mkdir(parents=True)
    worker._adopt_clone(clone, folder)
    assert saved_policy.is_intact(folder / "policy" / "base")
    assert (folder / "damaged" / "policy-base").is_dir()

"""Launches in this process: what is skipped, retried, resumed, and recorded."""

from __future__ import annotations

import shutil

import pytest
from helpers import counting
from helpers.sweeps import (
    REACH,
    InProcess,
    counting_sweep,
    describe,
    launch,
    results,
    steps,
)

from gcp_jax.config import ConfigError
from gcp_jax.launch import Sweep, grid, manifest, worker
from gcp_jax.launch.expand import expand
from gcp_jax.launch.launcher import LaunchSummary, clone_id, run_folder
from gcp_jax.launch.worker import Job, JobResult

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

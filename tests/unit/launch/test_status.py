"""``gcp-jax status``: the state of a sweep, from its folder alone."""

from __future__ import annotations

import json
import os
import time

from helpers.run_folders import evaluation
from helpers.sweeps import counting_sweep, describe, launch

from gcp_jax.launch import grid, status
from gcp_jax.launch.expand import expand
from gcp_jax.launch.launcher import run_folder

RUN = status.RunStatus(
    id="a",
    values={},
    state="finished",
    env_steps=9,
    total_env_steps=9,
    score="",
    base_score="",
    seconds_left=None,
    seconds_spent=60.0,
    error="",
)


def write_attempt(folder, outcome):
    """An attempt that ended in ``outcome``, or has not ended if that is None."""
    folder.mkdir(parents=True)
    rows = [{"began": 0.0}]
    if outcome is not None:
        rows.append({"ended": 1.0, "outcome": outcome, "error": "killed"})
    (folder / "attempts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_status_is_read_from_the_folders(tmp_path):
    sweep = counting_sweep()
    ids = [run.id for run in expand(sweep)]
    describe(sweep, tmp_path)
    assert {run.state for run in status.sweep_status(tmp_path)} == {"waiting"}
    for name, outcome in zip(ids, (None, "died", "paused"), strict=False):
        write_attempt(run_folder(tmp_path, name), outcome)
    folder = run_folder(tmp_path, ids[0])
    (folder / "alive").touch()
    config = {"config": {"finetune": {"env_steps": 100}}}
    (folder / "config.json").write_text(json.dumps(config))
    row = {"stage": "finetune", "env_steps": 25, "train_seconds": 10.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n" + '{"stage": "fin')

    found = {run.id: run for run in status.sweep_status(tmp_path)}
    assert [found[name].state for name in ids] == ["running", "failed", "paused", "waiting"]
    running = found[ids[0]]
    assert (running.env_steps, running.total_env_steps, running.seconds_left) == (25, 100, 30.0)
    line = "4 runs: 1 running, 1 waiting, 1 paused, 1 failed"
    assert status.headline(list(found.values())) == line

    silent_since = time.time() - status.SILENT_SECONDS - 1
    os.utime(folder / "alive", (silent_since, silent_since))
    assert status.sweep_status(tmp_path)[0].state == "waiting"


def test_members_of_a_population_are_not_pooled(tmp_path):
    """Their settings differ, so a mean over them is the score of none."""
    rows = [
        {**evaluation("finetune", seed, 640, successes), "population": member}
        for member, successes in (("clip=0.1", 10), ("clip=0.2", 38))
        for seed in (0, 1)
    ]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = status.run_status(tmp_path, {})
    assert found.score == "25.0 % – 95.0 % (2 members)"


def test_a_failed_run_shows_its_error(tmp_path):
    sweep = counting_sweep(grid("demonstrations.path", ("", "fail")))
    launch(sweep, tmp_path, retries=0)
    found = {run.values["demonstrations.path"]: run for run in status.sweep_status(tmp_path)}
    assert found["fail"].state == "failed" and found["fail"].error == "counted wrongly"
    assert found[""].state == "finished" and found[""].error == ""
    assert found[""].score != status.MISSING


def test_the_time_left_assumes_the_time_of_the_finished_runs():
    running = RUN._replace(state="running", seconds_left=20.0, seconds_spent=0.0)
    waiting = RUN._replace(state="waiting", seconds_spent=0.0)
    runs = [RUN, RUN, running, waiting]
    assert status.sweep_seconds_left(runs) == 80.0
    line = "4 runs: 1 running, 1 waiting, 2 finished · about 0:01:20 left"
    assert status.headline(runs) == line
    assert status.sweep_seconds_left(runs[:2]) is None

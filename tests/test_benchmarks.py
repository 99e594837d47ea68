"""The benchmarks run from end to end on the smallest task, and their table is what ``gcp-jax envs`` shows."""

import json

from benchmarks import environments
from experiments import cli, inspection


def test_environments_are_measured_and_shown(tmp_path, monkeypatch, capsys):
    measured = environments.measure("reach", quick=True)
    assert measured["speed"]["16"]["task_steps_per_s"] > 0
    won, episodes = measured["demonstrator"]["expert"]["success"]
    assert won == episodes == sum(n for _, n in measured["demonstrator"]["expert"]["by_mode"].values())
    table = tmp_path / "measured.json"
    table.write_text(json.dumps({"reach": measured}))
    monkeypatch.setattr(inspection, "MEASURED", table)
    monkeypatch.setattr(cli, "_compilation_cache", lambda: None)
    assert cli.main(["envs", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[-1])["reach"]["measured"] == measured
    assert "expert 0: 100 %" in shown.err and "measured on" in shown.err


def test_physics_alone_is_timed_beside_the_task():
    speed = environments.speed(environments.envs.make("pick_place"), 4, 2)
    assert speed["physics_steps_per_s"] > 0 and speed["of_physics"] > 0 and speed["spread"] >= 0

"""The benchmarks run from end to end on the smallest task, and their table is what ``gcp-jax envs`` shows."""

import json

import jax
import numpy as np

import envs
from benchmarks import environments
from envs import demonstrations
from envs.protocol import NO_SUCCESS
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


def test_a_task_without_success_is_measured_and_shown_by_its_return(tmp_path, monkeypatch, capsys):
    env = envs.make("reach")
    env = env._replace(specs=env.specs._replace(name="brax:hopper", success=NO_SUCCESS))
    measured = environments.demonstrated(env, 1.0, 8)
    steps, _ = jax.device_get(demonstrations.collect(env, 1.0, jax.random.key(0), 8))
    returns = [float(reward[executed].sum()) for reward, executed in zip(steps.reward.T, steps.executed.T, strict=True)]
    np.testing.assert_allclose(
        (measured["return"], measured["std"]), (np.mean(returns), np.std(returns, ddof=1)), rtol=1e-5
    )
    table = tmp_path / "measured.json"
    found = {"machine": "m", "specs": env.specs._asdict(), "demonstrator": {"expert": measured}}
    table.write_text(json.dumps({"brax:hopper": found}))
    monkeypatch.setattr(inspection, "MEASURED", table)
    assert inspection.list_envs(to_stderr=True)["brax:hopper"]["measured"] == found
    assert f"expert 0: return {measured['return']:,.0f} ±" in capsys.readouterr().err

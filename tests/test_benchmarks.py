"""The benchmarks run from end to end on the smallest task, and their table is what ``gcp-jax envs`` shows."""

import json

import jax
import numpy as np
import pytest

import envs
from benchmarks import environments, rollout, run, segment, timing
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
    speed = environments.speed(environments.envs.make("push_t"), 4, 2)
    assert speed["physics_steps_per_s"] > 0 and speed["of_physics"] > 0 and speed["spread"] >= 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # brax's
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
    assert (
        inspection.list_envs(to_stderr=True)["brax:hopper"]["measured"] == json.loads(table.read_text())["brax:hopper"]
    )
    assert f"expert 0: return {measured['return']:,.0f} ±" in capsys.readouterr().err


def test_quick_measures_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(run.BENCHMARKS, "update", lambda quick: {"ogpo": {"ms": 1.0 if quick else 2.0}})
    assert run.main(["update", "--quick", "--json"], tmp_path) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"update": {"ogpo": {"ms": 1.0}}}
    assert not list(tmp_path.iterdir())


def test_what_the_parts_leave_over_of_a_segment_is_the_rest():
    times = {"segment": [2.0, 4.0], "physics": [1.0, 1.0], "sampling": [0.2, 0.4], "updates": [0.6, 1.4]}
    found = segment.told({name: timing.Spent(wall, wall) for name, wall in times.items()})
    assert found["segment_ms"] == 3000.0 and found["physics"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["rest"] == pytest.approx(1 - (0.9 + 0.7) / 2) and found["spread"] == pytest.approx(0.2)


def test_acting_is_compared_with_plain_physics():
    found = rollout.measure("push_t", 4, 2)
    assert found["of_physics"]["ratio"] > 0 and found["rollout_steps_per_s"] > 0


def test_results_are_appended_and_the_newest_make_the_page(tmp_path):
    for ms in (1.5, 2500.0):
        run.keep(tmp_path, "update", {"ogpo": {"ms": ms, "of_products": {"ratio": 0.9, "spread": 0.01}}})
    entries = json.loads((tmp_path / "results" / "update.json").read_text())
    assert [entry["figures"]["ogpo"]["ms"] for entry in entries] == [1.5, 2500.0]
    assert all(entry["versions"]["jax"] and entry["machine"] for entry in entries)
    page = (tmp_path / "README.md").read_text()
    assert "| ogpo | 2,500.0 | 0.90 (spread 0.01) |" in page


def test_a_benchmark_that_does_not_exist_is_told(capsys):
    assert run.main(["updates"]) == 2
    assert "there is no 'updates'; allowed: update, rollout, segment." in capsys.readouterr().err

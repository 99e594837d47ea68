"""The benchmarks run on the smallest task, and ``gcp-jax envs`` shows their table."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import devices as device_benchmark
from benchmarks import environments, rollout, run, seeds, segment, setup, timing
from gcp_jax import envs
from gcp_jax.console import make_console
from gcp_jax.envs.demos import collect
from gcp_jax.envs.protocol import NO_SUCCESS
from gcp_jax.experiments import run_config
from gcp_jax.experiments.plan import peak_memory
from gcp_jax.launch.cli import listing, main

pytestmark = pytest.mark.slow


def test_environments_are_measured_and_shown(tmp_path, monkeypatch, capsys):
    measured = environments.measure("reach", quick=True)
    assert measured["speed"]["16"]["task_steps_per_s"] > 0
    won, episodes = measured["demonstrator"]["expert"]["success"]
    assert (
        won == episodes == sum(n for _, n in measured["demonstrator"]["expert"]["by_mode"].values())
    )
    table = tmp_path / "measured.json"
    table.write_text(json.dumps({"reach": measured}))
    monkeypatch.setattr(listing, "MEASURED", table)
    monkeypatch.setattr(main, "compilation_cache", lambda: None)
    assert main.main(["envs", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[-1])["reach"]["measured"] == measured
    assert "expert 0: 100 %" in shown.err and "measured on" in shown.err


def test_physics_alone_is_timed_beside_the_task():
    speed = environments.speed(envs.make("push_t"), 4, 2)
    assert speed["physics_steps_per_s"] > 0 and speed["of_physics"] > 0 and speed["spread"] >= 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # brax's
def test_a_task_without_success_is_measured_and_shown_by_its_return(tmp_path, monkeypatch, capsys):
    env = envs.make("reach")
    env = env._replace(specs=env.specs._replace(name="brax:hopper", success=NO_SUCCESS))
    measured = environments.demonstrator_score(env, 1.0, 8)
    steps, *_ = jax.device_get(collect.collect(env, 1.0, jax.random.key(0), 8))
    returns = [
        float(reward[executed].sum())
        for reward, executed in zip(steps.reward.T, steps.executed.T, strict=True)
    ]
    np.testing.assert_allclose(
        (measured["return"], measured["std"]),
        (np.mean(returns), np.std(returns, ddof=1)),
        rtol=1e-5,
    )
    table = tmp_path / "measured.json"
    found = {"machine": "m", "specs": env.specs._asdict(), "demonstrator": {"expert": measured}}
    table.write_text(json.dumps({"brax:hopper": found}))
    monkeypatch.setattr(listing, "MEASURED", table)
    assert (
        listing.print_envs(make_console())["brax:hopper"]["measured"]
        == json.loads(table.read_text())["brax:hopper"]
    )
    assert f"expert 0: return {measured['return']:,.0f} ±" in capsys.readouterr().err


def test_quick_measures_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(
        run.BENCHMARKS, "update", lambda quick: iter([("ogpo", {"ms": 1.0 if quick else 2.0})])
    )
    assert run.main(["update", "--quick", "--json", f"--folder={tmp_path}"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"update": {"ogpo": {"ms": 1.0}}}
    assert not list(tmp_path.iterdir())


def test_cases_measured_before_one_that_fails_are_kept(tmp_path, monkeypatch):
    def cases(quick):
        yield "ogpo", {"ms": 1.0}
        raise RuntimeError("out of memory")

    monkeypatch.setitem(run.BENCHMARKS, "update", cases)
    with pytest.raises(RuntimeError, match="out of memory"):
        run.main(["update", f"--folder={tmp_path}"])
    (entry,) = json.loads((tmp_path / "results" / "update.json").read_text())
    assert entry["figures"] == {"ogpo": {"ms": 1.0}}


def test_what_the_parts_leave_over_of_a_segment_is_the_rest():
    times = {
        "segment": [2.0, 4.0],
        "physics": [1.0, 1.0],
        "sampling": [0.2, 0.4],
        "updates": [0.6, 1.4],
    }
    seconds = {name: timing.Seconds(wall, wall) for name, wall in times.items()}
    found = segment.figures(seconds, updates=8)
    assert found["segment_ms"] == 3000.0 and found["physics"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["rest"] == pytest.approx(1 - (0.9 + 0.7) / 2) and found["spread"] == pytest.approx(
        0.2
    )
    assert found["updates_per_s"] == 8.0


def test_acting_is_compared_with_plain_physics():
    found = rollout.measure("push_t", 4, 2)
    for name in ("best_of_1", "best_of_8"):
        assert found[f"{name}_of_physics"]["ratio"] > 0 and found[f"{name}_steps_per_s"] > 0


def test_results_are_appended_and_the_newest_make_the_page(tmp_path):
    for ms in (1.5, 2500.0):
        figures = {
            "ogpo": {"ms": ms, "of_products": {"ratio": 0.9, "spread": 0.01}},
            "qc": {"ms": 1.0},
        }
        run.keep(tmp_path, "update", figures)
    entries = json.loads((tmp_path / "results" / "update.json").read_text())
    assert [entry["figures"]["ogpo"]["ms"] for entry in entries] == [1.5, 2500.0]
    assert all(entry["versions"]["jax"] and entry["machine"] for entry in entries)
    page = (tmp_path / "README.md").read_text()
    assert "| ogpo | 2,500.0 | 0.90 (spread 0.01) |\n| qc | 1.0 |  |" in page


def test_an_unknown_benchmark_is_named(capsys):
    assert run.main(["updates"]) == 2
    assert (
        "there is no 'updates'; allowed: update, rollout, segment, seeds, devices, startup, launch."
        in capsys.readouterr().err
    )


def test_collectives_of_a_compiled_program_are_counted_as_often_as_they_run(devices):
    """Three turns of a loop with a sum over the devices in each, and a gather before it."""

    def turn(total, x):
        return total + jax.lax.psum(x, "data"), None

    def program(x):
        start = jnp.sum(jax.lax.all_gather(x, "data", tiled=True), 0)
        return jax.lax.scan(turn, start, jnp.stack([x[0]] * 3))[0]

    spec = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(
        program, mesh=devices(data=4), in_specs=spec, out_specs=spec, check_vma=False
    )
    text = jax.jit(mapped).lower(jnp.zeros((4, 5))).compile().as_text()
    found = {each.kind: each for each in device_benchmark.collectives(text)}
    assert found["all-reduce"] == ("all-reduce", 20, 3) and found["all-gather"] == (
        "all-gather",
        80,
        1,
    )


@pytest.mark.parametrize("method", segment.METHODS)
def test_every_method_that_is_measured_can_be_configured(method):
    config = run_config.frozen_config(setup.make_config("reach", method, {"finetune.envs": 8}))
    assert (config.algorithm.name, config.finetune.envs) == (method, 8)


def test_deviation_is_the_largest_relative_difference():
    assert (
        device_benchmark.deviation(
            [np.ones(4), np.array([3.0, 4.5])], [np.ones(4), np.array([3.0, 4.0])]
        )
        == 0.1
    )


def test_seeds_are_compared_with_separate_runs_that_each_compile():
    four = seeds.ProgramSeconds(compiling=30.0, segments=[2.0, 1.8, 2.1])
    one = seeds.ProgramSeconds(compiling=20.0, segments=[1.0, 1.0, 3.0])
    found = seeds.figures(4, four, one, segments=10)
    assert (found["run_s"], found["separate_s"]) == (50.0, 120.0)
    assert (found["throughput"], found["without_compiling"], found["spread"]) == (2.4, 2.0, 0.15)


def test_memory_is_what_is_alive_at_once():
    def program(x):
        y = jnp.sort(x) * 2.0 + 1.0  # fused into what takes it
        z = jnp.sort(y)
        return jnp.sum(jnp.sort(z) + y)

    def loop(x):
        return jax.lax.scan(lambda total, _: (total + program(x), None), 0.0, length=5)[0]

    for function in (program, loop):
        jaxpr = jax.make_jaxpr(function)(jnp.zeros(1000)).jaxpr
        assert 8000 <= peak_memory.temporaries(jaxpr) <= 12100


def test_the_page_in_the_repository_is_the_one_that_the_results_make():
    folder = Path(run.__file__).parent
    assert (folder / "README.md").read_text() == run.page(folder / "results")

"""The report of a sweep: settings ranked, how to repeat them, and what failed."""

from __future__ import annotations

import pytest
from helpers.run_folders import Page, evaluation
from helpers.sweeps import RATES, counting_sweep, describe, launch

from gcp_jax.launch import Search, grid, log_uniform, sweep_page, sweep_results
from gcp_jax.launch.sweep_results import Setting, read_sweep
from gcp_jax.report import plots
from gcp_jax.run import metrics
from gcp_jax.stats.intervals import Success, pooled_success, wilson


@pytest.fixture
def no_png(monkeypatch):
    """PNG files are not rendered, for tests that look at the page alone."""
    monkeypatch.setattr(plots, "png_bytes", lambda figure: b"\x89PNG")


def test_the_report_ranks_settings_and_shows_how_to_repeat_them(tmp_path):
    sweep = counting_sweep(
        RATES,
        grid("finetune.utd", (0.1, 0.2)),
        pack=("algorithm.critic_lr",),
        seeds=2,
        spread_seeds=True,
    )
    launch(sweep, tmp_path)
    found = read_sweep(tmp_path)
    assert len(found.settings) == 8
    assert all(len(setting.scores) == 2 for setting in found.settings)
    assert [s.values["algorithm.critic_lr"] for s in found.scored[:2]] == [1e-3, 1e-3]
    assert found.fields == ["finetune.utd", "algorithm.critic_lr"]
    page = sweep_page.write(tmp_path)
    text = page.read_text()
    table = (page.parent / "table.csv").read_text().splitlines()
    assert "gcp-jax train --config=experiments/configs/reach.py" in text and len(table) == 9
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html",
        "table.csv",
        "curves.png",
        "marginals.png",
    }


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_best_setting_of_a_search_comes_first(tmp_path, sampler):
    space = {"algorithm.critic_lr": log_uniform(1e-5, 1e-1)}
    search = Search(space, trials=14, parallel=1, sampler=sampler)
    launch(counting_sweep(grid("finetune.utd", (0.1,)), search=search), tmp_path)
    best = read_sweep(tmp_path).scored[0]
    assert 1e-4 < best.values["algorithm.critic_lr"] < 1e-2


def test_a_report_names_the_runs_that_failed(tmp_path):
    launch(counting_sweep(grid("demonstrations.path", ("", "fail"))), tmp_path, retries=0)
    text = sweep_page.write(tmp_path).read_text()
    assert "Runs that failed" in text and "counted wrongly" in text


def test_a_report_of_a_sweep_that_has_not_begun(tmp_path):
    describe(counting_sweep(), tmp_path)
    assert "4 runs: 4 waiting" in sweep_page.write(tmp_path).read_text()


def chances(folder):
    """The column P(the best beats it) of a sweep's page, the best first."""
    ranking = next(
        table for table in Page(sweep_page.write(folder)).tables if table[0][0] == "setting"
    )
    column = ranking[0].index("P(the best beats it)")
    return [line[column] for line in ranking[1:]]


@pytest.mark.usefixtures("no_png")
def test_a_chance_to_beat_another_setting_needs_two_seeds_of_both(tmp_path):
    launch(counting_sweep(RATES), tmp_path / "one")
    assert chances(tmp_path / "one") == ["–"] * 4
    launch(counting_sweep(RATES, seeds=2, spread_seeds=True), tmp_path / "two")
    assert chances(tmp_path / "two") == ["–", "100 %", "100 %", "100 %"]


def test_a_setting_of_another_task_is_not_compared_with_the_best():
    rows = [evaluation("finetune", seed, 640, 20) for seed in (0, 1)]
    of = [
        Setting(values={"env.name": task}, rows=rows, commands=[], done=True)
        for task in ("peg_insert", "push_t")
    ]
    assert sweep_page._chance_of_best(of[0], of[1]) == "–"
    assert sweep_page._chance_of_best(of[0], of[0]) == "50 %"


@pytest.mark.parametrize("shared", [True, False])
def test_seeds_of_one_clone_are_episodes_of_one_policy_and_several_clones_differ(tmp_path, shared):
    rows = []
    for seed, successes in ((0, 8), (1, 32)):
        folder = tmp_path / f"run{seed}"
        (folder / "policy" / "base").mkdir(parents=True)
        arrays = b"clone" if shared else f"clone {seed}".encode()
        (folder / "policy" / "base" / "arrays.npz").write_bytes(arrays)
        with metrics.make_writers(["jsonl"], folder, {}) as writer:
            writer.write(evaluation("base", seed, 0, successes))
        rows += sweep_results._evaluations(folder)
    before = Setting(values={}, rows=rows, commands=[], done=True).before
    several = pooled_success([Success(8, 40), Success(32, 40)])
    assert before == (wilson(40, 80) if shared else several)
    assert several.high - several.low > 2 * (wilson(40, 80).high - wilson(40, 80).low)

"""The report of a sweep: settings ranked, how to repeat them, and what failed."""

from __future__ import annotations

import pytest
from helpers.sweeps import RATES, counting_sweep, describe, launch

from gcp_jax.launch import Search, grid, log_uniform, sweep_page
from gcp_jax.launch.sweep_results import read_sweep


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

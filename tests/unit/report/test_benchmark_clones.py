"""A benchmark of several clones: its folder, its numbers, its page."""

import csv
import json
import math

import numpy as np
import pytest
from helpers.benchmark_folders import (
    EPISODES,
    FAILURE,
    METHODS,
    RUNS,
    TASKS,
    add_run,
    benchmark_of_clones,
    clone_finals,
    numbers,
    planned,
    table,
)
from helpers.run_folders import Page

from gcp_jax.report import benchmark_page, benchmark_plots, plots
from gcp_jax.report.benchmark_numbers import aggregate_of
from gcp_jax.report.benchmark_read import read_benchmark
from gcp_jax.report.read import ReportError
from gcp_jax.stats.bootstrap import (
    interquartile_mean,
    mean_score,
    paired_difference,
    performance_profile,
    probability_of_improvement,
)
from gcp_jax.stats.intervals import Success, pooled_success, success_of_clones


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    """The page of a finished benchmark of three clones."""
    folder = benchmark_of_clones(tmp_path_factory.mktemp("clones") / "bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "png_bytes", lambda figure: b"\x89PNG")
        return benchmark_page.write(folder)


def folder_of(page):
    return page.parent.parent


def counts(task, method):
    """The final successes of each clone's seeds."""
    return [
        [Success(seed[-1] - 2 * clone, EPISODES) for seed in RUNS[task, method][0]]
        for clone in range(3)
    ]


def test_rows_of_the_table_by_hand(clones):
    """Clones differ by 10 points, whatever the task and the method."""
    for (task, method), (successes, interval) in RUNS.items():
        line = table(clones)[task, method]
        final = success_of_clones(counts(task, method))
        assert numbers(line, "final", "final_low", "final_high") == pytest.approx(final)
        scores = clone_finals(method, (task,))
        iqm = interquartile_mean(scores, episodes=EPISODES)
        assert numbers(line, "iqm", "iqm_low", "iqm_high") == pytest.approx(iqm)
        within = math.sqrt(np.var(scores[0, :, 0], ddof=1))
        spreads = numbers(line, "between_clones", "between_seeds")
        assert spreads == pytest.approx([0.1, within], abs=1e-9)
        assert float(line["base"]) == pytest.approx(successes[0][0] / EPISODES - 0.1)
        # the time of all seeds of a clone, the mean of three clones
        assert float(line["train_seconds"]) == pytest.approx(3 * (interval + 1))
        assert float(line["env_steps"]) == 300


def test_aggregates_resample_clones_and_then_their_seeds(clones):
    benchmark = read_benchmark(folder_of(clones))
    aggregate = aggregate_of(benchmark)
    scores = [clone_finals(method) for method in METHODS]
    for index, table_of in enumerate(scores):
        assert aggregate.iqm[index] == pytest.approx(interquartile_mean(table_of))
        assert aggregate.mean[index] == pytest.approx(mean_score(table_of))
        profile = performance_profile(table_of, aggregate.profile[index].thresholds)
        assert aggregate.profile[index].estimate == pytest.approx(profile.estimate)
    pair = scores[0], scores[1]
    assert aggregate.better[0, 1] == pytest.approx(probability_of_improvement(*pair))
    assert aggregate.difference[0, 1] == pytest.approx(paired_difference(*pair))
    # how well a clone suits both cancels
    first = aggregate.mean[0]
    assert np.ptp(aggregate.difference[0, 1][1:]) < 0.5 * (first.high - first.low)
    assert aggregate.base == pytest.approx(np.mean([8, 6, 4, 11, 9, 7]) / EPISODES)


def test_the_page_shows_every_clone_and_both_spreads(clones):
    page = Page(clones)
    chance = probability_of_improvement(clone_finals("flow_grpo"), clone_finals("ogpo"))
    for text in (
        "3 methods on 2 tasks from 3 clones each bench 18 of 18 runs finished",
        "Clones of each task 3 Methods",
        "clone 0 clone 1 clone 2 ± clones ± seeds base policy 40.0 % 30.0 % 20.0 % "
        "10.0 – ogpo 95.0 % (90.0–100.0) 85.0 % (80.0–90.0) 75.0 % (70.0–80.0) 10.0 5.0",
        "the intervals cover clones that were not made",
        "row − column, points ogpo",
        f"flow_grpo {chance.percent()} –",
        "not seeds or clones that were not trained",
        "of a clone together, the mean over the clones",
    ):
        assert text in page.text, text
    assert "holds for this clone only" not in page.text
    assert "3 clones × 3 seeds × 2 tasks" in page.source
    shown = paired_difference(clone_finals("ogpo"), clone_finals(METHODS[1])).points()
    assert f"ogpo – {shown}" in page.text


def test_one_clone_has_a_note_and_nothing_of_the_above(whole):
    page = Page(whole)
    assert "Each task has one clone: every interval holds for this clone only" in page.text
    assert "Clones of each task 1 Methods" in page.text
    for text in ("± clones", "row − column", "one clone T*", "clone 0"):
        assert text not in page.text
    assert "between_clones" not in next(iter(table(whole).values()))
    tex = (whole.parent / "table.tex").read_text(encoding="utf-8")
    assert "% One clone of each task: the intervals hold for this clone only." in tex


def test_the_csv_of_clones_has_a_line_a_clone(clones):
    with (clones.parent / "clones.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(RUNS) * 3
    line = next(x for x in lines if (x["task"], x["method"], x["clone"]) == ("push_t", "ogpo", "2"))
    found = numbers(line, "base", "final", "lowest_seed", "highest_seed")
    assert found == pytest.approx([0.35, 0.65, 0.6, 0.7])
    download = Page(clones).downloads["push_t_clones.csv"]
    assert download == [list(lines[0]), *([*x.values()] for x in lines if x["task"] == "push_t")]


def test_the_summary_has_both_spreads_and_every_clone(clones, whole):
    content = json.loads((clones.parent / "summary.json").read_text())
    assert (content["clones"], content["seeds"]) == (3, 3)
    task = content["tasks"]["peg_insert"]
    assert task["base_of_clones"] == pytest.approx([0.4, 0.3, 0.2])
    assert task["base_between_clones"] == pytest.approx(0.1)
    ogpo = task["methods"]["ogpo"]
    assert ogpo["final_of_clones"] == pytest.approx([0.95, 0.85, 0.75])
    assert (ogpo["between_clones"], ogpo["between_seeds"]) == pytest.approx((0.1, 0.05))
    bounds = [ogpo["final"], ogpo["final_low"], ogpo["final_high"]]
    assert bounds == pytest.approx(success_of_clones(counts("peg_insert", "ogpo")))
    assert content["all_tasks"]["tasks"] == list(TASKS)
    mean = content["all_tasks"]["methods"]["ogpo"]["mean"]
    assert mean == pytest.approx(mean_score(clone_finals("ogpo")))
    of_one = json.loads((whole.parent / "summary.json").read_text())
    assert of_one["tasks"]["push_t"]["methods"]["ogpo"]["between_clones"] is None


def test_latex_has_both_spreads(clones):
    tex = (clones.parent / "table.tex").read_text(encoding="utf-8")
    assert "% Final success (%), 3 clones × 3 seeds, 95 % intervals; needs" in tex
    assert r"base policy & 30.0 {\scriptsize (10.0)} & 45.0 {\scriptsize (10.0)} & 37.5 \\" in tex
    ogpo = next(line for line in tex.splitlines() if line.startswith("ogpo"))
    assert ogpo.count(" (10.0/5.0)}") == 2


def test_curves_have_a_thin_line_for_every_clone(clones):
    benchmark = read_benchmark(folder_of(clones))
    for cost, ends in (("env_steps", [300] * 3), ("seconds", [30, 33, 36])):
        chart = benchmark_plots.success_curves(benchmark, cost)
        assert [item.label for item in chart.legend].count("one clone") == 1
        ax = plots.chart_figure(chart._replace(panels=chart.panels[:1], legend=())).axes[0]
        thin = [
            x
            for x in ax.lines
            if x.get_linewidth() == benchmark_plots.CLONE_WIDTH and x.get_alpha()
        ]
        assert len(thin) == 3 * len(METHODS)
        assert [x.get_xdata()[-1] for x in thin[:3]] == ends
        assert thin[2].get_ydata() == pytest.approx([20, 30, 60, 75])


@pytest.mark.usefixtures("no_png")
def test_while_clones_are_added_the_finished_ones_are_shown(tmp_path):
    """Clone 0 is finished, clone 1 runs with one method and failed with another."""
    folder = planned(tmp_path / "bench", clones=2, tasks=[{"label": "peg_insert"}])
    for method in METHODS:
        add_run(folder, "peg_insert", method)
    add_run(folder, "peg_insert", "ogpo", clone=1, upto=100, finished=False)
    add_run(folder, "peg_insert", "flow_grpo", clone=1, upto=100, finished=False)
    failed = folder / "peg_insert" / "clone_1" / "flow_grpo" / "failed.txt"
    failed.write_text(FAILURE)
    page = benchmark_page.write(folder)
    text = Page(page).text
    assert "3 of 6 runs finished, 1 failed" in text
    lines = table(page)
    assert lines["peg_insert", "ogpo"]["state"] == "running: 1 of 2 clones finished"
    assert lines["peg_insert", "flow_grpo"]["state"] == f"failed: clone 1: {FAILURE}"
    assert lines["peg_insert", METHODS[2]]["state"] == "running: 1 of 2 clones finished"
    assert lines["peg_insert", "ogpo"]["base"] == "0.35"
    assert {line["final"] for line in lines.values()} == {""}
    assert "ogpo 95.0 % (90.0–100.0) running – –" in text
    assert "base policy 40.0 % 30.0 % 7.1" in text


@pytest.mark.usefixtures("no_png")
def test_one_seed_of_each_clone_has_intervals_over_clones(tmp_path):
    small = {"tasks": [{"label": "peg_insert"}], "methods": [{"label": "ogpo"}], "clones": 3}
    folder = planned(tmp_path / "bench", seeds=1, **small)
    for clone in range(3):
        add_run(folder, "peg_insert", "ogpo", seeds=1, clone=clone)
    page = benchmark_page.write(folder)
    line = table(page)["peg_insert", "ogpo"]
    expected = pooled_success([Success(18 - 2 * clone, EPISODES) for clone in range(3)])
    assert numbers(line, "final", "final_low", "final_high") == pytest.approx(expected)
    assert (float(line["between_clones"]), line["between_seeds"]) == (pytest.approx(0.1), "")
    text = Page(page).text
    assert "One seed was trained from each: what it adds" in text
    assert "every interval is that of its evaluation" not in text


@pytest.mark.parametrize(
    ("clones", "message"),
    [
        ("2", "'clones' is '2'; a whole number is expected; restore the file"),
        (0, "'clones' is 0, not a positive whole number"),
    ],
)
def test_a_number_of_clones_that_is_none_is_named(tmp_path, clones, message):
    with pytest.raises(ReportError, match=message):
        read_benchmark(planned(tmp_path / "bench", clones=clones))

"""The columns of ``table.csv`` against numbers worked by hand."""

import numpy as np
import pytest
from helpers.benchmark_folders import (
    EPISODES,
    METHODS,
    RUNS,
    TASKS,
    add_run,
    finals,
    numbers,
    planned,
    table,
    whole_benchmark,
)
from scipy import stats

from gcp_jax.report.benchmark_numbers import aggregate_of, task_record
from gcp_jax.report.benchmark_read import read_benchmark
from gcp_jax.stats.bootstrap import interquartile_mean, mean_score
from gcp_jax.stats.intervals import Success, pooled_success, wilson


def test_methods_that_differ_on_the_same_start_states_share_no_letter(whole, partial):
    """On push_t the third method wins 9 pairs of the first and loses none: p = 10/2⁹, twice that
    by Holm; the first wins 6 of the second: 7/2⁶. On peg_insert the second and third win two of
    each other."""
    groups = {place: line["group"] for place, line in table(whole).items()}
    assert [groups["push_t", method] for method in METHODS] == ["b", "b", "a"]
    assert [groups["peg_insert", method] for method in METHODS] == ["a", "b", "b"]
    assert groups["all", "ogpo"] == ""
    unfinished = {place: line["group"] for place, line in table(partial).items()}
    assert unfinished["peg_insert", "dp&po_<i>"] == "" and unfinished["peg_insert", "ogpo"] == "a"


def test_rows_of_the_table_by_hand(whole):
    for (task, method), (successes, interval) in RUNS.items():
        line = table(whole)[task, method]
        rates = np.mean(successes, axis=0) / EPISODES
        rows = numbers(line, "base", "final", "best")
        assert rows == pytest.approx([rates[0], rates[-1], rates.max()])
        pooled = pooled_success([Success(seed[-1], EPISODES) for seed in successes])
        assert numbers(line, "final", "final_low", "final_high") == pytest.approx(pooled)
        expected = interquartile_mean(finals(method, (task,)), episodes=EPISODES)
        assert numbers(line, "iqm", "iqm_low", "iqm_high") == pytest.approx(expected)
        speeds = ("updates_per_s", "env_steps_per_s")
        measured = numbers(line, "env_steps", "updates", *speeds, "train_seconds")
        # the medians of 50, 100 and 150, and of 110, 120 and 130: the segment without updates
        # is left out
        assert measured == [300, 75, 100, 120, 3 * interval]


@pytest.mark.parametrize(
    ("task", "method", "expected"),
    [  # T* is 30 s on peg_insert, 90 s on push_t
        ("peg_insert", "ogpo", 0.95),  # its end, at 30 s exactly
        ("peg_insert", "flow_grpo", 0.5),  # it was done after 15 s
        ("peg_insert", "dp&po_<i>", 0.4375),  # from 0.4 to 0.45 in 40 s
        ("push_t", "ogpo", 0.85),  # it was done after 60 s
        ("push_t", "flow_grpo", 0.75),  # its end, at 90 s exactly
        ("push_t", "dp&po_<i>", 0.53),  # from 0.45 to 0.55 between 50 and 100 s
    ],
)
def test_success_at_equal_compute_by_hand(whole, task, method, expected):
    line = table(whole)[task, method]
    assert float(line["equal_compute"]) == pytest.approx(expected)
    assert line["equal_compute_interpolated"] == str(method == "dp&po_<i>")


@pytest.mark.parametrize(
    ("task", "method", "steps", "seconds"),
    [
        ("peg_insert", "ogpo", ["100", "200", "300"], ["10", "20", "30"]),
        (
            "peg_insert",
            "flow_grpo",
            ["100", "not reached", "not reached"],
            ["5", "not reached", "not reached"],
        ),
        ("push_t", "ogpo", ["0", "300", "not reached"], ["0", "60", "not reached"]),
        ("push_t", "dp&po_<i>", ["0", "300", "300"], ["0", "150", "150"]),
    ],
)
def test_steps_and_seconds_to_thresholds_by_hand(whole, task, method, steps, seconds):
    line = table(whole)[task, method]
    assert [line[f"steps_to_{percent}"] for percent in (50, 80, 90)] == steps
    assert [line[f"seconds_to_{percent}"] for percent in (50, 80, 90)] == seconds


def test_rows_over_all_tasks(whole):
    lines = table(whole)
    for method in METHODS:
        line = lines["all", method]
        scores = finals(method)
        assert line["state"] == "over 2 of 2 tasks"
        assert float(line["iqm"]) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))
        expected = interquartile_mean(scores)
        assert numbers(line, "iqm", "iqm_low", "iqm_high") == pytest.approx(expected)
        assert float(line["final"]) == pytest.approx(scores.mean())
        for name in ("base", "best", "equal_compute"):
            mean = np.mean([float(lines[task, method][name]) for task in TASKS])
            assert float(line[name]) == pytest.approx(mean)
        assert float(line["train_seconds"]) == sum(3 * RUNS[task, method][1] for task in TASKS)


def test_times_that_a_run_did_not_write_are_not_known(tmp_path):
    folder = planned(tmp_path / "bench")
    add_run(folder, "peg_insert", "ogpo")
    known = read_benchmark(folder).entries["peg_insert", 0]
    points = tuple(point._replace(seconds=np.nan) for point in known.points[1:])
    old = task_record(known._replace(points=(known.points[0], *points)), 20.0)
    names = ("final", "equal_compute", "steps_to_80", "seconds_to_80", "train_seconds")
    assert [old[name] for name in names] == [pytest.approx(0.95), None, 200, None, None]


def test_with_one_seed_every_interval_is_that_of_its_episodes(tmp_path):
    benchmark = read_benchmark(whole_benchmark(tmp_path / "bench", seeds=1))
    record = task_record(benchmark.entries["peg_insert", 0], 30.0)
    expected = wilson(18, EPISODES)
    for name in ("final", "iqm"):
        found = [record[f"{name}{bound}"] for bound in ("", "_low", "_high")]
        assert found == pytest.approx(expected)
    aggregate = aggregate_of(benchmark)
    assert aggregate.better == {}
    rates = np.asarray([18, 17]) / EPISODES
    expected = mean_score(rates[None], episodes=EPISODES)
    assert aggregate.mean[0] == expected
    assert expected.high - expected.low > 0.15
    assert aggregate.iqm[0] == interquartile_mean(rates[None], episodes=EPISODES)
    assert np.isnan(aggregate.profile[0].low).all()


def test_the_clone_of_a_task_counts_once_in_the_base_of_all_tasks(whole, tmp_path):
    """Each task has one clone, whatever the number of methods and seeds that evaluated it."""
    aggregate = aggregate_of(read_benchmark(whole_benchmark(tmp_path / "bench")))
    assert aggregate.base == pytest.approx((8 / 20 + 11 / 20) / 2)
    assert float(table(whole)["peg_insert", "ogpo"]["base"]) == 8 / 20

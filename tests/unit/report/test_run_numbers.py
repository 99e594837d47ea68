"""Numbers that more than one page shows: each has one definition."""

import math

import numpy as np
import pytest
from helpers.benchmark_folders import add_run, planned, table
from helpers.run_folders import Page, row, started
from hypothesis import given, settings
from hypothesis import strategies as st

from gcp_jax.report import benchmark_page, run_page
from gcp_jax.report.read import RunFiles, read_run
from gcp_jax.report.run_numbers import NEVER, cost_to, episode_curve, throughput
from gcp_jax.run import metrics


def run_of(rows):
    return RunFiles(
        folder=None, label="", record={}, metrics=rows, evals=[], summary={}, demonstrations={}
    )


def segment(updates, env_speed, update_speed, stage="finetune", seed=0):
    numbers = {"time/env_steps_per_s": env_speed, "time/updates_per_s": update_speed}
    return row(stage, seed, 64 * (updates + 1), updates, **numbers)


def test_speed_before_learning_starts_is_stated_apart():
    """Of 3 + 3 segments the median over all would be 5,050 env steps/s and 5 updates/s."""
    rows = [segment(0, 9000.0 + 100 * i, 0.0) for i in range(3)]
    rows += [segment(8 * i, 900.0 + 100 * i, 10.0 * i) for i in (1, 2, 3)]
    rows += [segment(10, 0.0, 70.0, stage="pretrain")]
    assert throughput(run_of(rows)) == (9100.0, 1100.0, 20.0)


def test_the_speed_of_cloning_is_shown_until_finetuning_begins():
    assert throughput(run_of([segment(10, 0.0, 70.0, stage="pretrain")])) == (None, None, 70.0)
    assert throughput(run_of([])) == (None, None, None)


@pytest.fixture
def both_pages(tmp_path, monkeypatch):
    """The line of the benchmark's table, and the facts of the report of that run alone."""
    monkeypatch.setattr("gcp_jax.report.plots.png_bytes", lambda figure: b"\x89PNG")
    folder = planned(tmp_path / "bench")
    add_run(folder, "peg_insert", "ogpo")
    run = folder / "peg_insert" / "ogpo"
    line = table(benchmark_page.write(folder))["peg_insert", "ogpo"]
    facts = {}
    for shown in Page(run_page.write(run)).tables:
        facts |= {cells[0]: cells[1:] for cells in shown}
    return line, facts


def test_both_pages_show_the_same_numbers(both_pages):
    line, facts = both_pages

    def interval(name):
        bounds = [100 * float(line[f"{name}{end}"]) for end in ("", "_low", "_high")]
        return f"{bounds[0]:.1f} % [{bounds[1]:.1f}, {bounds[2]:.1f}]"

    pooled = facts["pooled"]
    assert pooled[0].startswith(f"{100 * float(line['base']):.1f} % [")
    assert pooled[1] == interval("final")
    assert facts["updates/s while learning, median"] == [f"{float(line['updates_per_s']):,.0f}"]
    env_speed = f"{float(line['env_steps_per_s']):,.0f}"
    assert facts["env steps/s while learning, median"] == [env_speed]
    assert facts["env steps/s before learning starts, median"] == ["9,000"]
    assert facts["Gradient updates per seed"] == [line["updates"]]
    assert facts["Environment steps per seed"] == [line["env_steps"]]
    assert facts["of it training"] == [f"{float(line['train_seconds']):.1f} s"]
    for percent in (50, 80, 90):
        assert facts[f"Environment steps to {percent} %"] == [line[f"steps_to_{percent}"]]


@pytest.mark.parametrize(
    ("threshold", "finished", "expected"),
    [(0.5, True, 10), (0.9, True, NEVER), (0.9, False, None), (0.8, False, 20.5)],
)
def test_a_threshold_that_may_still_be_reached_is_not_called_never(threshold, finished, expected):
    assert cost_to([0.0, 10.0, 20.5], [0.1, 0.5, 0.8], threshold, finished=finished) == expected


def test_a_time_that_is_not_known_reaches_nothing():
    assert cost_to([0.0, math.nan], [0.1, 0.9], 0.5, finished=True) is None


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(0, 40), min_size=2, max_size=2), max_size=12),
    at_least=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_points_of_training_episodes_hold_all_of_them(counts, at_least, seed):
    """Two seeds: every episode is in one point, and no point has fewer than it must."""
    rng = np.random.default_rng(seed)
    rows = []
    outcomes = {}
    for index, of_seeds in enumerate(counts):
        steps = 64 * (index + 1)
        for number, count in enumerate(of_seeds):
            success = rng.random(count) < 0.4
            outcomes.setdefault(steps, []).extend(success)
            if count:
                mean = float(success.mean())
                columns = {"episode/success": mean, "episode/episodes": float(count)}
                rows.append(row("finetune", number, steps, 1, **columns))
    total = sum(map(len, outcomes.values()))
    curve = episode_curve(run_of(rows), "episode/success", at_least)
    if not total:
        assert curve is None
        return
    assert curve.episodes.sum() == total
    if total >= at_least:
        assert curve.episodes.min() >= at_least
    else:
        assert len(curve.x) == 1
    begin = 0
    for steps, rate in zip(curve.x, curve.y, strict=True):
        joined = [x for at, each in outcomes.items() if begin < at <= steps for x in each]
        assert rate == pytest.approx(np.mean(joined))
        begin = steps


def test_rows_without_a_count_have_no_curve(tmp_path):
    folder = started(tmp_path / "run")
    with metrics.make_writers(["jsonl"], folder, {}) as writer:
        writer.write(row("finetune", 0, 64, 8, **{"episode/success": 1.0}))
    assert episode_curve(read_run(folder), "episode/success", 1) is None

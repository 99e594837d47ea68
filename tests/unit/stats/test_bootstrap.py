"""Aggregates over runs and tasks against scipy and against their definitions."""

import math

import numpy as np
import pytest
from scipy import stats

from gcp_jax.stats.bootstrap import (
    interquartile_mean,
    mean_score,
    performance_profile,
    probability_of_improvement,
    steps_to_threshold,
)
from gcp_jax.stats.intervals import Interval, wilson


def test_interquartile_mean_drops_a_quarter_from_either_end():
    assert interquartile_mean([1000, 3, 4, 5, 6, -1000, 2, 7]).estimate == 4.5
    table = np.random.default_rng(0).normal(size=(5, 3))
    assert interquartile_mean(table).estimate == pytest.approx(
        stats.trim_mean(table, 0.25, axis=None)
    )


def test_interquartile_mean_interval_is_the_percentile_bootstrap():
    scores = np.random.default_rng(1).normal(size=40)
    expected = stats.bootstrap(
        (scores,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=4000,
        method="percentile",
        rng=2,
    ).confidence_interval
    assert interquartile_mean(scores, resamples=4000)[1:] == pytest.approx(expected, abs=0.03)


def test_interquartile_mean_interval_covers_as_often_as_it_says():
    """Normal scores of five runs on four tasks: the middle half has mean 0.

    At a nominal 95 % it covers 92 %; with three runs 86 %, with ten 93 %.
    """
    rng = np.random.default_rng(0)
    intervals = [
        interquartile_mean(rng.normal(size=(5, 4)), resamples=400, rng_seed=i) for i in range(400)
    ]
    assert 0.88 <= np.mean([low <= 0 <= high for _, low, high in intervals]) <= 0.96


def test_mean_score_of_one_task_is_the_mean_with_its_bootstrap():
    scores = np.random.default_rng(1).normal(size=200)
    half = 1.96 * scores.std() / math.sqrt(200)
    assert mean_score(scores) == pytest.approx(
        (scores.mean(), scores.mean() - half, scores.mean() + half), abs=0.01
    )
    assert mean_score([[0, 100], [0, 100]]) == Interval(50, 50, 50)


def test_performance_profile_is_the_empirical_survival_function():
    scores = np.random.default_rng(0).uniform(size=(7, 3))
    thresholds = np.concatenate(
        [np.linspace(-0.1, 1.1, 50), scores.ravel()]
    )  # at a score: strictly above
    expected = stats.ecdf(scores.ravel()).sf.evaluate(thresholds)
    assert performance_profile(scores, thresholds).estimate == pytest.approx(expected)


def test_performance_profile_band_of_one_task_is_binomial():
    """Of 20 runs 12 succeed: a resample has Binomial(20, 0.6) / 20 of them above a threshold."""
    profile = performance_profile([1.0] * 12 + [0.0] * 8, [-1.0, 0.0, 0.5, 1.0], resamples=20000)
    assert profile.estimate.tolist() == [1, 0.6, 0.6, 0]
    low, high = stats.binom(20, 0.6).ppf([0.025, 0.975]) / 20
    assert profile.low == pytest.approx([1, low, low, 0])
    assert profile.high == pytest.approx([1, high, high, 0])


def test_performance_profile_falls_and_lies_in_its_band():
    profile = performance_profile(
        np.random.default_rng(2).normal(size=(6, 4)), np.linspace(-3, 3, 31)
    )
    for curve in (profile.estimate, profile.low, profile.high):
        assert (np.diff(curve) <= 0).all()
    assert (profile.low <= profile.estimate).all()
    assert (profile.estimate <= profile.high).all()


def test_performance_profile_resamples_within_a_task():
    apart = np.asarray(
        [[0.0, 1.0]] * 3
    )  # all runs of a task alike: half are above, whatever is drawn
    assert [part.tolist() for part in performance_profile(apart, [0.5])] == [[0.5]] * 4


def test_performance_profile_needs_thresholds():
    with pytest.raises(
        ValueError, match=r"thresholds of shape \(0,\); need shape \[K\] with K > 0"
    ):
        performance_profile([1.0], [])


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.2, 0), (0.3, 10), (0.8, 20), (0.81, None), (math.nan, None)]
)
def test_steps_to_threshold_is_the_first_crossing(threshold, expected):
    assert steps_to_threshold([0, 10, 20, 30], [0.2, 0.5, 0.8, 0.4], threshold) == expected


def test_steps_to_threshold_of_nothing_and_of_curves_that_do_not_fit():
    assert steps_to_threshold([], [], 0.5) is None
    assert steps_to_threshold([0, 1], [math.nan, 1.0], 0.5) == 1
    with pytest.raises(
        ValueError, match=r"steps \(2,\), success \(1,\); pass one success per step"
    ):
        steps_to_threshold([0, 1], [0.5], 0.5)


def test_bootstraps_resample_within_a_task_and_follow_their_seed():
    apart = np.asarray([[0.0, 100.0], [0.0, 100.0], [0.0, 100.0]])
    assert interquartile_mean(apart) == Interval(50, 50, 50)
    scores = np.random.default_rng(3).normal(size=(6, 2))
    assert interquartile_mean(scores, rng_seed=4) == interquartile_mean(scores, rng_seed=4)
    assert interquartile_mean(scores, rng_seed=4) != interquartile_mean(scores, rng_seed=5)


def test_probability_of_improvement_is_the_mann_whitney_statistic():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 6, size=9), rng.integers(0, 5, size=7)
    expected = stats.mannwhitneyu(first, second).statistic / 63
    assert probability_of_improvement(first, second).estimate == pytest.approx(expected)


def test_probability_of_improvement_counts_ties_half_and_averages_tasks():
    assert probability_of_improvement([1, 1], [1, 1, 1]).estimate == 0.5
    assert probability_of_improvement([2, 3], [0, 1]).estimate == 1.0
    assert probability_of_improvement([[2, 0]], [[1, 1]]).estimate == 0.5


def test_runs_that_are_fully_apart_are_as_certain_as_their_pairs():
    """Resampling changes nothing there, and two pairs say less than twenty."""
    found = probability_of_improvement([2, 3], [0, 1, 1])
    assert found == wilson(2, 2)
    assert found.low < 0.4
    apart = probability_of_improvement(np.ones((10, 2)), np.zeros((12, 2)))
    assert apart == wilson(20, 20)
    alike = probability_of_improvement(np.ones(4), np.ones(4))
    assert alike == wilson(2, 4)


@pytest.mark.parametrize("scores", [[], [math.nan], np.zeros((2, 2, 2, 2))])
def test_scores_must_be_finite_runs_by_tasks(scores):
    with pytest.raises(
        ValueError, match=r"numbers of shape \[runs\], \[runs, tasks\] or \[clones, runs, tasks\]"
    ):
        interquartile_mean(scores)
    with pytest.raises(ValueError, match="2 tasks against 1; score both on the same ones"):
        probability_of_improvement(np.zeros((3, 2)), np.zeros(3))


def test_one_run_says_nothing_about_the_spread_between_runs():
    for found in (
        interquartile_mean([0.891]),
        mean_score([[0.5, 0.7]]),
        probability_of_improvement([0.9], [0.1]),
        probability_of_improvement([0.9], [0.1, 0.2, 0.3]),
    ):
        assert not found.has_bounds
    assert interquartile_mean([0.891]).percent() == "89.1 %"
    assert probability_of_improvement([0.9], [0.1]).estimate == 1.0
    profile = performance_profile([[0.5, 0.7]], [0.6])
    assert profile.estimate.tolist() == [0.5]
    assert np.isnan([profile.low, profile.high]).all()


@pytest.mark.parametrize("aggregate", [interquartile_mean, mean_score])
def test_one_run_on_one_task_has_the_interval_of_its_episodes(aggregate):
    assert aggregate([57 / 64], episodes=64) == wilson(57, 64)
    assert aggregate([1.0], episodes=[64]) == wilson(64, 64)


def test_one_run_on_several_tasks_has_the_interval_of_all_its_episodes():
    """The variance of a mean of independent posteriors Beta(a, b) is Σ var / M²."""
    rates = np.asarray([0.25, 0.5, 0.75])
    episodes = np.asarray([40, 80, 120])
    found = mean_score(rates[None], episodes=episodes, resamples=40_000)
    posteriors = [
        stats.beta(k + 0.5, n - k + 0.5) for k, n in zip(rates * episodes, episodes, strict=True)
    ]
    middle = np.mean([posterior.mean() for posterior in posteriors])
    half = 1.96 * math.sqrt(sum(posterior.var() for posterior in posteriors)) / 3
    assert found == pytest.approx((0.5, middle - half, middle + half), abs=2e-3)
    alone = interquartile_mean(rates[None], episodes=episodes, resamples=40_000)
    assert alone == pytest.approx(found, abs=2e-3)  # of three none is cut


def test_the_interval_of_one_run_holds_its_estimate_if_every_episode_succeeded():
    found = mean_score([[1.0, 1.0]], episodes=16)
    assert found.estimate == found.high == 1.0 and 0.8 < found.low < 1.0
    assert mean_score([[0.0, 0.0]], episodes=16).low == 0.0


@pytest.mark.parametrize("aggregate", [interquartile_mean, mean_score])
def test_runs_that_scored_alike_have_the_interval_of_all_their_episodes(aggregate):
    assert aggregate([0.0, 0.0], episodes=16) == wilson(0, 32)
    assert aggregate([0.75] * 3, episodes=16) == wilson(36, 48)
    several = aggregate([[0.25, 0.5]] * 3, episodes=[16, 32])
    assert several == aggregate([[0.25, 0.5]], episodes=[48, 96])
    assert aggregate([0.5, 0.5]) == Interval(0.5, 0.5, 0.5)  # nothing is known of the episodes


def test_several_runs_have_the_same_interval_whatever_their_episodes():
    scores = np.random.default_rng(3).uniform(size=(4, 2))
    assert interquartile_mean(scores, episodes=8) == interquartile_mean(scores)
    assert mean_score(scores, episodes=8) == mean_score(scores)

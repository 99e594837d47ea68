"""Intervals against closed forms, scipy and the worked numbers of the papers they come from."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from gcp_jax.stats import statistics
from gcp_jax.stats.statistics import (
    Discordant,
    Interval,
    Success,
    before_after,
    difference,
    interquartile_mean,
    jeffreys,
    mean_return,
    mean_score,
    performance_profile,
    pooled_success,
    posterior,
    probability_of_improvement,
    steps_to_threshold,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes, episodes, low, high):
    """Newcombe (1998), Two-sided confidence intervals for the single proportion, table I, method 3."""
    assert wilson(successes, episodes) == pytest.approx((successes / episodes, low, high), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("successes", [0, 1, 16, 31, 32])
def test_wilson_equals_scipy(successes, confidence):
    expected = stats.binomtest(successes, 32).proportion_ci(confidence, method="wilson")
    assert wilson(successes, 32, confidence)[1:] == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_jeffreys_holds_its_posterior_mass_and_closes_at_the_ends():
    _, low, high = jeffreys(12, 20)
    after = stats.beta(12.5, 8.5)
    assert (after.cdf(low), after.sf(high)) == pytest.approx((0.025, 0.025))
    assert jeffreys(0, 20).low == 0
    assert jeffreys(20, 20).high == 1


@pytest.mark.parametrize(("successes", "episodes"), [(0, 8), (12, 20), (256, 256)])
def test_the_posterior_is_scipy_s_beta(successes, episodes):
    rate = np.linspace(0.001, 0.999, 50)
    expected = stats.beta(successes + 0.5, episodes - successes + 0.5).pdf(rate)
    np.testing.assert_allclose(posterior(successes, episodes, rate), expected, rtol=1e-9)


@pytest.mark.parametrize("interval", [wilson, jeffreys])
@pytest.mark.parametrize(("successes", "episodes"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(interval, successes, episodes):
    with pytest.raises(ValueError, match=f"{successes} of {episodes} episodes; need episodes > 0"):
        interval(successes, episodes)


def test_pooling_one_seed_or_seeds_that_agree_is_wilson_over_all_episodes():
    assert pooled_success([Success(30, 32)]) == wilson(30, 32)
    assert pooled_success([Success(24, 32)] * 4) == pytest.approx(wilson(96, 128))
    assert pooled_success([Success(32, 32)] * 3) == wilson(96, 96)


def test_pooling_seeds_that_differ_uses_the_effective_number_of_episodes():
    rates = np.asarray([0.6, 0.8, 0.9, 0.7])
    pooled = pooled_success([Success(round(100 * rate), 100) for rate in rates])
    standard_error = rates.std(ddof=1) / math.sqrt(4)
    effective = (
        0.75 * 0.25 / standard_error**2 * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 3)) ** 2
    )
    z2 = stats.norm.ppf(0.975) ** 2 / effective
    half = math.sqrt(0.75 * 0.25 * z2 + z2**2 / 4) / (1 + z2)
    centre = (0.75 + z2 / 2) / (1 + z2)
    assert pooled == pytest.approx((0.75, centre - half, centre + half))


def test_pooled_interval_covers_a_method_whose_seeds_differ():
    rng = np.random.default_rng(0)
    counts = rng.binomial(128, rng.beta(27, 3, size=(400, 3)))
    intervals = [pooled_success([Success(int(k), 128) for k in row]) for row in counts]
    assert 0.92 <= np.mean([low <= 0.9 <= high for _, low, high in intervals]) <= 0.98


def test_pooling_nothing_is_refused():
    with pytest.raises(ValueError, match="no seeds given"):
        pooled_success([])


def test_difference_gives_the_published_interval():
    """Newcombe (1998), Interval estimation for the difference between independent proportions, table II (a)."""
    assert difference(wilson(56, 70), wilson(48, 80)) == pytest.approx(
        (0.2, 0.0524, 0.3339), abs=5e-5
    )


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
    """Normal scores of five runs on four tasks: the middle half has mean 0. Its docstring says 92 %."""
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
    """Of 20 runs 12 succeed: a resample has Binomial(20, 0.6) / 20 of them above any threshold in between."""
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
    assert probability_of_improvement([1, 1], [1, 1, 1]) == Interval(0.5, 0.5, 0.5)
    assert probability_of_improvement([2, 3], [0, 1]) == Interval(1, 1, 1)
    assert probability_of_improvement([[2, 0]], [[1, 1]]).estimate == 0.5


@pytest.mark.parametrize("scores", [[], [math.nan], np.zeros((2, 2, 2))])
def test_scores_must_be_finite_runs_by_tasks(scores):
    with pytest.raises(
        ValueError, match=r"need finite numbers of shape \[runs\] or \[runs, tasks\]"
    ):
        interquartile_mean(scores)
    with pytest.raises(ValueError, match="2 tasks against 1; score both on the same ones"):
        probability_of_improvement(np.zeros((3, 2)), np.zeros(3))


def evaluation(stage, seed, successes, episodes=10):
    return {"stage": stage, "seed": seed, "eval/successes": successes, "eval/episodes": episodes}


def test_before_after_takes_the_base_policy_and_the_last_finetuned_one():
    rows = [evaluation("pretrain", 0, 9), evaluation("base", 0, 4), evaluation("base", 1, 6)]
    rows += [evaluation("finetune", 1, 7), evaluation("finetune", 1, 8)]
    zero, one, pooled = before_after(rows)
    assert (zero.label, zero.before, zero.after, zero.change) == (
        "seed 0",
        wilson(4, 10),
        None,
        None,
    )
    assert (one.before, one.after) == (wilson(6, 10), wilson(8, 10))
    assert one.change == difference(wilson(8, 10), wilson(6, 10))
    assert (pooled.label, pooled.before.estimate, pooled.after.estimate) == ("pooled", 0.5, 0.8)


def test_before_after_has_a_row_for_each_task_over_all_seeds():
    def row(stage, seed, **tasks):
        counts = {
            f"eval/{what}/{name}": n
            for name, pair in tasks.items()
            for what, n in zip(("successes", "episodes"), pair, strict=True)
        }
        return {**evaluation(stage, seed, 5), **counts}

    rows = [
        row("base", 0, push=(1, 4)),
        row("base", 1, push=(1, 6)),
        row("finetune", 0, push=(4, 4), door=(2, 8)),
    ]
    _, _, door, push, pooled = before_after(rows)
    assert (door.label, push.label, pooled.label) == ("door", "push", "pooled")
    assert door.before is None and door.after == wilson(2, 8)
    assert push.before.estimate == 0.2 and push.after == wilson(4, 4)


def test_before_after_of_a_run_that_only_pretrained_and_of_one_just_started():
    assert before_after([evaluation("pretrain", 0, 2), evaluation("pretrain", 0, 3)])[
        0
    ].before == wilson(3, 10)
    assert before_after([]) == []


def test_mean_return_is_students_interval():
    """Of one seed over its episodes; of several over the seeds' means where those differ more than chance."""
    rng = np.random.default_rng(0)
    episodes = rng.normal(200.0, 30.0, size=(3, 20))
    one = stats.ttest_1samp(episodes[0], 0.0).confidence_interval()
    assert mean_return([episodes[0].mean()], [episodes[0].std(ddof=1)], [20]) == pytest.approx(
        (episodes[0].mean(), one.low, one.high)
    )
    apart = episodes.mean(1) + np.array([-50.0, 0.0, 50.0])
    seeds = stats.ttest_1samp(apart, 0.0).confidence_interval()
    assert mean_return(apart, episodes.std(1, ddof=1), [20] * 3) == pytest.approx(
        (apart.mean(), seeds.low, seeds.high)
    )
    alike = mean_return([200.0] * 3, [30.0] * 3, [20] * 3)
    half = stats.t.ppf(0.975, 57) * 30.0 / np.sqrt(60)
    assert alike == pytest.approx((200.0, 200.0 - half, 200.0 + half))


def test_mean_return_covers_the_mean_of_the_method():
    rng = np.random.default_rng(1)
    hits, trials = 0, 400
    for _ in range(trials):
        episodes = rng.normal(100.0, 10.0, size=(4, 1)) + rng.normal(0.0, 20.0, size=(4, 32))
        found = mean_return(episodes.mean(1), episodes.std(1, ddof=1), [32] * 4)
        hits += found.low <= 100.0 <= found.high
    assert 0.93 <= hits / trials <= 0.99


@pytest.mark.parametrize("given", [([], [], []), ([1.0], [0.0], []), ([1.0], [0.0], [0])])
def test_mean_return_refuses_seeds_without_episodes(given):
    with pytest.raises(ValueError, match="mean_return: .* need one of each"):
        mean_return(*given)


def test_before_after_of_a_task_that_is_judged_by_its_return():
    def row(stage, mean):
        return {
            "stage": stage, "seed": 0, "env_steps": 0,
            "eval/return": mean, "eval/return_std": 40.0, "eval/episodes": 16,
        }  # fmt: skip

    seed, pooled = before_after([row("base", 900.0), row("finetune", 2310.0)])
    assert seed.texts() == (
        "seed 0",
        "900 [879, 921]",
        "2,310 [2,289, 2,331]",
        "+1,410 [+1,380, +1,440]",
    )
    assert pooled.label == "pooled" and pooled.texts()[1:] == seed.texts()[1:]
    assert (
        before_after([row("base", 9.0) | {"eval/return_std": 4.0}])[0].texts()[1]
        == "9.0 [6.9, 11.1]"
    )


def test_texts_for_tables():
    row = before_after([evaluation("base", 0, 50, 100), evaluation("finetune", 0, 90, 100)])[0]
    assert row.texts() == (
        "seed 0",
        "50.0 % [40.4, 59.6]",
        "90.0 % [82.6, 94.5]",
        "+40.0 [+27.8, +50.6]",
    )
    assert row._replace(after=None).texts()[2:] == ("–", "–")


def test_outcomes_come_back_from_a_row():
    success = np.random.default_rng(0).random(37) < 0.4
    row = {
        "eval/success_bits": statistics.packed(success),
        "eval/episodes": 37,
        "eval/successes": int(success.sum()),
    }
    np.testing.assert_array_equal(statistics.outcomes(row), success)
    assert statistics.outcomes({"eval/episodes": 37, "eval/successes": 3}) is None
    with pytest.raises(ValueError, match="eval/successes is 99"):
        statistics.outcomes({**row, "eval/successes": 99})


def test_a_paired_difference_is_that_of_bonett_and_price():
    """Wins 20, losses 5 of 100: adjusted 21/102 and 6/102."""
    first, second = np.zeros(100, bool), np.zeros(100, bool)
    first[:20], second[20:25], first[25:60], second[25:60] = True, True, True, True
    pairs = Discordant.of(first, second)
    assert pairs == (20, 5, 100)
    d = 15 / 102
    half = stats.norm.ppf(0.975) * math.sqrt((27 / 102 - d**2) / 102)
    assert pairs.difference() == pytest.approx((0.15, d - half, d + half))
    assert Discordant(100, 0, 100).difference().high == 1.0
    with pytest.raises(ValueError, match="same start states"):
        Discordant.of(first, second[1:])


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 3), (8, 1), (30, 5), (200, 120)])
def test_the_sequential_p_value_is_the_integral_in_closed_form(wins, losses):
    area, _ = integrate.quad(
        lambda p: p**wins * (1 - p) ** losses * 2.0 ** (wins + losses), 0, 1, epsabs=0, limit=200
    )
    assert Discordant(wins, losses, 1000).p_value() == pytest.approx(min(1.0, 1 / area), rel=1e-6)
    assert Discordant(losses, wins, 1000).p_value() == Discordant(wins, losses, 1000).p_value()


def test_whenever_one_stops_the_sequential_p_value_errs_rarely():
    """2,000 comparisons of equals, looked at after each of 400 pairs: the smallest p is below 5 % in at most 5 % of them."""
    won = np.random.default_rng(1).random((2000, 400)) < 0.5
    wins = np.cumsum(won, 1)
    n = np.arange(1, 401)[None]
    log_e = special.betaln(wins + 1, n - wins + 1) + n * np.log(2)
    assert Discordant(int(wins[0, 99]), int(100 - wins[0, 99]), 100).p_value() == pytest.approx(
        min(1, math.exp(-log_e[0, 99]))
    )
    ever = np.mean(log_e.max(1) >= np.log(20))
    assert 0.005 < ever <= 0.05


def test_holm_adjusts_step_by_step():
    assert statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5}) == pytest.approx(
        {"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.5}
    )
    assert statistics.holm({}) == {}


@pytest.mark.parametrize(
    ("different", "expected"),
    [
        ([], {"w": "a", "x": "a", "y": "a", "z": "a"}),
        ([("w", "z")], {"w": "a", "x": "ab", "y": "ab", "z": "b"}),
        ([("w", "y"), ("w", "z"), ("x", "z")], {"w": "a", "x": "ab", "y": "bc", "z": "c"}),
        (
            [("w", "x"), ("w", "y"), ("w", "z"), ("x", "z"), ("x", "y"), ("y", "z")],
            dict(zip("wxyz", "abcd", strict=True)),
        ),
    ],
)
def test_letters_are_shared_exactly_by_what_was_not_told_apart(different, expected):
    found = statistics.letters("wxyz", different)
    assert found == expected
    for one, other in itertools.combinations("wxyz", 2):
        assert bool(set(found[one]) & set(found[other])) == ((one, other) not in different)


@given(st.sets(st.sampled_from(list(itertools.combinations(range(7), 2)))))
def test_letters_are_right_for_any_differences(different):
    found = statistics.letters(range(7), different)
    for pair in itertools.combinations(range(7), 2):
        assert bool(set(found[pair[0]]) & set(found[pair[1]])) == (pair not in different)

"""Statistics of several clones against closed forms, numpy and simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from gcp_jax.stats import bootstrap
from gcp_jax.stats.bootstrap import (
    interquartile_mean,
    mean_score,
    paired_difference,
    performance_profile,
    probability_of_improvement,
)
from gcp_jax.stats.eval_rows import CLONE, pooled_score
from gcp_jax.stats.intervals import (
    Interval,
    Success,
    difference,
    pooled_success,
    success_of_clones,
    wilson,
)
from gcp_jax.stats.spread import spread_of

CLONES, RUNS, TASKS = 5, 3, 2


def simulated(*, clones=CLONES, runs=RUNS, between=1.0, within=0.5, tasks=TASKS, seed=0):
    """[C, R, M] normal scores with these standard deviations."""
    rng = np.random.default_rng(seed)
    of_clone = between * rng.normal(size=(clones, 1, tasks))
    return of_clone + within * rng.normal(size=(clones, runs, tasks))


def resampled_variance(table):
    """The variance of the mean of resamples of [C, R, M]:

    1/M² Σ_m 1/C · (Σ_c (m_c − m)²/C + Σ_c s_c²/(C·R)), both squares with divisors C and R.
    """
    clones, runs, tasks = table.shape
    between = table.mean(axis=1).var(axis=0)
    within = table.var(axis=1).mean(axis=0) / runs
    return float(((between + within) / clones).sum() / tasks**2)


def test_one_clone_is_the_bootstrap_of_its_runs_bit_for_bit():
    table = simulated(clones=1)
    other = simulated(clones=1, runs=4, seed=1)
    for aggregate in (interquartile_mean, mean_score):
        assert aggregate(table) == aggregate(table[0])
    assert probability_of_improvement(table, other) == probability_of_improvement(
        table[0], other[0]
    )
    assert paired_difference(table, other) == paired_difference(table[0], other[0])
    for whole, part in zip(
        performance_profile(table, [0.0, 0.5]),
        performance_profile(table[0], [0.0, 0.5]),
        strict=True,
    ):
        assert (whole == part).all()


def test_resampled_means_have_the_variance_of_two_levels():
    table = simulated()
    drawn = bootstrap._resample(table, 40_000, np.random.default_rng(1))
    assert drawn.shape == (40_000, CLONES, RUNS, TASKS)
    means = drawn.mean(axis=(1, 2, 3))
    assert means.mean() == pytest.approx(table.mean(), abs=0.01)
    assert means.var() == pytest.approx(resampled_variance(table), rel=0.03)


def test_the_runs_of_a_resampled_clone_are_all_of_that_clone():
    """Scores tell their clone: clone c has the scores 10c, 10c + 1 and 10c + 2."""
    table = 10.0 * np.arange(4)[:, None, None] + np.arange(3)[None, :, None]
    drawn = bootstrap._resample(table, 50, np.random.default_rng(0))
    of_clone = drawn // 10
    assert (of_clone == of_clone[:, :, :1]).all()
    assert len(np.unique(drawn)) == 12


def test_the_interval_of_a_mean_is_normal_for_many_clones():
    table = simulated(clones=200)
    half = 1.96 * math.sqrt(resampled_variance(table))
    expected = (table.mean(), table.mean() - half, table.mean() + half)
    assert mean_score(table, resamples=8000) == pytest.approx(expected, abs=0.01)


def test_one_run_of_each_clone_is_a_bootstrap_over_clones():
    table = simulated(clones=200, runs=1)
    half = 1.96 * table[:, 0].mean(axis=1).std() / math.sqrt(200)
    assert mean_score(table)[1:] == pytest.approx(
        (table.mean() - half, table.mean() + half), abs=0.03
    )
    assert not mean_score(table[:1]).has_bounds


def test_only_intervals_over_clones_cover_other_clones():
    """Clones differ by 1, runs by 0.5; the true mean is 0, five clones and three runs of each.

    At a nominal 95 % the two levels cover 85 %; runs of one clone cover 28 %.
    """
    covered = {"clones": [], "one clone": []}
    for index in range(300):
        table = simulated(tasks=1, seed=index)
        for name, scores in (("clones", table), ("one clone", table[:1])):
            found = mean_score(scores, resamples=200)
            covered[name].append(found.low <= 0 <= found.high)
    assert 0.82 <= np.mean(covered["clones"]) <= 0.97
    assert np.mean(covered["one clone"]) < 0.5


def test_improvement_is_that_of_runs_from_one_clone():
    """Every clone suits both methods differently, and on each the first method wins."""
    rng = np.random.default_rng(0)
    of_clone = 10.0 * np.arange(4)[:, None, None]
    second = of_clone + rng.uniform(size=(4, 3, 1))
    assert probability_of_improvement(of_clone + 2, second) == wilson(4, 4)
    first = of_clone + rng.uniform(size=(4, 2, 1))
    wins = [
        stats.mannwhitneyu(a[:, 0], b[:, 0]).statistic / 6
        for a, b in zip(first, second, strict=True)
    ]
    found = probability_of_improvement(first, second)
    assert found.estimate == pytest.approx(np.mean(wins))
    assert found.low < found.estimate < found.high


def test_the_interval_of_improvement_is_that_of_the_clones():
    """With one run each it is 1 on 30 of 50 clones and else 0: a resample is binomial."""
    first = np.concatenate([np.ones(30), np.zeros(20)])[:, None, None]
    found = probability_of_improvement(first, 1 - first, resamples=20_000)
    low, high = stats.binom(50, 0.6).ppf([0.025, 0.975]) / 50
    assert found == pytest.approx((0.6, low, high))


def test_a_difference_of_methods_is_paired_by_clone():
    """Var = Σ_c (d_c − d)²/C² + Σ_c (s_c² + t_c²)/(C²·R), with the divisors of resampling."""
    first = simulated(clones=60, between=5.0, tasks=1)
    second = first[:, ::-1] + simulated(clones=60, between=0.2, within=0.1, tasks=1, seed=1) - 1
    found = paired_difference(first, second, resamples=8000)
    gap = (first.mean(axis=1) - second.mean(axis=1)).var() / 60
    runs = (first.var(axis=1) + second.var(axis=1)).mean() / (60 * RUNS)
    half = 1.96 * math.sqrt(gap + runs)
    assert found.estimate == pytest.approx(first.mean() - second.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.04)
    alone = [mean_score(table) for table in (first, second)]
    unpaired = difference(*alone)
    assert found.high - found.low < 0.3 * (unpaired.high - unpaired.low)


def test_methods_that_differ_alike_everywhere_have_the_difference_of_their_means():
    rates = np.asarray([0.25, 0.5, 0.75])[:, None, None]
    found = paired_difference(rates, rates - 0.25, episodes=16)
    expected = difference(mean_score(rates, episodes=16), mean_score(rates - 0.25, episodes=16))
    assert found == expected
    assert found.low < 0.25 < found.high
    perfect = np.ones((3, 2, 1))
    assert paired_difference(perfect, perfect, episodes=16) == difference(
        wilson(96, 96), wilson(96, 96)
    )


@pytest.mark.parametrize("compare", [probability_of_improvement, paired_difference])
def test_methods_must_start_from_the_same_clones(compare):
    with pytest.raises(ValueError, match="3 clones against 2; start both from the same ones"):
        compare(np.zeros((3, 2, 1)), np.zeros((2, 2, 1)))


def test_both_spreads_are_those_of_numpy():
    table = simulated(tasks=1)[..., 0]
    found = spread_of(table)
    assert found.between_clones == pytest.approx(np.std(table.mean(axis=1), ddof=1))
    pooled = np.sum((table - table.mean(axis=1, keepdims=True)) ** 2) / (CLONES * (RUNS - 1))
    assert found.between_seeds == pytest.approx(math.sqrt(pooled))
    large = spread_of(simulated(clones=4000, between=0.3, within=0.6, tasks=1)[..., 0])
    assert large.between_clones == pytest.approx(math.sqrt(0.09 + 0.36 / RUNS), rel=0.05)
    assert large.between_seeds == pytest.approx(0.6, rel=0.05)


def test_what_there_is_one_of_has_no_spread():
    assert math.isnan(spread_of([[0.5, 0.7]]).between_clones)
    assert math.isnan(spread_of([[0.5], [0.7]]).between_seeds)
    with pytest.raises(ValueError, match=r"need shape \[clones, runs\]"):
        spread_of([0.5])


def test_success_of_one_clone_is_that_of_its_seeds():
    counts = [Success(30, 64), Success(40, 64), Success(38, 64)]
    assert success_of_clones([counts]) == pooled_success(counts)


def test_success_of_clones_by_hand():
    """Clones of 16 and 48 of 64 episodes: v = 2/1 · (16² + 16²)/128² = 1/16, deff = 32."""
    clones = [[Success(8, 32), Success(8, 32)], [Success(24, 32), Success(24, 32)]]
    effect = 32 * (stats.t(1).ppf(0.975) / stats.norm.ppf(0.975)) ** 2
    z2 = stats.norm.ppf(0.975) ** 2 / (128 / effect)
    half = math.sqrt(0.25 * z2 + z2**2 / 4) / (1 + z2)
    assert success_of_clones(clones) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_clones_that_happen_to_agree_are_no_surer_than_their_seeds():
    seeds = [Success(20, 64), Success(44, 64)]
    assert success_of_clones([seeds, seeds]) == pooled_success([*seeds, *seeds])


def test_success_of_few_clones_covers_as_often_as_it_says():
    """Three clones of rates 0.2 to 0.8, two seeds of each: 93 %; seeds of one cover 80 %."""
    rng = np.random.default_rng(0)
    covered = []
    of_seeds = []
    for _ in range(2000):
        rates = np.repeat(rng.uniform(0.2, 0.8, 3), 2)
        counts = [Success(int(count), 64) for count in rng.binomial(64, rates)]
        found = success_of_clones([counts[0:2], counts[2:4], counts[4:6]])
        covered.append(found.low <= 0.5 <= found.high)
        alone = pooled_success(counts[0:2])
        of_seeds.append(alone.low <= 0.5 <= alone.high)
    assert 0.92 <= np.mean(covered) <= 0.98
    assert np.mean(of_seeds) < 0.9


def evaluation(stage, clone, seed, successes):
    numbers = {"eval/success": successes / 32, "eval/successes": successes, "eval/episodes": 32}
    return {"stage": stage, CLONE: clone, "seed": seed, **numbers}


def test_rows_of_several_clones_are_pooled_by_clone():
    """A clone's own rows are episodes of one policy, those of finetuning are of two."""
    counts = {0: (8, 8), 1: (24, 24)}
    rows = {
        stage: [
            evaluation(stage, clone, 1000 * clone + seed, count)
            for clone, pair in counts.items()
            for seed, count in enumerate(pair)
        ]
        for stage in ("base", "finetune")
    }
    assert pooled_score(rows["finetune"]) == success_of_clones(
        [[Success(count, 32) for count in pair] for pair in counts.values()]
    )
    assert pooled_score(rows["base"]) == pooled_success([Success(16, 64), Success(48, 64)])
    assert isinstance(pooled_score(rows["finetune"][:1]), Interval)

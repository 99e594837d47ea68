"""The rules that watch a run, by hand computation."""

import math

import numpy as np
import pytest
from scipy import stats

from gcp_jax.stats import guard_rules
from gcp_jax.stats.eval_rows import pack_success_bits
from gcp_jax.stats.guard_rules import CriticGap, Span


def row_of(success, env_steps=0, **columns):
    success = np.asarray(success, bool)
    return {
        "seed": 0,
        "env_steps": env_steps,
        "eval/success": float(success.mean()),
        "eval/successes": int(success.sum()),
        "eval/success_bits": pack_success_bits(success),
        "eval/episodes": success.size,
        **columns,
    }


def row_by_return(mean, std, episodes=16, **columns):
    return {
        "seed": 0,
        "eval/return": mean,
        "eval/return_std": std,
        "eval/episodes": episodes,
        **columns,
    }


def first(count, of):
    return np.arange(of) < count


def test_only_a_strictly_higher_score_is_better():
    assert guard_rules.is_better(0.5, 0.4)
    assert not guard_rules.is_better(0.5, 0.5)
    assert not guard_rules.is_better(math.nan, 0.0)
    assert guard_rules.is_better(-3.0, math.nan)
    assert not guard_rules.is_better(math.nan, math.nan)


@pytest.mark.parametrize("losses", range(4, 40))
def test_success_is_below_if_the_paired_interval_is(losses):
    """Of 200 start states the base solves 100, the policy the same but ``losses`` of them.

    Bonett & Price: p₁₂ = 1/202 and p₂₁ = (losses + 1)/202.
    """
    base = row_of(first(100, 200))
    row = row_of(first(100 - losses, 200))
    wins, lost = 1 / 202, (losses + 1) / 202
    half = stats.norm.ppf(0.9995) * math.sqrt((wins + lost - (wins - lost) ** 2) / 202)
    assert guard_rules.is_below(row, base) == (wins - lost + half < 0)
    assert not guard_rules.is_below(base, row)


def test_pairs_find_what_independent_samples_do_not():
    """15 of 200 lost and none gained: the pairs differ, two independent rates would not."""
    base = row_of(first(100, 200))
    row = row_of(first(85, 200))
    assert guard_rules.is_below(row, base)
    without = {name: x for name, x in row.items() if name != "eval/success_bits"}
    assert not guard_rules.is_below(without, base)
    assert not guard_rules.is_below(base, base)


def test_rows_without_outcomes_need_disjoint_intervals():
    base = {name: x for name, x in row_of(first(100, 200)).items() if "bits" not in name}
    for successes in (40, 60, 100):
        row = row_of(first(successes, 200))
        z2 = stats.norm.ppf(0.9995) ** 2 / 200

        def bounds(rate, z2=z2):
            middle = (rate + z2 / 2) / (1 + z2)
            half = math.sqrt(rate * (1 - rate) * z2 + z2**2 / 4) / (1 + z2)
            return middle - half, middle + half

        expected = bounds(successes / 200)[1] < bounds(0.5)[0]
        assert guard_rules.is_below(row, base) == expected


def test_returns_are_below_if_their_intervals_are_disjoint():
    half = stats.t.ppf(0.9995, 15) * 4.0 / math.sqrt(16)
    base = row_by_return(100.0, 4.0)
    assert guard_rules.is_below(row_by_return(100.0 - 2.01 * half, 4.0), base)
    assert not guard_rules.is_below(row_by_return(100.0 - 1.99 * half, 4.0), base)


def test_it_begins_by_the_interval_and_ends_at_the_score_of_the_base():
    base = row_of(first(100, 200))
    successes = (100, 60, 99, 98, 100, 99, 20)
    rows = [row_of(first(count, 200), 64 * i) for i, count in enumerate(successes)]
    assert guard_rules.spans_below(rows, base) == [Span(64, 256), Span(384, None)]
    assert guard_rules.spans_below(rows[:1], base) == []


def test_the_size_of_returns_is_their_rms_as_far_as_the_discount_reaches():
    row = row_by_return(-30.0, 40.0, **{"eval/length": 100.0})
    assert guard_rules.return_scale(row, 1.0) == 50.0
    assert guard_rules.return_scale(row, 0.9) == pytest.approx(5.0)  # 10 of 100 steps
    assert guard_rules.return_scale(row, 0.995) == 50.0  # 200 steps: all
    assert math.isnan(guard_rules.return_scale({"eval/length": 3.0}, 0.9))


def gap_after(medians, *, returns=8.0):
    """The gap after evaluations with these medians, each of three segments."""
    gap = CriticGap().after_evaluation(row_by_return(returns, 6.0 * bool(returns)), 1.0)
    for median in medians:
        for value in (median, median - 100.0, median + 1000.0):
            gap = gap.after_segment({guard_rules.GAP: value})
        gap = gap.after_segment({})
        gap = gap.after_segment({guard_rules.GAP: math.nan})
        gap = gap.after_evaluation(row_by_return(0.0, 0.0), 1.0)
    return gap


def test_critics_inflate_if_the_median_gap_grew_thrice_and_exceeds_half_of_the_returns():
    """Returns are of size 10, so that the margin is 5."""
    assert gap_after((1.0, 2.0, 5.1)).is_inflating
    assert not gap_after((1.0, 2.0, 5.0)).is_inflating  # not above the margin
    assert not gap_after((7.0, 9.0, 8.0)).is_inflating  # does not grow
    assert not gap_after((9.0, 8.0, 9.0)).is_inflating
    assert not gap_after((8.0, 9.0)).is_inflating  # too few
    assert gap_after((99.0, 6.0, 7.0, 8.0)).gaps == (6.0, 7.0, 8.0)
    assert not gap_after((6.0, 7.0, 8.0), returns=0.0).is_inflating  # no size to compare with


def test_an_evaluation_without_a_gap_changes_nothing_but_the_scale():
    gap = gap_after((1.0, 2.0)).after_evaluation(row_by_return(30.0, 40.0), 1.0)
    assert gap.gaps == (1.0, 2.0) and gap.scale == 50.0
    assert gap.after_evaluation({}, 1.0).scale == 50.0


def test_the_first_inflation_is_found_from_the_rows_of_a_run():
    base = row_by_return(8.0, 6.0)
    evals = [row_by_return(0.0, 0.0, env_steps=64 * i) for i in (1, 2, 3, 4)]
    segments = [{"env_steps": 32 * i, guard_rules.GAP: float(i)} for i in range(1, 9)]
    # medians 1.5, 3.5, 5.5, 7.5
    found = guard_rules.first_inflation(segments, evals, base, 1.0)
    assert found == (192, 5.5, 10.0)
    assert guard_rules.first_inflation(segments, evals[:2], base, 1.0) is None
    assert guard_rules.first_inflation(segments, evals, None, 1.0) is None

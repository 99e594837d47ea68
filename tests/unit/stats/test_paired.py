"""Paired comparisons against their formulas, and grouping letters against what they must mean."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from gcp_jax.stats.paired import DiscordantPairs, grouping_letters, holm


def test_a_paired_difference_is_that_of_bonett_and_price():
    """Wins 20, losses 5 of 100: adjusted 21/102 and 6/102."""
    first, second = np.zeros(100, bool), np.zeros(100, bool)
    first[:20], second[20:25], first[25:60], second[25:60] = True, True, True, True
    pairs = DiscordantPairs.from_outcomes(first, second)
    assert pairs == (20, 5, 100)
    d = 15 / 102
    half = stats.norm.ppf(0.975) * math.sqrt((27 / 102 - d**2) / 102)
    assert pairs.difference() == pytest.approx((0.15, d - half, d + half))
    assert DiscordantPairs(100, 0, 100).difference().high == 1.0
    with pytest.raises(ValueError, match="same start states"):
        DiscordantPairs.from_outcomes(first, second[1:])


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 3), (8, 1), (30, 5), (200, 120)])
def test_the_sequential_p_value_is_the_integral_in_closed_form(wins, losses):
    area, _ = integrate.quad(
        lambda p: p**wins * (1 - p) ** losses * 2.0 ** (wins + losses), 0, 1, epsabs=0, limit=200
    )
    assert DiscordantPairs(wins, losses, 1000).p_value() == pytest.approx(
        min(1.0, 1 / area), rel=1e-6
    )
    assert (
        DiscordantPairs(losses, wins, 1000).p_value()
        == DiscordantPairs(wins, losses, 1000).p_value()
    )


def test_whenever_one_stops_the_sequential_p_value_errs_rarely():
    """2,000 comparisons of equals, each looked at after every one of 400 pairs.

    The smallest p-value is below 5 % in at most 5 % of them.
    """
    won = np.random.default_rng(1).random((2000, 400)) < 0.5
    wins = np.cumsum(won, 1)
    n = np.arange(1, 401)[None]
    log_e = special.betaln(wins + 1, n - wins + 1) + n * np.log(2)
    assert DiscordantPairs(
        int(wins[0, 99]), int(100 - wins[0, 99]), 100
    ).p_value() == pytest.approx(min(1, math.exp(-log_e[0, 99])))
    ever = np.mean(log_e.max(1) >= np.log(20))
    assert 0.005 < ever <= 0.05


def test_holm_adjusts_step_by_step():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5}) == pytest.approx(
        {"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.5}
    )
    assert holm({}) == {}


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
def test_items_share_a_letter_exactly_if_they_do_not_differ(different, expected):
    found = grouping_letters("wxyz", different)
    assert found == expected
    for one, other in itertools.combinations("wxyz", 2):
        assert bool(set(found[one]) & set(found[other])) == ((one, other) not in different)


@given(st.sets(st.sampled_from(list(itertools.combinations(range(7), 2)))))
def test_letters_are_right_for_any_differences(different):
    found = grouping_letters(range(7), different)
    for pair in itertools.combinations(range(7), 2):
        assert bool(set(found[pair[0]]) & set(found[pair[1]])) == (pair not in different)

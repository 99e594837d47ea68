"""The axes of a sweep: the points they list, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gcp_jax.config import ConfigError
from gcp_jax.launch import choice, drawn, grid, integers, log_uniform, uniform, zipped


def test_axes_give_the_points_they_name():
    assert grid("finetune.utd", (0.1, 0.2)) == [{"finetune.utd": 0.1}, {"finetune.utd": 0.2}]
    together = zipped({"policy.steps": (5, 10), "policy.sigma": (0.1, 0.05)})
    assert together == [
        {"policy.steps": 5, "policy.sigma": 0.1},
        {"policy.steps": 10, "policy.sigma": 0.05},
    ]


def test_random_axes_repeat_grow_and_have_their_distribution():
    space = {
        "a": log_uniform(1e-4, 1e-2),
        "b": uniform(-1, 3),
        "c": integers(2, 4),
        "d": choice("x", "y"),
    }
    few = drawn(space, count=5, seed=3)
    many = drawn(space, count=2000, seed=3)
    assert few == many[:5] != drawn(space, count=5, seed=2)
    logs = [math.log(point["a"]) for point in many]
    assert stats.kstest(logs, stats.uniform(math.log(1e-4), math.log(1e2)).cdf).pvalue > 1e-3
    assert stats.kstest([point["b"] for point in many], stats.uniform(-1, 4).cdf).pvalue > 1e-3
    counts = np.bincount([point["c"] for point in many])[2:]
    assert counts == pytest.approx([2000 / 3] * 3, rel=0.15)
    assert {point["d"] for point in many} == {"x", "y"}


@pytest.mark.parametrize(
    ("kind", "middle"),
    [
        (uniform(1, 3), 2),
        (log_uniform(1e-4, 1e-2), pytest.approx(1e-3)),
        (integers(2, 5), 3),
        (choice("x", "y"), "x"),
    ],
)
def test_the_middle_stands_for_a_range(kind, middle):
    assert kind.middle == middle


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grid("finetune.utd", ()), "the axis of finetune.utd is empty"),
        (
            lambda: grid("finetune.utd", (0.1, 0.1)),
            "the axis of finetune.utd has the same point twice",
        ),
        (
            lambda: zipped({"a": (1,), "b": (1, 2)}),
            "zipped fields need as many values.*a has 1, b has 2",
        ),
        (lambda: drawn({"a": uniform(0, 1)}, count=0), "count=0; it is empty"),
        (lambda: uniform(1, 1), "a range from 1 to 1 is empty"),
        (lambda: log_uniform(0, 1), "low must be positive"),
        (lambda: choice(), "a choice of no values"),
    ],
)
def test_invalid_axes_are_refused_in_one_line(make, message):
    with pytest.raises(ConfigError, match=message) as error:
        make()
    assert "\n" not in str(error.value)

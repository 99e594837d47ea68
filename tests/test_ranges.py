"""Every number of every configuration has a range, which holds its default and refuses what is outside in one line."""

import dataclasses
import math

import pytest

from gcp_jax import algorithms, config, diffusion, flow, policy, ranges
from gcp_jax.algorithms import bc
from gcp_jax.ranges import COUNT, FINITE, POSITIVE, RATE, Range

CONFIGS = {
    **{name: algorithms.load(name).Config for name in algorithms.names()},
    "bc": bc.Config,
    "flow": flow.Sampler,
    "diffusion": diffusion.Sampler,
    "policy": policy.PolicyConfig,
    **{cls.__name__: cls for cls in (config.Demonstrations, config.Pretrain, config.Finetune, config.Evaluation)},
    "Checkpoint": config.Checkpoint,
}


def numeric(cls):
    """Fields that hold a number or several, with their defaults."""
    found = {field.name: field.default for field in dataclasses.fields(cls)}
    return {
        name: value
        for name, value in found.items()
        if type(value) in (int, float) or (isinstance(value, tuple) and not any(isinstance(x, str) for x in value))
    }


def test_a_range_holds_what_is_between_its_ends():
    assert 0.5 in RATE and 1 in RATE and 0.0 not in RATE and 1.1 not in RATE
    assert 1 in COUNT and 10**400 in COUNT and 0 not in COUNT
    assert -1e300 in FINITE and math.nan not in FINITE and math.inf not in FINITE and "1" not in FINITE
    assert 0.9 in Range(0, 1, below=True) and 1 not in Range(0, 1, below=True)
    told = [
        str(x) for x in (COUNT, POSITIVE, RATE, FINITE, Range(2, above=True), Range(high=3), Range(high=3, below=True))
    ]
    assert told == ["at least 1", "positive", "in (0, 1]", "finite", "above 2", "at most 3", "below 3"]


def test_a_class_has_the_ranges_of_its_bases():
    assert ranges.of(CONFIGS["dsrl"]).keys() >= {"bound", "temperature", "gamma"}


@pytest.mark.parametrize("cls", CONFIGS.values(), ids=CONFIGS)
def test_every_number_has_a_range(cls):
    assert ranges.of(cls).keys() == numeric(cls).keys()


@pytest.mark.parametrize("cls", CONFIGS.values(), ids=CONFIGS)
def test_what_is_outside_is_refused_in_one_line(cls):
    for name, default in numeric(cls).items():
        allowed = ranges.of(cls)[name]
        outside = [math.nan, math.inf]
        if not math.isinf(allowed.low):
            outside.append(allowed.low if allowed.above else allowed.low - 1)
        if not math.isinf(allowed.high):
            outside.append(allowed.high if allowed.below else allowed.high + 1)
        for value in outside:
            given = (value,) if isinstance(default, tuple) else value
            with pytest.raises(ValueError, match=rf"{name} is .*; it must be .* \(default: ") as error:
                cls(**{name: given})
            assert "\n" not in str(error.value)

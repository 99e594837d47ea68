"""Every number of every configuration has a range, which holds its default and refuses what is outside in one line."""

import dataclasses
import math

import pytest

from gcp_jax import algorithms, config, config_fields
from gcp_jax.algorithms import bc
from gcp_jax.config_fields import FINITE, POSITIVE, POSITIVE_INT, UNIT_POSITIVE, Bounds
from gcp_jax.core import diffusion, flow, policy

CONFIGS = {
    **{name: algorithms.load(name).Config for name in algorithms.names()},
    "bc": bc.Config,
    "flow": flow.FlowSampler,
    "diffusion": diffusion.DiffusionSampler,
    "policy": policy.PolicyConfig,
    **{
        cls.__name__: cls
        for cls in (config.Demonstrations, config.Pretrain, config.Finetune, config.Evaluation)
    },
    "Checkpoint": config.Checkpoint,
}


def numeric(cls):
    """Fields that hold a number or several, with their defaults."""
    found = {field.name: field.default for field in dataclasses.fields(cls)}
    return {
        name: value
        for name, value in found.items()
        if type(value) in (int, float)
        or (isinstance(value, tuple) and not any(isinstance(x, str) for x in value))
    }


def test_a_range_holds_what_is_between_its_ends():
    assert (
        0.5 in UNIT_POSITIVE
        and 1 in UNIT_POSITIVE
        and 0.0 not in UNIT_POSITIVE
        and 1.1 not in UNIT_POSITIVE
    )
    assert 1 in POSITIVE_INT and 10**400 in POSITIVE_INT and 0 not in POSITIVE_INT
    assert (
        -1e300 in FINITE and math.nan not in FINITE and math.inf not in FINITE and "1" not in FINITE
    )
    assert 0.9 in Bounds(0, 1, below=True) and 1 not in Bounds(0, 1, below=True)
    told = [
        str(x)
        for x in (
            POSITIVE_INT,
            POSITIVE,
            UNIT_POSITIVE,
            FINITE,
            Bounds(2, above=True),
            Bounds(high=3),
            Bounds(high=3, below=True),
        )
    ]
    assert told == [
        "at least 1",
        "positive",
        "in (0, 1]",
        "finite",
        "above 2",
        "at most 3",
        "below 3",
    ]


def test_a_class_has_the_ranges_of_its_bases():
    assert config_fields.of(CONFIGS["dsrl"]).keys() >= {"bound", "temperature", "gamma"}


@pytest.mark.parametrize("cls", CONFIGS.values(), ids=CONFIGS)
def test_every_number_has_a_range(cls):
    assert config_fields.of(cls).keys() == numeric(cls).keys()


@pytest.mark.parametrize("cls", CONFIGS.values(), ids=CONFIGS)
def test_what_is_outside_is_refused_in_one_line(cls):
    for name, default in numeric(cls).items():
        allowed = config_fields.of(cls)[name]
        outside = [math.nan, math.inf]
        if not math.isinf(allowed.low):
            outside.append(allowed.low if allowed.above else allowed.low - 1)
        if not math.isinf(allowed.high):
            outside.append(allowed.high if allowed.below else allowed.high + 1)
        for value in outside:
            given = (value,) if isinstance(default, tuple) else value
            with pytest.raises(
                ValueError, match=rf"{name} is .*; it must be .* \(default: "
            ) as error:
                cls(**{name: given})
            assert "\n" not in str(error.value)

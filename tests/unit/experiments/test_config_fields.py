"""Every number of a configuration has bounds; what is outside them is refused in one line."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcp_jax import algorithms, config
from gcp_jax.algorithms import bc
from gcp_jax.config_fields import (
    FINITE,
    MAX_COUNT,
    MAX_NUMBER,
    NON_NEGATIVE,
    POSITIVE,
    POSITIVE_INT,
    UNIT_POSITIVE,
    Bounds,
    ConfigError,
    allowed_values,
    build_config,
    check,
    check_bounds,
    describe,
    field,
    suggest,
)
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
    found = {row.name: row.default for row in describe(cls)}
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
    assert 0.9 in Bounds(0, 1, high_open=True) and 1 not in Bounds(0, 1, high_open=True)
    messages = [
        str(x)
        for x in (
            POSITIVE_INT,
            POSITIVE,
            UNIT_POSITIVE,
            FINITE,
            Bounds(2, low_open=True),
            Bounds(high=3),
            Bounds(high=3, high_open=True),
        )
    ]
    assert messages == [
        "at least 1",
        "positive",
        "in (0, 1]",
        "finite",
        "above 2",
        "at most 3",
        "below 3",
    ]


def test_a_class_has_the_bounds_of_its_bases():
    declared = {row.name: row.allowed for row in describe(CONFIGS["dsrl"])}
    assert declared["noise_bound"] and declared["temperature"] and declared["gamma"]


@pytest.mark.parametrize("cls", CONFIGS.values(), ids=CONFIGS)
def test_every_number_has_bounds(cls):
    without = [name for name in numeric(cls) if allowed_values(cls, name) is None]
    assert without == []


@pytest.mark.parametrize("cls", CONFIGS.values(), ids=CONFIGS)
def test_what_is_outside_is_refused_in_one_line(cls):
    for name, default in numeric(cls).items():
        allowed = allowed_values(cls, name)
        outside = [math.nan, math.inf]
        if not math.isinf(allowed.low):
            outside.append(allowed.low if allowed.low_open else allowed.low - 1)
        if not math.isinf(allowed.high):
            outside.append(allowed.high if allowed.high_open else allowed.high + 1)
        for value in outside:
            given = (value,) if isinstance(default, tuple) else value
            with pytest.raises(
                ConfigError, match=rf"{name} is .*; it must be .* \(default: "
            ) as error:
                cls(**{name: given})
            assert "\n" not in str(error.value)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(MAX_COUNT + 1, 10**30),
    st.floats(2 * MAX_NUMBER, 1e300),
    st.sampled_from(list(CONFIGS)),
)
def test_what_32_bits_do_not_hold_is_refused_in_one_line(count, number, name):
    """Every whole number above 2³¹ − 1 and every other above 1e30, of either sign."""
    cls = CONFIGS[name]
    for field_name, default in numeric(cls).items():
        one = default[0] if isinstance(default, tuple) and default else default
        value = number if isinstance(one, float) else count
        for signed in (value, -value):
            given_value = (signed,) if isinstance(default, tuple) else signed
            with pytest.raises(ConfigError, match=rf"\.{field_name} is ") as error:
                cls(**{field_name: given_value})
            assert "\n" not in str(error.value)


def test_the_magnitude_of_undeclared_numbers_is_checked_too():
    """Fields of a user's task or method that were not declared with bounds."""
    with pytest.raises(ConfigError, match=r"example\.free is 1e\+31; it must be at most 1e\+30 \("):
        Example(free=1e31)
    with pytest.raises(ConfigError, match=r"it must be at most 2147483647 \(default: 3\)"):
        Example(count=2**31)
    assert Example(free=1e30, count=2**31 - 1)


def test_seeds_end_below_two_to_the_31():
    env = config.EnvChoice(name="reach")
    assert config.RunConfig(env=env, seed=2**31 - 2, seeds=2).all_seeds[-1] == 2**31 - 1
    with pytest.raises(ConfigError, match="the last of seeds=2 from seed=2147483647 is 2147483648"):
        config.RunConfig(env=env, seed=2**31 - 1, seeds=2)


@dataclasses.dataclass(frozen=True)
class Example:
    count: int = field(3, POSITIVE_INT, "how many")
    mode: str = field("sac", ("sac", "td3"), "how it learns")
    noise: float | None = field(None, NON_NEGATIVE, "the noise, if any")
    widths: tuple[int, ...] = field((8,), POSITIVE_INT, "widths")
    corner: tuple[float, float] = field((0.0, 1.0), None, "a point")
    free: float = 1.0
    table: dict = field({}, None, "anything")

    def __post_init__(self):
        check(self, "example.")


def test_a_configuration_is_built_from_plain_values():
    built = build_config(Example, {"count": 2, "widths": [4, 4], "corner": [1, 2], "noise": 1})
    assert built == Example(count=2, widths=(4, 4), corner=(1.0, 2.0), noise=1.0)
    assert all(type(x) is float for x in (*built.corner, built.noise))
    assert build_config(Example, {}) == Example() and Example().table is not Example().table
    assert build_config(Example, {"noise": None}).noise is None


def test_fields_are_described_as_they_are_declared():
    rows = {row.name: row for row in describe(Example)}
    assert rows["count"] == ("count", 3, "at least 1", "how many")
    assert rows["mode"].allowed == "sac, td3"
    assert rows["corner"].allowed == ""
    assert rows["table"].default == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (3, "example is 3; a section with some of count, mode"),
        ({"cuont": 3}, r"there is no field 'example\.cuont'; did you mean 'count'"),
        ({"count": 0}, r"example\.count is 0; it must be at least 1 \(default: 3\)"),
        ({"count": 1.5}, r"example\.count is 1\.5; a value of type int is expected"),
        ({"count": True}, r"example\.count is True; a value of type int"),
        ({"mode": "ddpg"}, r"example\.mode is 'ddpg'; allowed: sac, td3"),
        ({"noise": -1}, r"example\.noise is -1\.0; it must be at least 0"),
        ({"noise": "some"}, r"example\.noise is 'some'; a value of type float"),
        ({"widths": 8}, r"example\.widths is 8; a tuple is expected"),
        ({"corner": [1.0]}, r"example\.corner is \(1\.0,\); a tuple of 2 is expected"),
        ({"corner": [1.0, math.inf]}, r"example\.corner is .*; it must be finite"),
        ({"free": math.nan}, r"example\.free is nan; it must be finite \(default: 1\.0\)"),
        ({"free": 10**400}, r"example\.free is 1000.*; it is too large for a float"),
    ],
)
def test_bad_values_are_refused_in_one_line(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        build_config(Example, values, "example.")
    assert "\n" not in str(error.value)


def test_bounds_that_depend_on_other_fields_are_checked_alike():
    check_bounds(Example(), "example.", {"count": Bounds(1, 3)})
    with pytest.raises(ConfigError, match=r"example\.count is 3; it must be in \[1, 2\]"):
        check_bounds(Example(), "example.", {"count": Bounds(1, 2)})


def test_an_unknown_name_gets_the_closest_one():
    assert suggest("rech", ("reach", "push_t")) == "did you mean 'reach'? allowed: reach, push_t"
    assert suggest("zzz", ("reach", "push_t")) == "allowed: reach, push_t"

"""Chunk returns and advantages against numbers worked by hand and plain loops, with and without
jit.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gcp_jax.core import returns
from gcp_jax.types import Step


@pytest.fixture(params=["plain", "jit"])
def variant(request):
    return jax.jit if request.param == "jit" else lambda function: function


def window(*, reward, terminated=(), truncated=(), executed=None):
    """One window [1, h] whose observations count up from 10; ends at the given steps, which stay up
    as in a frozen chunk.
    """
    h = len(reward)
    executed = h if executed is None else executed
    steps = np.arange(h)
    return Step(
        obs=jnp.asarray(10.0 + np.minimum(steps, executed))[None, :, None],
        action=jnp.arange(2.0 * h).reshape(1, h, 2),
        reward=jnp.asarray(reward)[None],
        next_obs=jnp.asarray(10.0 + np.minimum(steps + 1, executed))[None, :, None],
        terminated=jnp.asarray(steps >= min(terminated, default=h))[None],
        truncated=jnp.asarray(steps >= min(truncated, default=h))[None],
        success=jnp.zeros((1, h), bool),
        executed=jnp.asarray(steps < executed)[None],
    )


CASES = {
    # γ = ½; rewards 1, 2, 4: 1 + 2/2 + 4/4 = 3
    "runs through": (window(reward=[1.0, 2.0, 4.0]), 3.0, 0.125, 13.0, [1, 1, 1], (False, False)),
    "terminates at its last step": (
        window(reward=[1.0, 2.0, 4.0], terminated=[2]),
        3.0,
        0.0,
        13.0,
        [1, 1, 1],
        (True, False),
    ),
    "truncated at its last step": (
        window(reward=[1.0, 2.0, 4.0], truncated=[2]),
        3.0,
        0.125,
        13.0,
        [1, 1, 1],
        (False, True),
    ),
    "terminates inside": (
        window(reward=[1.0, 2.0, 999.0], terminated=[1], executed=2),
        *(2.0, 0.0, 12.0, [1, 1, 0], (True, False)),
    ),
    "truncated inside": (
        window(reward=[1.0, 2.0, 999.0], truncated=[1], executed=2),
        *(2.0, 0.25, 12.0, [1, 1, 0], (False, True)),
    ),
    "ends at once, garbage after": (
        window(reward=[1.0, np.nan, np.nan], truncated=[0], executed=1),
        *(1.0, 0.5, 11.0, [1, 0, 0], (False, True)),
    ),
    "runs into the next episode": (
        window(reward=[1.0, 2.0, 4.0], terminated=[0], executed=3),
        *(1.0, 0.0, 11.0, [1, 0, 0], (True, False)),
    ),
    "both flags: terminated wins": (
        window(reward=[1.0, 2.0, 4.0], terminated=[1], truncated=[1], executed=2),
        *(2.0, 0.0, 12.0, [1, 1, 0], (True, False)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_fold_by_hand(case, variant):
    steps, reward, discount, next_obs, mask, (terminated, truncated) = CASES[case]
    folded = variant(lambda s: returns.fold_chunk(s, 0.5))(steps)
    assert (folded.reward.item(), folded.discount.item()) == (reward, discount)
    assert (folded.obs.item(), folded.next_obs.item()) == (10.0, next_obs)
    assert (folded.terminated.item(), folded.truncated.item()) == (terminated, truncated)
    np.testing.assert_array_equal(folded.mask, [mask])
    np.testing.assert_array_equal(folded.action, steps.action)
    assert folded.extras == {}


def test_fold_takes_any_leading_axes_and_carries_extras(variant):
    windows = [case[0] for case in CASES.values()]
    extras = {"value": jnp.arange(8.0).reshape(2, 4)}
    stacked = jax.tree.map(lambda *x: jnp.concatenate(x).reshape(2, 4, *x[0].shape[1:]), *windows)
    folded = variant(lambda s: returns.fold_chunk(s, 0.5, extras))(stacked)
    for index, case in enumerate(CASES.values()):
        place = divmod(index, 4)
        assert (
            folded.reward[place],
            folded.discount[place],
            folded.next_obs[place].item(),
        ) == case[1:4]
    np.testing.assert_array_equal(folded.extras["value"], extras["value"])


def test_discount_is_gamma_to_the_executed_steps():
    for executed in range(1, 5):
        steps = window(reward=[0.0] * 4, truncated=[executed - 1], executed=executed)
        np.testing.assert_allclose(
            returns.fold_chunk(steps, 0.9).discount, 0.9**executed, rtol=1e-6
        )


def test_gae_by_hand(variant):
    """λ = ½, d = ½, V = 1 everywhere: δ = r − ½; the end at t = 1 is a time limit, at t = 3 a
    termination.
    """
    column = {
        "reward_t": jnp.array([1.0, 2.0, 4.0, 8.0]),
        "discount_t": jnp.array([0.5, 0.5, 0.5, 0.0]),
        "truncated_t": jnp.array([0.0, 1.0, 0.0, 0.0]),
        "value_t": jnp.ones(4),
        "value_tp1": jnp.ones(4),
    }
    advantage = variant(lambda **kwargs: returns.gae(lambda_=0.5, **kwargs))(**column)
    np.testing.assert_allclose(advantage, [0.5 + 0.25 * 1.5, 1.5, 3.5 + 0.25 * 7.0, 7.0])


def test_gae_equals_its_double_sum(variant):
    """A_t = Σ_l (Π_{k<l} λ d_{t+k} (1 − truncated_{t+k})) δ_{t+l}, summed without any recursion."""
    rng = np.random.default_rng(0)
    shape = (12, 3)
    reward, value, following = rng.standard_normal((3, *shape))
    terminated, truncated = rng.random((2, *shape)) < 0.2
    discount = 0.9 ** rng.integers(1, 4, shape) * (1.0 - terminated)
    delta = reward + discount * following - value
    expected = np.zeros(shape)
    for t in range(12):
        weight = np.ones(3)
        for later in range(t, 12):
            expected[t] += weight * delta[later]
            weight *= 0.8 * discount[later] * (1.0 - truncated[later])
    names = ("reward_t", "discount_t", "truncated_t", "value_t", "value_tp1")
    arrays = [jnp.asarray(x, jnp.float32) for x in (reward, discount, truncated, value, following)]
    advantage = variant(lambda **kwargs: returns.gae(lambda_=0.8, **kwargs))(
        **dict(zip(names, arrays, strict=True))
    )
    np.testing.assert_allclose(advantage, expected, rtol=1e-4, atol=1e-5)


def test_group_and_leave_one_out_advantages_by_hand(variant):
    q = jnp.array([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    np.testing.assert_allclose(
        variant(returns.group_advantage)(q), [[-2.0, -1.0, 3.0], [-1.0, -1.0, 2.0]]
    )
    np.testing.assert_allclose(
        variant(returns.leave_one_out_advantage)(q),
        [[-3.0, -1.5, 4.5], [-1.5, -1.5, 3.0]],
        rtol=1e-6,
    )


def test_group_advantages_take_any_leading_axes(variant):
    q = jnp.arange(24.0).reshape(2, 4, 3) ** 2
    for advantage in (variant(returns.group_advantage), variant(returns.leave_one_out_advantage)):
        np.testing.assert_allclose(
            advantage(q), jnp.stack([advantage(part) for part in q]), rtol=1e-6
        )


def test_conservative_advantage_needs_every_head_to_agree(variant):
    heads = jnp.array(
        [[2.0, -3.0, 1.0, 0.0, 5.0], [1.0, -1.0, -1.0, 4.0, 5.0], [3.0, -2.0, 0.5, 4.0, 5.0]]
    )
    np.testing.assert_array_equal(
        variant(returns.sign_consensus_advantage)(heads), [1.0, -1.0, 0.0, 0.0, 5.0]
    )
    np.testing.assert_array_equal(
        variant(returns.sign_consensus_advantage)(jnp.array([[-0.5], [0.5]])), [0.0]
    )


def test_hindsight_by_hand(variant):
    """γ = ½: the first episode ends at t = 2 in failure, the second at t = 4 in success, the third
    is not over.
    """
    known, outcome, total = variant(
        lambda **kwargs: returns.monte_carlo_return(gamma=0.5, **kwargs)
    )(
        reward_t=jnp.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]),
        ended_t=jnp.array([False, False, True, False, True, False]),
        outcome_t=jnp.array([True, True, False, False, True, True]),
    )
    np.testing.assert_array_equal(known, [True, True, True, True, True, False])
    np.testing.assert_array_equal(outcome, [False, False, False, True, True, False])
    np.testing.assert_allclose(total[:5], [3.0, 4.0, 4.0, 16.0, 16.0])


def test_hindsight_equals_looking_ahead_from_every_step(variant):
    rng = np.random.default_rng(1)
    reward = rng.standard_normal((20, 4)).astype(np.float32)
    ended, success = rng.random((2, 20, 4)) < 0.25
    known, outcome, total = variant(
        lambda **kwargs: returns.monte_carlo_return(gamma=0.9, **kwargs)
    )(
        reward_t=jnp.asarray(reward),
        ended_t=jnp.asarray(ended),
        outcome_t=jnp.asarray(ended & success),
    )
    for t in range(20):
        for column in range(4):
            ends = np.flatnonzero(ended[t:, column])
            assert known[t, column] == bool(len(ends))
            if len(ends):
                last = ends[0] + 1
                rewards = reward[t : t + last, column]
                assert outcome[t, column] == success[t + ends[0], column]
                np.testing.assert_allclose(
                    total[t, column], rewards @ 0.9 ** np.arange(last), rtol=1e-4, atol=1e-5
                )


def test_moments_of_parts_are_those_of_all_numbers(variant):
    """Parts of unequal size, mean and spread, merged one after another; the shape of a part does
    not matter.
    """
    rng = np.random.default_rng(2)
    parts = [
        rng.normal(mean, std, shape)
        for mean, std, shape in ((3, 1, (4, 5)), (-20, 7, (2, 3)), (50, 0.1, (30,)))
    ]
    moments, merge = (
        returns.Moments.empty(),
        variant(lambda moments, x: moments.update(x)),
    )
    for n, part in enumerate(parts):
        moments = merge(moments, jnp.asarray(part, jnp.float32))
        seen = np.concatenate([x.ravel() for x in parts[: n + 1]])
        assert moments.total == seen.size
        np.testing.assert_allclose(moments.mean, seen.mean(), rtol=1e-5)
        np.testing.assert_allclose(moments.deviation, np.sum((seen - seen.mean()) ** 2), rtol=1e-5)
        np.testing.assert_allclose(moments.std, seen.std(), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.0, 742.3, -90.1, 20_700.1])
def test_the_std_of_what_never_changes_is_one(value, variant):
    moments, merge = (
        returns.Moments.empty(),
        variant(lambda moments, x: moments.update(x)),
    )
    assert moments.std == 1
    for x in (jnp.full((1,), value), jnp.full((3, 7), value), jnp.full((10, 100), value)):
        moments = merge(moments, x)
        assert moments.std == 1


def test_running_return_by_hand(variant):
    """The decay after t = 1 is 0: an end."""
    total = variant(lambda **kwargs: returns.running_return(**kwargs))(
        reward_t=jnp.array([[1.0], [2.0], [4.0], [8.0]]),
        decay_t=jnp.array([[0.5], [0.0], [0.25], [0.5]]),
    )
    np.testing.assert_allclose(total, [[1.0], [2.5], [4.0], [9.0]])


def test_observed_returns_restart_after_a_termination_and_after_a_time_limit(variant):
    """γ = ½ and rewards 1, 2, 4, 8: the second chunk is terminated, the third is cut by the time
    limit: R = 1, 2.5, 4, 8.
    """
    column = {"reward": [1.0, 2.0, 4.0, 8.0], "discount": [0.5, 0.0, 0.5, 0.5]}
    fields = {name: jnp.asarray(values)[:, None] for name, values in column.items()}
    truncated = jnp.array([False, False, True, False])[:, None]
    empty = dict.fromkeys(("obs", "action", "mask", "next_obs", "terminated", "extras"))
    data = returns.Transition(**empty, **fields, truncated=truncated)
    moments = variant(returns.update_moments)(returns.Moments.empty(), data)
    seen = np.array([1.0, 2.5, 4.0, 8.0])
    np.testing.assert_allclose(
        (moments.total, moments.mean, moments.std), (4, seen.mean(), seen.std()), rtol=1e-6
    )


def test_rounding_is_not_divided_by_itself(variant):
    """Groups of four: one varies, one is the same up to its last bits."""
    q = jnp.array([[1.0, 2.0, 3.0, 6.0], [-90.1, -90.1, -90.100006, -90.1]])
    divide = variant(partial(returns.divide_by_std, epsilon=1e-6))
    found = divide(
        returns.group_advantage(q),
        std=jnp.std(q, -1, keepdims=True),
        level=jnp.mean(q, -1, keepdims=True),
    )
    np.testing.assert_allclose(found[0], np.array([-2.0, -1.0, 0.0, 3.0]) / np.sqrt(3.5), rtol=1e-5)
    np.testing.assert_array_equal(found[1], 0.0)


def test_normalized_advantages_have_mean_0_and_std_1(variant):
    """Mean 4, std √5; what is everywhere the same becomes 0, not NaN."""
    result = variant(returns.normalize_advantage)(jnp.array([1.0, 3.0, 5.0, 7.0]))
    np.testing.assert_allclose(result, np.array([-3.0, -1.0, 1.0, 3.0]) / np.sqrt(5.0), rtol=1e-6)
    for value, count in ((2.0, 4), (742.3, 100), (-90.1, 3000), (0.1, 1000)):
        same = variant(returns.normalize_advantage)(jnp.full(count, value))
        np.testing.assert_array_equal(same, np.zeros(count))

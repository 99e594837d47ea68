"""Trajectory quality and state-action coverage: closed forms, and the smallest task."""

import itertools

import jax
import numpy as np
import pytest

from gcp_jax import envs
from gcp_jax.envs.demos import quality
from gcp_jax.envs.demos.collect import REFERENCES, collect
from gcp_jax.types import Step

HORIZON = 25


@pytest.fixture(scope="module")
def collected():
    """Demonstrations of ``reach`` at some noise levels, on the host."""
    env = envs.make("reach", horizon=HORIZON)
    return {
        noise: jax.device_get(collect(env, noise, jax.random.key(0), 64))
        for noise in (0.0, 1.0, 3.0)
    }


def test_rarefaction_is_the_mean_over_all_draws():
    counts = np.array([3, 1, 2, 1])
    kinds = np.repeat(np.arange(4), counts)
    for drawn in range(1, len(kinds) + 1):
        every = [len(set(part)) for part in itertools.combinations(kinds, drawn)]
        assert quality.rarefied(counts, drawn) == pytest.approx(np.mean(every), rel=1e-9)


def test_trajectory_quality_is_0_at_random_and_1_at_the_clean_demonstrator():
    assert quality.trajectory_quality(-4.0, clean=6.0, random=-4.0) == 0
    assert quality.trajectory_quality(6.0, clean=6.0, random=-4.0) == 1
    assert quality.trajectory_quality(1.0, clean=6.0, random=-4.0) == 0.5
    assert quality.trajectory_quality(1.0, clean=1.0, random=1.0) is None


def test_coverage_of_the_reference_itself_is_1_and_of_one_pair_is_one_of_its_cells():
    reference = np.random.default_rng(1).standard_normal((500, 6))
    assert quality.coverage(reference, reference) == pytest.approx(1)
    assert quality.coverage(
        reference[np.random.default_rng(2).permutation(500)], reference
    ) == pytest.approx(1)
    one = quality.coverage(np.repeat(reference[:1], 500, 0), reference)
    assert 1 / 500 <= one < 0.02 and round(1 / one, 6).is_integer()


def test_coverage_does_not_depend_on_units_or_on_what_never_changes():
    source = np.random.default_rng(3)
    pairs, reference = source.standard_normal((2, 300, 4)) * [1, 2, 1, 0.5]
    plain = quality.coverage(pairs, reference)
    scaled = [x * [1000, 1, 0.01, 1] + [5, 0, 0, -3] for x in (pairs, reference)]
    assert quality.coverage(*scaled) == pytest.approx(plain)
    reference[:, 3] = pairs[:, 3] = 7.0
    assert np.isfinite(quality.coverage(pairs, reference))
    constant = quality.coverage(pairs, reference)
    for x in (pairs, reference):
        x[:, 3] = np.float32(742.3) + np.spacing(np.float32(742.3)) * source.integers(0, 2, 300)
    assert quality.coverage(pairs, reference) == pytest.approx(constant)


def test_only_executed_steps_count():
    obs, action = np.arange(6.0).reshape(3, 2, 1), np.zeros((3, 2, 1))
    reward, executed = np.ones((3, 2)), np.array([[True, True], [True, False], [False, False]])
    steps = Step(obs, action, reward, obs, *[np.zeros((3, 2), bool)] * 3, executed)
    np.testing.assert_array_equal(quality.returns(steps), [2, 1])
    np.testing.assert_array_equal(np.sort(quality.visited(steps)[:, 0]), [0, 1, 2])


def test_noise_lowers_the_quality_of_demonstrations_and_widens_what_they_cover(collected):
    found = [each.facts() for each in collected.values()]
    tq, saco = ([facts[name] for facts in found] for name in ("trajectory_quality", "coverage"))
    assert tq[0] == pytest.approx(1, abs=0.15) and tq[0] > tq[1] > tq[2]
    assert saco[0] < saco[1] < saco[2]


def test_references_are_the_same_whatever_is_demonstrated_and_random_actions_are_uniform(collected):
    one, other = collected[0.0], collected[3.0]
    jax.tree.map(
        np.testing.assert_array_equal, (one.clean, one.random), (other.clean, other.random)
    )
    assert one.clean.reward.shape == one.random.reward.shape == (HORIZON, REFERENCES)
    action = one.random.action[one.random.executed]
    assert np.abs(action).max() <= 1
    np.testing.assert_allclose((action.mean(), action.std()), (0, 1 / np.sqrt(3)), atol=0.05)

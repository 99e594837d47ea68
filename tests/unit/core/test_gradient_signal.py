"""The signal in gradients against gradients whose signal and noise are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gcp_jax.core.gradient_signal import DECAY, Average, Balance, Signal


def test_an_average_weighs_later_numbers_more():
    numbers = np.array([3.0, -1.0, 4.0, 1.0])
    average = Average.empty()
    assert average.mean == 0.0
    for x in numbers:
        average = average.add(jnp.float32(x))
    weight = DECAY ** np.arange(len(numbers))[::-1]
    np.testing.assert_allclose(average.mean, np.average(numbers, weights=weight), rtol=1e-5)


@pytest.mark.parametrize("snr", [0.0, 0.3, 2.0])
def test_the_ratio_of_signal_to_noise_is_found(snr):
    """Of gradients of 20,000 numbers with a fixed mean and independent noise."""
    size = 20_000
    rng = np.random.default_rng(0)
    mean = rng.standard_normal(size) * snr
    signal = Signal.empty({"a": jnp.zeros(size // 2), "b": jnp.zeros((2, size // 4))})
    for _ in range(200):
        gradient = np.asarray(mean + rng.standard_normal(size), np.float32)
        signal = signal.add({"a": gradient[: size // 2], "b": gradient[size // 2 :].reshape(2, -1)})
    np.testing.assert_allclose(signal.snr, snr, rtol=0.03, atol=0.05)


def test_updates_without_a_gradient_are_left_out():
    gradient = {"a": jnp.array([1.0, 2.0])}
    nothing = jax.tree.map(jnp.zeros_like, gradient)
    once = Signal.empty(gradient).add(nothing).add(gradient)
    again = once.add(nothing)
    jax.tree.map(np.testing.assert_array_equal, once, again)
    assert once.snr == 0.0
    twice = again.add(gradient)
    np.testing.assert_allclose(twice.product.mean, 5.0, rtol=1e-6)
    np.testing.assert_allclose(twice.square.mean, 5.0, rtol=1e-6)


def test_balanced_gradients_have_the_weights_norm():
    policy = {"a": jnp.array([3.0, 4.0])}
    imitation = {"a": jnp.array([0.0, 100.0])}
    balance = Balance.empty().add(policy_norm=jnp.float32(5.0), imitation_norm=jnp.float32(100.0))
    total = balance.weighted_sum(policy, imitation, weight=0.1)
    np.testing.assert_allclose(total["a"], [0.6, 0.9], rtol=1e-6)


def test_a_gradient_that_was_always_zero_is_left_out():
    """And not divided by its norm."""
    balance = Balance.empty().add(policy_norm=jnp.float32(0.0), imitation_norm=jnp.float32(2.0))
    total = balance.weighted_sum(jnp.zeros(2), jnp.array([0.0, 2.0]), weight=1.0)
    np.testing.assert_allclose(total, [0.0, 1.0])

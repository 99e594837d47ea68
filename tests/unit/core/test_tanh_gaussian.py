"""Tanh-Gaussian actors against scipy: densities by change of variables, both losses, Adam's steps
of actor and temperature.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.by_hand import assert_first_adam_step, assert_one_line, mlp
from jax.sharding import PartitionSpec as P
from scipy import integrate, stats

from gcp_jax.core import tanh_gaussian

CONFIG = tanh_gaussian.Config(
    actor_hidden=(4,), actor_lr=0.01, temperature=0.3, temperature_lr=0.05, target_entropy=-0.5
)
SIZES, D, B = (2, 3), 2, 6


def log_slope(x):
    """log(1 − tanh² x) = −2 log cosh x, which float64 holds for every x."""
    x = np.asarray(x, np.float64)
    return -2 * (np.logaddexp(x, -x) - np.log(2))


def spread_of(log_std):
    return np.exp(np.clip(np.asarray(log_std, np.float64), -5, 2))


def log_density_of(mean, log_std, noise):
    std = spread_of(log_std)
    x = mean + std * noise
    return np.sum(stats.norm.logpdf(x, mean, std) - log_slope(x), -1)


def halves(params, inputs):
    return np.split(mlp(params, *inputs), 2, -1)


def inputs_of(seed, count=B):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal((count, size)), jnp.float32) for size in SIZES)


@pytest.fixture(scope="module")
def actor():
    return tanh_gaussian.make_actor(CONFIG, SIZES, D)


@pytest.fixture(scope="module")
def state(actor):
    return actor.init(jax.random.key(0))


def test_squashed_density_is_the_gaussians_by_change_of_variables():
    rng = np.random.default_rng(0)
    mean, noise = rng.standard_normal((2, 50, D)).astype(np.float32)
    log_std = rng.uniform(-3, 1, (50, D)).astype(np.float32)
    u, found = tanh_gaussian.squash_gaussian(*map(jnp.asarray, (mean, log_std, noise)))
    x = mean.astype(np.float64) + spread_of(log_std) * noise
    np.testing.assert_allclose(u, np.tanh(x), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found, log_density_of(mean, log_std, noise), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (1.0, -1.0), (-0.5, 0.7)])
def test_the_density_integrates_to_one_over_the_unit_action(mean, log_std):
    u = np.concatenate(
        [-1 + np.geomspace(1e-6, 1, 3000), 1 - np.geomspace(1, 1e-6, 3000)[1:]]
    ).astype(np.float32)
    x = np.arctanh(u.astype(np.float64))
    noise = (x - mean) / np.exp(log_std)
    full = partial(jnp.full, (len(u), 1))
    _, found = tanh_gaussian.squash_gaussian(
        full(mean), full(log_std), jnp.asarray(noise[:, None], jnp.float32)
    )
    assert (
        abs(integrate.trapezoid(np.exp(np.asarray(found, np.float64)), u.astype(np.float64)) - 1)
        < 2e-3
    )


@pytest.mark.parametrize("x", [10.0, 20.0, -20.0, 300.0])
def test_the_density_is_exact_and_differentiable_where_the_action_rounds_to_its_bound(x):
    mean, std = jnp.full((1, 1), x), jnp.zeros((1, 1))
    u, found = tanh_gaussian.squash_gaussian(mean, std, jnp.full((1, 1), 0.5))
    with np.errstate(divide="ignore"):
        assert np.log(1 - np.float32(u[0, 0]) ** 2) - log_slope(x + 0.5) > 3 or abs(u[0, 0]) == 1
    np.testing.assert_allclose(found, log_density_of(np.full((1, 1), x), 0.0, 0.5), rtol=1e-5)
    slope = jax.grad(lambda m: tanh_gaussian.squash_gaussian(m, std, jnp.full((1, 1), 0.5))[1][0])(
        mean
    )
    np.testing.assert_allclose(
        slope, 2 * np.sign(x), rtol=1e-5
    )  # d/dμ of −log(1 − tanh²) = 2 tanh x


@pytest.mark.parametrize(("log_std", "std"), [(-100.0, np.exp(-5.0)), (50.0, np.exp(2.0))])
def test_the_standard_deviation_is_clipped(log_std, std):
    noise = jnp.array([[0.1, -0.05]])
    u, found = tanh_gaussian.squash_gaussian(jnp.zeros((1, 2)), jnp.full((1, 2), log_std), noise)
    x = std * np.asarray(noise, np.float64)
    np.testing.assert_allclose(u, np.tanh(x), rtol=1e-5)
    np.testing.assert_allclose(
        found, np.sum(stats.norm.logpdf(x, 0, std) - log_slope(x), -1), rtol=1e-5
    )


def test_draws_are_the_networks_gaussian_with_its_density(actor, state):
    """5000 rows of one input: their noise, recovered from u, is standard normal and independent
    between dimensions.
    """
    inputs = tuple(jnp.repeat(x, 5000, 0) for x in inputs_of(0, 1))
    u, log_density = jax.jit(actor.sample)(state.params, inputs, jax.random.key(1))
    mean, log_std = halves(state.params, [x[:1] for x in inputs])
    noise = (np.arctanh(np.asarray(u, np.float64)) - mean) / spread_of(log_std)
    well = np.abs(u).max(-1) < 0.999  # where float32 still tells u from ±1
    assert well.mean() > 0.9
    np.testing.assert_allclose(
        log_density[well], log_density_of(mean, log_std, noise)[well], atol=2e-3
    )
    assert all(stats.kstest(column, "norm").pvalue > 1e-3 for column in noise.T)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.06


def test_a_rows_draw_depends_on_no_other_row(actor, state):
    one, two = inputs_of(0), inputs_of(1)
    mixed = tuple(jnp.concatenate([a[:2], b[2:]]) for a, b in zip(one, two, strict=True))
    key = jax.random.key(2)
    draw = jax.jit(lambda inputs, key: actor.sample(state.params, inputs, key)[0])
    full, changed, fewer = (draw(inputs, key) for inputs in (one, mixed, tuple(x[:2] for x in one)))
    np.testing.assert_array_equal(full[:2], changed[:2])
    np.testing.assert_allclose(full[:2], fewer, rtol=1e-6)
    assert np.abs(np.asarray(full[2:] - changed[2:])).min() > 1e-6
    assert np.abs(np.asarray(full - draw(one, jax.random.key(3)))).min() > 1e-6


def test_samples_between_the_axes_broadcast_and_differ(actor, state):
    rng = np.random.default_rng(4)
    obs, action = jnp.asarray(rng.standard_normal((B, 1, 2)), jnp.float32), jnp.zeros((B, 4, 3))
    u, log_density = jax.jit(actor.sample)(state.params, (obs, action), jax.random.key(0))
    assert (u.shape, log_density.shape) == ((B, 4, D), (B, 4))
    assert np.asarray(u).std(1).min() > 1e-3


def test_the_mode_is_the_squashed_mean_and_zero_for_a_zero_last_layer(actor, state):
    inputs = inputs_of(0)
    np.testing.assert_allclose(
        actor.mode(state.params, inputs), np.tanh(halves(state.params, inputs)[0]), atol=1e-5
    )
    still = tanh_gaussian.make_actor(CONFIG, SIZES, D, last_scale=0.0)
    assert np.all(np.asarray(still.mode(still.init(jax.random.key(0)).params, inputs)) == 0)
    small = tanh_gaussian.make_actor(CONFIG, SIZES, D, last_scale=1e-4)
    size = np.abs(np.asarray(small.mode(small.init(jax.random.key(0)).params, inputs))).max()
    assert 0 < size < 0.05 < np.abs(np.asarray(actor.mode(state.params, inputs))).max()


def worth(u):
    return jnp.sum(jnp.sin(2.0 * u) + 0.3 * u, -1)


def test_the_actor_takes_an_adam_step_on_its_loss_and_the_temperature_on_its_own(actor, state):
    """E[α log π(u) − Q(u)] with the noise that the value function saw; log α · (H − D·H̄) for the
    temperature.
    """
    inputs, seen = inputs_of(0), []

    def watched(u):
        jax.debug.callback(lambda u: seen.append(np.asarray(u, np.float64)), u)
        return worth(u)

    after, metrics = jax.jit(lambda state, key: actor.update(state, inputs, watched, key))(
        state, jax.random.key(4)
    )
    jax.effects_barrier()
    mean, log_std = halves(state.params, inputs)
    noise = (np.arctanh(seen[0]) - mean) / spread_of(log_std)
    assert np.abs(noise).max() < 4

    def parts(net):
        mean, log_std = halves(net, inputs)
        u = np.tanh(mean + spread_of(log_std) * noise)
        return log_density_of(mean, log_std, noise), np.sum(np.sin(2 * u) + 0.3 * u, -1)

    def loss(net):
        log_density, value = parts(net)
        return np.mean(0.3 * log_density - value)

    size = assert_first_adam_step(
        loss, state.params, after.params, after.opt_state, CONFIG.actor_lr
    )
    log_density, value = parts(state.params)
    entropy = -log_density.mean()
    sign = np.sign(entropy + D * 0.5)
    np.testing.assert_allclose(
        10 * optax.tree.get(after.alpha_opt_state, "mu"), entropy + D * 0.5, rtol=1e-4
    )
    np.testing.assert_allclose(after.log_alpha, np.log(0.3) - 0.05 * sign, rtol=1e-5)
    expected = {
        "actor_loss": loss(state.params),
        "actor_q": value.mean(),
        "entropy": entropy / D,
        "actor_gradient_norm": size,
        "temperature": 0.3 * np.exp(-0.05 * sign),
    }
    assert metrics.keys() == expected.keys()
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=2e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("out_dim", [1, 3])
def test_the_temperature_falls_where_the_entropy_per_dimension_exceeds_its_target_and_rises_below(
    out_dim,
):
    """The target is a number per dimension, whatever their count."""
    actor = tanh_gaussian.make_actor(CONFIG, SIZES, out_dim)
    state, inputs, key = actor.init(jax.random.key(0)), inputs_of(0), jax.random.key(5)
    mean, log_std = halves(state.params, inputs)
    u = np.asarray(jax.jit(actor.sample)(state.params, inputs, key)[0], np.float64)
    entropy = (
        -log_density_of(mean, log_std, (np.arctanh(u) - mean) / spread_of(log_std)).mean() / out_dim
    )
    for gap in (0.02, -0.02):
        target = entropy - gap
        tuned = tanh_gaussian.make_actor(
            dataclasses.replace(CONFIG, target_entropy=target), SIZES, out_dim
        )
        after, _ = jax.jit(tuned.update, static_argnums=2)(state, inputs, worth, key)
        assert np.sign(float(state.alpha) - float(after.alpha)) == np.sign(gap)
        np.testing.assert_allclose(
            10 * optax.tree.get(after.alpha_opt_state, "mu"), gap * out_dim, rtol=1e-2
        )


def test_the_first_temperature_is_the_configs(state):
    np.testing.assert_allclose(state.alpha, 0.3, rtol=1e-6)


def test_two_devices_improve_as_one(actor, state, devices):
    inputs, key = inputs_of(0), jax.random.key(6)

    def improve(state, *inputs):
        return actor.update(state, inputs, worth, key)[0]

    spread = jax.shard_map(
        improve,
        mesh=devices(data=2),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
        check_vma=True,
    )
    one, two = jax.jit(improve)(state, *inputs), jax.jit(spread)(state, *inputs)
    memory = [
        [optax.tree.get(opt, "mu") for opt in (each.opt_state, each.alpha_opt_state)]
        + [each.log_alpha]
        for each in (one, two)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *memory)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "algorithm.temperature is 0.0; it must be positive"),
        ({"temperature": float("nan")}, "algorithm.temperature is nan; it must be positive"),
        ({"target_entropy": 0.7}, "algorithm.target_entropy is 0.7; it must be below 0.693147"),
        ({"critics": 1}, "algorithm.critics is 1; it must be at least 2"),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        tanh_gaussian.Config(**settings)
    assert_one_line(error)

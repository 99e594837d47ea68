"""The schedule and both samplers against published formulas and the marginals of a known Gaussian;
densities against scipy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gcp_jax.core import denoising as chain_lib
from gcp_jax.core import diffusion
from gcp_jax.core.diffusion import DiffusionSampler

MEAN, STD = 0.2, 0.1


def exact_epsilon(sampler):
    """E[ε | x_k = x] for a ~ N(MEAN, STD²): the perfect noise prediction at the chain's levels."""

    def epsilon(x, t):
        alpha_bar, _ = sampler.alpha_bars(t)
        alpha_bar = alpha_bar[..., None]
        return (
            jnp.sqrt(1 - alpha_bar)
            * (x - jnp.sqrt(alpha_bar) * MEAN)
            / (alpha_bar * STD**2 + 1 - alpha_bar)
        )

    return epsilon


def curved_epsilon(x, t):
    return jnp.sin(3.0 * x + t[..., None]) + 0.3 * jnp.roll(x, 1, -1)


def test_the_schedule_is_nichol_and_dhariwals():
    alpha_bar = diffusion.cosine_schedule(100)
    f = np.cos((np.arange(101) / 100 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(alpha_bar[:-1], f[:-1] / f[0], rtol=1e-12)
    assert alpha_bar[-1] / alpha_bar[-2] == pytest.approx(0.001)  # β cut at .999


def test_the_chain_visits_every_ratio_th_level_from_noise_to_data():
    alpha_bar = diffusion.cosine_schedule(12)
    for steps in (12, 4):
        sampler = DiffusionSampler(steps, 0.1, "ddpm", 12)
        begin, end = sampler.alpha_bars(sampler.times)
        np.testing.assert_allclose(begin, alpha_bar[12 : 0 : -12 // steps], rtol=1e-6)
        np.testing.assert_allclose(end, alpha_bar[12 - 12 // steps :: -12 // steps], rtol=1e-6)
        assert end[-1] == 1.0


def test_ddpm_steps_have_the_posterior_of_ho_et_al():
    """Mean and variance of q(x_{k−1} | x_k, â), eq. 6 and 7, in float64."""
    steps = 8
    sampler, alpha_bar = DiffusionSampler(steps, 1e-3, "ddpm"), diffusion.cosine_schedule(steps)
    x = np.random.default_rng(0).standard_normal((steps, 3))
    t = np.arange(steps) / steps
    mean, std = sampler.stochastic_step(curved_epsilon)(
        jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.float32)
    )
    epsilon = np.asarray(curved_epsilon(x, t), np.float64)
    for i in range(steps):
        now, before = alpha_bar[steps - i], alpha_bar[steps - i - 1]
        beta = 1 - now / before
        clean = np.clip((x[i] - np.sqrt(1 - now) * epsilon[i]) / np.sqrt(now), -1, 1)
        expected = (
            np.sqrt(before) * beta / (1 - now) * clean
            + np.sqrt(1 - beta) * (1 - before) / (1 - now) * x[i]
        )
        np.testing.assert_allclose(mean[i], expected, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(
            std[i], max(np.sqrt((1 - before) / (1 - now) * beta), 1e-3), rtol=1e-4
        )


def end_of(name, steps, train_steps, samples):
    noise = jax.random.normal(jax.random.key(0), (samples, steps + 1, 1))
    if name == "ddpm":
        sampler = DiffusionSampler(steps, 1e-3, "ddpm", train_steps)
        return chain_lib.sample_chain(
            sampler.stochastic_step(exact_epsilon(sampler)), noise, sampler.times
        ).points[:, -1]
    sampler = DiffusionSampler(steps, 1e-3, "ddim", train_steps)
    return chain_lib.integrate_ode(
        sampler.deterministic_step(exact_epsilon(sampler)), noise[:, 0], sampler.times
    )


@pytest.mark.parametrize(("name", "ratio"), [("ddpm", 1), ("ddim", 1), ("ddim", 2)])
def test_samplers_converge_to_the_data(name, ratio):
    """Both are too narrow with few steps (DDPM's posterior has the smallest variance of its
    choices) and exact with many.
    """
    coarse, fine = (end_of(name, steps, ratio * steps, 10_000) for steps in (50, 400))
    assert abs(np.mean(fine) - MEAN) < 0.004
    assert 0 < STD - np.std(fine) < 0.25 * (STD - np.std(coarse))


def test_ddim_chain_follows_the_deterministic_sampler_up_to_sigma():
    sampler = DiffusionSampler(6, 0.05, "ddim")
    noise = jnp.zeros((4, 7, 2)).at[:, 0].set(jax.random.normal(jax.random.key(0), (4, 2)))
    chain = chain_lib.sample_chain(
        sampler.stochastic_step(curved_epsilon), noise, sampler.times
    ).points
    expected = chain_lib.integrate_ode(
        sampler.deterministic_step(curved_epsilon), noise[:, 0], sampler.times
    )
    np.testing.assert_allclose(chain_lib.chain_action(chain), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sampler.std(sampler.times), 0.05)


@pytest.mark.parametrize("scheme", diffusion.SCHEMES)
def test_densities_equal_scipy_and_sigma_is_the_floor(scheme):
    sampler = DiffusionSampler(5, 0.3, scheme)
    noise = jax.random.normal(jax.random.key(1), (2, 3, 6, 2))
    chain = chain_lib.sample_chain(sampler.stochastic_step(curved_epsilon), noise, sampler.times)
    assert np.min(chain.std) == pytest.approx(0.3)
    expected = stats.norm.logpdf(chain.points[..., 1:, :], chain.mean, chain.std)
    np.testing.assert_allclose(chain.log_densities, expected, rtol=1e-4, atol=1e-5)
    again = chain_lib.rescore_chain(
        sampler.stochastic_step(curved_epsilon), chain.points, sampler.times
    )
    np.testing.assert_allclose(again.log_densities, expected, rtol=1e-3, atol=1e-3)
    prior = stats.norm.logpdf(noise[..., 0, :]).sum(-1)
    whole = chain_lib.rescore_chain(
        sampler.stochastic_step(curved_epsilon), chain.points, sampler.times
    ).log_density
    np.testing.assert_allclose(whole, (prior + expected.sum((-2, -1))) / 6 / 2, rtol=1e-4)


def test_the_loss_is_the_squared_error_of_the_noise_at_its_level():
    sampler = DiffusionSampler(4, 0.1, "ddpm", 8)
    alpha_bar = diffusion.cosine_schedule(8)
    rng = np.random.default_rng(0)
    action, z = np.clip(rng.standard_normal((2, 5, 4)), -1, 1).astype(np.float32)
    mask = np.array(
        [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], np.float32
    )
    t = np.array([0.0, 0.13, 0.5, 0.87, 0.9999], np.float32)
    loss = sampler.loss(curved_epsilon, action=action, z=z, t=jnp.asarray(t), mask=mask)
    level = 8 - np.floor(t * 8).astype(int)
    assert level.tolist() == [8, 7, 4, 2, 1]
    x = np.sqrt(alpha_bar[level])[:, None] * action + np.sqrt(1 - alpha_bar[level])[:, None] * z
    error = (np.asarray(curved_epsilon(x, np.floor(t * 8) / 8)) - z) ** 2
    np.testing.assert_allclose(loss, (error * mask).sum(-1) / mask.sum(-1), rtol=1e-4)


def test_kl_of_steps_is_that_of_gaussians():
    rng = np.random.default_rng(0)
    points, (first, second) = jnp.zeros((3, 5, 2)), rng.standard_normal((2, 3, 4, 2))
    one, two = rng.uniform(0.1, 2.0, (2, 3, 4, 1))
    kl = chain_lib.step_kl(
        chain_lib.Chain(points, first, one), chain_lib.Chain(points, second, two)
    )
    expected = np.log(two / one) + (one**2 + (first - second) ** 2) / (2 * two**2) - 0.5
    np.testing.assert_allclose(kl, expected.sum(-1), rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, r"it must be in \[1, 1000\]"),
        ({"sigma": 0.0}, r"it must be in \(0, 10\]"),
        ({"scheme": "paper"}, "a diffusion allows: ddpm, ddim"),
        ({"steps": 4, "train_steps": 10}, "must be a multiple of policy.steps"),
    ],
)
def test_a_wrong_sampler_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DiffusionSampler(**settings)

"""Samplers against the marginals of a Gaussian flow and a plain simulation; densities against
scipy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gcp_jax.core import denoising as chain_lib
from gcp_jax.core import flow
from gcp_jax.core.flow import FlowSampler

MEAN, STD = 0.2, 0.25


def ode_sample(velocity, z, sampler):
    return chain_lib.integrate_ode(sampler.deterministic_step(velocity), z, sampler.times)


def sde_sample(velocity, noise, sampler):
    return chain_lib.sample_chain(sampler.stochastic_step(velocity), noise, sampler.times).points


def step_log_densities(velocity, chain, sampler):
    return chain_lib.rescore_chain(
        sampler.stochastic_step(velocity), chain, sampler.times
    ).log_densities.sum(-1)


def chain_log_density(velocity, chain, sampler):
    return chain_lib.rescore_chain(
        sampler.stochastic_step(velocity), chain, sampler.times
    ).log_density


def gaussian_velocity(x, t):
    """E[a − z | x_t = x] for independent z ~ N(0, 1) and a ~ N(MEAN, STD²): the exact velocity of
    this flow.
    """
    t = t[..., None]
    return MEAN + (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2) * (x - t * MEAN)


def curved_velocity(x, t):
    """Strong enough to push means past ±1, and to tell neighbouring dimensions apart."""
    return 3.0 * jnp.sin(4.0 * x + t[..., None]) + jnp.roll(x, 1, -1)


def affine_response(sample, inputs):
    """(offset, weights) of an affine scalar map of ``inputs`` numbers, by probing it at 0 and at ½
    of each unit vector.

    Under ``gaussian_velocity`` every sampler is affine in its noise while no clip is active, so
    mean and variance of its result for standard normal noise are exactly ``offset`` and ``Σ
    weights²``.
    """
    probes = jnp.concatenate([jnp.zeros((1, inputs)), 0.5 * jnp.eye(inputs)])
    ends = np.asarray(sample(probes), np.float64)
    return ends[0], (ends[1:] - ends[0]) / 0.5


def sde_response(sampler):
    def sample(noise):
        return sde_sample(gaussian_velocity, noise[..., None], sampler)[:, -1, 0]

    return affine_response(sample, sampler.steps + 1)


def ode_response(sampler):
    return affine_response(lambda z: ode_sample(gaussian_velocity, z, sampler)[:, 0], 1)


def marginal_error(response):
    offset, weights = response
    return np.array([offset - MEAN, np.sqrt(np.sum(weights**2)) - STD])


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0])
def test_marginal_sde_converges_to_the_data_at_first_order(sigma):
    coarse, fine = (
        marginal_error(sde_response(FlowSampler(steps, sigma, "marginal"))) for steps in (100, 200)
    )
    np.testing.assert_allclose(fine, 0.0, atol=5e-3)
    np.testing.assert_allclose(fine[1] / coarse[1], 0.5, atol=0.05)


def test_ode_converges_to_the_data_at_first_order():
    coarse, fine = (marginal_error(ode_response(FlowSampler(steps))) for steps in (100, 200))
    np.testing.assert_allclose(fine, 0.0, atol=5e-3)
    np.testing.assert_allclose(fine[1] / coarse[1], 0.5, atol=0.05)


@pytest.mark.parametrize("sampler", ["ode", "marginal"])
def test_samples_are_distributed_as_the_data(sampler):
    """Kolmogorov–Smirnov at the 10⁻⁶ level; the discretisation moves the distribution function by
    less than 0.01.
    """
    count, steps = 4000, 100
    noise = jax.random.normal(jax.random.key(0), (count, steps + 1, 1))
    if sampler == "ode":
        samples = ode_sample(gaussian_velocity, noise[:, 0], FlowSampler(steps))
    else:
        samples = chain_lib.chain_action(
            sde_sample(gaussian_velocity, noise, FlowSampler(steps, 1.0, "marginal"))
        )
    distance = stats.kstest(np.asarray(samples)[:, 0], stats.norm(MEAN, STD).cdf).statistic
    assert distance < stats.kstwo.isf(1e-6, count) + 0.01


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_the_papers_noise_spreads_k_times_the_variance_of_the_marginal_scheme(steps):
    """Same drift, standard deviation σ_t in place of σ_t·sqrt(1/K): each noise weighs sqrt(K) more,
    x_0 the same.
    """
    _, paper = sde_response(FlowSampler(steps, 0.1, "paper"))
    _, marginal = sde_response(FlowSampler(steps, 0.1, "marginal"))
    np.testing.assert_allclose(paper[0], marginal[0], rtol=1e-4)
    np.testing.assert_allclose(paper[1:], marginal[1:] * np.sqrt(steps), rtol=1e-4, atol=1e-6)
    assert np.sum(paper**2) > np.sum(marginal**2)


def simulate(noise, sampler):
    """One chain [K+1, D] by the formulas of OGPO's appendix in float64; noise [K+1, D]."""
    x, chain = noise[0], [noise[0]]
    for i in range(sampler.steps):
        t = i / sampler.steps
        v = np.asarray(curved_velocity(jnp.asarray(x, jnp.float32), jnp.float32(t)), np.float64)
        mean = x + (v + 0.5 * sampler.sigma**2 * (t * v - x)) / sampler.steps
        std = sampler.sigma * np.sqrt(1 - t)
        if sampler.scheme == "paper":
            mean = np.clip(mean, -1, 1)
        else:
            std /= np.sqrt(sampler.steps)
        x = mean + std * np.clip(noise[i + 1], -3, 3)
        chain.append(x)
    return np.stack(chain)


@pytest.mark.parametrize("scheme", flow.SCHEMES)
def test_chains_equal_a_plain_simulation(scheme):
    sampler = FlowSampler(steps=4, sigma=0.7, scheme=scheme)
    noise = 2.0 * np.random.default_rng(0).standard_normal((6, 5, 3))
    chains = sde_sample(curved_velocity, jnp.asarray(noise, jnp.float32), sampler)
    expected = np.stack([simulate(each, sampler) for each in noise])
    assert np.abs(noise[:, 1:]).max() > chain_lib.NOISE_CLIP
    assert np.abs(expected[:, 1:]).max() > 1
    np.testing.assert_allclose(chains, expected, rtol=1e-4, atol=1e-5)


def test_noise_beyond_three_is_cut_but_not_the_start():
    noise = jnp.array([[4.0], [7.0]])
    chain = sde_sample(lambda x, t: jnp.zeros_like(x), noise, FlowSampler(1, 0.5, "marginal"))
    np.testing.assert_allclose(chain[:, 0], [4.0, 4.0 * (1 - 0.5 * 0.25) + 0.5 * 3.0], rtol=1e-6)


def test_the_stored_chain_ends_unclipped_and_the_executed_action_clipped():
    noise = jnp.array([[0.0, 0.0], [2.0, -2.0]])
    chain = sde_sample(lambda x, t: jnp.full_like(x, 0.9), noise, FlowSampler(1, 0.5))
    np.testing.assert_allclose(chain[-1], [1.9, -0.1], rtol=1e-6)
    np.testing.assert_allclose(chain_lib.chain_action(chain), [1.0, -0.1], rtol=1e-6)


def test_ode_clips_its_end_only():
    """x goes 0 → 1.5 → 0 under a velocity that turns round at t = ½; a clip on the way would end at
    −0.5.
    """
    turning = ode_sample(
        lambda x, t: jnp.where(t[..., None] < 0.5, 3.0, -3.0) + 0 * x,
        jnp.zeros((1, 1)),
        FlowSampler(2),
    )
    pushed = ode_sample(lambda x, t: jnp.full_like(x, -9.0), jnp.zeros((1, 1)), FlowSampler(2))
    assert (turning.item(), pushed.item()) == (0.0, -1.0)


def scipy_step_densities(chain, sampler):
    """log N(x_{i+1}; mu_i, σ_i²) of each step, summed over dimensions: [K] for a chain [K+1, D]."""
    noiseless = np.zeros_like(chain)
    steps = []
    for i in range(sampler.steps):
        t = jnp.float32(i / sampler.steps)
        x = jnp.asarray(chain[i], jnp.float32)
        mean = flow.sde_mean(curved_velocity(x, t), x, t, sampler)
        noiseless[i + 1] = stats.norm.logpdf(chain[i + 1], mean, sampler.std(t))
        steps.append(noiseless[i + 1].sum())
    return np.array(steps)


@pytest.mark.parametrize("scheme", flow.SCHEMES)
def test_densities_equal_scipy(scheme):
    sampler = FlowSampler(steps=4, sigma=0.3, scheme=scheme)
    noise = jax.random.normal(jax.random.key(1), (2, 3, 5, 2))
    chains = sde_sample(curved_velocity, noise, sampler)
    expected = np.array(
        [[scipy_step_densities(chain, sampler) for chain in group] for group in np.asarray(chains)]
    )
    np.testing.assert_allclose(
        step_log_densities(curved_velocity, chains, sampler), expected, rtol=1e-4
    )
    prior = stats.norm.logpdf(chains[..., 0, :]).sum(-1)
    normalized = (prior + expected.sum(-1)) / ((sampler.steps + 1) * chains.shape[-1])
    np.testing.assert_allclose(
        chain_log_density(curved_velocity, chains, sampler), normalized, rtol=1e-4
    )


def test_a_sampled_chain_has_the_density_of_its_noise():
    """Change of variables: the step's density is that of its own noise over σ_i, exact because
    nothing is stored clipped.
    """
    sampler = FlowSampler(steps=3, sigma=0.2)
    noise = jnp.clip(jax.random.normal(jax.random.key(2), (8, 4, 2)), -3, 3)
    chains = sde_sample(curved_velocity, noise, sampler)
    expected = stats.norm.logpdf(noise[:, 1:]).sum(-1) - 2 * np.log(sampler.std(sampler.times))
    np.testing.assert_allclose(
        step_log_densities(curved_velocity, chains, sampler), expected, rtol=1e-4
    )


def test_interpolation_runs_from_noise_to_data():
    z, action = jnp.array([[1.0, -2.0]]), jnp.array([[0.5, 0.0]])
    for t, expected in ((0.0, z), (1.0, action), (0.25, [[0.875, -1.5]])):
        np.testing.assert_allclose(flow.interpolate(z, action, jnp.array([t])), expected)


def test_matching_loss_counts_only_what_the_mask_shows():
    """Error 1, 2, 3 against the velocity a − z, squared and averaged over the dimensions shown;
    nothing shown is 0.
    """
    z, action = jnp.zeros((4, 3)), jnp.array([[0.5, 0.25, -0.5]] * 4)
    mask = jnp.array([[1, 1, 1], [1, 1, 0], [0, 0, 1], [0, 0, 0]], jnp.float32)

    def velocity(x, t):
        np.testing.assert_allclose(x, flow.interpolate(z, action, t))
        return action - z + jnp.array([[1.0, 2.0, 3.0]])

    loss = flow.matching_loss(velocity, action=action, z=z, t=jnp.linspace(0, 1, 4), mask=mask)
    np.testing.assert_allclose(loss, [14 / 3, 5 / 2, 9.0, 0.0], rtol=1e-6)


def test_matching_loss_takes_any_leading_axes():
    z, action = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    mask = jnp.arange(60).reshape(5, 4, 3) % 3 < 2
    batch = {"action": action, "z": z, "t": jnp.full((5, 4), 0.3), "mask": mask.astype(jnp.float32)}
    whole = flow.matching_loss(gaussian_velocity, **batch)
    parts = [
        flow.matching_loss(gaussian_velocity, **jax.tree.map(lambda x, i=i: x[i], batch))
        for i in range(5)
    ]
    np.testing.assert_allclose(whole, jnp.stack(parts), rtol=1e-6)


def test_the_exact_velocity_minimises_the_matching_loss():
    """Its expected loss is Var[a − z | x_t], in closed form for Gaussians, and a shifted velocity
    costs shift² more.
    """
    count, t = 200_000, 0.4
    z, unit = jax.random.normal(jax.random.key(3), (2, count, 1))
    batch = {
        "action": MEAN + STD * unit,
        "z": z,
        "t": jnp.full((count,), t),
        "mask": jnp.ones((count, 1)),
    }
    exact = flow.matching_loss(gaussian_velocity, **batch)
    shifted = flow.matching_loss(lambda x, t: gaussian_velocity(x, t) + 0.5, **batch)
    covariance = t * STD**2 - (1 - t)
    conditional = 1 + STD**2 - covariance**2 / ((1 - t) ** 2 + t**2 * STD**2)
    np.testing.assert_allclose(exact.mean(), conditional, rtol=5 * np.sqrt(2 / count))
    np.testing.assert_allclose(
        shifted.mean() - exact.mean(), 0.25, atol=5 * np.sqrt(conditional / count)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "policy.steps is 0; it must be in \\[1, 1000\\]"),
        ({"sigma": 0.0}, "policy.sigma is 0.0; it must be in \\(0, 10\\]"),
        ({"sigma": float("nan")}, "policy.sigma is nan"),
        ({"scheme": "euler"}, "policy.scheme is 'euler'; a flow allows: paper, marginal"),
    ],
)
def test_a_wrong_sampler_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FlowSampler(**settings)


def test_defaults_are_ogpo_s():
    assert (flow.FlowSampler().steps, flow.FlowSampler().sigma, flow.FlowSampler().scheme) == (
        5,
        0.05,
        "paper",
    )


def test_noise_tapers_on_the_grid():
    sampler = FlowSampler(steps=4, sigma=0.1)
    np.testing.assert_allclose(sampler.times, [0.0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(
        sampler.std(sampler.times), 0.1 * np.sqrt([1.0, 0.75, 0.5, 0.25]), rtol=1e-6
    )
    marginal = FlowSampler(steps=4, sigma=0.1, scheme="marginal")
    np.testing.assert_allclose(
        marginal.std(sampler.times), 0.05 * np.sqrt([1.0, 0.75, 0.5, 0.25]), rtol=1e-6
    )

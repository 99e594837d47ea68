"""The common measurements against numpy: a closed-form policy and a fake method whose critics are
known.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy.special import gammaln

from gcp_jax.core.denoising import Chain
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy, PolicyConfig
from gcp_jax.learner import diagnostics
from gcp_jax.types import Segment, Specs, Step

GAMMA, K, L, N, H, WIDTH = 0.9, 2, 4, 5, 2, 2
SPECS = Specs(obs_dim=WIDTH, action_dim=1, chunk=H)
NORMALISER = Normalizer(jnp.array([0.5, -0.5]), jnp.array([2.0, 0.5]))
BIAS, SHIFT, STD = np.array([0.1, -0.2]), np.array([0.3, -0.1]), 0.3
HEADS = np.array([[1.0, 0.5], [0.8, -0.3], [1.2, 0.1]])  # Q_m(s, a) = a·HEADS_m + s_0


def row(x, like):
    return x.reshape((1,) * (like.ndim - 1) + (-1,))


def policy():
    """Steps N(bias + x/2 + s/10, (std·(1 + t))²) from noise; the deterministic sample is bias +
    z/4, so 1/4 is its spread.
    """

    def stochastic_step(params, obs, inner=0):
        obs = obs.reshape(*obs.shape[:-1], *(1,) * inner, WIDTH)
        return lambda x, t: (
            row(params["bias"], x) + 0.5 * x + 0.1 * obs,
            params["std"] * (1 + t)[..., None],
        )

    def walk(params, obs, noise):
        """Points from the waves of a fixed start, as its own transition would have drawn them."""
        points = [noise[..., 0, :]]
        for i in range(K):
            mean, std = stochastic_step(params, obs)(
                points[-1], jnp.full((1,) * (obs.ndim - 1), i / K)
            )
            points.append(mean + std * noise[..., i + 1, :])
        return Chain(jnp.stack(points, -2), None, None)

    settings = {
        "sample": lambda params, obs, z: row(params["bias"], z) + 0.25 * z,
        "sample_chain": walk,
        "stochastic_step": stochastic_step,
        "config": PolicyConfig(chunk=H, steps=K),
        "specs": SPECS,
    }
    return Policy(**{**dict.fromkeys(Policy._fields), **settings})


POLICY = policy()


def deployed(bias=BIAS, std=STD):
    return {
        "net": {"bias": jnp.asarray(bias, jnp.float32), "std": jnp.float32(std)},
        "normalizer": NORMALISER,
    }


def value(state, obs, chunk):
    return (
        jnp.einsum("md,bgd->mbg", jnp.asarray(HEADS, jnp.float32), chunk[..., 0]) + obs[None, :, :1]
    )


def method(value=value):
    """All that a diagnosis uses of a method: its state is what it deploys."""
    return SimpleNamespace(
        export=lambda state: state, eval_policy=POLICY.eval_policy, q_values=value
    )


def segment(rows=L, columns=N, **changes):
    """No episode ends, unless the changes say so."""
    rng = np.random.default_rng(0)
    lead = (rows, columns, H)
    no = np.zeros(lead, bool)
    parts = {
        "obs": rng.standard_normal((*lead, WIDTH)),
        "action": rng.uniform(-1, 1, (*lead, 1)),
        "reward": rng.standard_normal(lead),
        "next_obs": rng.standard_normal((*lead, WIDTH)),
    }
    parts = {name: x.astype(np.float32) for name, x in parts.items()}
    flags = {"terminated": no, "truncated": no, "success": no, "executed": ~no}
    return Segment(jax.tree.map(jnp.asarray, Step(**{**parts, **flags, **changes})), {})


def diagnose(state, algorithm=None, data=None, base=None, key=0):
    metrics = jax.jit(diagnostics.make_diagnose(algorithm or method(), POLICY, GAMMA))(
        state, base or deployed(), data or segment(), jax.random.key(key)
    )
    return {name: np.asarray(x, np.float64) for name, x in metrics.items()}


@pytest.fixture(scope="module")
def at_start():
    return diagnose(deployed())


@pytest.fixture(scope="module")
def perturbed():
    return diagnose(deployed(BIAS + SHIFT, 1.2 * STD))


def test_at_the_start_nothing_differs_from_the_base(at_start):
    assert at_start["base_action_rmse"] == 0
    for i in range(K):
        assert at_start[f"ratio_step_{i}"] == 1
        assert at_start[f"kl_step_{i}"] == 0
    assert np.isnan(at_start["q_minus_return"])


def test_the_measurements_are_scalars_under_these_names(at_start):
    steps = {f"{name}_step_{i}" for name in ("ratio", "kl") for i in range(K)}
    assert at_start.keys() == steps | {
        "action_std",
        "base_action_rmse",
        "critic_sign_agreement",
        "q_minus_return",
    }
    assert all(x.shape == () for x in at_start.values())


@pytest.mark.parametrize("steps", [1, 5, 20, 21, 50, 1000])
def test_of_long_chains_twenty_steps_are_logged(steps):
    logged = diagnostics.logged_steps(steps)
    assert len(logged) == min(steps, 20) and logged == sorted(set(logged))
    assert (logged[0], logged[-1]) == (0, steps - 1)


def test_spread_is_the_deviation_of_a_states_samples():
    """8 samples of standard deviation 1/4 for each state; the mean of their deviations (divided by
    8, not 7).
    """
    metrics = diagnose(deployed(), data=segment(rows=40, columns=8))
    factor = np.sqrt(2 / 8) * np.exp(gammaln(8 / 2) - gammaln(7 / 2))  # E std of 8 normal numbers
    assert abs(metrics["action_std"] / (0.25 * factor) - 1) < 0.12


def test_distance_is_between_actions_of_the_same_key(perturbed):
    """A shift by (0.3, −0.1) of the deterministic sampler, whatever the noise."""
    np.testing.assert_allclose(
        perturbed["base_action_rmse"], np.sqrt((0.3**2 + 0.1**2) / 2), rtol=1e-4
    )


def test_kl_of_each_step_is_that_of_two_gaussians_deployed_from_base(perturbed):
    """log(σ₂/σ₁) + (σ₁² + Δμ²)/(2 σ₂²) − 1/2 of each number, summed over the chunk; here the same
    at every state.
    """
    for i in range(K):
        one, two = 1.2 * STD * (1 + i / K), STD * (1 + i / K)
        kl = np.sum(np.log(two / one) + (one**2 + SHIFT**2) / (2 * two**2) - 0.5)
        np.testing.assert_allclose(perturbed[f"kl_step_{i}"], kl, rtol=1e-4)


def test_a_policy_far_from_its_base_has_a_bounded_ratio():
    """Its KL is reported, and no number that is not finite stops the run."""
    for metrics in (
        diagnose(deployed(BIAS + 100.0)),
        diagnose(deployed(), base=deployed(BIAS + 100.0)),
    ):
        assert all(
            np.isfinite(metrics[f"{name}_step_{i}"]) for name in ("ratio", "kl") for i in range(K)
        )


def test_the_ratio_of_each_step_is_averaged_over_chains_of_the_deployed_policy():
    """ρ = exp(mean_d [log N(x; μ₁, σ²) − log N(x; μ₂, σ²)]) has a log-normal mean under N(μ₁,
    σ²).
    """
    shift = np.array([0.05, -0.05])
    metrics = diagnose(deployed(BIAS + shift), data=segment(rows=40, columns=8))
    for i in range(K):
        each = np.sum((shift / (STD * (1 + i / K))) ** 2)
        mean, deviation = each / 2 / 2, np.sqrt(each) / 2
        expected = np.exp(mean + deviation**2 / 2)
        assert abs(metrics[f"ratio_step_{i}"] - expected) < 4 * expected * deviation / np.sqrt(32)
        assert metrics[f"ratio_step_{i}"] != 1


def test_agreement_is_the_share_of_samples_all_critics_place_on_one_side_of_the_mean():
    """The actions are those of the deployed policy: a watched value function shows which."""
    seen = []

    def watched(state, obs, chunk):
        jax.debug.callback(lambda chunk: seen.append(np.asarray(chunk, np.float64)), chunk)
        return value(state, obs, chunk)

    metrics = diagnose(deployed(), method(watched))
    jax.effects_barrier()
    chunk = next(x for x in seen if x.shape[1] == diagnostics.SAMPLES)[..., 0]
    q = np.einsum("md,bgd->mbg", HEADS, chunk)
    side = np.sign(q - q.mean(-1, keepdims=True))
    share = np.mean(np.abs(side.sum(0)) == len(HEADS))
    assert chunk.shape == (L * N, 8, H)
    assert 0.1 < share < 0.9
    np.testing.assert_allclose(metrics["critic_sign_agreement"], share, atol=1e-6)


def test_a_method_without_critics_of_actions_or_with_one_critic_says_less():
    assert not diagnose(deployed(), method(None)).keys() & {
        "critic_sign_agreement",
        "q_minus_return",
    }
    one = diagnose(deployed(), method(lambda *args: value(*args)[:1])).keys()
    assert "critic_sign_agreement" not in one
    assert "q_minus_return" in one


def ends(*at):
    """Flags at (row, column, step)."""
    flags = np.zeros((L, N, H), bool)
    for place in at:
        flags[place] = True
    return flags


def test_q_minus_return_is_over_chunks_whose_episode_terminated_in_the_segment():
    """Column 0 terminates in row 2 at its second step, 1 in row 1 at its first (the rest of the
    chunk is not executed) and goes on; 2 is cut by a time limit in row 1 and terminates in row 3; 3
    is cut in row 3; 4 never ends.
    """
    terminated, truncated = ends((2, 0, 1), (1, 1, 0), (3, 2, 1)), ends((1, 2, 1), (3, 3, 1))
    executed = ~ends((1, 1, 1))
    data = segment(terminated=terminated, truncated=truncated, executed=executed)
    metrics = diagnose(deployed(), data=data)
    steps = jax.tree.map(lambda x: np.asarray(x, np.float64), data.steps)
    known = {0: (0, 1, 2), 1: (0, 1), 2: (2, 3)}
    last = {0: (2, 1), 1: (1, 0), 2: (3, 1)}
    gaps = []
    for column, rows in known.items():
        final, end = last[column]
        for r in rows:
            times = [
                (i, j) for i in range(r, final + 1) for j in range(H) if (i, j) <= (final, end)
            ]
            total = sum(GAMMA**n * steps.reward[i, column, j] for n, (i, j) in enumerate(times))
            q = np.mean(HEADS @ steps.action[r, column, :, 0]) + steps.obs[r, column, 0, 0]
            gaps.append(q - total)
    np.testing.assert_allclose(metrics["q_minus_return"], np.mean(gaps), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("truncated", [ends(), ends((1, 2, 1), (3, 3, 0))])
def test_q_minus_return_is_missing_where_none_terminated(truncated):
    metrics = diagnose(deployed(), data=segment(truncated=truncated))
    assert np.isnan(metrics["q_minus_return"])


@pytest.mark.slow
def test_two_devices_measure_as_one(devices):
    """The gap is the mean over all chunks, not the mean of the devices' means; the states measured
    are the same.
    """
    state = deployed(BIAS + SHIFT, 1.2 * STD)
    data = segment(columns=4, terminated=ends((2, 0, 1), (1, 1, 0), (3, 2, 1))[:, :4])
    measure = diagnostics.make_diagnose(method(), POLICY, GAMMA)
    key = jax.random.key(0)
    spread = jax.shard_map(
        lambda *args: measure(*args, key),
        mesh=devices(data=2),
        in_specs=(P(), P(), P(None, "data")),
        out_specs=P(),
    )
    one, two = diagnose(state, data=data), jax.jit(spread)(state, deployed(), data)
    assert one.keys() == two.keys()
    for name, number in one.items():
        np.testing.assert_allclose(two[name], number, rtol=1e-4, atol=1e-5, err_msg=name)

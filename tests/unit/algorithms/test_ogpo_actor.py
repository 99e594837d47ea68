"""How OGPO's actor steps: its rate, the signal of its gradient, and chains in blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ogpo_by_hand import AFFINE, STATES, apart, make, plain, training_batch, transitions

from gcp_jax.algorithms import ogpo, ogpo_config, ogpo_critics, ogpo_extraction


@pytest.fixture(scope="module")
def batch():
    return training_batch()


def test_measuring_the_signal_changes_metrics_only(batch):
    """With one batch again and again and no step, successive gradients are equal."""
    config = plain(actor_lr=0.0, critic_lr=0.0, critic_tau=0.0, actor_tau=0.0)

    def run(config):
        algorithm = make(config)
        state = apart(algorithm)
        for _ in range(3):
            state, metrics = algorithm.update(state, batch, jax.random.key(0))
        return state._replace(actor=state.actor._replace(signal=None)), metrics

    state, metrics = run(config)
    measured_state, measured = run(dataclasses.replace(config, measure_snr=True))
    jax.tree.map(np.testing.assert_array_equal, state, measured_state)
    assert measured.keys() - metrics.keys() == {"policy_gradient_snr"}
    assert measured["policy_gradient_snr"] > 100.0


@pytest.mark.parametrize("target", [0.0, 0.2])
def test_the_rate_adapts_until_few_ratios_are_clipped(target, batch):
    """From a rate that is too high for this policy; without a target, it stays there."""
    algorithm = make(plain(actor_lr=0.3, actor_tau=0.05, target_clip_fraction=target))

    def step(state, key):
        state, metrics = algorithm.update(state, batch, key)
        return state, metrics["clip_fraction"]

    keys = jax.random.split(jax.random.key(0), 1000)
    state, clip_fraction = jax.jit(lambda state: jax.lax.scan(step, state, keys))(apart(algorithm))
    settled = np.mean(clip_fraction[-200:])
    if target:
        assert 0.05 < settled < 0.4
        assert state.actor.rate_factor < 0.5
    else:
        assert settled > 0.5
        assert state.actor.rate_factor is None


@pytest.mark.parametrize("conservative", [False, True])
@pytest.mark.parametrize("extraction", ogpo_config.EXTRACTIONS_IN_BLOCKS)
def test_chains_in_blocks_take_the_step_of_all_at_once(extraction, conservative, batch):
    """The gradient, by the state of the optimizer, and the metrics."""

    def step(blocks):
        algorithm = make(
            plain(
                extraction=extraction,
                success_weight=1.0,
                conservative=conservative,
                actor_blocks=blocks,
            )
        )
        state, metrics = algorithm.update(apart(algorithm), batch, jax.random.key(0))
        return state.actor, metrics

    alone = step(1)
    assert (alone[1]["advantage_nonzero_fraction"] < 1.0) == conservative
    for blocks in (0, 4):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), alone, step(blocks))


def extraction_of(config):
    critics = ogpo_critics.make_critics(config, AFFINE)
    return ogpo_extraction.Extraction(config=config, policy=AFFINE, critics=critics, value=None)


def chains_with_advantages(count):
    """States, four chains of each, and advantages of which the last ``count`` are not 0."""
    obs = transitions(0).obs
    params = {"bias": jnp.zeros(2)}
    chain = AFFINE.sample_chains(params, obs, jax.random.key(0), 4)
    advantage = jnp.arange(4.0 * STATES) - (4 * STATES - count) + 1.0
    advantage = jnp.maximum(advantage, 0.0).reshape(STATES, 4)
    advantages = ogpo_extraction.Advantages(advantage=advantage, clip_high=jnp.float32(1.01))
    return params, obs, chain, advantages


@pytest.mark.parametrize(("count", "computed"), [(0, 0), (1, 8), (8, 8), (9, 16), (32, 32)])
def test_blocks_of_chains_without_an_advantage_are_not_computed(count, computed):
    """A mean that is not a number shows whether its chain was computed."""
    params, obs, chain, advantages = chains_with_advantages(count)
    extraction = extraction_of(plain(actor_blocks=4))
    order = np.argsort(advantages.advantage.ravel() == 0.0, kind="stable")

    def loss_with_nan_in(chains):
        rows, columns = np.divmod(chains, 4)
        poisoned = chain._replace(mean=chain.mean.at[rows, columns].set(np.nan))
        return extraction.loss(params, None, obs, poisoned, advantages, jax.random.key(1))

    value, metrics = loss_with_nan_in(order[computed:])
    assert np.isfinite(value)
    assert (metrics["ratio"] == 0.0) == (count == 0)
    if computed:
        assert np.isnan(loss_with_nan_in(order[computed - 1 : computed])[0])


@pytest.mark.parametrize("blocks", [1, 4])
def test_metrics_of_ratios_are_those_of_the_chains_with_an_advantage(blocks):
    params, obs, chain, advantages = chains_with_advantages(9)
    other = chain._replace(mean=chain.mean + 0.3)
    _, metrics = extraction_of(plain(actor_blocks=blocks)).loss(
        params, None, obs, other, advantages, jax.random.key(1)
    )
    ratio = np.exp(chain.log_density - other.log_density)[np.asarray(advantages.advantage) > 0]
    np.testing.assert_allclose(metrics["ratio"], np.mean(ratio), rtol=1e-5)
    np.testing.assert_allclose(metrics["ratio_deviation"], np.mean(np.abs(ratio - 1)), rtol=1e-5)
    clipped = np.mean((ratio < 0.99) | (ratio > 1.01))
    np.testing.assert_allclose(metrics["clip_fraction"], clipped, rtol=1e-5)
    assert clipped > 0


@pytest.mark.parametrize(
    ("extraction", "chains", "blocks"),
    [("ppo", 256, 8), ("ppo", 36, 4), ("awr", 7, 1), ("awfm", 256, 1)],
)
def test_blocks_are_chosen_by_the_number_of_chains(extraction, chains, blocks):
    assert ogpo.Config(extraction=extraction).blocks_of(chains) == blocks


def test_blocks_that_do_not_divide_the_chains_are_refused(batch):
    algorithm = make(plain(actor_blocks=3))
    with pytest.raises(ValueError, match="is 3, which does not divide the 32 chains"):
        algorithm.update(apart(algorithm), batch, jax.random.key(0))

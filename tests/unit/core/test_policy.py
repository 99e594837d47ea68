"""A policy over chunks is the flow over flattened chunks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.off_policy import small_flow

from gcp_jax.core import policy as policy_lib
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import PolicyConfig


@pytest.fixture(scope="module")
def flow():
    return small_flow()


def test_flatten_and_unflatten_are_inverse_and_row_major(flow):
    made = flow.policy
    chunk = jnp.arange(12.0).reshape(3, 2, 2)
    np.testing.assert_array_equal(made.flatten(chunk), chunk.reshape(3, 4))
    np.testing.assert_array_equal(made.unflatten(made.flatten(chunk)), chunk)


LOW, HIGH = (-0.2, 0.0), (0.4, 0.1)


@pytest.fixture(scope="module")
def ranged(flow):
    """The same network over a range of its own in each action dimension."""
    return policy_lib.make_policy(
        dataclasses.replace(flow.policy.config, low=LOW, high=HIGH), flow.policy.specs
    )


def test_networks_see_the_range_as_the_unit_interval(ranged):
    chunk = jnp.array([[LOW, HIGH], [(0.1, 0.05), LOW]])
    np.testing.assert_allclose(ranged.flatten(chunk), [[-1, -1, 1, 1], [0, 0, -1, -1]], atol=1e-6)
    np.testing.assert_allclose(ranged.unflatten(ranged.flatten(chunk)), chunk, atol=1e-6)


def test_a_policy_with_a_range_acts_in_it_and_imitates_what_it_would_see(flow, ranged):
    """Its chunks are those of the policy without, moved into the range; and so are the chunks it is
    asked to imitate.
    """
    plain, deployed, obs = flow
    key, mask = jax.random.key(4), jnp.ones((5, 2))
    chunk, moved = (jax.jit(made.eval_policy)(deployed, obs, key) for made in (plain, ranged))
    middle, half = np.add(HIGH, LOW) / 2, np.subtract(HIGH, LOW) / 2
    np.testing.assert_allclose(moved, middle + half * np.asarray(chunk), atol=1e-6)
    losses = (
        jax.jit(made.bc_loss)(deployed["net"], obs, chunks, mask, key)
        for made, chunks in ((plain, chunk), (ranged, moved))
    )
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_the_range_spanned_by_actions(flow):
    """No dimension is narrower than ±0.05, or finetuning could not leave what the demonstrations
    held still.
    """
    action = np.array([[0.3, 0.2], [-0.5, 0.21], [0.1, 0.2]], np.float32)
    found = policy_lib.rescaled_to_actions(flow.policy.config, action)
    np.testing.assert_allclose((found.low, found.high), [(-0.5, 0.155), (0.3, 0.255)], rtol=1e-6)


def test_a_range_of_other_dimensions_is_refused(flow):
    with pytest.raises(
        ValueError, match=r"policy.low and policy.high have 1 dimensions; actions have 2\."
    ):
        policy_lib.make_policy(PolicyConfig(low=(0.0,), high=(1.0,)), flow.policy.specs)


def test_chains_of_a_state_do_not_depend_on_the_other_states(flow):
    """Keys follow the place in the batch, so the first two states alone give the first two groups
    of the five.
    """
    made, deployed, obs = flow
    draw = jax.jit(made.sample_chain_points, static_argnums=3)
    key = jax.random.key(1)
    chains = draw(deployed["net"], obs, key, 4)
    assert chains.shape == (5, 4, 4, 4)
    np.testing.assert_allclose(
        draw(deployed["net"], obs[:2], key, 4), chains[:2], rtol=1e-5, atol=1e-6
    )
    assert len(np.unique(np.asarray(chains)[:, :, 0, 0])) == 20


def test_chains_that_share_their_start_differ_by_the_noise_of_their_steps(flow):
    """The first chain of each group is the one that it is without sharing."""
    made, deployed, obs = flow

    def points_of(per_start):
        return made.sample_chains(
            deployed["net"], obs, jax.random.key(2), 6, per_start=per_start
        ).points

    alone, shared = points_of(1), points_of(3)
    starts = shared[:, :, 0].reshape(len(obs), 2, 3, -1)
    np.testing.assert_array_equal(starts, np.repeat(starts[:, :, :1], 3, axis=2))
    np.testing.assert_array_equal(starts[:, :, 0], alone[:, ::3, 0])
    np.testing.assert_allclose(shared[:, ::3], alone[:, ::3], rtol=1e-6)
    assert len(np.unique(shared[0, :, -1, 0])) == 6


def test_log_density_of_a_group_is_that_of_each_chain_alone(flow):
    made, deployed, obs = flow
    chains = made.sample_chain_points(deployed["net"], obs, jax.random.key(2), 3)
    together = jax.jit(made.log_density)(deployed["net"], obs[:, None], chains)
    density = jax.jit(made.log_density)
    for state in range(2):
        for chain in range(3):
            alone = density(deployed["net"], obs[state], chains[state, chain])
            np.testing.assert_allclose(together[state, chain], alone, rtol=1e-4)


def test_the_imitation_loss_masks_whole_steps(flow):
    """With a zero last layer v = 0, so the loss is the mean of (a − z)² over the dimensions of the
    executed steps.
    """
    made, deployed, obs = flow
    silent = {**deployed["net"], "last": jax.tree.map(jnp.zeros_like, deployed["net"]["last"])}
    action, z = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (2, 3, 4)), jnp.float32)
    mask = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    loss = made.imitation_loss(silent, obs[:3], action, mask, z, jnp.array([0.1, 0.5, 0.9]))
    error = np.asarray(action - z) ** 2
    np.testing.assert_allclose(loss, [error[0].mean(), error[1, :2].mean(), 0.0], rtol=1e-5)


def test_greedy_is_the_ode_on_normalized_observations(flow):
    made, deployed, obs = flow
    chunk = jax.jit(made.eval_policy)(deployed, obs, jax.random.key(4))
    assert chunk.shape == (5, 2, 2)
    shifted = {"net": deployed["net"], "normalizer": Normalizer(jnp.zeros(3), jnp.ones(3))}
    same = jax.jit(made.eval_policy)(shifted, deployed["normalizer"](obs), jax.random.key(4))
    np.testing.assert_allclose(chunk, same, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "vae"}, "policy.family is 'vae'; allowed: flow, diffusion"),
        ({"compute": "float16"}, "policy.compute is 'float16'; allowed: float32, bfloat16"),
        ({"scheme": "ddpm"}, "policy.scheme is 'ddpm'; a flow allows: paper, marginal"),
        ({"train_steps": 10}, "only policy.family='diffusion' has any"),
        ({"family": "diffusion", "scheme": "paper"}, "a diffusion allows: ddpm, ddim"),
        ({"chunk": 0}, "policy.chunk is 0; it must be at least 1"),
        (
            {"low": (0.0, 1.0), "high": (1.0, 0.5)},
            "give both ends of every action dimension, low below high",
        ),
        ({"low": (0.0,)}, "give both ends of every action dimension, low below high"),
        ({"hidden": ()}, r"policy.hidden is \(\); give at least one value"),
        ({"hidden": (16, 0)}, r"policy.hidden is \(16, 0\); it must be at least 1"),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PolicyConfig(**settings)

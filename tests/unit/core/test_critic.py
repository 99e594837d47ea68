"""The critic ensemble against float64 numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.by_hand import (
    assert_first_adam_step,
    assert_one_line,
    float64,
    heads,
    pairs,
)
from scipy import stats

from gcp_jax.core import critic, tree

CONFIG = critic.Config(critics=3, critic_hidden=(4, 4), critic_lr=0.01, critic_tau=0.1)
WIDTH, D, B = 2, 3, 6


# The ensemble.


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return [
        jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((B, WIDTH), (B, D), (B,))
    ]


@pytest.fixture(scope="module")
def parts():
    critics = critic.make_critic(CONFIG, WIDTH, D)
    return critics, critics.init(jax.random.key(0))


@pytest.mark.parametrize("members", [2, 3, 5])
def test_two_of_takes_every_ordered_pair_of_different_indices_equally_often(members):
    keys = jax.random.split(jax.random.key(members), 4000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: critic.random_pair(key, members)))(keys))
    counts = np.zeros((members, members), int)
    np.add.at(counts, tuple(drawn.T), 1)
    assert np.all(np.diag(counts) == 0)
    assert stats.chisquare(counts[~np.eye(members, dtype=bool)]).pvalue > 1e-3


def test_a_new_ensemble_has_different_heads_and_starts_as_its_average(parts, data):
    critics, state = parts
    q = np.asarray(critics.q(state.params, *data[:2]))
    assert q.shape == (3, B)
    assert q.std(0).min() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, state.params, state.target_params)


def test_values_broadcast_over_samples(parts):
    critics, state = parts
    rng = np.random.default_rng(1)
    obs, action = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((B, 1, WIDTH), (B, 4, D))
    )
    found = critics.q(state.params, jnp.asarray(obs), jnp.asarray(action))
    np.testing.assert_allclose(found, heads(state.params, obs, action), rtol=1e-4, atol=1e-5)


def test_the_smaller_of_two_is_the_minimum_of_one_pair_for_the_whole_batch(parts, data):
    critics, state = parts
    obs, action, _ = data
    q = heads(state.params, obs, action)
    minima = np.stack(pairs(q))
    assert min(np.abs(minima[i] - minima[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-3
    keys = jax.random.split(jax.random.key(0), 64)
    found = np.asarray(
        jax.jit(jax.vmap(lambda key: critics.min_of_two(state.params, obs, action, key)))(keys)
    )
    distance = np.abs(found[:, None] - minima[None]).max(-1)
    assert distance.min(-1).max() < 1e-4
    assert set(distance.argmin(-1)) == {0, 1, 2}


def test_the_value_of_an_ensemble_is_its_mean_or_the_smaller_of_two(parts, data):
    critics, state = parts
    obs, action, _ = data
    key = jax.random.key(5)
    found = critics.aggregate_q(state.params, obs, action, key)
    np.testing.assert_allclose(
        found, heads(state.params, obs, action).mean(0), rtol=1e-4, atol=1e-5
    )
    careful = critic.make_critic(dataclasses.replace(CONFIG, aggregate="min"), WIDTH, D)
    found = careful.aggregate_q(state.params, obs, action, key)
    np.testing.assert_array_equal(found, critics.min_of_two(state.params, obs, action, key))


@pytest.mark.parametrize("grad_clip", [1000.0, 0.01])
def test_regression_is_an_adam_step_on_every_heads_squared_error(grad_clip, parts, data):
    """mean_m mean (Q_m − y)², not (mean_m Q_m − y)²; φ̄ follows the stepped critics."""
    obs, action, y = data
    critics = critic.make_critic(dataclasses.replace(CONFIG, grad_clip=grad_clip), WIDTH, D)
    before = parts[1]._replace(target_params=critics.init(jax.random.key(1)).target_params)
    after, metrics = jax.jit(critics.td_step)(before, obs, action, y)

    def loss(net):
        return np.mean((heads(net, obs, action) - np.asarray(y, np.float64)) ** 2)

    size = assert_first_adam_step(
        loss, before.params, after.params, after.opt_state, CONFIG.critic_lr, grad_clip
    )
    follow = jax.tree.map(
        lambda old, new: 0.9 * old + 0.1 * new, float64(before.target_params), float64(after.params)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        after.target_params,
        follow,
    )
    q = heads(before.params, obs, action)
    expected = {"critic_loss": loss(before.params), "q": q.mean(), "q_std": q.std(0).mean()}
    expected["critic_gradient_norm"] = size
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_best_action_of_each_state_is_chosen():
    rng = np.random.default_rng(2)
    action, score = (
        rng.standard_normal((5, 4, D)).astype(np.float32),
        rng.standard_normal((5, 4)).astype(np.float32),
    )
    expected = np.stack([row[np.argmax(values)] for row, values in zip(action, score, strict=True)])
    np.testing.assert_array_equal(
        critic.argmax_action(jnp.asarray(action), jnp.asarray(score)), expected
    )


@pytest.mark.parametrize("warming", [True, False])
def test_hold_keeps_the_state_before_while_warming(warming):
    before, after = (
        {"a": jnp.zeros(2), "b": (jnp.int32(1),)},
        {"a": jnp.ones(2), "b": (jnp.int32(2),)},
    )
    held = tree.where_tree(jnp.bool_(warming), before, after)
    jax.tree.map(np.testing.assert_array_equal, held, before if warming else after)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critics": 1}, "algorithm.critics is 1; it must be at least 2"),
        (
            {"critic_warmup_updates": -1},
            "algorithm.critic_warmup_updates is -1; it must be at least 0",
        ),
        ({"aggregate": "max"}, "algorithm.aggregate is 'max'; allowed: mean, min"),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        critic.Config(**settings)
    assert_one_line(error)

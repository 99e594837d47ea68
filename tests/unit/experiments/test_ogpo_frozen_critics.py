"""OGPO with the critics of a saved policy."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gcp_jax.experiments.studies import ogpo_frozen_critics
from gcp_jax.run.saved_policy import load_saved_policy
from gcp_jax.types import Batch, Transition

SAVED = load_saved_policy("reach/ogpo")  # deployed with the best of 8, so with critics
STATES = 4
SETTINGS = {
    "critics_of": "reach/ogpo",
    "critic_hidden": (64, 64),
    "critics": 5,
    "chains": 4,
    "actor_states": STATES,
    "success_weight": 0.0,
}


def make(**changes):
    config = ogpo_frozen_critics.Config(**{**SETTINGS, **changes})
    return ogpo_frozen_critics.make(config, SAVED.policy, SimpleNamespace(batch_size=STATES))


def batch():
    rng = np.random.default_rng(0)
    specs = SAVED.policy.specs
    obs, next_obs = jnp.asarray(rng.normal(size=(2, STATES, specs.obs_dim)), jnp.float32)
    action = rng.uniform(-1, 1, (STATES, specs.chunk, specs.action_dim))
    transitions = Transition(
        obs=obs,
        action=jnp.asarray(action, jnp.float32),
        mask=jnp.ones((STATES, specs.chunk)),
        reward=-jnp.ones(STATES),
        next_obs=next_obs,
        discount=jnp.full(STATES, 0.9),
        terminated=jnp.zeros(STATES, bool),
        truncated=jnp.zeros(STATES, bool),
    )
    return Batch(transitions)


def assert_equal_trees(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_the_actor_learns_and_the_critics_stay_those_of_the_saved_policy():
    algorithm = make()
    clone = load_saved_policy("reach/clone").deployed
    before = jax.jit(algorithm.init)(jax.random.key(0), clone)
    after, metrics = jax.jit(algorithm.update)(before, batch(), jax.random.key(1))
    for state in (before, after):
        assert_equal_trees(state.critic.params, SAVED.deployed["critic"])
        assert_equal_trees(state.critic.target_params, SAVED.deployed["critic"])
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), before.actor.params, after.actor.params)
    assert max(jax.tree.leaves(moved)) > 0
    assert metrics["policy_gradient_norm"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"critics_of": ""}, "critics_of is empty"),
        ({"critics_of": "reach/clone"}, "deployed without critics"),
        ({"critics": 4}, "other sizes"),
    ],
)
def test_critics_that_cannot_be_used_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make(**changes).init, jax.random.key(0), SAVED.deployed)

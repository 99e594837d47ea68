"""Cloning keeps every mode of the demonstrations; its update is AdamW on the matching loss, with
averaged weights.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from gcp_jax.algorithms import bc
from gcp_jax.core import policy as policy_lib
from gcp_jax.core.networks import Normalizer
from gcp_jax.types import Batch, Segment, Specs, Transition


def test_both_modes_are_cloned_and_nothing_between(two_modes):
    """Against the mixture itself: equal shares, the middle third all but empty, and a small
    transport distance.
    """
    count = 4000
    sample = jax.jit(two_modes.policy.eval_policy)(
        two_modes.deployed, jnp.zeros((count, 1)), jax.random.key(1)
    )
    sample = np.asarray(sample).ravel()
    assert abs(np.mean(sample > 0) - 0.5) < 0.04
    assert np.mean(np.abs(sample) < two_modes.mode / 3) < 0.04
    modes = stats.norm(two_modes.mode, two_modes.std).ppf(
        (np.arange(count // 2) + 0.5) / (count // 2)
    )
    assert stats.wasserstein_distance(sample, np.concatenate([-modes, modes])) < 0.06


SPECS = Specs(obs_dim=2, action_dim=1, chunk=2)
NORMALISER = Normalizer(jnp.array([1.0, -1.0]), jnp.array([2.0, 0.5]))
POLICY = policy_lib.make_policy(policy_lib.PolicyConfig(chunk=2, hidden=(8,), steps=2), SPECS)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    obs, following = jnp.asarray(rng.standard_normal((2, 4, 2)), jnp.float32)
    action = jnp.asarray(rng.uniform(-1, 1, (4, 2, 1)), jnp.float32)
    zeros, no = jnp.zeros(4), jnp.zeros(4, bool)
    mask = jnp.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    return Batch(Transition(obs, action, mask, zeros, zeros, following, no, no))


def cloned(config, batch, updates):
    """The state after some updates with keys 0, 1, …; the metrics of the last."""
    algorithm = bc.make(config, POLICY, source=None)
    state = algorithm.init(jax.random.key(9), {"normalizer": NORMALISER})
    update = jax.jit(algorithm.update)
    metrics = {}
    for n in range(updates):
        state, metrics = update(state, batch, jax.random.key(n))
    return state, metrics


def test_updates_are_adamw_on_the_matching_loss_with_a_warmed_up_average(batch):
    config = bc.Config(learning_rate=0.01, weight_decay=0.1, ema_decay=0.2)
    data = batch.transitions

    @jax.jit
    def loss(net, key):
        return jnp.mean(POLICY.bc_loss(net, NORMALISER(data.obs), data.action, data.mask, key))

    net = average = POLICY.init(jax.random.key(9))
    optimizer = optax.adamw(0.01, weight_decay=0.1)
    opt = optimizer.init(net)
    for n, decay in enumerate([0.1, 2 / 11, 0.2, 0.2]):
        value, gradient = jax.value_and_grad(loss)(net, jax.random.key(n))
        change, opt = optimizer.update(gradient, opt, net)
        net = optax.apply_updates(net, change)
        average = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, average, net)
    state, metrics = cloned(config, batch, 4)
    np.testing.assert_allclose(metrics["imitation_loss"], value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (state.params, state.ema_params),
        (net, average),
    )
    jax.tree.map(np.testing.assert_array_equal, state.normalizer, NORMALISER)
    assert state.updates == 4


@pytest.mark.parametrize(
    ("field", "value"), [("learning_rate", 0.1), ("weight_decay", 10.0), ("ema_decay", 0.01)]
)
def test_every_field_changes_what_is_learned(batch, field, value):
    usual, _ = cloned(bc.Config(), batch, 1)
    changed, _ = cloned(dataclasses.replace(bc.Config(), **{field: value}), batch, 1)
    kernels = [np.asarray(state.ema_params["last"]["kernel"]) for state in (usual, changed)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-5


def test_every_field_has_its_test():
    assert {field.name for field in dataclasses.fields(bc.Config)} == {
        "learning_rate",
        "weight_decay",
        "ema_decay",
    }


def test_what_acts_and_is_exported_is_the_average(batch):
    state, _ = cloned(bc.Config(learning_rate=0.1), batch, 2)
    algorithm = bc.make(bc.Config(), POLICY, source=None)
    exported = algorithm.export(state)
    assert exported["net"] is state.ema_params
    obs, key = batch.transitions.obs, jax.random.key(0)
    chunk, extras = algorithm.act(state, obs, key)
    np.testing.assert_array_equal(chunk, POLICY.eval_policy(exported, obs, key))
    assert extras == {}


def test_prepare_hands_the_segment_on():
    segment = Segment(steps=None, extras={})
    assert bc.make(bc.Config(), POLICY, source=None).preprocess_segment(None, segment) == (
        None,
        segment,
    )

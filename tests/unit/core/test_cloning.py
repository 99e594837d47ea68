"""The cloner that improves beside other learners: an Adam step on the policy's own loss, with an
average that follows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.by_hand import assert_first_adam_step
from scipy import stats

from gcp_jax.core import cloning
from gcp_jax.core.policy import Policy, PolicyConfig
from gcp_jax.types import Specs, Transition

B = 6
SPECS = Specs(obs_dim=2, action_dim=2, chunk=2)
RATE, EMA = 0.02, 0.25


def matching(net, obs, action, mask, z, t):
    """Per sample: the masked mean of (bias + s·weight + z/10 − a)², weighted by 1 + t. Both numpy
    and jax read it.
    """
    mask = mask.repeat(SPECS.action_dim, -1)
    error = (net["bias"][None] + obs @ net["weight"] + 0.1 * z - action) ** 2
    return (1 + t) * (error * mask).sum(-1) / mask.sum(-1)


class Watched:
    """A policy whose loss remembers the noise and times it was given."""

    def __init__(self):
        self.noise, self.times = [], []
        parts = dict.fromkeys(Policy._fields)
        self.policy = Policy(
            **{
                **parts,
                "imitation_loss": self.loss,
                "config": PolicyConfig(chunk=2),
                "specs": SPECS,
            }
        )

    def loss(self, net, obs, action, mask, z, t):
        jax.debug.callback(
            lambda z, t: (self.noise.append(np.array(z)), self.times.append(np.array(t))), z, t
        )
        return matching(net, obs, action, mask, z, t)


@pytest.fixture
def watched():
    return Watched()


@pytest.fixture(scope="module")
def net():
    rng = np.random.default_rng(0)
    weight, bias = (
        rng.standard_normal((2, 4)).astype(np.float32),
        rng.standard_normal(4).astype(np.float32),
    )
    return {"weight": jnp.asarray(weight), "bias": jnp.asarray(bias)}


def batch(count=B):
    rng = np.random.default_rng(1)
    obs, following = rng.standard_normal((2, count, 2)).astype(np.float32)
    action = rng.uniform(-1, 1, (count, 2, 2)).astype(np.float32)
    mask = np.where(np.arange(count)[:, None] % 3 == 2, [1.0, 0.0], [1.0, 1.0]).astype(np.float32)
    zeros, no = np.zeros(count, np.float32), np.zeros(count, bool)
    return jax.tree.map(jnp.asarray, Transition(obs, action, mask, zeros, zeros, following, no, no))


def make(policy, grad_clip=1000.0):
    return cloning.make_bc_updater(policy, learning_rate=RATE, tau=EMA, grad_clip=grad_clip)


@pytest.mark.parametrize("grad_clip", [1000.0, 0.01])
def test_a_step_is_adam_on_the_mean_loss_of_the_batch(grad_clip, watched, net):
    data, cloner = batch(), make(watched.policy, grad_clip)
    state = cloner.init(net)
    obs = 2.0 * data.obs  # the normalized ones are given; those of the transitions are not read
    after, metrics = cloner.update(state, obs, data, jax.random.key(0))
    jax.effects_barrier()
    z, t = watched.noise[0].astype(np.float64), watched.times[0].astype(np.float64)

    def loss(net):
        flat = np.asarray(data.action, np.float64).reshape(B, 4)
        return matching(
            net, np.asarray(obs, np.float64), flat, np.asarray(data.mask, np.float64), z, t
        ).mean()

    size = assert_first_adam_step(loss, net, after.params, after.opt_state, RATE, grad_clip)
    assert metrics.keys() == {"imitation_loss", "base_gradient_norm"}
    np.testing.assert_allclose(metrics["imitation_loss"], loss(net), rtol=1e-5)
    np.testing.assert_allclose(metrics["base_gradient_norm"], size, rtol=1e-4)


def test_the_average_starts_as_the_network_and_follows_it(watched, net):
    data, cloner = batch(), make(watched.policy)
    state = cloner.init(net)
    jax.tree.map(np.testing.assert_array_equal, state.target_params, net)
    expected = {name: np.asarray(leaf, np.float64) for name, leaf in net.items()}
    for n in range(3):
        state, _ = cloner.update(state, data.obs, data, jax.random.key(n))
        expected = {
            name: (1 - EMA) * expected[name] + EMA * np.asarray(state.params[name])
            for name in expected
        }
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.target_params, expected
    )
    assert np.abs(np.asarray(state.params["bias"] - state.target_params["bias"])).min() > 1e-3


def test_every_step_draws_noise_and_times_of_its_own(watched, net):
    data, cloner = batch(600), make(watched.policy)
    for n in range(2):
        cloner.update(cloner.init(net), data.obs, data, jax.random.key(n))
    jax.effects_barrier()
    z, t = np.stack(watched.noise), np.stack(watched.times)
    assert (z.shape, t.shape) == ((2, 600, 4), (2, 600))
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest(t.ravel(), "uniform").pvalue > 1e-3
    assert len(np.unique(z)) > 0.99 * z.size


def test_steps_that_were_not_executed_teach_nothing(watched, net):
    data, cloner = batch(), make(watched.policy)
    other = data._replace(action=jnp.where(data.mask[..., None] > 0, data.action, 7.0))
    one, two = (
        cloner.update(cloner.init(net), data.obs, d, jax.random.key(0))[0] for d in (data, other)
    )
    assert np.any(np.asarray(other.action) == 7.0)
    jax.tree.map(np.testing.assert_array_equal, one, two)

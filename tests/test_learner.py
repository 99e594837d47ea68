"""The compiled loop: one seed is the same run alone, among others and over several devices; what it records is what happened."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs.wrappers import training
from gcp_jax import learner, sources
from gcp_jax import policy as policy_lib
from gcp_jax.algorithms import ogpo
from gcp_jax.learner import Collection
from gcp_jax.networks import Normaliser
from gcp_jax.policy import PolicyConfig
from gcp_jax.types import Specs

SPECS = Specs(obs_dim=4, action_dim=2, chunk=4)
ENV = training(envs.make("reach", horizon=10))
ENVS, LENGTH, CAPACITY, POOL, WARMUP = 8, 3, 6, 4, 1
SEEDS = 8
SEGMENTS = 3


def make_algorithm(traces):
    """Tiny OGPO whose ``update`` and ``act`` count how often they are traced."""
    config = ogpo.Config(
        chains=4, actor_states=8, critics=3, critic_hidden=(16,), best_of=2, actor_lr=1e-3, actor_ema=0.1
    )
    policy = policy_lib.make(PolicyConfig(chunk=4, hidden=(16, 16), steps=2), SPECS)
    source = sources.replay(capacity=CAPACITY, batch_size=16, updates=2, **ogpo.replay_needs(config))
    algorithm = ogpo.make(config, policy, source)

    def counted(name, function):
        @functools.wraps(function)
        def traced(*args):
            traces[name] += 1
            return function(*args)

        return traced

    algorithm = algorithm._replace(update=counted("update", algorithm.update), act=counted("act", algorithm.act))
    net = jax.jit(policy.init)(jax.random.key(1))
    return algorithm, {"net": net, "normaliser": Normaliser(jnp.zeros(4), jnp.full(4, 0.5))}


def host(train):
    """A Train as numpy, its typed keys as their words."""
    readable = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, train
    )
    return jax.tree.map(np.array, readable)


class Run:
    """A learner on one mesh with its first segments run: ``trains`` [SEGMENTS + 1] and ``metrics`` [SEGMENTS] on the host."""

    def __init__(self, mesh, seeds):
        self.traces = collections.Counter()
        self.algorithm, pretrained = make_algorithm(self.traces)
        collection = Collection(ENV, ENVS, LENGTH, POOL, WARMUP)
        self.learner = learner.build(self.algorithm, SPECS, mesh=mesh, seeds=len(seeds), collection=collection)
        self.train = self.learner.init(jnp.asarray(seeds), pretrained)
        self.trains, self.metrics, self.traced = [host(self.train)], [], []
        for _ in range(SEGMENTS):
            self.train, metrics = self.learner.segment(self.train)
            self.trains.append(host(self.train))
            self.metrics.append(jax.device_get(metrics))
            self.traced.append(dict(self.traces))


@pytest.fixture(scope="module")
def lone(devices):
    """Seed 3 by itself on one device."""
    return Run(devices(), [3])


@pytest.fixture(scope="module")
def eight(devices):
    """Seeds 0 to 7, two on each of four devices."""
    return Run(devices(seed=4), range(SEEDS))


def of_seed(train, index):
    """One seed's part of a Train, the seed axis kept; the clock is everybody's."""
    return jax.tree.map(lambda x: x[index : index + 1], train._replace(clock=None))


def assert_same(actual, expected, rtol=0.0, atol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


def test_seed_three_of_eight_is_the_lone_run(eight, lone):
    for n in range(SEGMENTS + 1):
        d = jax.tree.map(
            lambda a, b: np.abs(a.astype(float) - b).max(), of_seed(eight.trains[n], 3), of_seed(lone.trains[n], 0)
        )
        print(n, max(jax.tree.leaves(d)))


def test_data(devices, lone, eight):
    four = Run(devices(data=4), [3])
    square = Run(devices(seed=2, data=2), [3, 4])
    for n in range(SEGMENTS + 1):
        d = jax.tree.map(
            lambda a, b: np.abs(a.astype(float) - b).max(), of_seed(four.trains[n], 0), of_seed(lone.trains[n], 0)
        )
        print(n, max(jax.tree.leaves(d)))
        d = jax.tree.map(
            lambda a, b: np.abs(a.astype(float) - b).max(), of_seed(square.trains[n], 0), of_seed(lone.trains[n], 0)
        )
        print(n, max(jax.tree.leaves(d)), square.metrics[n - 1], square.traced)

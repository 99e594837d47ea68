"""Every method learns, through the compiled loop and its own source, a one-step task whose optimum
is known.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gcp_jax import algorithms
from gcp_jax.algorithms import bc, dppo, dsrl, expo, fql, ogpo, qc, residual
from gcp_jax.core import policy as policy_lib
from gcp_jax.core.demonstrations import demonstrations_of
from gcp_jax.core.policy import PolicyConfig
from gcp_jax.envs.protocol import Env, EnvSpecs, State
from gcp_jax.envs.wrappers import training
from gcp_jax.learner import batch_sources, loop
from gcp_jax.learner.loop import CollectConfig
from gcp_jax.types import Step

pytestmark = pytest.mark.slow

ENVS, LENGTH, SAMPLES = 64, 4, 2000


def bandit(side):
    """One step, one observation: reward 1 for an action of the sign of ``side``, else 0."""

    def reset(key):
        no, zero = jnp.bool_(False), jnp.float32(0)
        return State((), jnp.zeros(1), zero, no, no, no, no, jnp.int32(0), key)

    def step(state, action):
        good = action[0] * side > 0
        return state._replace(
            reward=good.astype(jnp.float32), terminated=jnp.bool_(True), success=good
        )

    return training(
        Env(reset, step, EnvSpecs("bandit", 1, 1, 1, 1.0, "an action of the right sign"))
    )


@dataclasses.dataclass(frozen=True)
class Variant:
    """A method with sensible constants, and how many segments of ENVS · LENGTH episodes it learns
    from.
    """

    module: Any
    config: Any
    segments: int = 20

    def make(self, policy):
        """The method on the source it uses in a run; a replay keeps everything."""
        if algorithms.on_policy(self.module):
            source = batch_sources.on_policy(
                rows=LENGTH, columns=ENVS, **self.module.rollout_needs(self.config)
            )
        else:
            capacity, needs = (
                LENGTH * self.segments,
                algorithms.replay_needs(self.module, self.config),
            )
            source = batch_sources.replay(capacity=capacity, batch_size=64, updates=16, **needs)
        return self.module.make(self.config, policy, source)


CRITIC = {
    "gamma": 0.99,
    "critics": 3,
    "critic_hidden": (64,),
    "critic_lr": 3e-3,
    "critic_tau": 0.1,
    "critic_warmup_updates": 0,
}
ACTOR = {**CRITIC, "actor_hidden": (64,), "actor_lr": 3e-3}
SOFT = {**ACTOR, "temperature_lr": 3e-4}
BASE = {"base_lr": 1e-3, "base_tau": 0.05}
# From one mode to the other's side it takes a residual of .6 and more.
RESIDUAL = {**SOFT, "scale": 1.0, "explore_steps": 1000, "policy_delay": 2}
# A chunk of one number: its log ratio is no mean over many, so the clip is that of plain PPO.
PPO = {
    "gamma": 0.99,
    "min_std": 0.1,
    "epochs": 4,
    "minibatches": 2,
    "clip": 0.1,
    "clip_base": 0.1,
    "actor_lr": 1e-3,
    "value_hidden": (32, 32),
}
VARIANTS = {
    "ogpo": Variant(
        ogpo,
        ogpo.Config(
            **CRITIC, chains=8, actor_states=32, best_of=4, actor_lr=1e-3, actor_tau=0.05, clip=0.05
        ),
        segments=10,
    ),
    "dppo, sde": Variant(dppo, dppo.Config(**PPO)),
    "dppo, learned noise": Variant(dppo, dppo.Config(**PPO, noise="learned")),
    "dsrl, na": Variant(dsrl, dsrl.Config(**SOFT, mode="na", distill_steps=2)),
    "dsrl, sac": Variant(dsrl, dsrl.Config(**SOFT, mode="sac")),
    "residual, sac": Variant(residual, residual.Config(**RESIDUAL, mode="sac")),
    "residual, td3": Variant(residual, residual.Config(**RESIDUAL, mode="td3")),
    # One sample, so that only its edit leads away from the wrong mode.
    "expo": Variant(expo, expo.Config(**SOFT, **BASE, samples=1, edit_scale=0.7)),
    "qc": Variant(qc, qc.Config(**CRITIC, **BASE, samples=4)),
    # The critic's values are of the order of 1, and so is the distance of the modes.
    "fql": Variant(fql, fql.Config(**ACTOR, **BASE, alpha=1.0)),
}


def learned(variant, policy, deployed, *, mesh, options):
    """Success of (the first segment's episodes, the deployed policy in the end).

    The rewarded side is the one that the untrained method takes less often: none may be right from
    the start.
    """
    algorithm = variant.make(policy)
    greedy = jax.jit(
        lambda state, obs, key: algorithm.eval_policy(algorithm.export(state), obs, key)
    )

    def positive(train):
        state = jax.tree.map(lambda x: x[0], train.learner.state)
        return np.mean(np.asarray(greedy(state, jnp.zeros((SAMPLES, 1)), jax.random.key(7))) > 0)

    def build(side):
        collection = CollectConfig(env=bandit(side), envs=ENVS, unroll_chunks=LENGTH, reset_pool=4)
        return loop.build_learner(
            algorithm, policy.specs, mesh=mesh, seeds=1, collection=collection
        )

    train = build(1).init(jnp.arange(1), deployed)
    side = 1 if positive(train) < 0.5 else -1
    segment = build(side).compile(train, options).segment
    successes = []
    for _ in range(variant.segments):
        train, metrics = segment(train)
        ended = metrics["episode/episodes"][0].sum()
        successes.append(metrics["episode/successes"][0].sum() / ended)
    return successes[0], positive(train) if side > 0 else 1 - positive(train)


@pytest.mark.parametrize("name", VARIANTS)
def test_it_learns_the_better_mode(name, two_modes, devices, optimized):
    start, end = learned(
        VARIANTS[name], two_modes.policy, two_modes.deployed, mesh=devices(), options=optimized
    )
    assert abs(start - 0.5) < 0.1
    assert end > 0.9


@pytest.fixture(scope="module")
def diffused(two_modes, devices, optimized):
    """A diffusion cloned from what the flow of ``two_modes`` does: (policy, deployed)."""
    action = two_modes.policy.eval_policy(
        two_modes.deployed, jnp.zeros((2048, 1)), jax.random.key(5)
    )
    zeros, yes = np.zeros((1, 2048, 1), np.float32), np.ones((1, 2048), bool)
    steps = Step(zeros, np.asarray(action)[None, :, 0], zeros[..., 0], zeros, yes, ~yes, yes, yes)
    config = PolicyConfig(family="diffusion", chunk=1, hidden=(64, 64, 64), steps=10)
    policy = policy_lib.make_policy(config, two_modes.policy.specs)
    source = batch_sources.dataset(
        demonstrations_of(steps), chunk=1, batch_size=256, updates=1000, gamma=1.0
    )
    algorithm = bc.make(bc.Config(learning_rate=5e-3), policy, source)
    cloning = loop.build_learner(algorithm, policy.specs, mesh=devices(), seeds=1)
    train = cloning.init(jnp.arange(1), {"normalizer": two_modes.deployed["normalizer"]})
    train, _ = cloning.compile(train, optimized).segment(train)
    return policy, algorithm.export(jax.tree.map(lambda x: x[0], train.learner.state))


def test_a_diffusion_learns_it_too(diffused, devices, optimized):
    start, end = learned(VARIANTS["dppo, sde"], *diffused, mesh=devices(), options=optimized)
    assert abs(start - 0.5) < 0.1
    assert end > 0.9

"""A task with a known optimum on which ``gcp-jax check`` tries a method for some seconds.

One step, one observation, one number as action: the reward is −(a − TARGET)², at best 0. The policy
that is finetuned is an untrained one, whose actions cover [-1, 1].
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import mesh as mesh_lib
from gcp_jax.config import Evaluation, Finetune, RunConfig
from gcp_jax.envs.physics.common import initial_state
from gcp_jax.envs.protocol import NO_SUCCESS, Env, EnvSpecs, State
from gcp_jax.envs.wrappers import training
from gcp_jax.learner import loop
from gcp_jax.run.assemble import assemble_finetuning
from gcp_jax.run.method_check import MethodError
from gcp_jax.run.task import TaskInterface
from gcp_jax.types import PyTree

Array = jax.Array

TARGET = 0.3  # the best action
SAMPLES = 4096  # actions of each policy that are compared
SPREAD = 2.0  # standard errors by which the method must be better
WIDTH = (32, 32)  # of every network
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}  # a trial compiles longer than it runs

SETTINGS: dict[str, Any] = {
    "critic_hidden": WIDTH,
    "actor_hidden": WIDTH,
    "value_hidden": WIDTH,
    "critic_lr": 3e-3,
    "value_lr": 3e-3,
    "actor_lr": 1e-3,
    "critic_warmup_updates": 64,
}
"""What a short trial needs. It is set if the method has the field and the user left its default."""


class Trial(NamedTuple):
    """Mean rewards before and after."""

    base: float
    end: float
    error: float  # standard error of their difference
    updates: int
    env_steps: int

    @property
    def learned(self) -> bool:
        """Whether the policy is better than the one it started from."""
        return self.end > self.base + SPREAD * self.error

    def __str__(self) -> str:
        verdict = "" if self.learned else "NOT better than the policy it started from: "
        return (
            f"{verdict}reward {self.base:.3f} → {self.end:.3f} (± {self.error:.3f}; "
            f"the optimum is 0) after {self.updates} updates and {self.env_steps:,} steps"
        )


def try_method(config: RunConfig) -> Trial:
    """Finetune an untrained policy with the configured method.

    Returns:
      What came of it. Not to be better is no error: a method may need more steps than a trial has.

    Raises:
      MethodError: the policy became worse.
    """
    setup = assemble_finetuning(_trial_config(config), _task())
    learner = loop.build_learner(
        setup.algorithm,
        setup.sizes.specs,
        mesh=mesh_lib.make_mesh(1),
        seeds=1,
        collection=setup.collect_config(),
    )
    pretrained = setup.policy.untrained(jax.random.key(0))
    train = learner.init(jnp.arange(1), pretrained)
    learner = learner.compile(train, QUICK_COMPILATION)
    for _ in range(setup.sizes.segments):
        train, _ = learner.segment(train)
    state = jax.tree.map(lambda x: x[0], train.learner.state)
    base = _rewards(setup.policy.eval_policy, pretrained)
    end = _rewards(setup.algorithm.eval_policy, setup.algorithm.export(state))
    learning_segments = setup.sizes.segments - setup.sizes.warmup_segments
    trial = Trial(
        base=float(base.mean()),
        end=float(end.mean()),
        error=float(np.sqrt((base.var() + end.var()) / SAMPLES)),
        updates=learning_segments * setup.sizes.updates,
        env_steps=setup.sizes.segments * setup.sizes.env_steps,
    )
    if not trial.end >= trial.base - SPREAD * trial.error:
        name = config.algorithm.module or config.algorithm.name
        raise MethodError(
            f"the method {name!r} makes a policy worse on a task of one step: {trial}; its sign, "
            "its targets or its learning rates (--config.algorithm.FIELD=VALUE) may be wrong"
        )
    return trial


def _trial_config(config: RunConfig) -> RunConfig:
    """Small networks, few steps, and the method's own settings otherwise."""
    settings = config.algorithm.settings
    defaults = type(settings)()
    changed = {
        name: value
        for name, value in SETTINGS.items()
        if hasattr(settings, name) and getattr(settings, name) == getattr(defaults, name)
    }
    policy = dataclasses.replace(
        config.policy, chunk=1, hidden=WIDTH, steps=2, train_steps=0, low=(), high=()
    )
    return dataclasses.replace(
        config,
        algorithm=dataclasses.replace(
            config.algorithm, settings=dataclasses.replace(settings, **changed)
        ),
        policy=policy,
        finetune=Finetune(
            env_steps=6_144,
            learning_starts=512,
            envs=32,
            unroll_chunks=config.finetune.unroll_chunks,
            batch_size=64,
        ),
        evaluation=Evaluation(episodes=1),
        population={},
        data_parallel=1,
    )


def _task() -> TaskInterface:
    def reset(key: Array) -> State:
        return initial_state((), jnp.zeros(1), key)

    def step(state: State, action: Array) -> State:
        return state._replace(reward=_reward(action[0]), terminated=jnp.bool_(True))

    specs = EnvSpecs(
        name="one step", obs_dim=1, action_dim=1, horizon=1, control_dt=1.0, success=NO_SUCCESS
    )

    def demonstrate(key: Array) -> Any:
        raise AssertionError("a trial starts from an untrained policy")

    return TaskInterface(
        env=training(Env(reset, step, specs)), demonstrate=demonstrate, write_video=None
    )


def _reward(action: Any) -> Any:
    return -((jnp.clip(action, -1.0, 1.0) - TARGET) ** 2)


def _rewards(eval_policy: Any, deployed: PyTree) -> np.ndarray:
    """Rewards [SAMPLES] of a policy."""
    chunk = jax.jit(eval_policy)(deployed, jnp.zeros((SAMPLES, 1)), jax.random.key(1))
    return np.asarray(_reward(chunk[:, 0, 0]), np.float64)

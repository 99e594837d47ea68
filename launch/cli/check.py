"""``gcp-jax check``: the contracts of a task and of a method."""

from __future__ import annotations

import sys
from typing import Any

import jax

from gcp_jax.config import RunConfig
from gcp_jax.envs.check import check_env
from gcp_jax.envs.protocol import NO_SUCCESS, EnvSpecs
from gcp_jax.experiments import assemble, method_trial
from gcp_jax.launch.cli.parse import Arguments, Command, Configuration, define_seed
from gcp_jax.run.method_check import check_method

SIZES = EnvSpecs(
    name="sizes", obs_dim=7, action_dim=3, horizon=100, control_dt=1.0, success=NO_SUCCESS
)
"""Sizes by which a method is checked: no two that could be taken for each other are equal."""


def check(arguments: Arguments) -> dict[str, Any]:
    """Check a task, or a method if the command line names one, or both.

    Raises:
      EnvError, MethodError: in one line, for the first broken contract.
    """
    arguments.no_positional()
    config = arguments.run_config
    named = {field.partition(".")[0] for field in arguments.explicit}
    measured: dict[str, Any] = {}
    if "algorithm" in named:
        measured |= _check_method(config)
    if "algorithm" not in named:
        arguments.require_task("gcp-jax check reach")
    if "env" in named or "algorithm" not in named:
        measured |= _check_env(config, arguments.flags.seed)
    return measured


def _check_env(config: RunConfig, seed: int) -> dict[str, Any]:
    env = assemble.make_env(config)
    steps = env.specs.horizon + 50
    print(
        f"checking {env.specs.name} over {steps} random steps in 4 environments …", file=sys.stderr
    )
    measured = check_env(env, jax.random.key(seed), n=4, steps=steps)
    _print(measured)
    return {"env": env.specs.name, **measured}


def _check_method(config: RunConfig) -> dict[str, Any]:
    name = config.algorithm.module or config.algorithm.name
    print(f"checking the method {name} …", file=sys.stderr)
    measured = check_method(config, SIZES)
    _print(measured)
    print("learning a task of one step …", file=sys.stderr)
    learned = {"learns": str(method_trial.try_method(config))}
    _print(learned)
    return {"method": name, **measured, **learned}


def _print(measured: dict[str, str]) -> None:
    for contract, value in measured.items():
        print(f"  {contract:<14} {value}", file=sys.stderr)


COMMANDS = {
    "check": Command(
        run=check,
        usage="ENV [--config.env.FIELD=VALUE …] [--config.algorithm.FIELD=VALUE …] [--seed=0]",
        description="""\
Checks what everything else relies on. Of a task, of the project, of a suite (brax:ant) or your own
(--config.env.module=my_env): shapes, keys, determinism, batching, clipping, ends of episodes,
successors, resets under random actions, the demonstrator, the scene and its camera. Of a method
(--config.algorithm.module=my_method, or --config.algorithm.name=qc): shapes, purity, export, and
whether it learns a task of one step whose optimum is known.""",
        json="env or method, and what was measured of each contract",
        configuration=Configuration.OF_ENV,
        define_flags=define_seed,
    ),
}

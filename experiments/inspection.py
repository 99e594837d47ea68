"""Looking at what is there: a saved policy's success, videos, and tables of tasks and methods."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import envs
from envs import wrappers
from envs.protocol import Env
from experiments import tasks
from gcp_jax import algorithms, artifact, evaluation
from gcp_jax import mesh as mesh_lib
from gcp_jax.config import ConfigError, named
from gcp_jax.statistics import wilson
from gcp_jax.types import PyTree


def _played(path: Path, *, episodes: int, seed: int) -> tuple[Env, evaluation.Outcome, PyTree, dict[str, Any]]:
    """Run a saved policy on its own task: (env, outcome [E], film [T, F, ...], the artifact's facts)."""
    base, deployed, facts, greedy = artifact.load(path)
    name, fields = named(facts["env"], "env")
    env = envs.make(name, **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    mesh = mesh_lib.make(1)
    program = evaluation.build(greedy, wrappers.training(env), mesh=mesh, episodes=episodes, chunk=base.config.chunk)
    deployed = jax.tree.map(lambda x: x[None], deployed)
    outcome, film = jax.device_get(program(deployed, jnp.asarray([seed], jnp.int32)))
    return env, jax.tree.map(lambda x: x[0], outcome), jax.tree.map(lambda x: x[0], film), facts


def evaluate(path: Path, *, episodes: int, seed: int) -> dict[str, Any]:
    """Success of a saved policy with its 95 % interval; prints one line beside what was recorded."""
    env, outcome, _, facts = _played(path, episodes=episodes, seed=seed)
    interval = wilson(int(outcome.success.sum()), episodes)
    print(f"{path} on {env.specs.name}: success {interval.percent()} over {episodes} episodes", file=sys.stderr)
    recorded = facts.get("success")
    if recorded is not None:
        print(f"recorded when it was saved: {recorded:.1%} over {facts.get('episodes', '?')} episodes", file=sys.stderr)
    return {
        "success": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "episodes": episodes,
        "recorded": recorded,
        "return": float(outcome.episode_return.mean()),
        "length": float(outcome.length.mean()),
    }


def render(target: str, out: Path, *, seed: int) -> dict[str, Any]:
    """A video of four episodes of a saved policy, or of a task's demonstrator. Raises FileExistsError, ConfigError."""
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another --out.")
    if Path(target).is_dir():
        env, _, film, _ = _played(Path(target), episodes=evaluation.FILMED, seed=seed)
    elif target in envs.names():
        env = envs.make(target)
        film = _demonstrated(env, seed)
    else:
        raise ConfigError(f"{target} is neither a saved policy nor a task; tasks: {', '.join(envs.names())}.")
    tasks.write_film(env, film, out)
    return {"video": str(out) if out.exists() else None}


def _demonstrated(env: Env, seed: int) -> PyTree:
    """States [T, F, ...] of clean demonstrations."""
    if env.demonstrator is None:
        raise ConfigError(f"{env.specs.name} has no demonstrator to show.")
    demonstrator = env.demonstrator(0.0)
    limited = wrappers.time_limit(wrappers.guard(env))

    def episode(key: jax.Array) -> PyTree:
        reset_key, plan_key, act_key = jax.random.split(key, 3)
        state = limited.reset(reset_key)

        def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], Any]:
            state, memory = carry
            action, memory = demonstrator.act(memory, state, key)
            state = wrappers.select(state.done, state, limited.step(state, action))
            return (state, memory), state._replace(key=state.time)

        keys = jax.random.split(act_key, env.specs.horizon)
        return jax.lax.scan(step, (state, demonstrator.init(plan_key, state)), keys)[1]

    keys = jax.random.split(jax.random.key(seed), evaluation.FILMED)
    return jax.device_get(jax.jit(jax.vmap(episode, out_axes=1))(keys))


def list_envs(*, to_stderr: bool) -> dict[str, Any]:
    """Print the tasks."""
    table = Table("task", "observation", "action", "horizon", "control step", "success", "demonstrator noise levels")
    found = {}
    for name in envs.names():
        specs, levels = envs.make(name).specs, importlib.import_module(f"envs.{name}").QUALITY
        qualities = ", ".join(f"{quality} {noise:g}" for quality, noise in levels.items())
        sizes = (str(specs.obs_dim), str(specs.action_dim), f"{specs.horizon} steps", f"{1e3 * specs.control_dt:g} ms")
        table.add_row(name, *sizes, specs.success, qualities)
        found[name] = {**specs._asdict(), "quality": levels}
    Console(stderr=to_stderr, width=None if sys.stdout.isatty() else 160).print(table)
    return found


def list_algorithms(*, to_stderr: bool) -> dict[str, Any]:
    """Print the methods with their fields and defaults."""
    console, found = Console(stderr=to_stderr, width=None if sys.stdout.isatty() else 160), {}
    for name in algorithms.names():
        module = algorithms.load(name)
        fields = dataclasses.asdict(module.Config())
        table = Table(
            "field", "default", title=f"{name}: {(module.__doc__ or '').splitlines()[0]}", title_justify="left"
        )
        for field, value in fields.items():
            table.add_row(f"--config.algorithm.{field}", str(value))
        console.print(table)
        found[name] = fields
    return found

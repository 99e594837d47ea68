"""Looking at what is there: a saved policy's success, videos, and tables of tasks and methods."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from gcp_jax import algorithms, envs
from gcp_jax import mesh as mesh_lib
from gcp_jax.config import ConfigError, RunConfig, split_name
from gcp_jax.envs import wrappers
from gcp_jax.envs.check import check_env
from gcp_jax.envs.demos import collect, storage
from gcp_jax.envs.protocol import Env, EnvSpecs
from gcp_jax.experiments import assemble
from gcp_jax.learner import evaluation
from gcp_jax.run import saved_policy, training
from gcp_jax.stats.statistics import MISSING, pooled, score_name_of
from gcp_jax.types import PyTree

MEASURED = Path(envs.__file__).with_name("measured.json")


def _played(
    path: Path, *, episodes: int, seed: int, filmed: int = evaluation.FILMED
) -> tuple[Env, evaluation.EvalOutcome, PyTree, dict[str, Any]]:
    """Run a saved policy on its own task: (env, outcome [E], film [T, F, ...], the artifact's facts)."""
    base, deployed, facts, eval_policy = saved_policy.load_saved_policy(path)
    name, fields = split_name(facts["env"], "env")
    env = envs.make(name, **fields)
    mesh = mesh_lib.make_mesh(1)
    program = evaluation.build_evaluation(
        eval_policy,
        wrappers.training(env),
        mesh=mesh,
        episodes=episodes,
        chunk=base.config.chunk,
        filmed=filmed,
    )
    deployed = jax.tree.map(lambda x: x[None], deployed)
    outcome, film = jax.device_get(program(deployed, jnp.asarray([seed], jnp.int32)))
    return env, jax.tree.map(lambda x: x[0], outcome), jax.tree.map(lambda x: x[0], film), facts


def evaluate(path: Path, *, episodes: int, seed: int) -> dict[str, Any]:
    """Success, or return, of a saved policy with its 95 % interval; prints one line beside what was recorded."""
    env, outcome, _, facts = _played(path, episodes=episodes, seed=seed)
    [row] = evaluation.eval_rows(
        jax.tree.map(lambda x: x[None], outcome), seeds=[seed], specs=env.specs
    )
    score_name, interval = score_name_of(row), pooled([row])
    assert interval is not None
    print(
        f"{path} on {env.specs.name}: {score_name} {interval.told(score_name)} over {episodes} episodes",
        file=sys.stderr,
    )
    recorded = facts.get(score_name)
    if recorded is not None:
        then = f"{recorded:.1%}" if score_name == "success" else f"{recorded:,.1f}"
        print(
            f"recorded when it was saved: {then} over {facts.get('episodes', '?')} episodes",
            file=sys.stderr,
        )
    return {
        score_name: interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "episodes": episodes,
        "recorded": recorded,
        "return": row["eval/return"],
        "length": float(outcome.length.mean()),
    }


def render(target: str, out: Path, *, seed: int, grid: int, noise: float) -> dict[str, Any]:
    """A video (or ``out`` of ``.png``: a picture) of ``grid`` episodes of a saved policy, or of a task's demonstrator at
    ``noise``. Raises FileExistsError, ConfigError."""
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another --out.")
    if Path(target).is_dir():
        env, _, film, _ = _played(Path(target), episodes=grid, seed=seed, filmed=grid)
    else:
        try:
            env = envs.make(target)
        except ValueError as error:
            raise ConfigError(f"{target} is no saved policy, and {error}") from error
        film = _demonstrated(env, seed, grid, noise)
    assemble.write_video(env, film, out)
    return {"written": str(out) if out.exists() else None}


def _demonstrated(env: Env, seed: int, episodes: int, noise: float) -> PyTree:
    """States [T, episodes, ...] of demonstrations."""
    if env.demonstrator is None:
        raise ConfigError(f"{env.specs.name} has no demonstrator to show.")
    demonstrator = env.demonstrator(noise)
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

    keys = jax.random.split(jax.random.key(seed), episodes)
    return jax.device_get(jax.jit(jax.vmap(episode, out_axes=1))(keys))


def check(config: RunConfig, *, seed: int) -> dict[str, Any]:
    """Check every contract of a task on random actions, print what was measured. Raises EnvError at the first broken one."""
    env = assemble.make_env(config)
    steps = env.specs.horizon + 50
    print(
        f"checking {env.specs.name} over {steps} random steps in 4 environments …", file=sys.stderr
    )
    measured = check_env(env, jax.random.key(seed), n=4, steps=steps)
    for contract, found in measured.items():
        print(f"  {contract:<14} {found}", file=sys.stderr)
    return {"env": env.specs.name, **measured}


def demos(config: RunConfig, out: Path, *, seed: int) -> dict[str, Any]:
    """Write scripted episodes of a task as a dataset. Raises FileExistsError, ConfigError."""
    env, chosen = assemble.make_env(config), config.demonstrations
    noise = assemble.noise_of(config, env)
    storage.check_free(out)
    began = time.monotonic()
    collected = jax.device_get(collect.collect(env, noise, jax.random.key(seed), chosen.episodes))
    facts = {
        **collected.facts(),
        "env": config.env,
        "noise": noise,
        "quality": chosen.quality,
        "seed": seed,
    }
    dataset = storage.write(
        out, collected.steps, collected.info, {**facts, "versions": training.package_versions()}
    )
    seconds = round(time.monotonic() - began, 1)
    ways = " + ".join(str(count) for count in facts["modes"])
    print(
        f"{out}: {facts['episodes']} episodes ({ways} by way), {dataset.facts['steps']:,} steps in {seconds} s, compiling included; "
        f"success {facts['success']:.1%}, trajectory quality {facts['trajectory_quality']}, coverage {facts['coverage']}",
        file=sys.stderr,
    )
    return {"dataset": str(out), **dataset.facts, "seconds": seconds}


def list_envs(*, to_stderr: bool) -> dict[str, Any]:
    """Print the tasks, with what ``benchmarks/environments.py`` measured of them."""
    columns = (
        "task",
        "observation",
        "action",
        "horizon",
        "success",
        "demonstrator: noise, success of 256",
        "steps/s (of mjx.step)",
    )
    table = Table(*columns)
    found: dict[str, Any] = {}
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    for name in dict.fromkeys((*envs.names(), *measured)):
        try:  # a suite's task takes half a minute to make
            specs = (
                envs.make(name).specs
                if name in envs.names()
                else EnvSpecs(**measured[name]["specs"])
            )
            levels = envs.load(name).quality
        except ImportError as missing:
            table.add_row(name, *[MISSING] * 3, str(missing))
            found[name] = {"missing": str(missing)}
            continue
        known = measured.get(name, {})
        horizon = f"{specs.horizon} × {1e3 * specs.control_dt:g} ms"
        demonstrator = "\n".join(
            _level(level, noise, known.get("demonstrator", {})) for level, noise in levels.items()
        )
        speed = "\n".join(_speed(n, rates) for n, rates in known.get("speed", {}).items())
        success = specs.success + (f"\n({', '.join(specs.tasks)})" if specs.tasks else "")
        table.add_row(
            name, str(specs.obs_dim), str(specs.action_dim), horizon, success, demonstrator, speed
        )
        found[name] = {**specs._asdict(), "quality": levels, "measured": known}
    console = Console(stderr=to_stderr, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    machines = sorted({known["machine"] for known in measured.values()})
    if machines:
        console.print(f"measured on {'; '.join(machines)} by python -m benchmarks.environments")
    console.print(
        "other suites: brax:NAME, playground:NAME; your own: --config.env.module=FILE (docs/add_an_environment.md)"
    )
    return found


def _level(level: str, noise: float, measured: Mapping[str, Any]) -> str:
    """One quality level: its noise, success overall and by the demonstrator's ways."""
    if level not in measured:
        return f"{level} {noise:g}"
    if "return" in measured[level]:
        return f"{level} {noise:g}: return {measured[level]['return']:,.0f} ± {measured[level]['std']:,.0f}"
    share = [
        f"{100 * k / n:.0f}"
        for k, n in (measured[level]["success"], *measured[level]["by_mode"].values())
    ]
    return f"{level} {noise:g}: {share[0]} % (by way {', '.join(share[1:])})"


def _speed(count: str, rates: Mapping[str, float]) -> str:
    """Steps/s of so many environments, and their fraction of plain physics."""
    told = f"{rates['task_steps_per_s']:,} at {count}"
    return f"{told} ({rates['of_physics']:.2f})" if "of_physics" in rates else told


def list_algorithms(*, to_stderr: bool) -> dict[str, Any]:
    """Print the methods with their fields and defaults."""
    console, found = Console(stderr=to_stderr, width=None if sys.stdout.isatty() else 160), {}
    for name in algorithms.names():
        module = algorithms.load(name)
        fields = dataclasses.asdict(module.Config())
        table = Table(
            "field",
            "default",
            title=f"{name}: {(module.__doc__ or '').splitlines()[0]}",
            title_justify="left",
        )
        for field, value in fields.items():
            table.add_row(f"--config.algorithm.{field}", str(value))
        console.print(table)
        found[name] = fields
    return found

"""Measure the tasks: scores of their demonstrators, and their speed against plain ``mjx.step``.

    python -m benchmarks.environments [NAME …] [--quick]

Without names: the project's own tasks, and those of other suites that have a demonstrator. The
table ``envs/measured.json`` is updated, which ``gcp-jax envs`` shows. Speeds are medians of runs in
turn in one process. ``of_physics`` is the task's control steps/s over those of bare ``mjx.step`` on
its model, with the same number of environments and substeps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import mujoco
import numpy as np
from mujoco import mjx

from benchmarks import timing
from gcp_jax import envs
from gcp_jax.envs.demos import collect
from gcp_jax.envs.protocol import Env
from gcp_jax.envs.suites import brax
from gcp_jax.experiments import runtime
from gcp_jax.run.provenance import package_versions

TABLE = Path(envs.__file__).with_name("measured.json")
EPISODES = 256
EPISODES_BY_RETURN = 64  # an episode of a task scored by its return has a thousand steps
COUNTS = (256, 1024)  # environments
REPEATS = 5
TOTAL_STEPS = 5120  # control steps of one timed run, over all environments
MAX_STEPS = 20  # of each environment


def main() -> None:
    """Measure the named tasks, or all, and merge them into the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument(
        "--quick", action="store_true", help="fewer episodes and environments; nothing is written"
    )
    arguments = parser.parse_args()
    runtime.prepare_cpu()
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    all_names = (*envs.names(), *(f"brax:{name}" for name in brax.QUALITY))
    for name in arguments.names or all_names:
        table[name] = measure(name, quick=arguments.quick)
        print(json.dumps({name: table[name]}), file=sys.stderr)
        if not arguments.quick:
            TABLE.write_text(json.dumps(dict(sorted(table.items())), indent=1) + "\n")


def measure(name: str, *, quick: bool = False) -> dict[str, Any]:
    """The table's entry of a task."""
    env = envs.make(name)
    entry: dict[str, Any] = {
        "machine": timing.machine(),
        "versions": package_versions(),
        "specs": {**env.specs._asdict(), "tasks": list(env.specs.tasks)},
    }
    if env.demonstrator is not None:
        episodes = EPISODES_BY_RETURN if env.specs.by_return else EPISODES
        if quick:
            episodes = 8
        entry["demonstrator"] = {
            level: demonstrator_score(env, noise, episodes)
            for level, noise in envs.load(name).quality.items()
        }
    counts = (16,) if quick else COUNTS
    repeats = 2 if quick else REPEATS
    entry["speed"] = {str(count): speed(env, count, repeats) for count in counts}
    return entry


def demonstrator_score(env: Env, noise: float, episodes: int) -> dict[str, Any]:
    """Successes of a demonstrator, overall and by its mode, or its mean return and their std."""
    steps, info, *_ = jax.device_get(collect.collect(env, noise, jax.random.key(0), episodes))
    total_steps = int(info.length.sum())
    if env.specs.by_return:
        returns = np.where(steps.executed, steps.reward, 0.0).sum(0)
        return {
            "return": float(returns.mean()),
            "std": float(returns.std(ddof=1)),
            "steps": total_steps,
        }
    by_mode = {
        str(int(mode)): _success_count(info.success[info.mode == mode])
        for mode in np.unique(info.mode)
    }
    return {"success": _success_count(info.success), "by_mode": by_mode, "steps": total_steps}


def _success_count(success: np.ndarray) -> list[int]:
    """[successes, episodes]."""
    return [int(success.sum()), int(success.size)]


def speed(env: Env, count: int, repeats: int) -> dict[str, float]:
    """Control steps/s of ``count`` environments and of plain physics, and their ratio."""
    steps = min(TOTAL_STEPS // count, MAX_STEPS)
    programs = {"task": _make_task_steps(env, count, steps)}
    if env.scene is not None:
        programs["physics"] = make_physics(env, count, steps)
    seconds = timing.measure(programs, repeats)
    figures: dict[str, float] = {
        f"{name}_steps_per_s": round(count * steps / seconds[name].median_wall) for name in programs
    }
    if "physics" in seconds:
        ratio = timing.paired_ratio(seconds["physics"].wall, seconds["task"].wall)
        figures["of_physics"] = round(ratio.median, 3)
        figures["spread"] = round(ratio.spread, 3)
    return figures


def _make_task_steps(env: Env, count: int, steps: int) -> Callable[[], Any]:
    """So many control steps of ``count`` environments, each with one random action."""
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), count))
    actions = jax.random.uniform(
        jax.random.key(1), (count, env.specs.action_dim), minval=-1, maxval=1
    )

    @jax.jit
    def run(state: Any, actions: jax.Array) -> Any:
        def step(state: Any, _: None) -> tuple[Any, None]:
            return jax.vmap(env.step)(state, actions), None

        state, _ = jax.lax.scan(step, state, None, length=steps)
        return state.obs

    return lambda: run(state, actions)


def make_physics(env: Env, count: int, steps: int) -> Callable[[], Any]:
    """Bare ``mjx.step`` for so many control steps from the task's start states, without control."""
    assert env.scene is not None
    scene = env.scene()
    model: mujoco.MjModel = scene.physics
    substeps = round(env.specs.control_dt / model.opt.timestep)
    starts = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), count))
    device_model = mjx.put_model(model, impl="jax")
    data = mjx.make_data(model, impl="jax")

    def step(data: Any, _: None) -> tuple[Any, None]:
        with jax.numpy_rank_promotion("allow"):
            return mjx.step(device_model, data), None

    @jax.jit
    @jax.vmap
    def run(qpos: jax.Array) -> Any:
        end, _ = jax.lax.scan(step, data.replace(qpos=qpos), None, length=steps * substeps)
        return end.qpos

    if hasattr(starts.physics, "body"):  # a suite's task renders the state that it simulates
        qpos = starts.physics.body.qpos
    else:
        qpos = jax.vmap(lambda state: scene.pose(state)["qpos"])(starts)
    return lambda: run(qpos)


if __name__ == "__main__":
    main()

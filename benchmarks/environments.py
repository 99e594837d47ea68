"""Measure the tasks: success of their demonstrators, and their steps against plain ``mjx.step``.

    python -m benchmarks.environments [NAME …] [--quick]

Without names: the project's own tasks and those of other suites that have a demonstrator. Writes ``envs/measured.json``, which
``gcp-jax envs`` shows. Speeds are medians of interleaved runs in one process; "of physics" is the task's control steps/s over those of
bare ``mjx.step`` on its model with the same number of environments and substeps.
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
from gcp_jax.run.training import package_versions

TABLE = Path(envs.__file__).with_name("measured.json")
EPISODES, EPISODES_BY_RETURN = (
    256,
    64,
)  # an episode of a task judged by its return takes a thousand steps
COUNTS = (256, 1024)
REPEATS = 5
STEPS = 5120  # control steps of one timed run, all environments together, of which each takes 20 at most


def main() -> None:
    """Measure the named tasks, or all, and merge them into the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument(
        "--quick", action="store_true", help="fewer episodes and environments; nothing is written"
    )
    chosen = parser.parse_args()
    runtime.prepare_cpu()
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    for name in chosen.names or (*envs.names(), *(f"brax:{name}" for name in brax.QUALITY)):
        table[name] = measure(name, quick=chosen.quick)
        print(json.dumps({name: table[name]}), file=sys.stderr)
        if not chosen.quick:
            TABLE.write_text(json.dumps(dict(sorted(table.items())), indent=1) + "\n")


def measure(name: str, *, quick: bool = False) -> dict[str, Any]:
    """Everything that is told of a task."""
    env, levels = envs.make(name), envs.load(name).quality
    found: dict[str, Any] = {
        "machine": timing.machine(),
        "versions": package_versions(),
        "specs": {**env.specs._asdict(), "tasks": list(env.specs.tasks)},
    }
    if env.demonstrator is not None:
        episodes = 8 if quick else EPISODES_BY_RETURN if env.specs.by_return else EPISODES
        found["demonstrator"] = {
            level: demonstrated(env, noise, episodes) for level, noise in levels.items()
        }
    found["speed"] = {
        str(count): speed(env, count, 2 if quick else REPEATS)
        for count in ((16,) if quick else COUNTS)
    }
    return found


def demonstrated(env: Env, noise: float, episodes: int) -> dict[str, Any]:
    """Success of the demonstrator, overall and by the way it took; its mean return and their std where the task is judged so."""
    steps, info, *_ = jax.device_get(collect.collect(env, noise, jax.random.key(0), episodes))
    if env.specs.by_return:
        returns = np.where(steps.executed, steps.reward, 0.0).sum(0)
        return {
            "return": float(returns.mean()),
            "std": float(returns.std(ddof=1)),
            "steps": int(info.length.sum()),
        }
    by_mode = {str(int(m)): _share(info.success[info.mode == m]) for m in np.unique(info.mode)}
    return {"success": _share(info.success), "by_mode": by_mode, "steps": int(info.length.sum())}


def _share(success: np.ndarray) -> list[int]:
    return [int(success.sum()), int(success.size)]


def speed(env: Env, count: int, repeats: int) -> dict[str, float]:
    """Control steps/s of ``count`` environments, of plain physics, and the ratio of each pair of runs."""
    steps = min(STEPS // count, 20)
    programs = {"task": _task(env, count, steps)}
    if env.scene is not None:
        programs["physics"] = physics(env, count, steps)
    spent = timing.measure(programs, repeats)
    rates = {name: count * steps / spent[name].seconds for name in programs}
    told: dict[str, float] = {f"{name}_steps_per_s": round(rate) for name, rate in rates.items()}
    if "physics" in spent:
        found = timing.ratio(spent["physics"].wall, spent["task"].wall)
        told |= {"of_physics": round(found.median, 3), "spread": round(found.spread, 3)}
    return told


def _task(env: Env, count: int, steps: int) -> Callable[[], Any]:
    start = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), count))
    actions = jax.random.uniform(
        jax.random.key(1), (count, env.specs.action_dim), minval=-1, maxval=1
    )

    @jax.jit
    def run(state: Any, actions: jax.Array) -> Any:
        return jax.lax.scan(
            lambda s, _: (jax.vmap(env.step)(s, actions), None), state, None, length=steps
        )[0].obs

    return lambda: run(start, actions)


def physics(env: Env, count: int, steps: int) -> Callable[[], Any]:
    """Bare ``mjx.step`` for so many control steps from the task's own starts, all with one control."""
    assert env.scene is not None
    scene = env.scene()
    model: mujoco.MjModel = scene.physics
    substeps = round(env.specs.control_dt / model.opt.timestep)
    starts = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), count))
    device_model, data = mjx.put_model(model, impl="jax"), mjx.make_data(model, impl="jax")

    @jax.jit
    def run(qpos: jax.Array) -> Any:
        def one(qpos: jax.Array) -> Any:
            def step(data: Any, _: None) -> tuple[Any, None]:
                with jax.numpy_rank_promotion("allow"):
                    return mjx.step(device_model, data), None

            return jax.lax.scan(step, data.replace(qpos=qpos), None, length=steps * substeps)[
                0
            ].qpos

        return jax.vmap(one)(qpos)

    own = hasattr(starts.physics, "body")  # a suite's task draws what it simulates
    qpos = (
        starts.physics.body.qpos
        if own
        else jax.vmap(lambda state: scene.pose(state)["qpos"])(starts)
    )
    return lambda: run(qpos)


if __name__ == "__main__":
    main()

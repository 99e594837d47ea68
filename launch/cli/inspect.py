"""Commands on a policy, run or task: ``evaluate``, ``report``, ``render``, ``demos``."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags

from gcp_jax.config import NOISE, ConfigError
from gcp_jax.config_fields import MAX_COUNT, refuse_fields
from gcp_jax.envs import wrappers
from gcp_jax.envs.demos import collect, storage
from gcp_jax.envs.protocol import Env
from gcp_jax.envs.shapes import check_shapes
from gcp_jax.experiments import assemble, play
from gcp_jax.launch import sweep_page
from gcp_jax.launch.cli.parse import Arguments, Command, Configuration, UsageError, define_seed
from gcp_jax.launch.manifest import NAME as SWEEP_MANIFEST
from gcp_jax.report import benchmark_page, run_page
from gcp_jax.report.benchmark_read import MANIFEST as BENCHMARK_MANIFEST
from gcp_jax.run import provenance
from gcp_jax.types import PyTree

POLICY_EXAMPLE = "gcp-jax evaluate runs/first/policy/seed_0"

SET_BY_DEMOS = {  # fields that have no effect on ``demos``, and what has
    "demonstrations.episodes": "use --episodes",
    "demonstrations.quality": "use --quality",
    "demonstrations.noise": "use --noise",
    "demonstrations.path": "gcp-jax demos writes a dataset, it reads none",
    "seed": "use --seed",
    "seeds": "use --seed and --episodes",
}


def evaluate(arguments: Arguments) -> dict[str, Any]:
    """Evaluate a saved policy from fixed start states."""
    path = Path(arguments.one_positional("saved policy", POLICY_EXAMPLE))
    return evaluate_policy(path, episodes=arguments.flags.episodes, seed=arguments.flags.seed)


def evaluate_policy(path: Path, *, episodes: int, seed: int) -> dict[str, Any]:
    """Print the success, or return, of a saved policy with its 95 % interval.

    Returns:
      {"success" or "return": estimate, "low", "high", "episodes", "recorded", "return", "length"}.

    Raises:
      SavedPolicyError: if the policy cannot be used.
    """
    played = play.play(path, episodes=episodes, seed=seed)
    score = play.score_of(played, seed)
    text = f"{score.name} {score.interval.format(score.name)} over {episodes} episodes"
    print(f"{path} on {played.env.specs.name}: {text}", file=sys.stderr)
    recorded = played.facts.get(score.name)
    if recorded is not None:
        value = f"{recorded:.1%}" if score.name == "success" else f"{recorded:,.1f}"
        count = played.facts.get("episodes", "?")
        print(f"recorded when it was saved: {value} over {count} episodes", file=sys.stderr)
    return play.summarize(played, score)


def report(arguments: Arguments) -> dict[str, Any]:
    """Write the report of finished or running runs, a sweep or a benchmark, from their folders."""
    folders = arguments.positional
    if not folders:
        raise UsageError("name at least one run folder, e.g. gcp-jax report runs/first")
    out = arguments.flags.out or None
    if len(folders) > 1 and out is None:
        words = " ".join(["gcp-jax report", *folders, "--out=DIR"])
        raise UsageError(f"name the folder of the page of {len(folders)} runs: {words}")
    if len(folders) == 1 and (Path(folders[0]) / SWEEP_MANIFEST).exists():
        page = sweep_page.write(folders[0], out)
    elif len(folders) == 1 and (Path(folders[0]) / BENCHMARK_MANIFEST).exists():
        page = benchmark_page.write(folders[0], out)
    else:
        page = run_page.write(folders if len(folders) > 1 else folders[0], out)
    print(f"report: {page}", file=sys.stderr)
    return {"report": str(page)}


def render(arguments: Arguments) -> dict[str, Any]:
    """Write a video or a picture of a saved policy, or of a task's demonstrator."""
    values = arguments.flags
    out = Path(values.out)
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another --out.")
    if out.suffix not in assemble.FILM_SUFFIXES:
        allowed = ", ".join(assemble.FILM_SUFFIXES)
        raise ConfigError(f"--out={out} must end in one of {allowed}.")
    if arguments.positional:
        policy = Path(arguments.one_positional("saved policy or task", "gcp-jax render reach"))
        played = play.play(policy, episodes=values.grid, seed=values.seed, filmed=values.grid)
        env = played.env
        states = played.states
    else:
        arguments.require_task("gcp-jax render reach")
        env = assemble.make_env(arguments.run_config)
        if env.demonstrator is None:
            raise ConfigError(f"{env.specs.name} has no demonstrator to show.")
        states = _demonstrate(env, seed=values.seed, episodes=values.grid, noise=values.noise)
    assemble.write_video(env, states, out)
    return {"written": str(out) if out.exists() else None}


def _demonstrate(env: Env, *, seed: int, episodes: int, noise: float) -> PyTree:
    """States [T, episodes, ...] of the demonstrator."""
    assert env.demonstrator is not None
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


def demos(arguments: Arguments) -> dict[str, Any]:
    """Write scripted episodes of a task as a dataset."""
    arguments.no_positional()
    arguments.require_task("gcp-jax demos reach")
    refuse_fields(arguments.explicit, SET_BY_DEMOS, "--config.")
    values = arguments.flags
    demonstrations = dataclasses.replace(
        arguments.run_config.demonstrations,
        episodes=values.episodes,
        quality=values.quality,
        noise=values.noise,
    )
    config = dataclasses.replace(arguments.run_config, demonstrations=demonstrations)
    name = f"{config.env.name}-{values.quality}".replace(":", "-")
    out = Path(values.out or f"demos/{name}")
    env = assemble.make_env(config)
    check_shapes(env)
    noise = assemble.demonstrator_noise(config, env)
    storage.check_free(out)
    start = time.monotonic()
    collected = jax.device_get(
        collect.collect(env, noise, jax.random.key(values.seed), values.episodes)
    )
    facts = {
        **collected.facts(),
        "env": config.env.to_dict(),
        "noise": noise,
        "quality": values.quality,
        "seed": values.seed,
        "versions": provenance.package_versions(),
    }
    dataset = storage.write(out, collected.steps, collected.info, facts)
    seconds = round(time.monotonic() - start, 1)
    modes = " + ".join(str(count) for count in facts["modes"])
    print(
        f"{out}: {facts['episodes']} episodes ({modes} by mode), {dataset.facts['steps']:,} steps "
        f"in {seconds} s, compiling included; success {facts['success']:.1%}, trajectory quality "
        f"{facts['trajectory_quality']}, coverage {facts['coverage']}",
        file=sys.stderr,
    )
    return {"dataset": str(out), **dataset.facts, "seconds": seconds}


def _evaluate_flags(declared: flags.FlagValues) -> None:
    flags.DEFINE_integer(
        "episodes", 256, "start states", flag_values=declared, lower_bound=1, upper_bound=MAX_COUNT
    )
    define_seed(declared)


def _report_flags(declared: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "out", "", "the folder of the report (default: RUN/report)", flag_values=declared
    )


def _render_flags(declared: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "out",
        "video.mp4",
        "the file: .mp4, .gif, or .png for a picture of the middle of each episode",
        flag_values=declared,
    )
    flags.DEFINE_integer(
        "grid",
        4,
        "episodes side by side",
        flag_values=declared,
        lower_bound=1,
        upper_bound=MAX_COUNT,
    )
    flags.DEFINE_float(
        "noise",
        0.0,
        "the demonstrator's noise",
        flag_values=declared,
        lower_bound=NOISE.low,
        upper_bound=NOISE.high,
    )
    define_seed(declared)


def _demos_flags(declared: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "quality",
        "mixed",
        "the demonstrator's noise level, by the task's name for it: expert, mixed, poor, bad",
        flag_values=declared,
    )
    flags.DEFINE_float(
        "noise",
        None,
        "the demonstrator's noise as a number, instead of a quality",
        flag_values=declared,
        lower_bound=NOISE.low,
        upper_bound=NOISE.high,
    )
    flags.DEFINE_integer(
        "episodes", 256, "episodes", flag_values=declared, lower_bound=1, upper_bound=MAX_COUNT
    )
    flags.DEFINE_string(
        "out", "", "the folder of the dataset (default: demos/ENV-QUALITY)", flag_values=declared
    )
    define_seed(declared)


COMMANDS = {
    "evaluate": Command(
        run=evaluate,
        usage="POLICY [--episodes=256] [--seed=0] [--json]",
        description="""\
Loads a saved policy, checks it, and runs it on its own task from fixed start states. POLICY is a
folder such as RUN/policy/seed_0, or a name that gcp-jax policies lists.""",
        json="success (or return), low, high, episodes, recorded, return, length",
        define_flags=_evaluate_flags,
    ),
    "report": Command(
        run=report,
        usage="RUN [RUN …] | SWEEP | BENCHMARK [--out=DIR] [--json]",
        description="""\
Writes RUN/report/report.html, or a page with several runs side by side into --out. Runs that are
not finished are reported up to now.""",
        json="report",
        define_flags=_report_flags,
    ),
    "render": Command(
        run=render,
        usage="POLICY|ENV [--out=video.mp4] [--grid=4] [--noise=0] [--config.env.FIELD=VALUE …]",
        description="""\
POLICY is a folder such as RUN/policy/seed_0, or a name that gcp-jax policies lists. ENV is a task's
name, or --config.env.module=FILE your own task; its scripted demonstrator is shown.""",
        json="written",
        configuration=Configuration.OF_POLICY_OR_ENV,
        define_flags=_render_flags,
    ),
    "demos": Command(
        run=demos,
        usage="ENV [--quality=mixed] [--episodes=256] [--out=DIR] [--config.env.FIELD=VALUE …]",
        description="""\
Writes a folder of numpy arrays (docs/guides/datasets.md) that --config.demonstrations.path=DIR
clones.""",
        json="dataset, episodes, steps, success, modes, seconds",
        configuration=Configuration.OF_ENV,
        define_flags=_demos_flags,
    ),
}

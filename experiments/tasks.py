"""Between ``envs`` and ``gcp_jax``: what a run needs of a task, and the defaults of its configuration."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

import envs
from envs import demonstrations, wrappers
from envs.protocol import Env
from gcp_jax import algorithms
from gcp_jax.config import ConfigError, Run, named, resolve, to_dict
from gcp_jax.train import Task
from gcp_jax.types import PyTree, Step


def defaults(env: str = "peg_insert", algorithm: str = "ogpo") -> ml_collections.ConfigDict:
    """Every field of a run with its default: those of the task ``env`` and of the method ``algorithm`` included."""
    if env not in envs.names():
        raise ConfigError(f"no environment is called {env!r}; allowed: {', '.join(envs.names())}.")
    fields = {"name": env, **dataclasses.asdict(importlib.import_module(f"envs.{env}").Config())}
    method = {"name": algorithm, **dataclasses.asdict(algorithms.load(algorithm).Config())}
    return ml_collections.ConfigDict(to_dict(Run(env=fields, algorithm=method)))


def vectorised(config: ml_collections.ConfigDict) -> None:
    """OGPO's constants for 64 environments at once on short tasks, in place.

    Beside the authors' (``algorithms/ogpo.py``): episodes of about 80 steps want γ .97; many environments give few updates per
    step, so the averages move faster (actor .02, critic .05) and the critic gets 256 updates before it is obeyed.
    """
    config.pretrain.learning_rate = 1e-3
    config.algorithm.gamma = 0.97
    config.algorithm.critic_lr = 1e-3
    config.algorithm.critic_ema = 0.05
    config.algorithm.critic_warmup = 256
    config.algorithm.actor_ema = 0.02
    config.algorithm.chains = 8
    config.finetune.utd = 0.125


def checked(config: ml_collections.ConfigDict) -> Run:
    """The configuration as frozen records. Raises ConfigError in one line."""
    try:
        return resolve(config.to_dict())
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def make_env(config: Run) -> Env:
    """The configured task, un-vectorised. Raises ConfigError for a name or field that does not exist."""
    name, fields = named(config.env, "env")
    try:
        return envs.make(name, **fields)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"env: {error}") from error


def noise_of(config: Run) -> float:
    """The demonstrator's noise: the number itself, or what the task calls by the quality's name."""
    demos = config.demonstrations
    if demos.noise >= 0:
        return demos.noise
    levels = importlib.import_module(f"envs.{config.env['name']}").QUALITY
    if demos.quality not in levels:
        raise ConfigError(f"demonstrations.quality is {demos.quality!r}; allowed: {', '.join(levels)}.")
    return levels[demos.quality]


def make(config: Run, *, film: bool = True) -> Task:
    """The task of a run: environment stack, demonstrations, film maker."""
    env = make_env(config)
    noise = noise_of(config)

    def demonstrate(key: jax.Array) -> tuple[Step, dict[str, Any]]:
        steps, info = jax.device_get(demonstrations.collect(env, noise, key, config.demonstrations.episodes))
        facts = {"episodes": len(info.success), "success": round(float(info.success.mean()), 3), "noise": noise}
        return steps, {**facts, "modes": [int((info.mode == m).sum()) for m in sorted(set(info.mode.tolist()))]}

    def to_video(states: PyTree, path: Path) -> None:
        write_film(env, states, path)

    return Task(wrappers.training(env), demonstrate, to_video if film and env.scene is not None else None)


def write_film(env: Env, states: PyTree, path: Path, *, columns: int = 2) -> None:
    """Render states [T, F, ...] as a grid of up to 4 episodes, every other control step; where that is impossible, say
    why in ``video.txt`` beside it."""
    from envs import render

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        episodes = [jax.tree.map(lambda x, i=i: x[:, i], states) for i in range(min(states.time.shape[1], 4))]
        pictures = [render.frames(env, episode, every=2, width=320, height=240) for episode in episodes]
        rows = [np.concatenate(pictures[i : i + columns], axis=2) for i in range(0, len(pictures), columns)]
        render.video(path, np.concatenate(rows, axis=1), fps=0.5 / env.specs.control_dt)
    except render.RenderingUnavailable as error:
        (path.parent / "video.txt").write_text(f"{error}\n")
        print(f"no video: {error}", file=sys.stderr)

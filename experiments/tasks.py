"""Between ``envs`` and ``gcp_jax``: what a run needs of a task, and the defaults of its configuration."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

import envs
from envs import demonstrations, wrappers
from envs.protocol import Env
from gcp_jax import algorithms, critic
from gcp_jax.config import ConfigError, Run, named, resolve, to_dict
from gcp_jax.train import Task
from gcp_jax.types import PyTree, Step


def defaults(env: str = "peg_insert", algorithm: str = "ogpo") -> ml_collections.ConfigDict:
    """Every field of a run with its default: those of the task ``env`` and of the method ``algorithm`` included."""
    if env not in envs.names():
        raise ConfigError(f"no environment is called {env!r}; allowed: {', '.join(envs.names())}.")
    fields = {"name": env, **dataclasses.asdict(importlib.import_module(f"envs.{env}").Config())}
    method = {"name": algorithm, "module": "", **dataclasses.asdict(algorithms.load(algorithm).Config())}
    return ml_collections.ConfigDict(to_dict(Run(env=fields, algorithm=method)))


PRESETS: dict[str, dict[str, Any]] = {
    "ogpo": {"algorithm.chains": 8, "algorithm.actor_ema": 0.02},
    "dppo": {
        "finetune.rows": 16,
        "algorithm.epochs": 10,
        "algorithm.minibatches": 8,
        "algorithm.min_std": 0.05,
        "algorithm.gae_lambda": 0.95,
        "algorithm.value_hidden": (128, 128, 128),
    },
    "dsrl": {"algorithm.distil_steps": 2, "algorithm.actor_lr": 1e-3, "algorithm.temperature_lr": 1e-3},
    "residual": {"algorithm.actor_lr": 1e-3, "algorithm.temperature_lr": 1e-3, "algorithm.explore_steps": 12_288},
    "expo": {"algorithm.actor_lr": 1e-3, "algorithm.temperature_lr": 1e-3},
    "qc": {},
    "fql": {"algorithm.actor_lr": 1e-3},
}
"""What 64 environments at once on short tasks want of each method, where it is not the authors' constant (``vectorised``)."""


def choose_env(config: ml_collections.ConfigDict, name: str) -> None:
    """Give the configuration another task, with that task's defaults, in place."""
    config.env = defaults(env=name).env


def choose_algorithm(config: ml_collections.ConfigDict, name: str, module: str = "") -> None:
    """Give the configuration another method, in place: its defaults and ``PRESETS``; the fields that all methods with critics
    share keep their values. module: a module of the user's own."""
    old, fields = config.algorithm, dataclasses.asdict(algorithms.load(name, module).Config())
    shared = {f.name for f in dataclasses.fields(critic.Config)} & fields.keys() & set(old.keys())
    fields |= {field: old[field] for field in shared}
    config.algorithm = ml_collections.ConfigDict({"name": name, "module": module, **fields})
    if not module:
        override(config, PRESETS[name])


def override(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
    """Set fields by their dotted names, in place. Raises ConfigError for one that does not exist or is of another type."""
    for field, value in values.items():
        try:
            config.update_from_flattened_dict({field: value})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"cannot set {field} to {value!r}: {error}") from error


def vectorised(config: ml_collections.ConfigDict) -> None:
    """Constants for 64 environments at once on short tasks, in place, for a method with critics.

    Beside the authors': episodes of about 80 steps want γ .97; many environments give few updates per step, so the averages
    move faster (critic .05, OGPO's actor .02) and the critic gets 256 updates before it is obeyed.
    """
    config.pretrain.learning_rate = 1e-3
    config.algorithm.gamma = 0.97
    config.algorithm.critic_lr = 1e-3
    config.algorithm.critic_ema = 0.05
    config.algorithm.critic_warmup = 256
    config.finetune.utd = 0.125
    override(config, PRESETS[config.algorithm.name])


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

"""Between ``envs`` and ``gcp_jax``: what a run needs of a task, and the defaults of its configuration."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from gcp_jax import algorithms, envs
from gcp_jax.config import ConfigError, RunConfig, resolve, split_name, to_dict
from gcp_jax.core import critic
from gcp_jax.envs import wrappers
from gcp_jax.envs.demos import collect, quality, storage
from gcp_jax.envs.protocol import Env
from gcp_jax.learner import evaluation
from gcp_jax.run.training import TaskInterface
from gcp_jax.types import PyTree, Step

Demonstrate = Callable[[jax.Array], tuple[Step, dict[str, Any]]]


def defaults(
    env: str = "peg_insert", algorithm: str = "ogpo", env_module: str = ""
) -> ml_collections.ConfigDict:
    """Every field of a run with its default: those of the task ``env`` and of the method ``algorithm`` included."""
    try:
        fields = envs.settings(env, env_module)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    method = {
        "name": algorithm,
        "module": "",
        **dataclasses.asdict(algorithms.load(algorithm).Config()),
    }
    return ml_collections.ConfigDict(to_dict(RunConfig(env=fields, algorithm=method)))


PRESETS: dict[str, dict[str, Any]] = {
    "ogpo": {"algorithm.chains": 8, "algorithm.actor_tau": 0.02},
    "dppo": {
        "finetune.unroll_chunks": 16,
        "algorithm.epochs": 10,
        "algorithm.minibatches": 8,
        "algorithm.min_std": 0.05,
        "algorithm.gae_lambda": 0.95,
        "algorithm.value_hidden": (128, 128, 128),
    },
    "dsrl": {
        "algorithm.distill_steps": 2,
        "algorithm.actor_lr": 1e-3,
        "algorithm.temperature_lr": 1e-3,
    },
    "residual": {
        "algorithm.actor_lr": 1e-3,
        "algorithm.temperature_lr": 1e-3,
        "algorithm.explore_steps": 12_288,
    },
    "expo": {"algorithm.actor_lr": 1e-3, "algorithm.temperature_lr": 1e-3},
    "qc": {},
    "fql": {"algorithm.actor_lr": 1e-3},
}
"""What 64 environments at once on short tasks want of each method, where it is not the authors' constant (``vectorized``)."""


def set_env(config: ml_collections.ConfigDict, name: str, module: str = "") -> None:
    """Give the configuration another task, with that task's defaults, in place. module: a module of the user's own."""
    config.env = defaults(env=name, env_module=module).env


def set_algorithm(config: ml_collections.ConfigDict, name: str, module: str = "") -> None:
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
        if not field.startswith("population."):  # which has the fields that a user gives it
            _known(config, field)
        try:
            config.update_from_flattened_dict({field: value})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"cannot set {field} to {value!r}: {error}") from error


def _known(config: ml_collections.ConfigDict, field: str) -> None:
    """Raise ConfigError where there is no such field."""
    section = config
    for name in field.split("."):
        allowed = list(section.keys()) if isinstance(section, ml_collections.ConfigDict) else []
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"there is no field {field!r}; {hint}allowed: {', '.join(allowed)}.")
        section = section[name]


def call_user_file(path: str, function: str, *, named: str, example: str) -> Any:
    """What ``function`` of a user's Python file returns. named: the file as the user gave it. Raises ConfigError where there is no
    such file or function."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if not Path(path).is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{named} is not a Python file; give one such as {example}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise ConfigError(f"{named} has no {function}(); see {example}.")
    return getattr(module, function)()


def apply_many_env_preset(config: ml_collections.ConfigDict) -> None:
    """Constants for 64 environments at once on short tasks, in place, for a method with critics.

    Beside the authors': episodes of about 80 steps want γ .97; many environments give few updates per step, so the averages
    move faster (critic .05, OGPO's actor .02) and the critic gets 256 updates before it is obeyed.
    """
    config.pretrain.learning_rate = 1e-3
    config.algorithm.gamma = 0.97
    config.algorithm.critic_lr = 1e-3
    config.algorithm.critic_tau = 0.05
    config.algorithm.critic_warmup_updates = 256
    config.finetune.utd = 0.125
    override(config, PRESETS[config.algorithm.name])


def frozen_config(config: ml_collections.ConfigDict) -> RunConfig:
    """The configuration as frozen records. Raises ConfigError in one line."""
    try:
        return resolve(config.to_dict())
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def config_of_run(folder: Path) -> RunConfig:
    """The configuration of a run's folder. Raises ConfigError where there is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"{folder} holds no run: there is no {path}.")
    return resolve(json.loads(path.read_text())["config"])


def make_env(config: RunConfig) -> Env:
    """The configured task, un-vectorized. Raises ConfigError for a name or field that does not exist."""
    name, fields = split_name(config.env, "env")
    try:
        return envs.make(name, **fields)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"env: {error}") from error


def noise_of(config: RunConfig, env: Env) -> float:
    """The demonstrator's noise: the number itself, or what the task calls by the quality's name. Raises ConfigError."""
    demos = config.demonstrations
    if env.demonstrator is None:
        raise ConfigError(
            f"{env.specs.name} has no demonstrator; name a dataset (demonstrations.path) or a policy (pretrain.artifact)."
        )
    if demos.noise >= 0:
        return demos.noise
    levels = envs.load(config.env["name"], config.env.get("module", "")).quality
    if demos.quality not in levels:
        raise ConfigError(
            f"demonstrations.quality is {demos.quality!r}; allowed: {', '.join(levels)}."
        )
    return levels[demos.quality]


def make_task(config: RunConfig, *, film: bool = True) -> TaskInterface:
    """The task of a run: environment stack, demonstrations, film maker."""
    env = make_env(config)
    demos = config.demonstrations
    if demos.path:
        demonstrate = _from_disk(env, demos.path, demos.episodes)
    elif config.pretrain.artifact and not config.finetune.demo_fraction:
        demonstrate = _none
    else:
        demonstrate = _scripted(env, noise_of(config, env), demos.episodes)

    def to_video(states: PyTree, path: Path) -> None:
        write_video(env, jax.tree.map(lambda x: x[:, : evaluation.FILMED], states), path)

    return TaskInterface(
        wrappers.training(env), demonstrate, to_video if film and env.scene is not None else None
    )


def _scripted(env: Env, noise: float, episodes: int) -> Demonstrate:
    def demonstrate(key: jax.Array) -> tuple[Step, dict[str, Any]]:
        collected = jax.device_get(collect.collect(env, noise, key, episodes))
        return collected.steps, {**collected.facts(), "noise": noise}

    return demonstrate


def _from_disk(env: Env, path: str, episodes: int) -> Demonstrate:
    """Checked when the run is made, so that a bad dataset stops it before anything is compiled."""
    dataset = storage.read(Path(path))
    for name in ("obs_dim", "action_dim"):
        there, here = dataset.facts[name], getattr(env.specs, name)
        if there != here:
            raise ConfigError(
                f"demonstrations.path={path} has {name}={there}, but {env.specs.name} has {here}."
            )
    if len(dataset.start) < episodes:
        raise ConfigError(
            f"demonstrations.path={path} has {len(dataset.start)} episodes, demonstrations.episodes asks for {episodes}."
        )

    def demonstrate(key: jax.Array) -> tuple[Step, dict[str, Any]]:
        steps, info = jax.tree.map(
            lambda x: x[:, :episodes] if x.ndim > 1 else x[:episodes], storage.padded(dataset)
        )
        known = {name: dataset.facts[name] for name in quality.NAMES if name in dataset.facts}
        return steps, {**collect.facts(info), **known, "path": path}

    return demonstrate


def _none(key: jax.Array) -> tuple[Step, dict[str, Any]]:
    raise AssertionError("a run from an artifact without demo_fraction looks at no demonstrations")


def write_video(env: Env, states: PyTree, path: Path) -> None:
    """Render states [T, F, ...] as a square grid of F episodes: a video of every other control step, or, where ``path`` ends
    in .png, a picture of each half-way. Where that is impossible, say why in ``video.txt`` beside it."""
    from gcp_jax.envs.rendering import render

    path.parent.mkdir(parents=True, exist_ok=True)
    still = path.suffix == ".png"
    count = states.time.shape[1]
    columns = math.ceil(math.sqrt(count))
    width, height = (320, 240) if columns <= 2 else (240, 180)
    try:
        pictures = []
        for i in range(count):
            half = int(states.time[-1, i]) // 2
            shown = slice(half, half + 1) if still else slice(None, None, 2)
            film = jax.tree.map(lambda x, i=i, shown=shown: x[shown, i], states)
            pictures.append(render.frames(env, film, width=width, height=height))
        pictures += [np.zeros_like(pictures[0])] * (-count % columns)
        rows = [
            np.concatenate(pictures[i : i + columns], axis=2)
            for i in range(0, len(pictures), columns)
        ]
        together = np.concatenate(rows, axis=1)
        if still:
            render.picture(path, together[0])
        else:
            render.video(path, together, fps=0.5 / env.specs.control_dt)
    except render.RenderingUnavailable as error:
        (path.parent / "video.txt").write_text(f"{error}\n")
        print(f"no {'picture' if still else 'video'}: {error}", file=sys.stderr)

"""Building what a run needs of its task: the environment stack, its demonstrations, its videos."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gcp_jax import envs, user_code
from gcp_jax.config import ConfigError, EnvChoice, RunConfig
from gcp_jax.config import Demonstrations as DemonstrationConfig
from gcp_jax.core.demonstrations import Demonstrations, demonstrations_of
from gcp_jax.envs import wrappers
from gcp_jax.envs.demos import collect, storage
from gcp_jax.envs.protocol import Env
from gcp_jax.envs.shapes import check_shapes
from gcp_jax.learner import evaluation
from gcp_jax.run.folder import differences
from gcp_jax.run.method_check import check_method
from gcp_jax.run.task import TaskInterface
from gcp_jax.types import PyTree

Demonstrate = Callable[[jax.Array], tuple[Demonstrations, dict[str, Any]]]

FILM_SUFFIXES = (".mp4", ".gif", ".png")  # of ``write_video``


def make_env(config: RunConfig) -> Env:
    """The configured task, not vectorized.

    Raises:
      ConfigError: if the task cannot be made with these settings.
    """
    return build_env(config.env)


def build_env(choice: EnvChoice) -> Env:
    """A task with its settings, not vectorized.

    Raises:
      ConfigError: if the task cannot be made with these settings.
    """
    try:
        definition = envs.load(choice.name, choice.module)
        return envs.build(definition, choice.settings, choice.randomize)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"env: {error}") from error


def demonstrator_noise(config: RunConfig, env: Env) -> float:
    """The demonstrator's noise: the number, or what the task means by the quality's name.

    Raises:
      ConfigError: if the task has no demonstrator or no such quality.
    """
    demos = config.demonstrations
    if env.demonstrator is None:
        raise ConfigError(
            f"{env.specs.name} has no demonstrator; name a dataset (demonstrations.path) or a "
            "policy (pretrain.saved_policy)."
        )
    if demos.noise is not None:
        return demos.noise
    levels = envs.load(config.env.name, config.env.module).quality
    if demos.quality not in levels:
        raise ConfigError(
            f"demonstrations.quality is {demos.quality!r}; allowed: {', '.join(levels)}."
        )
    return levels[demos.quality]


def make_task(
    config: RunConfig, *, film: bool = True, demonstrations: bool = True
) -> TaskInterface:
    """The task of a run.

    Whatever of the task and of a method of the user's own can be checked without compiling is
    checked here.

    Args:
      config: the run.
      film: whether the run may write videos.
      demonstrations: whether the run still needs its demonstrations; if not, a dataset is not read.

    Raises:
      ConfigError: if the task, its demonstrator or the dataset does not fit the run.
      EnvError: if the task breaks the contract of shapes.
      MethodError: if the method breaks a contract.
    """
    env = make_env(config)
    check_shapes(env)
    if config.algorithm.module:  # the project's own methods are checked by its tests
        check_method(config, env.specs)
    can_film = film and env.scene is not None
    return TaskInterface(
        env=wrappers.training(env),
        demonstrate=_demonstrate(config, env) if demonstrations else _no_demonstrations,
        write_video=Camera(env).film if can_film else None,
    )


def _demonstrate(config: RunConfig, env: Env) -> Demonstrate:
    """The function that gives a run its demonstrations."""
    demos = config.demonstrations
    if demos.path:
        return _from_disk(config, env)
    if config.pretrain.saved_policy and not config.finetune.demo_fraction:
        return _no_demonstrations
    return _scripted(env, demonstrator_noise(config, env), demos.episodes)


def _scripted(env: Env, noise: float, episodes: int) -> Demonstrate:
    def demonstrate(key: jax.Array) -> tuple[Demonstrations, dict[str, Any]]:
        collected = jax.device_get(collect.collect(env, noise, key, episodes))
        return demonstrations_of(collected.steps), {**collected.facts(), "noise": noise}

    return demonstrate


def _from_disk(config: RunConfig, env: Env) -> Demonstrate:
    """Demonstrations of a dataset, which is checked now, before anything is compiled."""
    path = config.demonstrations.path
    dataset = storage.read(Path(path))
    _check_env(dataset, config, env)
    selected = _select(dataset, config.demonstrations)

    def demonstrate(key: jax.Array) -> tuple[Demonstrations, dict[str, Any]]:
        return storage.demonstrations(selected), {**storage.measured_facts(selected), "path": path}

    return demonstrate


def _select(dataset: storage.Dataset, demos: DemonstrationConfig) -> storage.Dataset:
    """The episodes of a dataset that a run learns from."""
    if len(dataset.start) < demos.episodes:
        raise ConfigError(
            f"demonstrations.path={demos.path} has {len(dataset.start)} episodes, "
            f"demonstrations.episodes asks for {demos.episodes}."
        )
    return dataset.first(demos.episodes)


def _check_env(dataset: storage.Dataset, config: RunConfig, env: Env) -> None:
    """Compare the task of a dataset with that of the run; says which of its settings differ.

    Raises:
      ConfigError: it is another task, or has other sizes.
    """
    where = f"demonstrations.path={config.demonstrations.path}"
    for size in ("obs_dim", "action_dim"):
        saved = dataset.facts[size]
        needed = getattr(env.specs, size)
        if saved != needed:
            raise ConfigError(f"{where} has {size}={saved}, but {env.specs.name} has {needed}.")
    recorded: Any = dataset.facts.get("env")
    name = recorded.get("name") if isinstance(recorded, Mapping) else None
    if name != config.env.name:
        raise ConfigError(
            f"{where} is of the environment {name!r}, but this run is on {config.env.name!r}; "
            "choose its environment, or correct env.name in its dataset.json."
        )
    current = {key: x for key, x in config.env.to_dict().items() if key in recorded}
    others = [
        f"{each.field}={each.saved!r}, not {each.current!r}"
        for each in differences(recorded, current, "env.")
    ]
    if others:
        print(f"{where} was recorded with {'; '.join(others)}", file=sys.stderr)


def dataset_digest(demos: DemonstrationConfig) -> str:
    """The digest of the recorded episodes that a run learns from; "" if they are scripted.

    Raises:
      ConfigError: ``demonstrations.path`` holds too few episodes.
      DatasetError: it holds no dataset.
    """
    if not demos.path:
        return ""
    return storage.demonstrations(_select(storage.read(Path(demos.path)), demos)).digest()


def _no_demonstrations(key: jax.Array) -> tuple[Demonstrations, dict[str, Any]]:
    raise AssertionError("this run uses no demonstrations")


class Camera:
    """Films a run's episodes. A film that fails is said once and does not stop the run."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._failed = False

    def film(self, states: PyTree, path: Path) -> None:
        """Write a video of the first episodes, unless one has failed before.

        Args:
          states: states [T, F, ...] of F episodes.
          path: the video.
        """
        if self._failed:
            return
        filmed = jax.tree.map(lambda x: x[:, : evaluation.FILMED], states)
        try:
            self._failed = not write_video(self._env, filmed, path)
        except Exception as error:  # a task's own scene may raise anything
            self._failed = True
            path.unlink(missing_ok=True)
            _note_missing_video(path, user_code.describe(error))


def _note_missing_video(path: Path, reason: str) -> None:
    """Print why there is no video or picture, and write it to ``video.txt`` beside it."""
    print(f"no {'picture' if path.suffix == '.png' else 'video'}: {reason}", file=sys.stderr)
    with contextlib.suppress(OSError):
        (path.parent / "video.txt").write_text(f"{reason}\n")


def write_video(env: Env, states: PyTree, path: Path) -> bool:
    """Render episodes side by side in a square grid.

    If rendering is impossible, the reason is written to ``video.txt`` beside ``path``.

    Args:
      env: the task.
      states: states [T, F, ...] of F episodes.
      path: a video of every other control step, with the suffix ``.mp4`` or ``.gif``; with
        ``.png`` a picture of the middle of each episode.

    Returns:
      Whether there is something to draw with.

    Raises:
      SceneError: the task's scene does not fit its model.
    """
    from gcp_jax.envs.rendering import render

    path.parent.mkdir(parents=True, exist_ok=True)
    still = path.suffix == ".png"
    try:
        together = _grid(env, states, still=still)
        if still:
            render.picture(path, together[0])
        else:
            render.video(path, together, fps=0.5 / env.specs.control_dt)
    except render.RenderingUnavailable as error:
        _note_missing_video(path, str(error))
        return False
    return True


def _grid(env: Env, states: PyTree, *, still: bool) -> np.ndarray:
    """Frames [t, height, width, 3] of all episodes [T, F, ...] in one square grid."""
    from gcp_jax.envs.rendering import render

    count = states.time.shape[1]
    columns = math.ceil(math.sqrt(count))
    width, height = (320, 240) if columns <= 2 else (240, 180)
    frames = []
    for index in range(count):
        shown = slice(None, None, 2)
        if still:
            middle = int(states.time[-1, index]) // 2
            shown = slice(middle, middle + 1)
        episode = jax.tree.map(lambda x, i=index, shown=shown: x[shown, i], states)
        frames.append(render.frames(env, episode, width=width, height=height))
    frames += [np.zeros_like(frames[0])] * (-count % columns)
    starts = range(0, len(frames), columns)
    rows = [np.concatenate(frames[start : start + columns], axis=2) for start in starts]
    return np.concatenate(rows, axis=1)

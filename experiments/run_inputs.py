"""What a run reads from disk when it begins: whether it still needs it, and digests of it.

A dataset and a saved policy may move while a run is interrupted, and what is not needed any more
may be gone. What is there must have the content with which the run began.
"""

from __future__ import annotations

import functools
from pathlib import Path

from gcp_jax.config import Demonstrations, RunConfig
from gcp_jax.experiments import assemble
from gcp_jax.run import run_policies, saved_policy
from gcp_jax.run.folder import finished_summary
from gcp_jax.run.task import TaskInterface

FileStamp = tuple[str, int, int]  # name, time of the last change, bytes


def task_of_run(config: RunConfig, folder: Path, *, film: bool = True) -> TaskInterface:
    """The task of a run as far as its folder needs it.

    Args:
      config: the run.
      folder: its folder, which need not exist.
      film: whether the run may write videos.

    Raises:
      ConfigError: the task, its demonstrator or the dataset does not fit the run.
      SavedPolicyError: ``pretrain.saved_policy`` is needed and cannot be read.
    """
    needed = needs_demonstrations(config, folder)
    task = assemble.make_task(config, film=film, demonstrations=needed)
    return task._replace(inputs=input_digests(config, folder))


def needs_demonstrations(config: RunConfig, folder: Path) -> bool:
    """Whether a run has yet to learn from its demonstrations."""
    if _is_complete(config, folder):
        return False
    clones = not config.pretrain.saved_policy and not _is_cloned(folder)
    return clones or config.finetune.demo_fraction > 0


def input_digests(config: RunConfig, folder: Path) -> dict[str, str]:
    """The digests of a run's dataset and saved policy, by the field that names them.

    What the run does not need any more is left out if it cannot be read.

    Raises:
      ConfigError: ``demonstrations.path`` is needed and holds too few episodes.
      DatasetError: it is needed and holds no dataset.
      SavedPolicyError: ``pretrain.saved_policy`` is needed and cannot be read.
    """
    digests = {}
    if path := config.demonstrations.path:
        try:
            digests["demonstrations.path"] = _dataset_digest(
                config.demonstrations, _stamps(Path(path))
            )
        except (ValueError, OSError):
            if needs_demonstrations(config, folder):
                raise
    if path := config.pretrain.saved_policy:
        try:
            digests["pretrain.saved_policy"] = saved_policy.digest(path)
        except saved_policy.SavedPolicyError:
            if not _is_cloned(folder):
                raise
    return digests


def _is_cloned(folder: Path) -> bool:
    return saved_policy.is_intact(run_policies.policy_folder(folder, run_policies.BASE))


def _is_complete(config: RunConfig, folder: Path) -> bool:
    """Whether a run is finished and all its policies are on disk."""
    return bool(finished_summary(folder)) and not run_policies.missing_policies(
        folder, config.members
    )


def _stamps(folder: Path) -> tuple[FileStamp, ...]:
    """The files of a folder, to notice that one was changed; empty if there is no folder."""
    if not folder.is_dir():
        return ()
    stats = {path.name: path.stat() for path in sorted(folder.iterdir())}
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats.items())


@functools.lru_cache(maxsize=16)
def _dataset_digest(demos: Demonstrations, stamps: tuple[FileStamp, ...]) -> str:
    return assemble.dataset_digest(demos)

"""What must be there before a run begins, continues or counts as finished."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gcp_jax import mesh
from gcp_jax.config import Member, RunConfig
from gcp_jax.run import (
    adopted_policy,
    checkpoint,
    distributed,
    metrics,
    run_policies,
    saved_policy,
)
from gcp_jax.run.errors import RunError
from gcp_jax.run.sizes import Cadence
from gcp_jax.types import Specs


def require_packages_and_devices(config: RunConfig) -> None:
    """Check what a run needs of this process.

    Raises:
      ImportError: a package that writes metrics is missing.
      ValueError: there are too few devices.
    """
    metrics.check_writers(config.writers)
    mesh.make_mesh(len(config.members), data=config.data_parallel)


def require_fitting_policy(config: RunConfig, specs: Specs) -> None:
    """Raise RunError or ConfigError if ``pretrain.saved_policy`` cannot be finetuned by a run."""
    path = config.pretrain.saved_policy
    saved = saved_policy.check_saved_policy(path)
    extra_parts = sorted(saved.deployed.keys() - saved_policy.BASE_KEYS)
    if extra_parts:
        raise RunError(
            f"{path} is more than a cloned policy (it also holds {', '.join(extra_parts)}); "
            "finetuning starts from a plain one, such as RUN/policy/base."
        )
    saved_env = saved_policy.env_section(path, saved)["name"] if "env" in saved.facts else None
    if saved_env not in (config.env.name, None):
        raise RunError(
            f"{path} is a policy for {saved_env}, but this run is on {config.env.name}; "
            "choose its environment."
        )
    if saved.policy.specs != specs:
        raise RunError(
            f"{path} is a policy for {saved.policy.specs}, but this run needs "
            f"{specs}; choose its environment."
        )
    adopted_policy.check_same_network(config.policy, saved.policy.config, path)


def require_checkpoint_of_clone(folder: Path) -> None:
    """Raise RunError if finetuning has begun and nothing is left of the clone it began from."""
    checkpoints = folder / "checkpoints"
    cloned = checkpoint.latest(checkpoints / "pretrain") is not None
    finetuned = checkpoint.latest(checkpoints / "finetune") is not None
    if distributed.broadcast_from_first(finetuned and not cloned):
        raise RunError(
            f"{folder} has begun finetuning, but its policy/base and the checkpoints of cloning "
            "are gone; copy one of them back, or choose another --run_dir."
        )


def lacks_policies(folder: Path, members: Sequence[Member]) -> bool:
    """Whether a policy of a finished run is not on disk; prints which."""
    missing = run_policies.missing_policies(folder, members)
    if missing and distributed.is_primary():
        print(
            f"{folder} holds a finished run that lacks {_listed(missing)}; saving what is missing "
            "from the last checkpoint",
            file=sys.stderr,
        )
    return bool(missing)


def require_last_checkpoint(folder: Path, cadence: Cadence) -> None:
    """Raise RunError if a finished run has no checkpoint from which to save its policies."""
    last = checkpoint.latest(folder / "checkpoints" / cadence.name)
    if distributed.broadcast_from_first(last != cadence.segments):
        raise RunError(
            f"{folder} holds a finished run whose policies and last checkpoint are gone; copy "
            "them back, or delete its summary.json to train what is missing again."
        )


def require_policies(folder: Path, members: Sequence[Member]) -> None:
    """Raise RunError if a policy of a run is not on disk as it was written."""
    if missing := run_policies.missing_policies(folder, members):
        raise RunError(
            f"{folder} lacks {_listed(missing)}, although they were written; check the disk and "
            "run the same command again."
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"policy/{name}" for name in names)

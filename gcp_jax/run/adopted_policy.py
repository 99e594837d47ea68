"""Starting from a saved policy: which of its settings a run takes over, and which it may change.

A network fits the settings that it was trained with. How it is sampled can change:
``sampling_settings``. The configuration of a run that starts from a saved policy holds what is
trained: ``adopt_policy`` puts the saved settings into it, except those that were set by hand.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection
from pathlib import Path

from gcp_jax.config import ConfigError, RunConfig
from gcp_jax.core.policy import PolicyConfig
from gcp_jax.run import packaged_policies, run_policies, saved_policy

SECTION = "policy."


def sampling_settings(saved: PolicyConfig) -> tuple[str, ...]:
    """The settings of a trained policy that can change, since its network stays as it is.

    A diffusion without ``train_steps`` was trained for the noise levels of its own steps.
    """
    always = ("sigma", "scheme", "compute")
    if saved.family == "diffusion" and not saved.train_steps:
        return always
    return ("steps", *always)


def adopt_policy(config: RunConfig, explicit: Collection[str], folder: Path) -> RunConfig:
    """The configuration with the settings of ``pretrain.saved_policy`` as its policy.

    Every setting that changes is printed.

    Args:
      config: the run.
      explicit: dotted fields that were set by hand, which the saved policy must not override.
      folder: the run's folder; if the saved policy is gone, the copy there is read.

    Raises:
      ConfigError: a field set by hand differs from the saved policy and cannot change.
      SavedPolicyError: there is no saved policy, or it is of another format.
    """
    path = config.pretrain.saved_policy
    if not path:
        return config
    copy = run_policies.policy_folder(folder, run_policies.BASE)
    is_gone = not packaged_policies.locate(path).exists()
    source = copy if copy.exists() and is_gone else Path(path)
    saved = saved_policy.saved_policy_config(source)
    packaged_policies.announce(source)
    by_hand = {name.removeprefix(SECTION) for name in explicit if name.startswith(SECTION)}
    kept = {name: getattr(config.policy, name) for name in by_hand}
    try:
        policy = dataclasses.replace(saved, **kept)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{error} (with {source} as pretrain.saved_policy)") from error
    check_same_network(policy, saved, str(source))
    for name, old, new in policy_differences(config.policy, policy):
        print(f"note: {SECTION}{name} is {new}, that of {source}, not {old}", file=sys.stderr)
    for name, old, new in policy_differences(saved, policy):
        print(f"note: {SECTION}{name} is {new}; {source} had {old}", file=sys.stderr)
    return dataclasses.replace(config, policy=policy)


def check_same_network(policy: PolicyConfig, saved: PolicyConfig, path: str) -> None:
    """Check that a policy differs from a saved one only in how it is sampled.

    Raises:
      ConfigError: for the first setting that cannot change.
    """
    for name, old, new in policy_differences(saved, policy):
        if name not in sampling_settings(saved):
            raise ConfigError(
                f"{SECTION}{name} is {new}, but the policy of {path} was trained with {old}, which "
                f"cannot change; leave {SECTION}{name} out, or clone without pretrain.saved_policy."
            )


def policy_differences(old: PolicyConfig, new: PolicyConfig) -> list[tuple[str, object, object]]:
    """The settings in which two policies differ: (name, value in old, value in new)."""
    names = [each.name for each in dataclasses.fields(PolicyConfig)]
    pairs = [(name, getattr(old, name), getattr(new, name)) for name in names]
    return [(name, before, after) for name, before, after in pairs if before != after]

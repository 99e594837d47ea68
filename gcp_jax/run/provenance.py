"""Which code computed the numbers of a run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import jax

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "mujoco",
    "mujoco-mjx",
    "numpy",
)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed ``PACKAGES``, and the kind of device."""
    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    versions["device"] = jax.devices()[0].device_kind
    return versions


def git_commit() -> str | None:
    """The git commit of this source tree, "-dirty" if files differ; None outside a checkout.

    Git takes no lock: a run that is killed here must not leave one behind.
    """
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()

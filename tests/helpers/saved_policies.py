"""A saved policy on disk."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from gcp_jax.run.saved_policy import save_policy
from helpers.off_policy import small_flow


def save_tiny_policy(path: Path) -> Path:
    """Save an untrained policy."""
    path.mkdir(parents=True)
    for name, content in _files().items():
        (path / name).write_bytes(content)
    return path


@functools.cache
def _files() -> dict[str, bytes]:
    """The files of the policy."""
    flow = small_flow()
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "policy"
        save_policy(path, policy=flow.policy, deployed=flow.deployed, facts={})
        return {file.name: file.read_bytes() for file in path.iterdir()}

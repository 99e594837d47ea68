"""A saved policy on disk."""

from __future__ import annotations

from pathlib import Path

from gcp_jax.run.saved_policy import save_policy
from helpers.off_policy import small_flow


def save_tiny_policy(path: Path) -> Path:
    """Save an untrained policy."""
    flow = small_flow()
    return save_policy(path, policy=flow.policy, deployed=flow.deployed, facts={})

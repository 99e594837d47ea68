"""A saved policy on disk."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import jax

from gcp_jax.config import to_dict
from gcp_jax.core.policy import PolicyConfig, make_policy
from gcp_jax.run import metrics
from gcp_jax.run.saved_policy import save_policy
from gcp_jax.types import Specs
from helpers.off_policy import small_flow
from helpers.run_configs import small_config

REACH = PolicyConfig(chunk=4, hidden=(8,), steps=2)


def save_tiny_policy(path: Path) -> Path:
    """Save an untrained policy."""
    path.mkdir(parents=True)
    for name, content in _files().items():
        (path / name).write_bytes(content)
    return path


def save_policy_of_reach(path: Path, seed: int = 0, **facts) -> Path:
    """Save an untrained policy of ``reach``."""
    policy = make_policy(REACH, Specs(obs_dim=4, action_dim=2, chunk=REACH.chunk))
    return save_policy(
        path,
        policy=policy,
        deployed=policy.untrained(jax.random.key(seed)),
        facts={"env": {"name": "reach"}, **facts},
    )


def finished_run_of_reach(folder: Path, **fields) -> Path:
    """The folder of a finished run, with a clone and a finetuned policy that were not trained."""
    demonstrations = {"episodes": 200, "success": 0.715, "noise": 0.3}
    save_policy_of_reach(folder / "policy" / "base", 0, demonstrations=demonstrations)
    save_policy_of_reach(folder / "policy" / "seed_0", 1, success=0.9, episodes=8)
    record = {
        "format": metrics.RUN_FORMAT,
        "config": to_dict(small_config("ogpo", **fields)),
        "command": "gcp-jax train --config.env.name=reach",
        "versions": {"jax": "0.10.2"},
        "commit": "3f2c1ab",
    }
    (folder / "config.json").write_text(json.dumps(record))
    summary = {"env_steps": 640, "updates": 80, "seconds": 9.5}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@functools.cache
def _files() -> dict[str, bytes]:
    """The files of the policy."""
    flow = small_flow()
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "policy"
        save_policy(path, policy=flow.policy, deployed=flow.deployed, facts={})
        return {file.name: file.read_bytes() for file in path.iterdir()}

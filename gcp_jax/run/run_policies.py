"""The saved policies of a run: which there must be, and whether they are as they were written."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gcp_jax.config import Member
from gcp_jax.core.policy import Policy
from gcp_jax.run import checkpoint, metrics, saved_policy
from gcp_jax.run.evaluator import member_columns
from gcp_jax.run.saved_policy import EvalPolicy
from gcp_jax.types import PyTree

BASE = "base"  # the policy before finetuning


def policy_folder(run: Path, name: str) -> Path:
    """Where a run keeps a policy: ``BASE``, or the name of a member."""
    return run / "policy" / name


def missing_policies(run: Path, members: Iterable[Member]) -> list[str]:
    """The names of a run's policies that are not on disk, or not as they were written."""
    names = (BASE, *(metrics.member(member_columns(member)) for member in members))
    return [name for name in names if not saved_policy.is_intact(policy_folder(run, name))]


def set_damaged_aside(run: Path, name: str) -> None:
    """Move what is at a policy's place, but is not an intact policy, to ``damaged/``."""
    path = policy_folder(run, name)
    if path.exists() and not saved_policy.is_intact(path):
        _move_aside(run, name, "is not an intact policy")


def save(
    run: Path,
    name: str,
    policy: Policy,
    deployed: PyTree,
    facts: Mapping[str, Any],
    eval_policy: EvalPolicy | None = None,
) -> None:
    """Save a policy of a run, unless the same is there; anything else there is moved aside."""
    path = policy_folder(run, name)
    if path.exists():
        if saved_policy.holds(path, deployed):
            return
        _move_aside(run, name, "is not the policy of this run")
    if deployed.keys() != saved_policy.BASE_KEYS:
        facts = {**facts, "algorithm": facts["config"]["algorithm"]}
    saved_policy.save_policy(
        path,
        policy=policy,
        deployed=jax.tree.map(jnp.asarray, deployed),
        facts=facts,
        eval_policy=eval_policy,
    )


def _move_aside(run: Path, name: str, problem: str) -> None:
    path = policy_folder(run, name)
    target = checkpoint.set_aside(path, run / "damaged", f"policy-{name.replace('/', '-')}")
    print(f"{path} {problem}; moved to {target}", file=sys.stderr)

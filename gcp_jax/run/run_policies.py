"""The saved policies of a run: which there must be, and whether they are as they were written."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gcp_jax.atomic_files import write_json
from gcp_jax.config import Member
from gcp_jax.core.policy import Policy
from gcp_jax.run import checkpoint, distributed, metrics, saved_policy
from gcp_jax.run.evaluator import member_columns
from gcp_jax.run.saved_policy import EvalPolicy
from gcp_jax.types import PyTree

BASE = "base"  # the policy before finetuning
BEST = "best"  # the folder of the best policies of the members, by evaluation
SELECTION = "selection"  # fact of a best policy: among what it was chosen
STOP_FILE = "stopped.json"  # in the run's folder: why it ended before its end
STOPPED = "stopped"  # fact of a policy that was saved before the end of its run: why


def policy_folder(run: Path, name: str) -> Path:
    """Where a run keeps a policy: ``BASE``, or the name of a member."""
    return run / "policy" / name


def missing_policies(run: Path, members: Iterable[Member]) -> list[str]:
    """The names of a run's policies that are not on disk, or not as they were written.

    The best policies count if the run has a folder for them.
    """
    last = [metrics.member(member_columns(member)) for member in members]
    has_best = policy_folder(run, BEST).exists()
    names = (BASE, *last, *(best_name(name) for name in last if has_best))
    return [name for name in names if not saved_policy.is_intact(policy_folder(run, name))]


def best_name(member: str) -> str:
    """The name of a member's best policy."""
    return f"{BEST}/{member}"


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
    """Save a policy of a run, unless the same is there; anything else there is moved aside.

    A policy with ``SELECTION`` or ``STOPPED`` among its facts belongs to a moment of its run: it is
    replaced, atomically but for the moment between two renamings.
    """
    path = policy_folder(run, name)
    if deployed.keys() != saved_policy.BASE_KEYS:
        facts = {**facts, "algorithm": facts["config"]["algorithm"]}
    is_replaced = _is_of_a_moment(path)
    if path.exists() and not is_replaced:
        if saved_policy.holds(path, deployed):
            return
        _move_aside(run, name, "is not the policy of this run")
    if is_replaced and saved_policy.holds(path, deployed):
        _replace_facts(path, facts)
        return
    target = path.with_name(f".{path.name}.new") if is_replaced else path
    if is_replaced:
        shutil.rmtree(target, ignore_errors=True)
    saved_policy.save_policy(
        target,
        policy=policy,
        deployed=jax.tree.map(jnp.asarray, deployed),
        facts=facts,
        eval_policy=eval_policy,
    )
    if is_replaced:
        _swap(target, path)


def record_stop(run: Path, reason: str) -> None:
    """Write why a run ended before its end: ``stopped.json``."""
    if distributed.is_primary():
        write_json(run / STOP_FILE, {"reason": reason})


def forget_stop(run: Path) -> None:
    """Remove what ``record_stop`` wrote, since the run continues."""
    if distributed.is_primary():
        (run / STOP_FILE).unlink(missing_ok=True)


def _is_of_a_moment(path: Path) -> bool:
    """Whether an intact policy was saved for a moment of its run, not for its end."""
    return saved_policy.is_intact(path) and not {SELECTION, STOPPED}.isdisjoint(_description(path))


def _description(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "policy.json").read_text(encoding="utf-8"))
    return found


def _replace_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Replace what is saved with a policy, unless it is the same."""
    old = _description(path)
    new = {name: old[name] for name in ("format", "policy", "specs")} | dict(facts)
    if json.loads(json.dumps(new)) != old:
        write_json(path / "policy.json", new)


def _swap(new: Path, path: Path) -> None:
    """Put the folder ``new`` at ``path``, and delete what was there."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(path, old)
    os.replace(new, path)
    shutil.rmtree(old)


def _move_aside(run: Path, name: str, problem: str) -> None:
    path = policy_folder(run, name)
    target = checkpoint.set_aside(path, run / "damaged", f"policy-{name.replace('/', '-')}")
    print(f"{path} {problem}; moved to {target}", file=sys.stderr)

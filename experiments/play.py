"""Playing a saved policy on its own task, many episodes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax import mesh as mesh_lib
from gcp_jax.config import ConfigError
from gcp_jax.envs import wrappers
from gcp_jax.envs.protocol import Env
from gcp_jax.experiments import assemble, run_config
from gcp_jax.learner import evaluation
from gcp_jax.run import packaged_policies, saved_policy
from gcp_jax.stats.eval_rows import pooled_score, score_name_of
from gcp_jax.stats.intervals import Interval
from gcp_jax.types import PyTree


class Played(NamedTuple):
    """Episodes of a saved policy on its own task."""

    env: Env
    outcome: evaluation.EvalOutcome  # leaves [E]
    states: PyTree  # of the filmed episodes, [T, F, ...]
    facts: dict[str, Any]  # what was saved with the policy


class Score(NamedTuple):
    """What a policy achieved."""

    name: str  # "success" or "return"
    interval: Interval  # 95 %
    row: dict[str, Any]  # as in eval.jsonl


def play(path: Path, *, episodes: int, seed: int, filmed: int = evaluation.FILMED) -> Played:
    """Run a saved policy on its own task.

    Raises:
      SavedPolicyError: if the policy cannot be used, or its task cannot be made.
    """
    saved = saved_policy.load_saved_policy(path)
    packaged_policies.announce(path)
    env = _env_of(path, saved)
    program = evaluation.build_evaluation(
        saved.eval_policy,
        wrappers.training(env),
        mesh=mesh_lib.make_mesh(1),
        episodes=episodes,
        chunk=saved.policy.config.chunk,
        filmed=filmed,
    )
    deployed = jax.tree.map(lambda x: x[None], saved.deployed)
    outcome, states = jax.device_get(program(deployed, jnp.asarray([seed], jnp.int32)))
    return Played(
        env=env,
        outcome=jax.tree.map(lambda x: x[0], outcome),
        states=jax.tree.map(lambda x: x[0], states),
        facts=saved.facts,
    )


def _env_of(path: Path, saved: saved_policy.SavedPolicy) -> Env:
    """The task that a policy was saved with.

    Raises:
      SavedPolicyError: it cannot be made, or the policy does not fit it.
    """
    section = saved_policy.env_section(path, saved)
    try:
        env = assemble.build_env(run_config.build_env_choice(section))
    except ConfigError as error:
        raise saved_policy.SavedPolicyError(f"{path / 'policy.json'}: {error}") from error
    for name in ("obs_dim", "action_dim"):
        needed = getattr(env.specs, name)
        if getattr(saved.policy.specs, name) != needed:
            raise saved_policy.SavedPolicyError(
                f"{path} has {name}={getattr(saved.policy.specs, name)}, but its task "
                f"{env.specs.name} has {needed}; its policy.json was changed, or the task was."
            )
    return env


def score_of(played: Played, seed: int) -> Score:
    """Return the success, or the return, of the episodes that were played."""
    batched = jax.tree.map(lambda x: x[None], played.outcome)
    [row] = evaluation.eval_rows(batched, seeds=[seed], specs=played.env.specs)
    interval = pooled_score([row])
    assert interval is not None
    return Score(name=score_name_of(row), interval=interval, row=row)


def summarize(played: Played, score: Score) -> dict[str, Any]:
    """Return what ``gcp-jax evaluate --json`` prints.

    {"success" or "return": estimate, "low", "high", "episodes", "recorded", "return", "length"}.
    """
    return {
        score.name: score.interval.estimate,
        "low": score.interval.low,
        "high": score.interval.high,
        "episodes": len(played.outcome.length),
        "recorded": played.facts.get(score.name),
        "return": score.row["eval/return"],
        "length": float(played.outcome.length.mean()),
    }

"""What finetuning saves: the last policy of each member, and its best one by evaluation.

A best policy is chosen by evaluations on the start states on which its score is then given, so that
this score is biased upwards. At the end of a run it is evaluated once more on fresh start states.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gcp_jax.config import Member, RunConfig, to_dict
from gcp_jax.run import distributed, metrics, run_policies
from gcp_jax.run.assemble import FinetuneSetup, build_algorithm
from gcp_jax.run.evaluator import Row, format_mean_score, mean_score, member_columns, take_index
from gcp_jax.run.guard_rails import Chosen, GuardRails
from gcp_jax.run.progress import Progress
from gcp_jax.run.saved_policy import EvalPolicy
from gcp_jax.run.session import Session
from gcp_jax.run.stage import Stage, StageResult
from gcp_jax.stats.eval_rows import pooled_score, score
from gcp_jax.types import PyTree

SELECTION_BIAS = (
    "selected is the highest of several evaluations, so it is biased upwards; fresh is an "
    "evaluation of the same policy on other start states, so it is not"
)


@dataclasses.dataclass(frozen=True)
class FinetunedPolicies:
    """Saves the policies of one run.

    Attributes:
      folder: the run's folder.
      setup: its finetuning.
      base: the parameters of the base policy.
      score_name: "success" or "return".
    """

    folder: Path
    setup: FinetuneSetup
    base: PyTree
    score_name: str
    _eval_policies: dict[str, EvalPolicy] = dataclasses.field(default_factory=dict)

    def save_last(self, members: Sequence[Member], result: StageResult, stopped: str) -> None:
        """Save the policies that the stage ended with.

        Args:
          members: of the stage.
          result: of the stage.
          stopped: why it ended early; "": it did not.
        """
        for index, (member, row) in enumerate(zip(members, result.rows, strict=True)):
            facts = policy_facts(self._config(member), [row], self.score_name)
            if stopped:
                facts[run_policies.STOPPED] = stopped
            name = metrics.member(row)
            self._save_member(name, member, take_index(result.deployed, index), facts)

    def save_best(self, guard: GuardRails, fresh: Sequence[Row] | None = None) -> None:
        """Save the best policies so far, once there was an evaluation.

        Args:
          guard: which they are.
          fresh: their evaluations on fresh start states, at the end of a run.
        """
        if not guard.evaluations:
            return
        for index, member in enumerate(self.setup.config.members):
            chosen = guard.chosen(index)
            fresh_row = fresh[index] if fresh else None
            facts = policy_facts(self._config(member), [fresh_row or chosen.row], self.score_name)
            facts[run_policies.SELECTION] = self._selection(member, chosen, fresh_row)
            name = run_policies.best_name(metrics.member(member_columns(member)))
            if chosen.is_base:
                self._save(name, self.base, facts, None)
            else:
                self._save_member(name, member, guard.deployed(index), facts)

    def finish_best(self, session: Session, stage: Stage, guard: GuardRails) -> dict[str, Any]:
        """Evaluate the best policies on fresh start states and save them with the result.

        Returns:
          What the summary says about them; {} if there was no evaluation.
        """
        if not guard.evaluations:
            return {}
        chosen = [guard.chosen(index) for index in range(len(stage.members))]
        fresh = self._evaluate_fresh(session, stage, guard, chosen)
        self.save_best(guard, fresh)
        selected = [each.row for each in chosen]
        if distributed.is_primary():
            print(
                f"policy/best: {format_mean_score(selected)} when selected as the best of "
                f"{guard.evaluations + 1} evaluations (biased upwards), "
                f"{format_mean_score(fresh)} on fresh start states",
                file=sys.stderr,
            )
        return {
            f"selected_{self.score_name}": mean_score(selected),
            f"fresh_{self.score_name}": mean_score(fresh),
            "note": SELECTION_BIAS,
            "members": [
                self._selection(member, each, row)
                for member, each, row in zip(stage.members, chosen, fresh, strict=True)
            ],
        }

    def _evaluate_fresh(
        self, session: Session, stage: Stage, guard: GuardRails, chosen: Sequence[Chosen]
    ) -> list[Row]:
        """One row a member; the programs of the run's evaluations are used again."""
        members = stage.members
        rows: list[Row] = [{} for _ in members]
        name = distributed.with_host_prefix("best")
        with Progress(1, name, unit="evaluation", score_name=self.score_name) as progress:
            if not all(each.is_base for each in chosen):
                rows = session.evaluator.evaluate(
                    stage.eval_policy, guard.arrays()["deployed"], members, progress, fresh=True
                )
            if any(each.is_base for each in chosen):
                of_seed = self._evaluate_fresh_base(session, progress)
                for index, member in enumerate(members):
                    if chosen[index].is_base:
                        rows[index] = of_seed[member.seed] | member_columns(member)
            progress.update(1, evaluated=mean_score(rows))
        session.timer.compile_seconds += progress.compile_seconds
        return rows

    def _evaluate_fresh_base(self, session: Session, progress: Progress) -> dict[int, Row]:
        """The base policy's rows by seed."""
        seeds = [Member(seed, {}) for seed in self.setup.config.all_seeds]
        rows = session.evaluator.evaluate(
            self.setup.policy.eval_policy,
            jax.tree.map(lambda x: np.asarray(x)[None], self.base),
            seeds,
            progress,
            fresh=True,
        )
        return {row["seed"]: row for row in rows}

    def _selection(self, member: Member, chosen: Chosen, fresh: Row | None) -> dict[str, Any]:
        """Among what a best policy was chosen, and its scores."""
        facts: dict[str, Any] = {
            **member_columns(member),
            "env_steps": chosen.row["env_steps"],
            "is_base": chosen.is_base,
            "evaluations": chosen.evaluations + 1,  # that of the base policy is one of them
            "selected": score(chosen.row),
        }
        if fresh is not None:
            interval = pooled_score([fresh])
            assert interval is not None
            facts |= {
                "fresh": interval.estimate,
                "fresh_low": interval.low,
                "fresh_high": interval.high,
                "fresh_episodes": fresh["eval/episodes"],
            }
        return facts

    def _config(self, member: Member) -> RunConfig:
        return self.setup.config.of(member.values)

    def _save_member(
        self, name: str, member: Member, deployed: PyTree, facts: Mapping[str, Any]
    ) -> None:
        """Save a finetuned policy; in a population as the run of its point alone would."""
        if self.setup.config.population:
            deployed = deployed["policy"]
        self._save(name, deployed, facts, self._eval_policy(member))

    def _save(
        self, name: str, deployed: PyTree, facts: Mapping[str, Any], eval_policy: EvalPolicy | None
    ) -> None:
        if distributed.is_primary():
            run_policies.save(self.folder, name, self.setup.policy, deployed, facts, eval_policy)

    def _eval_policy(self, member: Member) -> EvalPolicy:
        """How a finetuned policy acts; the same function each time, so that it compiles once."""
        if member.label not in self._eval_policies:
            setup = self.setup
            algorithm = build_algorithm(
                self._config(member), setup.policy, setup.sizes, setup.demonstrations
            )
            self._eval_policies[member.label] = algorithm.eval_policy
        return self._eval_policies[member.label]


def policy_facts(config: RunConfig, rows: Sequence[Row], score_name: str) -> dict[str, Any]:
    """What is saved with a policy.

    Args:
      config: of the run that made it.
      rows: of its last evaluation.
      score_name: "success" or "return".
    """
    content = to_dict(config)
    return {
        "env": content["env"],
        score_name: mean_score(rows),
        "episodes": sum(row["eval/episodes"] for row in rows),
        "seeds": [row["seed"] for row in rows],
        "config": content,
    }

"""What watches finetuning: the best policy of each member, decay below the base, inflating critics.

The rules are in ``stats.guard_rules``. Everything kept here is in the checkpoint: plain values
(``GuardRails.host_state``) and arrays (``GuardRails.arrays``). A resumed run therefore goes on with
what its checkpoint knew, also if files of the folder are newer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gcp_jax.config import Member
from gcp_jax.run import checkpoint, distributed, metrics
from gcp_jax.run.evaluator import Row, format_mean_score, member_columns, take_index
from gcp_jax.stats import guard_rules
from gcp_jax.stats.eval_rows import score
from gcp_jax.types import PyTree

RESTORED_TO = "eval/restored_to"  # column of the row of a member that was set back: env steps


class GuardSetup(NamedTuple):
    """What a stage needs to be watched."""

    members: Sequence[Member]
    base_rows: Mapping[int, Row]  # evaluations of the base policy, by seed
    gammas: Sequence[float]  # discount of each member
    on_decay: str  # finetune.on_decay

    @property
    def restores(self) -> bool:
        """True if members are set back, for which the state of their best evaluation is kept."""
        return self.on_decay == "restore"


class Chosen(NamedTuple):
    """The best policy of a member so far."""

    row: Row  # its evaluation
    evaluations: int  # in finetuning; it is the best of these and that of the base policy

    @property
    def is_base(self) -> bool:
        """True if no evaluation of finetuning was better than that of the base policy."""
        return bool(self.row["stage"] == "base")


class GuardRails:
    """Watches the members of one stage.

    Args:
      setup: what is watched.
      host_state: what ``host_state`` returned, for a stage that continues; {}: it begins.
      arrays: what ``arrays`` returned.
    """

    def __init__(
        self,
        setup: GuardSetup,
        host_state: Mapping[str, Any] | None = None,
        arrays: Mapping[str, PyTree] | None = None,
    ) -> None:
        saved = host_state or {}
        self._setup = setup
        self._names = [metrics.member(member_columns(member)) for member in setup.members]
        self._base_rows = [setup.base_rows[member.seed] for member in setup.members]
        self._evaluations = int(saved.get("evaluations", 0))
        self._best: list[Row] = list(saved.get("best", self._base_rows))
        self._below: list[bool] = list(saved.get("below", [False] * len(self._names)))
        self._alarmed: list[bool] = list(saved.get("alarmed", [False] * len(self._names)))
        self._gaps = [guard_rules.CriticGap(**gap) for gap in saved.get("gaps", ())]
        if not self._gaps:
            self._gaps = [
                guard_rules.CriticGap().after_evaluation(row, gamma)
                for row, gamma in zip(self._base_rows, setup.gammas, strict=True)
            ]
        self._arrays: dict[str, PyTree] = dict(arrays or {})

    @property
    def evaluations(self) -> int:
        """Evaluations of finetuning so far."""
        return self._evaluations

    def chosen(self, index: int) -> Chosen:
        """The best policy of a member so far."""
        return Chosen(row=self._best[index], evaluations=self._evaluations)

    def deployed(self, index: int) -> PyTree:
        """The parameters of a member's best policy, on the host, if it is not the base policy."""
        return take_index(self._arrays["deployed"], index)

    def stops(self, given_up: Sequence[str]) -> bool:
        """True if the run is to stop: every member that is not given up is below its base."""
        left = [
            below
            for name, below in zip(self._names, self._below, strict=True)
            if name not in given_up
        ]
        return self._setup.on_decay == "stop" and bool(left) and all(left)

    def begin(self, state: PyTree) -> None:
        """Keep the algorithm state [S, ...] that finetuning begins with, if members are set back.

        It belongs to the base policy.
        """
        if self._setup.restores and "state" not in self._arrays:
            self._arrays["state"] = jax.tree.map(np.array, fetch_state(state))

    def after_segment(self, index: int, row: Row) -> None:
        """Take in the row of one member after a segment."""
        self._gaps[index] = self._gaps[index].after_segment(row)

    def after_evaluation(
        self, rows: Sequence[Row], deployed: PyTree, state: Callable[[], PyTree], *, is_last: bool
    ) -> list[int]:
        """Take in an evaluation; print what begins and what is over.

        Args:
          rows: one for each member.
          deployed: the policies [S, ...] that were evaluated, on the host.
          state: gives the state [S, ...] of the algorithm on the host; it is called if it is kept.
          is_last: nothing is trained after it, so that no member is set back.

        Returns:
          The places of the members that are to be set back, by ``restored_state``.
        """
        self._evaluations += 1
        better = [
            index
            for index, (row, best) in enumerate(zip(rows, self._best, strict=True))
            if guard_rules.is_better(score(row), score(best))
        ]
        for index in better:
            self._best[index] = dict(rows[index])
        if better:
            self._keep("deployed", better, lambda: deployed)
            if self._setup.restores:
                self._keep("state", better, state)
        set_back = [
            index for index, row in enumerate(rows) if self._is_set_back(index, row, is_last)
        ]
        for index, row in enumerate(rows):
            self._watch_decay(index, row, is_set_back=index in set_back)
            self._watch_critics(index, row)
        return set_back

    def restored_state(self, state: PyTree, indices: Sequence[int]) -> PyTree:
        """The algorithm state [S, ...] with members set back to their best evaluation.

        Args:
          state: on the devices; the other members' numbers stay as they are, bit for bit.
          indices: the members.
        """
        current = fetch_state(state)
        replaced = jax.tree.map(
            lambda x, kept: _with_rows(x, kept, indices), current, self._arrays["state"]
        )
        shardings = jax.tree.map(lambda x: x.sharding, state)
        placed = jax.device_put(replaced, shardings)
        return jax.device_put(checkpoint.wrap_keys(placed, state), shardings)

    def host_state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain values."""
        return {
            "evaluations": self._evaluations,
            "best": [dict(row) for row in self._best],
            "below": self._below,
            "alarmed": self._alarmed,
            "gaps": [
                {"values": [*gap.values], "gaps": [*gap.gaps], "scale": gap.scale}
                for gap in self._gaps
            ],
        }

    def arrays(self) -> dict[str, PyTree]:
        """What a checkpoint keeps, as arrays [S, ...] on the host.

        "deployed": the best policies, once one is better than its base; and "state": the states of
        the algorithm that belong to them, if members are set back.
        """
        return dict(self._arrays)

    def _keep(self, name: str, indices: Sequence[int], new: Callable[[], PyTree]) -> None:
        """Keep copies of the arrays of some members; the first time those of all."""
        arrays = new()
        kept = self._arrays.get(name, arrays)
        self._arrays[name] = jax.tree.map(lambda x, y: _with_rows(x, y, indices), kept, arrays)

    def _is_set_back(self, index: int, row: Row, is_last: bool) -> bool:
        if not self._setup.restores or is_last:
            return False
        return guard_rules.is_below(row, self._base_rows[index])

    def _watch_decay(self, index: int, row: Row, *, is_set_back: bool) -> None:
        base = self._base_rows[index]
        was_below = self._below[index]
        self._below[index] = guard_rules.remains_below(was_below, row, base)
        name = self._names[index]
        steps = f"{row['env_steps']:,} env steps"
        scores = f"{format_mean_score([row])}, the base policy {format_mean_score([base])}"
        if is_set_back:
            best = self._best[index]
            _print(
                f"{name} is below its base policy at {steps} ({scores}): set back to its state of "
                f"{best['env_steps']:,} env steps (finetune.on_decay=restore)"
            )
        elif self._below[index] and not was_below:
            _print(
                f"{name} is below its base policy at {steps} ({scores}; "
                f"finetune.on_decay={self._setup.on_decay}); policy/best keeps the better one"
            )
        elif was_below and not self._below[index]:
            _print(f"{name} is no longer below its base policy at {steps} ({scores})")

    def _watch_critics(self, index: int, row: Row) -> None:
        gap = self._gaps[index].after_evaluation(row, self._setup.gammas[index])
        self._gaps[index] = gap
        if gap.is_inflating and not self._alarmed[index]:
            self._alarmed[index] = True
            listed = ", ".join(f"{value:,.3g}" for value in gap.gaps)
            _print(
                f"the critics of {self._names[index]} overestimate more and more at "
                f"{row['env_steps']:,} env steps: Q − realised return was {listed} at the last "
                f"evaluations, and returns are of size {gap.scale:,.3g}; lower finetune.utd or "
                "algorithm.critic_lr, or use more critics"
            )


def fetch_state(state: PyTree) -> PyTree:
    """A state on the host, with random keys as integers."""
    return distributed.fetch(checkpoint.key_data(state))


def _with_rows(x: Any, source: Any, indices: Sequence[int]) -> np.ndarray:
    """A copy of ``x`` [S, ...] with the rows ``indices`` of ``source``."""
    copy = np.array(x)
    copy[list(indices)] = np.asarray(source)[list(indices)]
    return copy


def _print(line: str) -> None:
    if distributed.is_primary():
        print(line, file=sys.stderr)

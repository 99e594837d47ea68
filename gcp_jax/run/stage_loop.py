"""The loop that both stages of a run share.

A stage trains segment by segment, from its newest checkpoint to its end. Except for wall-clock
seconds everything follows from its clock, so a resumed stage equals one that never stopped.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from gcp_jax.config import Member
from gcp_jax.learner import loop, nonfinite
from gcp_jax.run import checkpoint, distributed, metrics
from gcp_jax.run.episode_cohorts import EpisodeCohorts
from gcp_jax.run.evaluator import Row, mean_score, member_columns, note_diverged
from gcp_jax.run.guard_rails import RESTORED_TO, GuardRails, fetch_state
from gcp_jax.run.nonfinite_budget import NonfiniteBudget
from gcp_jax.run.progress import Progress
from gcp_jax.run.session import Session
from gcp_jax.run.signals import StopRequest
from gcp_jax.run.sizes import Cadence
from gcp_jax.run.stage import HostState, Restored, Stage, StageResult
from gcp_jax.types import PyTree, Train


class _Evaluated(NamedTuple):
    """An evaluation, and the Train to go on with."""

    rows: list[Row]
    train: Train
    is_set_back: bool  # of some member the state was replaced


def run_stage(stage: Stage, session: Session) -> StageResult:
    """Train from the newest checkpoint of a stage to its end.

    Raises:
      Paused: the session's ``pause_at`` was reached.
      Interrupted: a signal asked the run to stop.
      RunError: every member was given up.
    """
    cadence = stage.cadence
    checkpoints = checkpoint.Checkpoints(
        session.folder / "checkpoints" / cadence.name, keep=session.config.checkpoint.keep
    )
    restored = stage.restore(checkpoints)
    clock, rows, budget = _begin(stage, session, restored)
    guard = _make_guard(stage, restored)
    is_stopped = _stops(stage, guard, budget, clock)
    with Progress(
        cadence.progress(cadence.segments),
        distributed.with_host_prefix(cadence.name),
        unit=cadence.unit,
        start=cadence.progress(clock),
        score_name=session.score_name,
    ) as progress:
        cohorts = EpisodeCohorts(restored.host.episode_cohorts if restored else ())
        log = _StageLog(stage, session, budget, progress, cohorts, guard)
        if restored is not None and (is_stopped or stage.is_over(clock, rows)):
            checkpoints.close()
            deployed = distributed.fetch(stage.export(restored.train))
            return StageResult(deployed, rows, budget.given_up, clock, guard, is_stopped)
        stop_before_segment(session.stop_request, cadence, clock)
        train, segment = _compile(stage, restored, progress)
        stop_before_segment(session.stop_request, cadence, clock)
        if guard is not None:
            guard.begin(train.learner.state)
        while not (is_stopped or stage.is_over(clock, rows)):
            train, numbers, seconds = _time_segment(segment, train)
            clock += 1
            signum = distributed.largest(session.stop_request.signum)
            log.write_segment(clock, numbers, seconds)
            is_set_back = False
            if cadence.evaluates(clock):
                rows, train, is_set_back = log.evaluate(clock, train)
                is_stopped = _stops(stage, guard, budget, clock)
            decision = cadence.decide(
                clock,
                signum=signum,
                pause_at=session.pause_at,
                goal_reached=stage.goal_reached(rows),
            )
            if decision.save or is_set_back or is_stopped:
                log.save(checkpoints, clock, train, rows)
            if decision.stop is not None:
                raise decision.stop
    session.timer.compile_seconds += progress.compile_seconds
    checkpoints.close()
    note_diverged(rows, cadence.name)
    deployed = distributed.fetch(stage.export(train))
    return StageResult(deployed, rows, budget.given_up, clock, guard, is_stopped)


def stop_before_segment(request: StopRequest, cadence: Cadence, clock: int) -> None:
    """Raise Interrupted if a signal came during what precedes a stage's segments.

    That is the evaluation of the base policy, or compiling; the run is on disk as it was.
    """
    if signum := distributed.largest(request.signum):
        raise cadence.interruption(clock, signum)


def _begin(
    stage: Stage, session: Session, restored: Restored | None
) -> tuple[int, list[Row], NonfiniteBudget]:
    """The clock, the rows of the last evaluation, and the counts of non-finite updates."""
    cadence = stage.cadence
    clock = 0
    rows: list[Row] = []
    counts: dict[str, int] = {}
    if restored is None:
        session.timer.begin_stage()
    else:
        host = restored.host
        clock = int(restored.train.learner.clock)
        rows = host.rows
        counts = host.nonfinite_updates
        session.timer.begin_stage(
            seconds=host.seconds,
            train_seconds=host.train_seconds,
            compile_seconds=host.compile_seconds,
        )
        print(
            f"resuming {cadence.name} at {cadence.progress(clock)} of "
            f"{cadence.progress(cadence.segments)} {cadence.unit}",
            file=sys.stderr,
        )
    limit = session.config.max_nonfinite_updates
    return clock, rows, NonfiniteBudget(cadence, session.folder, limit=limit, counts=counts)


def _make_guard(stage: Stage, restored: Restored | None) -> GuardRails | None:
    """What watches the stage; the files of a resumed one are made to fit its checkpoint."""
    if stage.guard is None:
        return None
    if restored is None:
        return GuardRails(stage.guard)
    guard = GuardRails(stage.guard, restored.host.guard_rails, restored.kept)
    if stage.on_saved is not None:
        stage.on_saved(guard)
    return guard


def _stops(stage: Stage, guard: GuardRails | None, budget: NonfiniteBudget, clock: int) -> bool:
    """Whether a stage with segments left is to stop because its members are below their base."""
    if guard is None or clock >= stage.cadence.segments:
        return False
    return guard.stops(budget.given_up)


def _compile(
    stage: Stage, restored: Restored | None, progress: Progress
) -> tuple[Train, Callable[..., Any]]:
    """The Train to start from, and the compiled segment."""
    name = stage.cadence.name
    if restored is None:
        with progress.compiling(f"{name} initial state"):
            train = jax.block_until_ready(stage.init())
    else:
        train = restored.train
    with progress.compiling(f"{name} segment"):
        return train, stage.learner.compile(train).segment


def _time_segment(
    segment: Callable[..., Any], train: Train
) -> tuple[Train, dict[str, np.ndarray], float]:
    """Run one segment: the new Train, the segment's numbers [S] on the host, and its seconds."""
    began = time.monotonic()
    train, numbers = segment(train)
    numbers = distributed.fetch(numbers)
    return train, numbers, time.monotonic() - began


@dataclasses.dataclass(frozen=True)
class _StageLog:
    """Writes the rows of a stage and shows its progress."""

    stage: Stage
    session: Session
    budget: NonfiniteBudget
    progress: Progress
    cohorts: EpisodeCohorts
    guard: GuardRails | None

    def write_segment(self, clock: int, numbers: Mapping[str, np.ndarray], seconds: float) -> None:
        """Write one row per member and count what was not finite.

        Args:
          clock: segments done, this one included.
          numbers: the segment's ``train/`` numbers [S] and ``episode/`` sums [S, K + 1].
          seconds: how long it took.

        Raises:
          RunError: every member was given up.
        """
        self.session.timer.train_seconds += seconds
        speeds = self._speeds(clock, seconds)
        self.cohorts.add(numbers)
        for index, member in enumerate(self.stage.members):
            row = self._segment_row(clock, member, index, numbers)
            found = nonfinite.pop_nonfinite(row)
            if found.skipped:
                self.budget.record(clock, index, metrics.member(row), found)
            if self.guard is not None:
                self.guard.after_segment(index, row)
            self.session.writer.write(row | speeds)
        cadence = self.stage.cadence
        recent = self.cohorts.recent()
        self.progress.update(
            cadence.progress(clock),
            training=recent.score(self.session.score_name) if recent else None,
            training_episodes=recent.episodes if recent else None,
            env_steps_per_s=speeds["time/env_steps_per_s"] if cadence.env_steps else None,
            updates_per_s=speeds["time/updates_per_s"],
        )
        self.budget.raise_if_all_given_up(len(self.stage.members))

    def evaluate(self, clock: int, train: Train) -> _Evaluated:
        """Evaluate the stage's policies and write one row per member of the evaluation.

        A member that ``GuardRails`` sets back continues from the state of its best evaluation.
        """
        stage, session = self.stage, self.session
        cadence = stage.cadence
        deployed = distributed.fetch(stage.export(train))
        evaluated = session.evaluator.evaluate(
            stage.eval_policy,
            deployed,
            stage.eval_members,
            self.progress,
            video=stage.final_video if clock == cadence.segments else "",
        )
        columns = {
            "stage": cadence.name,
            **cadence.counters(clock),
            **session.timer.columns(),
        }
        rows = [columns | row for row in evaluated]
        set_back = self._watch(clock, train, rows, deployed)
        for row in rows:
            session.writer.write(row)
        self.progress.update(cadence.progress(clock), evaluated=mean_score(rows))
        if self.guard is not None and set_back:
            state = self.guard.restored_state(train.learner.state, set_back)
            train = train._replace(learner=train.learner._replace(state=state))
        return _Evaluated(rows=rows, train=train, is_set_back=bool(set_back))

    def _watch(self, clock: int, train: Train, rows: list[Row], deployed: PyTree) -> list[int]:
        """The places of the members that are to be set back, which their rows then say."""
        if self.guard is None:
            return []
        set_back = self.guard.after_evaluation(
            rows,
            deployed,
            lambda: fetch_state(train.learner.state),
            is_last=clock == self.stage.cadence.segments,
        )
        for index in set_back:
            rows[index][RESTORED_TO] = self.guard.chosen(index).row["env_steps"]
        return set_back

    def save(
        self, checkpoints: checkpoint.Checkpoints, clock: int, train: Train, rows: list[Row]
    ) -> None:
        """Write a checkpoint, and then the files that follow from it."""
        host = self.host_state(rows)._asdict()
        kept = self.guard.arrays() if self.guard else None
        checkpoints.save(clock, loop.without_data(train), host, kept)
        if self.guard is not None and self.stage.on_saved is not None:
            self.stage.on_saved(self.guard)

    def host_state(self, rows: list[Row]) -> HostState:
        """What a checkpoint keeps of the host; ``rows`` are those of the last evaluation."""
        timer = self.session.timer
        return HostState(
            rows=rows,
            nonfinite_updates=self.budget.counts,
            seconds=timer.seconds,
            train_seconds=timer.train_seconds,
            compile_seconds=timer.compile_seconds + self.progress.compile_seconds,
            demonstrations=self.stage.demonstrations.digest,
            episode_cohorts=self.cohorts.host_state(),
            guard_rails=self.guard.host_state() if self.guard else {},
        )

    def _speeds(self, clock: int, seconds: float) -> dict[str, float]:
        cadence = self.stage.cadence
        members = len(self.stage.members)
        updates = cadence.updates * members / seconds if self._has_learned(clock) else 0.0
        return {
            "time/env_steps_per_s": cadence.env_steps * members / seconds,
            "time/updates_per_s": updates,
        }

    def _has_learned(self, clock: int) -> bool:
        """True if segment ``clock`` made updates."""
        return clock > self.stage.cadence.warmup_segments

    def _segment_row(
        self, clock: int, member: Member, index: int, numbers: Mapping[str, np.ndarray]
    ) -> Row:
        """The row of one member: ``episode/`` numbers, and ``train/`` numbers if it learned."""
        row: Row = {
            "stage": self.stage.cadence.name,
            **member_columns(member),
            **self.stage.cadence.counters(clock),
            **self.session.timer.columns(),
        }
        row |= episode_columns(self.cohorts, index, numbers)
        if self._has_learned(clock):
            row |= {k: float(v[index]) for k, v in numbers.items() if k.startswith("train/")}
        return row


def episode_columns(
    cohorts: EpisodeCohorts, index: int, numbers: Mapping[str, Any]
) -> dict[str, float]:
    """The ``episode/`` columns of one member after a segment.

    Args:
      cohorts: the training episodes, those of the segment added.
      index: the member.
      numbers: the segment's ``episode/`` sums [S, K + 1]; other entries are ignored.

    Returns:
      What ended in the segment, and means over the newest cohort whose episodes have all ended.
      Empty if nothing is collected, and without means if there is no such episode.
    """
    if "episode/episodes" not in numbers:
        return {}
    columns = {
        "episode/ended": float(np.sum(numbers["episode/episodes"][index])),
        "episode/diverged": float(np.sum(numbers["episode/diverged"][index])),
    }
    means = cohorts.newest(index)
    if means is None:
        return columns
    return {
        "episode/success": means.success,
        "episode/return": means.episode_return,
        "episode/length": means.length,
        "episode/episodes": float(means.episodes),
        **columns,
    }

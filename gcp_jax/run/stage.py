"""The loop that both stages of a run share.

A stage trains segment by segment, from its newest checkpoint to its end. Except for wall-clock
seconds everything follows from its clock, so a resumed stage equals one that never stopped.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gcp_jax import mesh as mesh_lib
from gcp_jax.config import Member, RunConfig
from gcp_jax.core.demonstrations import Demonstrations
from gcp_jax.learner import loop, nonfinite
from gcp_jax.run import checkpoint, distributed, metrics
from gcp_jax.run.episode_cohorts import EpisodeCohorts
from gcp_jax.run.errors import RunError
from gcp_jax.run.evaluator import Row, mean_score, member_columns, note_diverged
from gcp_jax.run.nonfinite_budget import NonfiniteBudget
from gcp_jax.run.progress import Progress
from gcp_jax.run.saved_policy import EvalPolicy
from gcp_jax.run.session import Session
from gcp_jax.run.signals import StopRequest
from gcp_jax.run.sizes import Cadence
from gcp_jax.types import Algorithm, PyTree, Train


class HostState(NamedTuple):
    """What a checkpoint keeps of the host, besides the state of the compiled loop."""

    rows: list[Row]  # of the last evaluation
    nonfinite_updates: dict[str, int]  # by the name of the member
    seconds: float  # of the run
    train_seconds: float  # of the stage
    compile_seconds: float  # of the run
    demonstrations: str = ""  # the digest of those that the stage learns from
    episode_cohorts: Sequence[Any] = ()  # ``EpisodeCohorts.host_state``


class DataId(NamedTuple):
    """Which demonstrations a stage learns from; a checkpoint does not hold them."""

    digest: str = ""  # "" if it learns from none
    path: str = ""  # "" if they are scripted

    @classmethod
    def of(cls, demonstrations: Demonstrations | None, config: RunConfig) -> DataId:
        """Identify the demonstrations of a run; None: it learns from none."""
        if demonstrations is None:
            return cls()
        return cls(digest=demonstrations.digest(), path=config.demonstrations.path)

    def check_resumed(self, stage: str, digest: str) -> None:
        """Check that a stage that learned from data of this ``digest`` may continue with these.

        Scripted demonstrations are computed again. Another processor or version may round them
        differently, so a difference is only said.

        Raises:
          RunError: recorded demonstrations are others.
        """
        if self.digest == digest:
            return
        if self.path:
            raise RunError(
                f"demonstrations.path={self.path} does not hold the demonstrations from which "
                f"{stage} of this run learned; give the path of the same data, or choose another "
                "--run_dir."
            )
        print(
            f"the scripted demonstrations of {stage} differ from those that it began with "
            "(another processor, another version, or a changed task): it continues with the new",
            file=sys.stderr,
        )


class Restored(NamedTuple):
    """A checkpoint."""

    train: Train
    host: HostState


class Stage(NamedTuple):
    """One stage of a run: its cadence, its compiled loop and what it starts from."""

    cadence: Cadence
    learner: loop.Learner
    members: list[Member]  # that are trained
    values: dict[str, Any]  # hyper-parameters that vary between them, {field: [S]}
    pretrained: PyTree
    eval_members: list[Member]  # whose seeds choose the start states of evaluations
    eval_policy: EvalPolicy
    export: Callable[[Train], PyTree]  # its deployed policies, leaves [S, ...]
    algorithm_of: Callable[[Mapping[str, Any]], Algorithm]  # (values of one member) -> its method
    stop_score: float = math.inf  # the stage ends once the mean score reaches it
    final_video: str = ""  # name of the video of the last evaluation
    demonstrations: DataId = DataId()

    def init(self) -> Train:
        """The initial Train."""
        seeds = np.asarray([member.seed for member in self.members], np.int32)
        return self.learner.init(seeds, jax.device_get(self.pretrained), self.values)

    def restore(self, checkpoints: checkpoint.Checkpoints) -> Restored | None:
        """The newest checkpoint; None if there is none.

        Raises:
          RunError: it learned from other recorded demonstrations.
        """
        shardings = mesh_lib.shardings(self.learner.mesh, self.learner.partition_spec)
        found = checkpoints.restore(lambda: loop.without_data(self.init()), shardings)
        if found is None:
            return None
        train, values = found
        host = HostState(**values)
        self.demonstrations.check_resumed(self.cadence.name, host.demonstrations)
        return Restored(self.learner.with_data(train), host)

    def goal_reached(self, rows: list[Row]) -> bool:
        """True if the last evaluation, if there was one, reached ``stop_score``."""
        return bool(rows) and mean_score(rows) >= self.stop_score

    def is_over(self, clock: int, rows: list[Row]) -> bool:
        """True after the last segment, or once the goal is reached."""
        return clock >= self.cadence.segments or self.goal_reached(rows)


class StageResult(NamedTuple):
    """What a stage ends with."""

    deployed: PyTree  # policies [S, ...], on the host
    rows: list[Row]  # of the last evaluation
    given_up: list[str]  # names of members that had too many non-finite updates


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
    with Progress(
        cadence.progress(cadence.segments),
        distributed.with_host_prefix(cadence.name),
        unit=cadence.unit,
        start=cadence.progress(clock),
        score_name=session.score_name,
    ) as progress:
        cohorts = EpisodeCohorts(restored.host.episode_cohorts if restored else ())
        log = _StageLog(stage, session, budget, progress, cohorts)
        if restored is not None and stage.is_over(clock, rows):
            checkpoints.close()
            return StageResult(
                distributed.fetch(stage.export(restored.train)), rows, budget.given_up
            )
        stop_before_segment(session.stop_request, cadence, clock)
        train, segment = _compile(stage, restored, progress)
        stop_before_segment(session.stop_request, cadence, clock)
        while not stage.is_over(clock, rows):
            train, numbers, seconds = _time_segment(segment, train)
            clock += 1
            signum = distributed.largest(session.stop_request.signum)
            log.write_segment(clock, numbers, seconds)
            if cadence.evaluates(clock):
                rows = log.evaluate(clock, train)
            decision = cadence.decide(
                clock,
                signum=signum,
                pause_at=session.pause_at,
                goal_reached=stage.goal_reached(rows),
            )
            if decision.save:
                host = log.host_state(rows)
                checkpoints.save(clock, loop.without_data(train), host._asdict())
            if decision.stop is not None:
                raise decision.stop
    session.timer.compile_seconds += progress.compile_seconds
    checkpoints.close()
    note_diverged(rows, cadence.name)
    return StageResult(distributed.fetch(stage.export(train)), rows, budget.given_up)


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

    def evaluate(self, clock: int, train: Train) -> list[Row]:
        """Evaluate the stage's policies and write one row per member of the evaluation."""
        stage, session = self.stage, self.session
        cadence = stage.cadence
        evaluated = session.evaluator.evaluate(
            stage.eval_policy,
            stage.export(train),
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
        for row in rows:
            session.writer.write(row)
        self.progress.update(cadence.progress(clock), evaluated=mean_score(rows))
        return rows

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

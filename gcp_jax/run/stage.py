"""One stage of a run: what it is made of, what its checkpoint keeps of the host, how it ends."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from gcp_jax import mesh as mesh_lib
from gcp_jax.config import Member, RunConfig
from gcp_jax.core.demonstrations import Demonstrations
from gcp_jax.learner import loop
from gcp_jax.run import checkpoint
from gcp_jax.run.errors import RunError
from gcp_jax.run.evaluator import Row, mean_score
from gcp_jax.run.guard_rails import GuardRails, GuardSetup
from gcp_jax.run.saved_policy import EvalPolicy
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
    guard_rails: Mapping[str, Any] = MappingProxyType({})  # ``GuardRails.host_state``


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
    kept: PyTree | None = None  # ``GuardRails.arrays``


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
    guard: GuardSetup | None = None  # how its members are watched; None: they are not
    on_saved: Callable[[GuardRails], None] | None = None  # is called with the newest checkpoint

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
        kept = self._restore_kept(checkpoints, host)
        return Restored(self.learner.with_data(train), host, kept)

    def _restore_kept(self, checkpoints: checkpoint.Checkpoints, host: HostState) -> PyTree | None:
        """What ``GuardRails.arrays`` were at the newest checkpoint; None if there were none."""
        if self.guard is None:
            return None
        train = jax.eval_shape(lambda: loop.without_data(self.init()))
        shapes = {}
        if any(row["stage"] != "base" for row in host.guard_rails.get("best", ())):
            shapes["deployed"] = jax.eval_shape(self.export, train)
        if self.guard.restores:
            shapes["state"] = jax.eval_shape(checkpoint.key_data, train.learner.state)
        return checkpoints.restore_kept(shapes) if shapes else None

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
    clock: int  # segments done
    guard: GuardRails | None  # None if its members are not watched
    is_stopped: bool  # before its end, because every member is below its base policy

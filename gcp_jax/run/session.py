"""One process at work on a run."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from gcp_jax.config import RunConfig
from gcp_jax.run import metrics
from gcp_jax.run.evaluator import Evaluator
from gcp_jax.run.signals import StopRequest


class RunTimer:
    """Wall-clock seconds of a run, including those before it was resumed.

    Attributes:
      train_seconds: seconds that the compiled segments of the current stage took.
      compile_seconds: seconds of compiling.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seconds_before = 0.0
        self.train_seconds = 0.0
        self.compile_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of the run so far."""
        return self._seconds_before + time.monotonic() - self._began

    def begin_stage(
        self,
        *,
        seconds: float = 0.0,
        train_seconds: float = 0.0,
        compile_seconds: float = 0.0,
    ) -> None:
        """Begin a stage, with what its checkpoint recorded if it is resumed."""
        self._seconds_before = max(self._seconds_before, seconds)
        self.train_seconds = train_seconds
        self.compile_seconds = max(self.compile_seconds, compile_seconds)

    def columns(self) -> dict[str, float]:
        """The columns of a row that tell the time."""
        return {"seconds": round(self.seconds, 2), "train_seconds": round(self.train_seconds, 2)}


@dataclasses.dataclass(frozen=True)
class Session:
    """What the stages of a run share while one process works on it."""

    config: RunConfig
    folder: Path
    evaluator: Evaluator
    writer: metrics.FanOut
    timer: RunTimer
    stop_request: StopRequest
    score_name: str  # "success", or "return" if the task defines no success
    pause_at: int = 0  # env steps after which the next evaluation pauses the run; 0: never

"""Why a run ends before it is finished."""

from __future__ import annotations


class RunError(RuntimeError):
    """A run cannot start or continue; the message is one line with the reason and the remedy."""


class Interrupted(RunError):
    """A signal stopped the run after it was saved; the same command continues it.

    Attributes:
      code: the exit code of the process, 128 + the signal's number.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.code = 128 + signum


class Paused(RunError):
    """The run reached the step at which it was to pause; it was evaluated, saved and can resume."""


class Decayed(RunError):
    """Every seed is below its base policy and ``finetune.on_decay`` is "stop"; the run is saved."""


class HostLost(RuntimeError):
    """Another host died, so that this one cannot continue; the message is one line."""

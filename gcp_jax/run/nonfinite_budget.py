"""How many non-finite updates the members of a stage had, and which members are given up for it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from gcp_jax.learner.nonfinite import NonfiniteUpdates
from gcp_jax.run import distributed, replay_fault
from gcp_jax.run.errors import RunError
from gcp_jax.run.sizes import Cadence


class NonfiniteBudget:
    """Counts the non-finite updates of each member of one stage.

    A member with more than ``limit`` of them is given up. The first fault of a run is kept in its
    folder, for ``gcp-jax debug``.
    """

    def __init__(
        self, cadence: Cadence, folder: Path, *, limit: int, counts: Mapping[str, int]
    ) -> None:
        self._cadence = cadence
        self._folder = folder
        self._limit = limit
        self._counts = Counter(counts)
        self._first_fault = ""

    @property
    def counts(self) -> dict[str, int]:
        """Non-finite updates, by the name of the member."""
        return dict(self._counts)

    @property
    def given_up(self) -> list[str]:
        """The members that are no longer trained, by name."""
        return sorted(name for name in self._counts if self._is_over(name))

    def record(self, clock: int, index: int, member: str, found: NonfiniteUpdates) -> None:
        """Count the non-finite updates of one member in one segment; print the first ones.

        Args:
          clock: segments done, this one included.
          index: the place of the member in the program.
          member: its name.
          found: its non-finite updates in this segment.
        """
        was_over = self._is_over(member)
        is_first = not self._counts[member]
        fault = self._describe(clock, member, found)
        self._counts[member] += found.skipped
        if is_first:
            self._keep(clock, index, fault)
        if self._is_over(member) and not was_over:
            print(
                f"{fault}; {self._counts[member]} of its updates were not finite, more than "
                f"max_nonfinite_updates={self._limit}: it is given up",
                file=sys.stderr,
            )
        elif is_first:
            print(
                f"{fault}: skipped, "
                f"as are up to max_nonfinite_updates={self._limit} of its updates",
                file=sys.stderr,
            )

    def raise_if_all_given_up(self, members: int) -> None:
        """Raise RunError if none of the stage's ``members`` is left to train."""
        if len(self.given_up) < members:
            return
        fault = self._first_fault or replay_fault.load_fault(self._folder)["description"]
        raise RunError(
            f"{fault}, and {sum(self._counts.values())} updates in all: nothing is left to train. "
            f"The last checkpoint precedes it; gcp-jax debug {self._folder} shows that update. "
            "Lower the learning rates, raise the regularization, or allow more than "
            f"max_nonfinite_updates={self._limit}."
        )

    def _describe(self, clock: int, member: str, found: NonfiniteUpdates) -> str:
        cadence = self._cadence
        update = cadence.counters(clock - 1)["updates"] + found.first
        return (
            f"{found.cause} in {cadence.name} of {member}, at update {update} "
            f"({cadence.progress(clock)} {cadence.unit})"
        )

    def _keep(self, clock: int, index: int, fault: str) -> None:
        self._first_fault = self._first_fault or fault
        if distributed.is_primary():
            facts = {
                "stage": self._cadence.name,
                "clock": clock,
                "index": index,
                "description": fault,
            }
            replay_fault.keep_fault(self._folder, facts)

    def _is_over(self, member: str) -> bool:
        return self._counts[member] > self._limit

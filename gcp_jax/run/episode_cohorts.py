"""Training episodes counted by the segment in which they started.

Episodes that succeed end early and all others at the time limit. The rate over what has ended so
far is therefore too high at first, and later depends on how many environments happen to be at their
limit. The *cohort* of a segment is every episode that started in it. It is complete once all of
them have ended, K segments later (``rollout.segments_spanned``), and nothing is shown before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SUMS = ("episodes", "successes", "returns", "lengths")  # of ``rollout.EpisodeSums``


class EpisodeMeans(NamedTuple):
    """Means over training episodes."""

    episodes: int  # how many
    success: float
    episode_return: float  # undiscounted
    length: float  # control steps

    def score(self, score_name: str) -> float:
        """The mean of the task's score."""
        return self.success if score_name == "success" else self.episode_return


class EpisodeCohorts:
    """The cohorts of the last segments of a stage, each [4, S]: ``_SUMS`` of S members.

    Args:
      cohorts: what ``host_state`` returned, for a stage that continues. Without it the cohorts
        begin anew.
    """

    def __init__(self, cohorts: Sequence[Sequence[Sequence[float]]] = ()) -> None:
        self._cohorts = [np.asarray(cohort, np.float64) for cohort in cohorts]
        self._span = 0  # K

    def add(self, numbers: Mapping[str, Any]) -> None:
        """Add one segment.

        Args:
          numbers: the segment's numbers. Its ``episode/`` sums have leaves [S, K + 1], over the
            episodes that started 0 … K segments earlier; other entries are ignored.
        """
        if "episode/episodes" not in numbers:
            return
        sums = np.asarray([numbers[f"episode/{name}"] for name in _SUMS], np.float64)
        ages = sums.shape[-1]
        self._span = ages - 1
        self._cohorts.append(np.zeros(sums.shape[:-1]))
        for age, cohort in zip(range(ages), reversed(self._cohorts), strict=False):
            cohort += sums[..., age]
        del self._cohorts[: -(2 * self._span + 1)]

    def newest(self, member: int) -> EpisodeMeans | None:
        """Means of one member over its newest complete cohort; None if it has no episode."""
        return _means([cohort[:, member] for cohort in self._complete()[-1:]])

    def recent(self) -> EpisodeMeans | None:
        """Means over the complete cohorts that started within one time limit, all members.

        In so many segments every environment starts an episode.
        """
        return _means([cohort.sum(axis=1) for cohort in self._complete()[-(self._span + 1) :]])

    def host_state(self) -> list[list[list[float]]]:
        """What a checkpoint keeps."""
        return [cohort.tolist() for cohort in self._cohorts]

    def _complete(self) -> list[NDArray[np.float64]]:
        """The cohorts whose episodes have all ended, oldest first."""
        return self._cohorts[: max(len(self._cohorts) - self._span, 0)]


def _means(cohorts: Sequence[NDArray[np.float64]]) -> EpisodeMeans | None:
    episodes, successes, returns, lengths = np.sum(cohorts, axis=0) if cohorts else np.zeros(4)
    if not episodes:
        return None
    return EpisodeMeans(
        episodes=int(episodes),
        success=float(successes / episodes),
        episode_return=float(returns / episodes),
        length=float(lengths / episodes),
    )

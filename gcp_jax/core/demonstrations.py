"""Demonstrations: recorded episodes one after the other, on the host.

Where an episode ends is said by where the next one starts, not by the flags of its steps: a
recording may lack them.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from gcp_jax.types import Step

MAX_STEPS = 2**31 - 1  # a step is chosen by an int32


class Demonstrations(NamedTuple):
    """Episodes as ``make_demonstrations`` returns them."""

    steps: Step  # leaves [S, ...]; every step is executed
    start: NDArray[np.int32]  # [E] first step of each episode

    @property
    def length(self) -> NDArray[np.int32]:
        """[E] steps of each episode."""
        return np.diff(self.start, append=np.int32(len(self.steps.reward)))

    @property
    def end(self) -> NDArray[np.int32]:
        """[S] for each step, one past the last step of its episode."""
        length = self.length
        return np.repeat(self.start + length, length)

    def first(self, episodes: int) -> Demonstrations:
        """The first episodes."""
        start = self.start[:episodes]
        count = int(self.length[:episodes].sum())
        return Demonstrations(steps=jax.tree.map(lambda x: x[:count], self.steps), start=start)

    def returns(self) -> NDArray[np.float64]:
        """[E] the sum of each episode's rewards, undiscounted."""
        return np.add.reduceat(np.asarray(self.steps.reward, np.float64), self.start)

    def digest(self) -> str:
        """SHA-256 of every number of these episodes, in hexadecimal; wherever they are stored."""
        content = hashlib.sha256()
        arrays: tuple[Any, ...] = (*self.steps, self.start)
        for x in arrays:
            content.update(f"{x.dtype.str}{x.shape}".encode())
            whole: Any = np.ascontiguousarray(x)
            content.update(whole)
        return content.hexdigest()


def make_demonstrations(steps: Step, start: NDArray[Any]) -> Demonstrations:
    """Demonstrations from steps and where episodes start.

    A last step that is neither terminated nor truncated is made a truncated one: the recording
    stopped there, and a value follows.

    Args:
      steps: leaves [S, ...], one episode after the other, in numpy.
      start: the first step of each episode [E], rising from 0.

    Raises:
      ValueError: there is no step, or there are more than ``MAX_STEPS``.
    """
    total = len(steps.reward)
    if not total:
        raise ValueError(
            "The demonstrations hold no executed step; generate or load at least one episode."
        )
    if total > MAX_STEPS:
        raise ValueError(
            f"The demonstrations hold {total:,} steps, more than {MAX_STEPS:,}; "
            "lower demonstrations.episodes."
        )
    last = np.append(start[1:], total) - 1
    truncated: Any = np.array(steps.truncated)  # numpy stands for jax arrays
    truncated[last] |= ~steps.terminated[last]
    executed: Any = np.ones(total, bool)
    return Demonstrations(
        steps=steps._replace(truncated=truncated, executed=executed),
        start=np.asarray(start, np.int32),
    )


def flatten_episodes(steps: Step) -> tuple[Step, NDArray[np.int64]]:
    """The executed steps of time-major episodes, one episode after the other.

    Args:
      steps: leaves [T, E, ...].

    Returns:
      Steps [S, ...] in numpy, and the first step of each episode [E].
    """
    executed = np.asarray(steps.executed).T  # [E, T]
    flat: Step = jax.tree.map(lambda x: np.swapaxes(np.asarray(x), 0, 1)[executed], steps)
    length = executed.sum(1)
    return flat, np.cumsum(length) - length


def demonstrations_of(steps: Step) -> Demonstrations:
    """Demonstrations from time-major episodes, leaves [T, E, ...].

    Raises:
      ValueError: no step is executed.
    """
    flat, start = flatten_episodes(steps)
    length = np.diff(start, append=len(flat.reward))
    return make_demonstrations(flat, start[length > 0])

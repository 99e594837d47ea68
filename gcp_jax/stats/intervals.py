"""Intervals of a success rate, a mean return and a difference, in closed form.

    S   seeds (independent trainings)      k_s, n_s   successes and episodes of seed s

Every interval is two-sided at ``confidence``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # not scipy.stats: it takes half a second to import

Floats = NDArray[np.float64]

MISSING = "–"  # shown for a number that is not known (yet)


class Interval(NamedTuple):
    """An estimate and the bounds of its interval, in the unit of the data (rates are in [0, 1]).

    The bounds are NaN if the data say nothing about the spread, for example one number; the texts
    then have the estimate alone.
    """

    estimate: float
    low: float
    high: float

    def format(self, score_name: str) -> str:
        """``percent`` if the score is "success", ``number`` if it is "return"."""
        if score_name == "success":
            return self.percent()
        return self.number()

    def percent(self) -> str:
        """A rate: ``87.5 % [80.1, 92.4]``."""
        return self._with_bounds("{:.1f}", " %", 100.0)

    def number(self) -> str:
        """A number: ``2,310 [2,101, 2,519]``; with one decimal if all are below 100."""
        return self._format_numbers("")

    def change(self) -> str:
        """A difference of numbers: ``+349 [+201, +402]``."""
        return self._format_numbers("+")

    def points(self) -> str:
        """A difference of rates in percentage points: ``+34.9 [+20.1, +40.2]``."""
        return self._with_bounds("{:+.1f}", "", 100.0)

    @property
    def has_bounds(self) -> bool:
        """False if the spread is not known."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def _format_numbers(self, sign: str) -> str:
        large = any(abs(value) >= 100 for value in self)  # NaN is not
        digits = 0 if large else 1
        return self._with_bounds(f"{{:{sign},.{digits}f}}", "", 1.0)

    def _with_bounds(self, style: str, unit: str, scale: float) -> str:
        estimate, low, high = (style.format(scale * value) for value in self)
        text = f"{estimate}{unit}"
        return f"{text} [{low}, {high}]" if self.has_bounds else text


class Success(NamedTuple):
    """Counts of the evaluations of one policy."""

    successes: int
    episodes: int

    @classmethod
    def merged(cls, counts: Sequence[Success]) -> Success:
        """Several evaluations of one policy as one."""
        return cls(sum(each.successes for each in counts), sum(each.episodes for each in counts))


class Returns(NamedTuple):
    """Returns in the evaluations of one policy."""

    mean: float
    std: float  # with n − 1
    episodes: int  # n

    @classmethod
    def merged(cls, parts: Sequence[Returns]) -> Returns:
        """Several evaluations of one policy as one: mean and deviation of all their episodes."""
        mean_i, std_i, count_i = np.asarray(parts, np.float64).T
        total = count_i.sum()
        mean = float(np.sum(count_i * mean_i) / total)
        squares = np.sum((count_i - 1) * std_i**2 + count_i * (mean_i - mean) ** 2)
        std = float(np.sqrt(squares / max(total - 1, 1)))
        return cls(mean=mean, std=std, episodes=int(total))


def wilson_bounds(rate: float, episodes: float, confidence: float) -> tuple[float, float]:
    """Wilson's bounds of a rate among so many independent episodes, which need be no integer."""
    z2 = special.ndtri((1 + confidence) / 2) ** 2 / episodes
    centre = (rate + z2 / 2) / (1 + z2)
    half = np.sqrt(rate * (1 - rate) * z2 + z2**2 / 4) / (1 + z2)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a binomial proportion.

    Wilson (1927); Brown, Cai & DasGupta (2001), eq. 4.

    Raises:
        ValueError: there are no episodes, or more successes than episodes.
    """
    _check_counts(successes, episodes)
    rate = successes / episodes
    low, high = wilson_bounds(rate, episodes, confidence)
    return Interval(estimate=rate, low=low, high=high)


def jeffreys(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Equal-tailed interval of the posterior Beta(k + ½, n − k + ½).

    Brown, Cai & DasGupta (2001), §4.3. As recommended there, the lower bound is 0 if no episode
    succeeded and the upper bound is 1 if all did.

    Raises:
        ValueError: there are no episodes, or more successes than episodes.
    """
    _check_counts(successes, episodes)
    tail = (1 - confidence) / 2
    low, high = special.betaincinv(successes + 0.5, episodes - successes + 0.5, [tail, 1 - tail])
    return Interval(
        estimate=successes / episodes,
        low=0.0 if successes == 0 else float(low),
        high=1.0 if successes == episodes else float(high),
    )


def posterior(successes: int, episodes: int, rate: ArrayLike) -> Floats:
    """Density of the success rate after ``episodes`` under Jeffreys' prior.

    Args:
        successes: k.
        episodes: n.
        rate: success rates in (0, 1) at which the density is evaluated, of any shape.

    Returns:
        The density of Beta(k + ½, n − k + ½) at each ``rate``, in its shape.
    """
    _check_counts(successes, episodes)
    rate = np.asarray(rate, np.float64)
    a = successes + 0.5
    b = episodes - successes + 0.5
    density: Floats = np.exp(
        special.xlogy(a - 1, rate) + special.xlog1py(b - 1, -rate) - special.betaln(a, b)
    )
    return density


def pooled_success(counts: Sequence[Success], confidence: float = 0.95) -> Interval:
    """Success rate over the policies of S seeds, with an interval that also covers new seeds.

    Wilson's interval at the effective number of episodes (Korn & Graubard 1998):

        p = Σk/Σn     v = S/(S−1) · Σ(k_s − n_s·p)²/(Σn)²     deff = v / (p(1−p)/Σn)
        n_eff = Σn / max(1, deff · (t_{S−1} / z)²)

    A bootstrap over seeds and episodes is too narrow for few seeds, and has no width at all if
    every seed succeeds in every episode; this interval keeps its coverage. With one policy this is
    Wilson's interval of its episodes. Merge evaluations of one policy first (``Success.merged``):
    they say nothing about other policies.

    Raises:
        ValueError: ``counts`` is empty, or holds impossible counts.
    """
    return success_of_clones([counts], confidence)


def success_of_clones(clones: Sequence[Sequence[Success]], confidence: float = 0.95) -> Interval:
    """Success rate over the policies of several clones, which also covers new clones.

    The interval is that of ``pooled_success`` with the smaller of two effective numbers of
    episodes: that of the S policies, and that of the C clones, each with the episodes of all its
    policies and with t_{C−1}. The second accounts for whatever is alike within a clone (Korn &
    Graubard 1998: clones are the primary sampling units), and keeps its coverage for few clones,
    which resampling does not.

    Args:
        clones: the counts of the policies that started from each clone.
        confidence: coverage of the interval.

    Raises:
        ValueError: a clone has no policies, or impossible counts.
    """
    if not clones or not all(clones):
        raise ValueError(
            "pooled_success: no seeds given; pass one (successes, episodes) pair per seed"
        )
    policies = [policy for clone in clones for policy in clone]
    for successes, episodes in policies:
        _check_counts(successes, episodes)
    total = sum(policy[1] for policy in policies)
    rate = sum(policy[0] for policy in policies) / total
    merged = [Success.merged([*map(Success._make, clone)]) for clone in clones]
    effects = [_design_effect(counts, confidence) for counts in (policies, merged)]
    low, high = wilson_bounds(rate, total / max(1.0, *effects), confidence)
    return Interval(estimate=rate, low=low, high=high)


def mean_return(
    means: Sequence[float], stds: Sequence[float], episodes: Sequence[int], confidence: float = 0.95
) -> Interval:
    """Mean return over S seeds.

    The wider of two Student intervals: one over the seeds' means, which covers seeds not yet
    trained, and one over the episodes of these seeds, whose standard error is √(Σ std²/episodes)/S.
    With one seed only the second exists.

    Args:
        means: mean return of each seed, [S].
        stds: standard deviation over the episodes of each seed, [S].
        episodes: number of episodes of each seed, [S].
        confidence: coverage of the interval.

    Raises:
        ValueError: the lengths differ, or a seed has no episodes.
    """
    if not len(means) == len(stds) == len(episodes) > 0 or min(episodes) < 1:
        raise ValueError(
            f"mean_return: {len(means)} means, {len(stds)} stds, episodes {list(episodes)}; "
            "need one of each"
        )
    mean_s = np.asarray(means, np.float64)
    std_s = np.asarray(stds, np.float64)
    count_s = np.asarray(episodes, np.float64)
    seeds = len(mean_s)
    tail = (1 + confidence) / 2
    half = (
        special.stdtrit(max(count_s.sum() - seeds, 1), tail)
        * np.sqrt(np.sum(std_s**2 / count_s))
        / seeds
    )
    if seeds > 1:
        half = max(half, special.stdtrit(seeds - 1, tail) * mean_s.std(ddof=1) / np.sqrt(seeds))
    mean = float(mean_s.mean())
    return Interval(estimate=mean, low=mean - float(half), high=mean + float(half))


def difference(first: Interval, second: Interval) -> Interval:
    """first − second of two independent estimates, from their intervals.

    For rates this is the hybrid score method 10 of Newcombe (1998), for means its generalisation
    MOVER (Zou & Donner 2008).
    """
    gap = first.estimate - second.estimate
    down = np.hypot(first.estimate - first.low, second.high - second.estimate)
    up = np.hypot(first.high - first.estimate, second.estimate - second.low)
    return Interval(estimate=gap, low=float(gap - down), high=float(gap + up))


def _check_counts(successes: int, episodes: int) -> None:
    if not 0 <= successes <= episodes or episodes == 0:
        raise ValueError(
            f"success counts: {successes} of {episodes} episodes; "
            "need episodes > 0 and 0 <= successes <= episodes"
        )


def _design_effect(counts: Sequence[Success], confidence: float) -> float:
    """deff · (t_{S−1} / z)²; 1 if the units cannot differ (one unit, or all episodes alike)."""
    successes, episodes = np.asarray(counts, np.float64).T
    seeds = len(episodes)
    total = episodes.sum()
    rate = successes.sum() / total
    if seeds == 1 or rate in (0.0, 1.0):
        return 1.0
    variance = seeds / (seeds - 1) * np.sum((successes - episodes * rate) ** 2) / total**2
    tail = (1 + confidence) / 2
    return float(
        variance
        / (rate * (1 - rate) / total)
        * (special.stdtrit(seeds - 1, tail) / special.ndtri(tail)) ** 2
    )

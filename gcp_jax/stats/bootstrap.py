"""Aggregates of the scores of several runs and tasks, with bootstrap intervals over the runs.

    C   clones of a task    R   runs of a method from each    M   tasks    B   resamples

Agarwal et al. (2021), "Deep RL at the edge of the statistical precipice". Every interval is
two-sided at ``confidence``. The resampling depends on ``rng_seed`` alone.

Scores are [C, R, M], or [R, M] and [R] of one clone. The runs of one clone are more alike than
those of two, so clones are resampled first and then the runs of each (Davison & Hinkley 1997,
§3.8), and the interval covers clones that were not made. With one clone it holds for that alone.

One run says nothing about the spread between runs, and the resamples of runs that all scored alike
have none. Where the number of episodes behind each score is given, the interval is then that of the
episodes. Otherwise the bounds of one run are NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gcp_jax.stats.intervals import Floats, Interval, difference, wilson, wilson_bounds


class Profile(NamedTuple):
    """A performance profile: the fraction of runs above each threshold, with a pointwise band."""

    thresholds: Floats  # [K]
    estimate: Floats  # [K]
    low: Floats  # [K]
    high: Floats  # [K]


def interquartile_mean(
    scores: ArrayLike,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    rng_seed: int = 0,
    episodes: ArrayLike | None = None,
) -> Interval:
    """Mean of the middle half of all scores, with a stratified percentile bootstrap.

    Clones, and runs of a clone, are resampled within each task. A quarter of the scores, rounded
    down, is cut from either end. Like every percentile bootstrap it is too narrow for few runs, and
    with several clones for few clones.

    Args:
        scores: [C, R, M]; [R, M] of one clone, or [R] for one task.
        confidence: coverage of the interval.
        resamples: B.
        rng_seed: seed of the resampling.
        episodes: how many are behind each score, [] or [M], if the scores are success rates. The
            interval of one run, or of runs that scored alike, is then that of their episodes.

    Raises:
        ValueError: the scores are not finite, or of another shape.
    """
    table = _score_table(scores, "interquartile_mean")
    return _interval_of_all(table, _middle_mean, confidence, resamples, rng_seed, episodes)


def mean_score(
    scores: ArrayLike,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    rng_seed: int = 0,
    episodes: ArrayLike | None = None,
) -> Interval:
    """Mean of all scores [C, R, M]; [R, M] of one clone, or [R] for one task.

    The interval and the arguments are those of ``interquartile_mean``. For scores with maximum 1,
    such as success rates, one minus the mean is the optimality gap.
    """
    table = _score_table(scores, "mean_score")
    return _interval_of_all(table, _row_mean, confidence, resamples, rng_seed, episodes)


def performance_profile(
    scores: ArrayLike,
    thresholds: ArrayLike,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    rng_seed: int = 0,
) -> Profile:
    """Fraction of the runs that score strictly above each threshold τ, averaged over tasks.

        F(τ) = 1/M Σ_m 1/R Σ_r 1[x_rm > τ]

    The score distribution of Agarwal et al. (2021, eq. 2): one minus the empirical distribution
    function. The band is the stratified percentile bootstrap at each τ separately; it is NaN for
    one run.

    Args:
        scores: [C, R, M]; [R, M] of one clone, or [R] for one task.
        thresholds: τ, [K].
        confidence: coverage of the band.
        resamples: B.
        rng_seed: seed of the resampling.

    Raises:
        ValueError: ``thresholds`` is empty or not one-dimensional, or the scores are not finite.
    """
    table = _score_table(scores, "performance_profile")
    levels = np.asarray(thresholds, np.float64)
    if levels.ndim != 1 or levels.size == 0:
        raise ValueError(
            f"performance_profile: thresholds of shape {levels.shape}; need shape [K] with K > 0"
        )
    resampled = _resample(table, resamples, np.random.default_rng(rng_seed))
    above = np.asarray([np.mean(resampled > level, axis=(1, 2, 3)) for level in levels])
    if _is_one_run(table):
        above[:] = np.nan
    low, high = np.quantile(above, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1)
    return Profile(
        thresholds=levels,
        estimate=np.mean(table.ravel() > levels[:, None], axis=1),
        low=low,
        high=high,
    )


def steps_to_threshold(steps: ArrayLike, success: ArrayLike, threshold: float) -> float | None:
    """The first cost at which the success is at least ``threshold``; None if it never is.

    Args:
        steps: any cost (environment steps, updates, seconds) in the order of the evaluations, [P].
        success: success at each of them, [P]; NaN reaches no threshold.
        threshold: success to reach.

    Raises:
        ValueError: the two do not have the same length.
    """
    costs = np.asarray(steps, np.float64)
    rates = np.asarray(success, np.float64)
    if costs.ndim != 1 or costs.shape != rates.shape:
        raise ValueError(
            f"steps_to_threshold: steps {costs.shape}, success {rates.shape}; "
            "pass one success per step, [P]"
        )
    reached = np.flatnonzero(rates >= threshold)
    return float(costs[reached[0]]) if reached.size else None


def probability_of_improvement(
    first: ArrayLike,
    second: ArrayLike,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    rng_seed: int = 0,
) -> Interval:
    """P(a run of ``first`` scores higher than one of ``second``), averaged over tasks.

    The Mann–Whitney statistic U/(R₁·R₂): ties count half. Runs of two methods are compared if they
    start from one clone, and the result is the mean over the clones. The interval resamples the
    clones, each with the runs of both methods, and then the runs of either; it has no bounds if
    either has one run of one clone. If the runs are fully apart, or all alike, resampling changes
    nothing: the interval is then Wilson's for C·M independent pairs, or min(R₁, R₂)·M if C is 1.

    Args:
        first: [C, R₁, M]; [R₁, M] of one clone, or [R₁] for one task.
        second: [C, R₂, M], [R₂, M] or [R₂], from the same clones.
        confidence: coverage of the interval.
        resamples: B.
        rng_seed: seed of the resampling.

    Raises:
        ValueError: the two have different numbers of clones or tasks, or scores are not finite.
    """
    ours, theirs = _paired_tables(first, second, "probability_of_improvement")
    clones, _, tasks = ours.shape
    resampled_pair = _resample_pair(ours, theirs, resamples, np.random.default_rng(rng_seed))
    estimate = float(_superiority(ours[None], theirs[None])[0])
    resampled = _superiority(*resampled_pair)
    if (resampled == estimate).all():
        pairs = clones if clones > 1 else min(ours.shape[1], theirs.shape[1])
        low, high = wilson_bounds(estimate, pairs * tasks, confidence)
        return Interval(estimate=estimate, low=low, high=high)
    return _percentiles(estimate, resampled, confidence)


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    rng_seed: int = 0,
    episodes: ArrayLike | None = None,
) -> Interval:
    """Mean score of ``first`` − that of ``second``, both from the same clones.

    The interval resamples as ``probability_of_improvement`` does: how well a clone suits both
    methods cancels, so it may be much narrower than the intervals of the two. If resampling changes
    nothing it is that of two independent means (``difference``).

    Args:
        first: [C, R₁, M]; [R₁, M] of one clone, or [R₁] for one task.
        second: [C, R₂, M], [R₂, M] or [R₂], from the same clones.
        confidence: coverage of the interval.
        resamples: B.
        rng_seed: seed of the resampling.
        episodes: how many are behind each score, as in ``interquartile_mean``.

    Raises:
        ValueError: the two have different numbers of clones or tasks, or scores are not finite.
    """
    ours, theirs = _paired_tables(first, second, "paired_difference")
    drawn, drawn_theirs = _resample_pair(ours, theirs, resamples, np.random.default_rng(rng_seed))
    resampled = drawn.mean(axis=(1, 2, 3)) - drawn_theirs.mean(axis=(1, 2, 3))
    if np.ptp(resampled) <= 1e-9 * max(np.abs(ours).max(), np.abs(theirs).max()):  # rounding
        means = [
            mean_score(table, confidence, resamples=resamples, rng_seed=rng_seed, episodes=episodes)
            for table in (ours, theirs)
        ]
        return difference(*means)
    return _percentiles(float(ours.mean() - theirs.mean()), resampled, confidence)


def _middle_mean(scores: Floats) -> Floats:
    """Mean over the last axis without a quarter, rounded down, at either end."""
    cut = scores.shape[-1] // 4
    middle = np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut]
    mean: Floats = np.mean(middle, axis=-1)
    return mean


def _score_table(scores: ArrayLike, function: str) -> Floats:
    """Scores as [C, R, M] float64."""
    given = np.asarray(scores, np.float64)
    table = given[:, None] if given.ndim == 1 else given
    if table.ndim == 2:
        table = table[None]
    if table.ndim != 3 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(
            f"{function}: scores of shape {given.shape}; "
            "need finite numbers of shape [runs], [runs, tasks] or [clones, runs, tasks]"
        )
    return table


def _paired_tables(first: ArrayLike, second: ArrayLike, function: str) -> tuple[Floats, Floats]:
    """The scores of two methods, [C, R₁, M] and [C, R₂, M]."""
    ours = _score_table(first, function)
    theirs = _score_table(second, function)
    for axis, noun, remedy in ((0, "clones", "start both from"), (2, "tasks", "score both on")):
        if ours.shape[axis] != theirs.shape[axis]:
            raise ValueError(
                f"{function}: {ours.shape[axis]} {noun} against {theirs.shape[axis]}; "
                f"{remedy} the same ones"
            )
    return ours, theirs


def _is_one_run(table: Floats) -> bool:
    return table.shape[:2] == (1, 1)


def _resample(table: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """[B, C, R, M]: sampled with replacement, independently in each task; NaN for one run."""
    return _resample_runs(table, _draw_clones(table, resamples, rng), rng)


def _resample_pair(
    first: Floats, second: Floats, resamples: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """[B, C, R₁, M] and [B, C, R₂, M] from the same clones."""
    drawn = _draw_clones(first, resamples, rng)
    ours = _resample_runs(first, drawn, rng)
    theirs = _resample_runs(second, drawn, rng)
    return ours, theirs


def _draw_clones(table: Floats, resamples: int, rng: np.random.Generator) -> NDArray[np.integer]:
    """[B, C, 1, M]: indices of clones."""
    clones, _, tasks = table.shape
    if clones == 1:
        return np.zeros((resamples, 1, 1, tasks), np.int64)
    return rng.integers(clones, size=(resamples, clones, 1, tasks))


def _resample_runs(table: Floats, drawn: NDArray[np.integer], rng: np.random.Generator) -> Floats:
    """[B, C, R, M]: runs of the drawn clones; NaN for one run."""
    runs = table.shape[1]
    resamples, clones, _, tasks = drawn.shape
    if _is_one_run(table):
        return np.full((resamples, clones, runs, tasks), np.nan)
    indices = rng.integers(runs, size=(resamples, clones, runs, tasks))
    resampled: Floats = table[drawn, indices, np.arange(tasks)]
    return resampled


def _interval_of_all(
    table: Floats,
    statistic: Callable[[Floats], Floats],
    confidence: float,
    resamples: int,
    rng_seed: int,
    episodes: ArrayLike | None,
) -> Interval:
    """A statistic, over the last axis, of all scores [C, R, M], with the interval of its runs.

    It is the interval of their episodes instead if these are known and the runs scored alike.
    """
    rng = np.random.default_rng(rng_seed)
    estimate = float(statistic(table.reshape(-1)))
    runs = table.reshape(-1, table.shape[-1])
    if episodes is not None and (runs == runs[0]).all():
        behind = len(runs) * np.asarray(episodes)
        return _interval_of_episodes(
            runs[0], behind, estimate, statistic, confidence, resamples, rng
        )
    resampled = _resample(table, resamples, rng).reshape(resamples, -1)
    return _percentiles(estimate, statistic(resampled), confidence)


def _interval_of_episodes(
    rates: Floats,
    episodes: NDArray[np.integer],
    estimate: float,
    statistic: Callable[[Floats], Floats],
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> Interval:
    """The interval of a statistic [B, M] -> [B] of success rates [M], from their episodes.

    The rates are drawn from Jeffreys' posterior of each. On one task it is Wilson's interval.
    """
    successes = rates * episodes
    failures = episodes - successes
    if len(rates) == 1:
        count = round(float(successes[0]))
        return wilson(count, count + round(float(failures[0])), confidence)
    drawn = rng.beta(successes + 0.5, failures + 0.5, size=(resamples, len(rates)))
    found = _percentiles(estimate, statistic(drawn), confidence)
    # If all episodes of all tasks ended alike, the interval is closed there, as in ``jeffreys``.
    return found._replace(low=min(found.low, estimate), high=max(found.high, estimate))


def _row_mean(scores: Floats) -> Floats:
    """[B, M] -> [B]."""
    mean: Floats = scores.mean(axis=-1)
    return mean


def _superiority(first: Floats, second: Floats) -> Floats:
    """[B, C, R₁, M], [B, C, R₂, M] -> [B]."""
    of_clones = []
    for clone in range(first.shape[1]):  # one by one, which takes less memory
        gap = first[:, clone, :, None, :] - second[:, clone, None, :, :]
        of_clones.append(np.mean(np.sign(gap) / 2 + 0.5, axis=(1, 2, 3)))
    wins: Floats = np.mean(of_clones, axis=0)
    return wins


def _percentiles(estimate: float, resampled: Floats, confidence: float) -> Interval:
    """The bounds are NaN if the resamples are."""
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate=estimate, low=float(low), high=float(high))

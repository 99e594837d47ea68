"""Intervals for success rates and for scores of several seeds; numpy and scipy only.

    S   seeds (independent trainings)      k_s, n_s   successes and episodes of seed s
    R   runs of a method                   M          tasks

Every interval is two-sided at ``confidence``. Whatever is random takes ``rng_seed`` and is a function of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import (
    special,  # of scipy.stats, which takes half a second to import, only quantiles are needed
)

Floats = NDArray[np.float64]

MISSING = "–"  # shown for a number not known (yet)


class Interval(NamedTuple):
    """An estimate with the bounds of its interval, all in the unit of the data (a success rate lies in [0, 1])."""

    estimate: float
    low: float
    high: float

    def percent(self) -> str:
        """``87.5 % [80.1, 92.4]``"""
        return f"{100 * self.estimate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def number(self) -> str:
        """``2,310 [2,101, 2,519]``, or with a decimal where it is below 100."""
        return self._numbers("")

    def told(self, score_name: str) -> str:
        """``percent`` of what is score_name by its "success", ``number`` of what is score_name by its "return"."""
        return self.percent() if score_name == "success" else self.number()

    def change(self) -> str:
        """A difference of numbers: ``+349 [+201, +402]``"""
        return self._numbers("+")

    def _numbers(self, sign: str) -> str:
        digits = 0 if max(abs(value) for value in self) >= 100 else 1
        estimate, low, high = (f"{value:{sign},.{digits}f}" for value in self)
        return f"{estimate} [{low}, {high}]"

    def points(self) -> str:
        """A difference of rates in percentage points: ``+34.9 [+20.1, +40.2]``"""
        return f"{100 * self.estimate:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


class Success(NamedTuple):
    """Counts of one evaluation."""

    successes: int
    episodes: int


class Profile(NamedTuple):
    """A performance profile: the fraction of runs above each threshold, with a pointwise band; all [K]."""

    thresholds: Floats
    estimate: Floats
    low: Floats
    high: Floats


class BeforeAfter(NamedTuple):
    """One row of the table of success, or of return: a seed, or all of them pooled; None where not evaluated (yet)."""

    label: str
    before: Interval | None
    after: Interval | None
    score_name: str = "success"  # or "return"

    @property
    def change(self) -> Interval | None:
        """after − before, in rate units or in those of the return."""
        return difference(self.after, self.before) if self.before and self.after else None

    def texts(self) -> tuple[str, str, str, str]:
        """label, before, after and change in words for a table."""
        before, after = (
            interval.told(self.score_name) if interval else MISSING
            for interval in (self.before, self.after)
        )
        change = MISSING
        if self.change:
            change = self.change.points() if self.score_name == "success" else self.change.change()
        return self.label, before, after, change


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a binomial proportion (Wilson 1927; Brown, Cai & DasGupta 2001, eq. 4)."""
    _check_counts(successes, episodes)
    rate = successes / episodes
    return Interval(rate, *_wilson_bounds(rate, episodes, confidence))


def jeffreys(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Equal-tailed interval of the posterior Beta(k + ½, n − k + ½) (Brown, Cai & DasGupta 2001, §4.3).

    The bound on the side of no failure, or of no success, is 1, or 0, as recommended there.
    """
    _check_counts(successes, episodes)
    tail = (1 - confidence) / 2
    low, high = special.betaincinv(successes + 0.5, episodes - successes + 0.5, [tail, 1 - tail])
    return Interval(
        successes / episodes,
        0.0 if successes == 0 else float(low),
        1.0 if successes == episodes else float(high),
    )


def posterior(successes: int, episodes: int, rate: ArrayLike) -> Floats:
    """Density of the success rate after ``episodes`` and Jeffreys' prior: Beta(k + ½, n − k + ½) at each ``rate`` in (0, 1)."""
    _check_counts(successes, episodes)
    rate = np.asarray(rate, np.float64)
    a, b = successes + 0.5, episodes - successes + 0.5
    density: Floats = np.exp(
        special.xlogy(a - 1, rate) + special.xlog1py(b - 1, -rate) - special.betaln(a, b)
    )
    return density


def pooled_success(counts: Sequence[Success], confidence: float = 0.95) -> Interval:
    """Success rate over all episodes of S seeds, with an interval for the method: it covers seeds not yet trained.

    Wilson's interval at the effective number of episodes (Korn & Graubard 1998):

        p = Σk/Σn     v = S/(S−1) · Σ(k_s − n_s·p)²/(Σn)²     deff = v / (p(1−p)/Σn)
        n_eff = Σn / max(1, deff · (t_{S−1} / z)²)

    Preferred to a bootstrap over seeds and episodes, which is too narrow for few seeds: at a nominal 95 %, with three
    seeds of 128 episodes and rates drawn from Beta(27, 3), it covers 88 % (resampling seeds alone: 74 %) and this 95 %;
    and at 100 % success in every seed it has no width. With one seed this is Wilson's interval: that seed alone.
    """
    if not counts:
        raise ValueError(
            "pooled_success: no seeds given; pass one (successes, episodes) pair per seed"
        )
    for successes, episodes in counts:
        _check_counts(successes, episodes)
    successes_s, episodes_s = np.asarray(counts, np.float64).T
    rate, total = successes_s.sum() / episodes_s.sum(), episodes_s.sum()
    effective = total / max(1.0, _design_effect(successes_s, episodes_s, confidence))
    return Interval(float(rate), *_wilson_bounds(float(rate), float(effective), confidence))


def mean_return(
    means: Sequence[float], stds: Sequence[float], episodes: Sequence[int], confidence: float = 0.95
) -> Interval:
    """Mean return over S seeds, from the mean, standard deviation and number of episodes [S] of each.

    The wider of two Student intervals: that of the seeds' means, which covers seeds not yet trained, and that of the episodes
    of these seeds, whose standard error is √(Σ std²/episodes)/S. With one seed only the second: that seed alone.
    """
    if not len(means) == len(stds) == len(episodes) > 0 or min(episodes) < 1:
        raise ValueError(
            f"mean_return: {len(means)} means, {len(stds)} stds, episodes {list(episodes)}; need one of each"
        )
    mean_s, std_s, count_s = (np.asarray(x, np.float64) for x in (means, stds, episodes))
    seeds, tail = len(mean_s), (1 + confidence) / 2
    half = (
        special.stdtrit(max(count_s.sum() - seeds, 1), tail)
        * np.sqrt(np.sum(std_s**2 / count_s))
        / seeds
    )
    if seeds > 1:
        half = max(half, special.stdtrit(seeds - 1, tail) * mean_s.std(ddof=1) / np.sqrt(seeds))
    mean = float(mean_s.mean())
    return Interval(mean, mean - float(half), mean + float(half))


def difference(first: Interval, second: Interval) -> Interval:
    """first − second of two independent estimates from their intervals: for rates the hybrid score method 10 of Newcombe
    (1998), for means its generalisation, MOVER (Zou & Donner 2008)."""
    gap = first.estimate - second.estimate
    down = np.hypot(first.estimate - first.low, second.high - second.estimate)
    up = np.hypot(first.high - first.estimate, second.estimate - second.low)
    return Interval(gap, float(gap - down), float(gap + up))


def packed(success: ArrayLike) -> str:
    """Outcomes [E] of episodes in the order of their start states, as an ``eval.jsonl`` row keeps them: bits in hexadecimal."""
    return np.packbits(np.asarray(success, bool)).tobytes().hex()


def outcomes(row: Mapping[str, Any]) -> NDArray[np.bool_] | None:
    """The outcomes [E] of an ``eval.jsonl`` row; None of a row that does not have them. Raises ValueError where they are not those
    of its counts."""
    bits = row.get("eval/success_bits")
    if not isinstance(bits, str):
        return None
    found = np.unpackbits(
        np.frombuffer(bytes.fromhex(bits), np.uint8), count=row["eval/episodes"]
    ).astype(bool)
    if found.sum() != row["eval/successes"]:
        raise ValueError(
            f"eval/success_bits has {found.sum()} successes, eval/successes is {row['eval/successes']}"
        )
    return found


class Discordant(NamedTuple):
    """Of two policies on the same start states: how often only the first succeeded, only the second, and how many there were."""

    wins: int
    losses: int
    episodes: int

    @classmethod
    def of(cls, first: ArrayLike, second: ArrayLike) -> Discordant:
        """From the outcomes [E] of both, in the same order."""
        a, b = np.asarray(first, bool), np.asarray(second, bool)
        if a.shape != b.shape:
            raise ValueError(
                f"outcomes of {a.size} and {b.size} episodes; a paired comparison needs the same start states"
            )
        return cls(int(np.sum(a & ~b)), int(np.sum(b & ~a)), a.size)

    def difference(self, confidence: float = 0.95) -> Interval:
        """Success of the first − that of the second, with the adjusted interval of Bonett & Price (2012, eq. 4):

        p₁₂ = (wins + 1)/(n + 2),  p₂₁ = (losses + 1)/(n + 2),  p₁₂ − p₂₁ ± z √((p₁₂ + p₂₁ − (p₁₂ − p₂₁)²)/(n + 2))
        """
        adjusted = np.array([self.wins + 1, self.losses + 1]) / (self.episodes + 2)
        middle = float(adjusted[0] - adjusted[1])
        z = special.ndtri((1 + confidence) / 2)
        half = float(z * np.sqrt((adjusted.sum() - middle**2) / (self.episodes + 2)))
        estimate = (self.wins - self.losses) / self.episodes
        return Interval(estimate, max(middle - half, -1.0), min(middle + half, 1.0))

    def p_value(self) -> float:
        """Of the hypothesis that a discordant pair is won as often as lost; it holds at whatever number of episodes one stops.

        1/E with the Bayes factor E = ∫₀¹ pʷ(1−p)ˡ dp / 2⁻⁽ʷ⁺ˡ⁾ = B(w+1, l+1) · 2ʷ⁺ˡ, a martingale under the hypothesis, so that by
        Ville's inequality P(it ever reaches 1/α) ≤ α (Robbins 1970; Ramdas et al. 2023, §2).
        """
        log_e = special.betaln(self.wins + 1, self.losses + 1) + (self.wins + self.losses) * np.log(
            2.0
        )
        return float(min(1.0, np.exp(-log_e)))


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """p-values of several hypotheses adjusted so that the chance of any false rejection is bounded (Holm 1979)."""
    found, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        found[name] = largest
    return found


def letters(order: Sequence[Any], different: Iterable[tuple[Any, Any]]) -> dict[Any, str]:
    """Grouping letters, so that two items share one exactly where they were not told apart; "a" goes to the first of ``order``.

    Insert and absorb (Piepho 2004): a group that holds two different items is split in two without the one and without the
    other, and groups within others are dropped.
    """
    groups = [frozenset(order)]
    for one, other in different:
        split = [group - {out} for group in groups if {one, other} <= group for out in (one, other)]
        groups = [group for group in groups if not {one, other} <= group] + split
        groups = [
            group for group in dict.fromkeys(groups) if not any(group < wider for wider in groups)
        ]
    rank = {item: place for place, item in enumerate(order)}
    groups.sort(key=lambda group: sorted(rank[item] for item in group))
    return {
        item: "".join(_letter(i) for i, group in enumerate(groups) if item in group)
        for item in order
    }


def _letter(index: int) -> str:
    """a … z, then a′ … z′, and so on."""
    return chr(ord("a") + index % 26) + "′" * (index // 26)


def interquartile_mean(
    scores: ArrayLike, confidence: float = 0.95, *, resamples: int = 2000, rng_seed: int = 0
) -> Interval:
    """Mean of the middle half of all scores [R, M] (or [R] for one task), with a stratified percentile bootstrap.

    Runs are resampled within each task (Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice").
    A quarter of the scores, rounded down, is cut from either end. Non-finite scores raise ValueError.

    Like every percentile bootstrap it is too narrow for few runs: at a nominal 95 %, with normal scores on four tasks,
    it covers 86 % with three runs, 92 % with five and 93 % with ten.
    """
    table = _score_table(scores, "interquartile_mean")
    drawn = _resample(table, resamples, np.random.default_rng(rng_seed))
    estimates = _middle_mean(drawn.reshape(resamples, -1))
    return _percentiles(float(_middle_mean(table.reshape(-1))), estimates, confidence)


def _middle_mean(scores: Floats) -> Floats:
    """Mean over the last axis without a quarter, rounded down, at either end."""
    cut = scores.shape[-1] // 4
    return np.mean(np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut], axis=-1)


def mean_score(
    scores: ArrayLike, confidence: float = 0.95, *, resamples: int = 2000, rng_seed: int = 0
) -> Interval:
    """Mean of all scores [R, M] (or [R] for one task), with the bootstrap of ``interquartile_mean``.

    For scores that end at 1, as success rates do, one minus this is the optimality gap.
    """
    table = _score_table(scores, "mean_score")
    drawn = _resample(table, resamples, np.random.default_rng(rng_seed))
    return _percentiles(float(table.mean()), drawn.mean(axis=(1, 2)), confidence)


def performance_profile(
    scores: ArrayLike,
    thresholds: ArrayLike,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    rng_seed: int = 0,
) -> Profile:
    """Fraction of the runs [R, M] (or [R]) that score strictly above each threshold τ [K], averaged over tasks.

        F(τ) = 1/M Σ_m 1/R Σ_r 1[x_rm > τ]

    The score distribution of Agarwal et al. (2021, eq. 2): one minus the empirical distribution function. The band is
    the stratified percentile bootstrap at each τ by itself.
    """
    table = _score_table(scores, "performance_profile")
    levels = np.asarray(thresholds, np.float64)
    if levels.ndim != 1 or levels.size == 0:
        raise ValueError(
            f"performance_profile: thresholds of shape {levels.shape}; need shape [K] with K > 0"
        )
    drawn = _resample(table, resamples, np.random.default_rng(rng_seed))
    above = [np.mean(drawn > level, axis=(1, 2)) for level in levels]
    low, high = np.quantile(above, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1)
    return Profile(levels, np.mean(table.ravel() > levels[:, None], axis=1), low, high)


def steps_to_threshold(steps: ArrayLike, success: ArrayLike, threshold: float) -> float | None:
    """The first of ``steps`` [P], in their order, where ``success`` [P] is at least ``threshold``; None if it never is.

    ``steps`` may be any cost: environment steps, updates, seconds. A success of NaN reaches nothing.
    """
    at, rates = np.asarray(steps, np.float64), np.asarray(success, np.float64)
    if at.ndim != 1 or at.shape != rates.shape:
        raise ValueError(
            f"steps_to_threshold: steps {at.shape}, success {rates.shape}; pass one success per step, [P]"
        )
    reached = np.flatnonzero(rates >= threshold)
    return float(at[reached[0]]) if reached.size else None


def probability_of_improvement(
    first: ArrayLike,
    second: ArrayLike,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    rng_seed: int = 0,
) -> Interval:
    """P(a run of ``first`` [R₁, M] beats one of ``second`` [R₂, M]), ties counting half, averaged over tasks.

    The Mann–Whitney statistic U/(R₁·R₂); the interval resamples the runs of both sides within each task.
    """
    first, second = (
        _score_table(scores, "probability_of_improvement") for scores in (first, second)
    )
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"probability_of_improvement: {first.shape[1]} tasks against {second.shape[1]}; score both on the same ones"
        )
    rng = np.random.default_rng(rng_seed)
    estimates = _superiority(_resample(first, resamples, rng), _resample(second, resamples, rng))
    return _percentiles(float(_superiority(first[None], second[None])[0]), estimates, confidence)


def score_name_of(row: Mapping[str, Any]) -> str:
    """What the task of an ``eval.jsonl`` row is score_name by: its "success", or, where it knows none, its "return"."""
    return "success" if "eval/successes" in row else "return"


def score(row: Mapping[str, Any]) -> float:
    """The number that an ``eval.jsonl`` row is score_name by."""
    return float(row[f"eval/{score_name_of(row)}"])


def pooled(rows: Sequence[Mapping[str, Any]]) -> Interval | None:
    """Success, or return, over the last rows of all seeds; None of no rows."""
    if not rows:
        return None
    if score_name_of(rows[0]) == "success":
        return pooled_success(
            [Success(row["eval/successes"], row["eval/episodes"]) for row in rows]
        )
    means, stds, episodes = (
        [row[f"eval/{name}"] for row in rows] for name in ("return", "return_std", "episodes")
    )
    return mean_return(means, stds, episodes)


def ends(
    eval_rows: Iterable[Mapping[str, Any]],
) -> tuple[dict[int, Mapping[str, Any]], dict[int, Mapping[str, Any]]]:
    """Each seed's rows before and after finetuning: the last of stage ``base``, or where there is none of ``pretrain``; and the
    last of ``finetune``."""
    last: dict[str, dict[int, Mapping[str, Any]]] = {"base": {}, "pretrain": {}, "finetune": {}}
    for row in eval_rows:
        last[row["stage"]][row["seed"]] = row
    return last["base"] or last["pretrain"], last["finetune"]


def before_after(eval_rows: Iterable[Mapping[str, Any]]) -> list[BeforeAfter]:
    """The table of success, or of return, of one run from its ``eval.jsonl`` rows: a row per seed, one per task of an
    environment that holds several (all seeds together), then the pooled row.

    Before and after are ``ends``.
    """
    before, after = ends(eval_rows)
    if not (before or after):
        return []
    score_name = score_name_of(next(iter((before or after).values())))

    def of_seed(rows: Mapping[int, Mapping[str, Any]], seed: int) -> Interval | None:
        return pooled([rows[seed]] if seed in rows else [])

    seeds = [
        BeforeAfter(f"seed {seed}", of_seed(before, seed), of_seed(after, seed), score_name)
        for seed in sorted(before.keys() | after.keys())
    ]
    old, new = list(before.values()), list(after.values())
    names = {key.rpartition("/")[2] for row in (*old, *new) for key in row if key.startswith(_TASK)}
    tasks = [BeforeAfter(name, _of_task(old, name), _of_task(new, name)) for name in sorted(names)]
    return [*seeds, *tasks, BeforeAfter("pooled", pooled(old), pooled(new), score_name)]


_TASK = "eval/episodes/"


def _of_task(rows: Sequence[Mapping[str, Any]], task: str) -> Interval | None:
    """Success over the rows in which ``task`` came up."""
    fields = f"eval/successes/{task}", f"eval/episodes/{task}"
    counts = [Success(row[fields[0]], row[fields[1]]) for row in rows if fields[1] in row]
    return pooled_success(counts) if counts else None


def _check_counts(successes: int, episodes: int) -> None:
    if not 0 <= successes <= episodes or episodes == 0:
        raise ValueError(
            f"success counts: {successes} of {episodes} episodes; need episodes > 0 and 0 <= successes <= episodes"
        )


def _wilson_bounds(rate: float, episodes: float, confidence: float) -> tuple[float, float]:
    z2 = special.ndtri((1 + confidence) / 2) ** 2 / episodes
    centre = (rate + z2 / 2) / (1 + z2)
    half = np.sqrt(rate * (1 - rate) * z2 + z2**2 / 4) / (1 + z2)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _design_effect(successes: Floats, episodes: Floats, confidence: float) -> float:
    """deff · (t_{S−1} / z)², or 1 where the seeds cannot differ: one seed, or all episodes alike."""
    seeds, total, rate = len(episodes), episodes.sum(), successes.sum() / episodes.sum()
    if seeds == 1 or rate in (0.0, 1.0):
        return 1.0
    variance = seeds / (seeds - 1) * np.sum((successes - episodes * rate) ** 2) / total**2
    tail = (1 + confidence) / 2
    return float(
        variance
        / (rate * (1 - rate) / total)
        * (special.stdtrit(seeds - 1, tail) / special.ndtri(tail)) ** 2
    )


def _score_table(scores: ArrayLike, where: str) -> Floats:
    """[R, M] float64."""
    table = np.asarray(scores, np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(
            f"{where}: scores of shape {table.shape}; need finite numbers of shape [runs] or [runs, tasks]"
        )
    return table


def _resample(table: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """[resamples, R, M]: runs drawn with replacement, independently in each task."""
    runs, tasks = table.shape
    return table[rng.integers(runs, size=(resamples, runs, tasks)), np.arange(tasks)]


def _superiority(first: Floats, second: Floats) -> Floats:
    """[B, R₁, M], [B, R₂, M] -> [B]."""
    gap = first[:, :, None, :] - second[:, None, :, :]
    wins: Floats = np.mean(np.sign(gap) / 2 + 0.5, axis=(1, 2, 3))
    return wins


def _percentiles(estimate: float, resampled: Floats, confidence: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high))

"""The rules that watch a run: whether a policy is better, or below its base; inflating critics.

All three are functions of rows of ``eval.jsonl`` and ``metrics.jsonl`` alone, so that a report
finds what the run found.

Every evaluation of a run starts from the same states with the same noise (``learner.evaluation``).
Two rows of one seed are therefore a paired sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gcp_jax.stats.eval_rows import pooled_score, score, unpack_success_bits
from gcp_jax.stats.paired import DiscordantPairs

Row = Mapping[str, Any]

DECAY_CONFIDENCE = 0.999  # of the interval that must lie below 0
GAP = "train/q_minus_return"
GAP_MARGIN = 0.5  # share of the return scale that the gap must exceed
GAP_EVALUATIONS = 3  # over which the gap must have grown each time


def is_better(candidate: float, best: float) -> bool:
    """Whether a score replaces the best one: a tie does not, so the earliest policy stays."""
    return candidate > best or (math.isnan(best) and not math.isnan(candidate))


def is_below(row: Row, base: Row) -> bool:
    """Whether an evaluation shows that a policy is worse than its base policy.

    Success is compared on the same start states: the interval of the difference
    (``DiscordantPairs.difference``) at ``DECAY_CONFIDENCE`` lies below 0. A policy that equals its
    base is then found worse in at most one of 2,000 evaluations. Returns, of which a row has no
    outcome of each episode, are compared by their intervals at the same confidence, which must be
    disjoint; so is success if a row has no ``eval/success_bits``.

    Args:
      row: of the policy.
      base: of the base policy and the same seed.
    """
    outcomes = unpack_success_bits(row)
    base_outcomes = unpack_success_bits(base)
    if outcomes is not None and base_outcomes is not None and len(outcomes) == len(base_outcomes):
        pairs = DiscordantPairs.from_outcomes(outcomes, base_outcomes)
        return pairs.difference(DECAY_CONFIDENCE).high < 0.0
    interval = pooled_score([row], DECAY_CONFIDENCE)
    base_interval = pooled_score([base], DECAY_CONFIDENCE)
    return bool(interval and base_interval and interval.high < base_interval.low)


def remains_below(was_below: bool, row: Row, base: Row) -> bool:
    """Whether a policy counts as below its base after an evaluation.

    It begins by ``is_below``, and is over when its score is at least that of the base again. What
    is between the two changes nothing, so that noise does not begin and end it again and again.
    """
    if was_below:
        return score(row) < score(base)
    return is_below(row, base)


class Span(NamedTuple):
    """Evaluations in a row at which a policy was below its base."""

    begin: int  # environment steps
    end: int | None  # environment steps of its recovery; None if it has not recovered


def spans_below(rows: Iterable[Row], base: Row) -> list[Span]:
    """When one seed was below its base policy.

    Args:
      rows: its evaluations in finetuning, oldest first.
      base: of the base policy.
    """
    spans: list[Span] = []
    below = False
    for row in rows:
        was_below = below
        below = remains_below(was_below, row, base)
        if below and not was_below:
            spans.append(Span(begin=row["env_steps"], end=None))
        elif was_below and not below:
            spans[-1] = spans[-1]._replace(end=row["env_steps"])
    return spans


def return_scale(row: Row, gamma: float) -> float:
    """The size of discounted returns, from an evaluation.

    It is the root mean square of the returns, times the share of an episode that the discount
    reaches: 1/(1 − γ) control steps of its mean length, at most all of them. NaN if the row has no
    return.
    """
    mean = float(row.get("eval/return", math.nan))
    size = math.hypot(mean, float(row.get("eval/return_std", 0.0)))
    steps = float(row.get("eval/length", 0.0)) * (1.0 - gamma)
    return size / max(steps, 1.0)


class CriticGap(NamedTuple):
    """What is known of one seed's Q(s, a) − the realised return.

    The gap of an evaluation is the median of ``GAP`` over the segments since the evaluation before.
    """

    values: Sequence[float] = ()  # since the last evaluation
    gaps: Sequence[float] = ()  # of the last ``GAP_EVALUATIONS`` evaluations, oldest first
    scale: float = 0.0  # the largest ``return_scale`` so far

    def after_segment(self, row: Row) -> CriticGap:
        """With the number of one more segment, if the row has it."""
        value = row.get(GAP)
        if value is None or not math.isfinite(value):
            return self
        return self._replace(values=(*self.values, float(value)))

    def after_evaluation(self, row: Row, gamma: float) -> CriticGap:
        """With one more evaluation."""
        scale = return_scale(row, gamma)
        gaps = tuple(self.gaps)
        if self.values:
            gaps = (*gaps, float(np.median(self.values)))
        return CriticGap(
            values=(),
            gaps=gaps[-GAP_EVALUATIONS:],
            scale=max(self.scale, scale) if math.isfinite(scale) else self.scale,
        )

    @property
    def is_inflating(self) -> bool:
        """Whether the gap has grown at each of the last evaluations and exceeds the margin.

        False before an evaluation has had a return other than 0.
        """
        if len(self.gaps) < GAP_EVALUATIONS or not self.scale:
            return False
        grows = all(new > old for old, new in zip(self.gaps, self.gaps[1:], strict=False))
        return grows and self.gaps[-1] > GAP_MARGIN * self.scale


class Inflation(NamedTuple):
    """The first evaluation at which critics inflated."""

    env_steps: int
    gap: float
    scale: float


def first_inflation(
    metrics: Sequence[Row], evals: Sequence[Row], base: Row | None, gamma: float
) -> Inflation | None:
    """When the critics of one seed first inflated; None if they did not.

    Args:
      metrics: its rows of segments in finetuning, oldest first.
      evals: its evaluations in finetuning, oldest first.
      base: of the base policy; None if it was not evaluated.
      gamma: discount of one environment step.
    """
    gap = CriticGap()
    if base is not None:
        gap = gap.after_evaluation(base, gamma)
    done = 0
    for row in evals:
        while done < len(metrics) and metrics[done]["env_steps"] <= row["env_steps"]:
            gap = gap.after_segment(metrics[done])
            done += 1
        gap = gap.after_evaluation(row, gamma)
        if gap.is_inflating:
            return Inflation(env_steps=row["env_steps"], gap=gap.gaps[-1], scale=gap.scale)
    return None

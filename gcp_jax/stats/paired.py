"""Comparisons of policies on the same start states, and their correction for many comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from gcp_jax.stats.intervals import Interval


class DiscordantPairs(NamedTuple):
    """Two policies on the same start states: how often exactly one of them succeeded."""

    wins: int  # only the first succeeded
    losses: int  # only the second succeeded
    episodes: int  # all start states, those on which both did alike included

    @classmethod
    def from_outcomes(cls, first: ArrayLike, second: ArrayLike) -> DiscordantPairs:
        """Count them in the success flags [E] of both policies, in the same order.

        Raises:
            ValueError: the two do not have the same number of episodes.
        """
        a = np.asarray(first, bool)
        b = np.asarray(second, bool)
        if a.shape != b.shape:
            raise ValueError(
                f"outcomes of {a.size} and {b.size} episodes; "
                "a paired comparison needs the same start states"
            )
        return cls(wins=int(np.sum(a & ~b)), losses=int(np.sum(b & ~a)), episodes=a.size)

    def difference(self, confidence: float = 0.95) -> Interval:
        """Success of the first − that of the second.

        The adjusted interval of Bonett & Price (2012, eq. 4):

            p₁₂ = (wins + 1)/(n + 2)     p₂₁ = (losses + 1)/(n + 2)
            p₁₂ − p₂₁ ± z √((p₁₂ + p₂₁ − (p₁₂ − p₂₁)²)/(n + 2))
        """
        adjusted = np.array([self.wins + 1, self.losses + 1]) / (self.episodes + 2)
        middle = float(adjusted[0] - adjusted[1])
        z = special.ndtri((1 + confidence) / 2)
        half = float(z * np.sqrt((adjusted.sum() - middle**2) / (self.episodes + 2)))
        return Interval(
            estimate=(self.wins - self.losses) / self.episodes,
            low=max(middle - half, -1.0),
            high=min(middle + half, 1.0),
        )

    def p_value(self) -> float:
        """p-value of the hypothesis that either policy wins a discordant pair equally often.

        It is valid however the number of episodes was chosen, even if one stopped at a convenient
        moment. It is 1/E with the Bayes factor

            E = ∫₀¹ pʷ(1−p)ˡ dp / 2⁻⁽ʷ⁺ˡ⁾ = B(w+1, l+1) · 2ʷ⁺ˡ,

        a martingale under the hypothesis, so that P(it ever reaches 1/α) ≤ α by Ville's inequality
        (Robbins 1970; Ramdas et al. 2023, §2).
        """
        log_beta = special.betaln(self.wins + 1, self.losses + 1)
        log_e = log_beta + (self.wins + self.losses) * np.log(2.0)
        return float(min(1.0, np.exp(-log_e)))


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """p-values adjusted so that the chance of any false rejection is bounded (Holm 1979).

    Returns:
        The adjusted p-value of every hypothesis, the smallest first.
    """
    adjusted: dict[Any, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def grouping_letters(order: Sequence[Any], different: Iterable[tuple[Any, Any]]) -> dict[Any, str]:
    """Letters such that two items share one if and only if they do not differ significantly.

    Insert and absorb (Piepho 2004): all items start in one group. For each pair that differs, every
    group that holds both is split in two, and groups contained in others are dropped.

    Args:
        order: all items; the group of the first gets "a".
        different: the pairs that differ.

    Returns:
        The letters of every item, in the order of ``order``.
    """
    groups = [frozenset(order)]
    for one, other in different:
        groups = _absorb(_split(groups, one, other))
    rank = {item: place for place, item in enumerate(order)}
    groups.sort(key=lambda group: sorted(rank[item] for item in group))
    letters = {}
    for item in order:
        members = [index for index, group in enumerate(groups) if item in group]
        letters[item] = "".join(_letter(index) for index in members)
    return letters


def _split(groups: Iterable[frozenset[Any]], one: Any, other: Any) -> list[frozenset[Any]]:
    """Replace every group that holds both items by two, each without one of them."""
    kept = []
    halves = []
    for group in groups:
        if one in group and other in group:
            halves.append(group - {one})
            halves.append(group - {other})
        else:
            kept.append(group)
    return kept + halves


def _absorb(groups: Iterable[frozenset[Any]]) -> list[frozenset[Any]]:
    """Drop duplicates and every group that is contained in a larger one."""
    unique = list(dict.fromkeys(groups))
    return [group for group in unique if not any(group < larger for larger in unique)]


def _letter(index: int) -> str:
    """a … z, then a′ … z′, and so on."""
    return chr(ord("a") + index % 26) + "′" * (index // 26)

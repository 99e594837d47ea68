"""How much scores differ between clones, and between the runs that start from one clone."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Spread(NamedTuple):
    """Standard deviations of scores, in their unit; NaN if there is one of a kind."""

    between_clones: float  # of the clones' means
    between_seeds: float  # of the runs of one clone


def spread_of(scores: ArrayLike) -> Spread:
    """The spread of scores [C, R] of R runs from each of C clones.

        clones   √(Σ_c (m_c − m)² / (C−1))             m_c the mean of clone c, m theirs
        seeds    √(Σ_c Σ_r (x_cr − m_c)² / (C(R−1)))

    The first squared has expectation τ² + σ²/R if clones differ by τ and the runs of one by σ.

    Raises:
        ValueError: the scores are not of this shape.
    """
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"spread_of: scores of shape {table.shape}; need shape [clones, runs]")
    clones, runs = table.shape
    between = float(table.mean(axis=1).std(ddof=1)) if clones > 1 else math.nan
    within = math.sqrt(table.var(axis=1, ddof=1).mean()) if runs > 1 else math.nan
    return Spread(between_clones=between, between_seeds=within)

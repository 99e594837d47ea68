"""Quality of demonstrations: how well they do the task, how many states and actions they cover.

Trajectory quality and state-action coverage of Schweighofer et al. 2022 (arXiv 2111.04714). The
paper's references are an online agent's; here they are episodes of the task's clean demonstrator
and of uniformly random actions. Plain numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from gcp_jax.types import Step

Floats = NDArray[np.float64]

NAMES = ("return", "trajectory_quality", "coverage")
REFERENCES = "reference_returns"  # the fact {"clean", "random"}: their mean returns
PLANES = 16  # of the hash
HASH_SEED = 0
ROUNDING = 1e-6  # relative to the numbers, what float32 may round of them


def measured(steps: Step, *, clean: Step, random: Step) -> dict[str, Any]:
    """``return`` (mean, undiscounted), ``trajectory_quality`` and ``coverage`` of episodes.

    Also ``reference_returns``, which give the trajectory quality of any part of the episodes. All
    arguments have leaves [T, E, ...]; ``clean`` and ``random`` are the references.
    """
    mean, best, worst = (float(returns(part).mean()) for part in (steps, clean, random))
    quality = trajectory_quality(mean, clean=best, random=worst)
    reference = np.concatenate([visited(clean), visited(random)])
    return {
        "return": round(mean, 3),
        "trajectory_quality": None if quality is None else round(quality, 3),
        "coverage": round(coverage(visited(steps), reference), 3),
        REFERENCES: {"clean": best, "random": worst},
    }


def returns(steps: Step) -> Floats:
    """[E]: the sum of each episode's rewards, undiscounted."""
    totals: Floats = np.sum(np.where(steps.executed, steps.reward, 0.0), axis=0, dtype=np.float64)
    return totals


def visited(steps: Step) -> Floats:
    """[N, O + A]: observation and action of every executed step."""
    both = np.concatenate([np.asarray(steps.obs), np.asarray(steps.action)], -1)
    pairs: Floats = both[np.asarray(steps.executed)].astype(np.float64)
    return pairs


def trajectory_quality(mean: float, *, clean: float, random: float) -> float | None:
    """TQ: the mean return, scaled so that random actions have 0 and the clean demonstrator 1.

    None if these are equal.
    """
    if clean == random:
        return None
    return (mean - random) / (clean - random)


def coverage(pairs: Floats, reference: Floats) -> float:
    """SACo: distinct state-action pairs [N, D] over those of the ``reference`` [M, D].

    Each count is that expected among min(N, M) of its pairs. Two pairs are the same if they lie on
    the same side of all of ``PLANES`` random hyperplanes (Charikar 2002; Tang et al. 2017 count
    states so). Each plane is midway between two pairs of the reference, whose standard deviation is
    the unit of each dimension.
    """
    rounding = ROUNDING * np.maximum(np.abs(reference).max(0), 1e-3)
    scale = reference.std(0)
    scale = np.where(scale > rounding, scale, np.inf)  # a constant dimension separates nothing
    rng = np.random.default_rng(HASH_SEED)
    normal = rng.standard_normal((reference.shape[1], PLANES)) / scale[:, None]
    through = reference[rng.integers(len(reference), size=(2, PLANES))].mean(0)
    offset = np.einsum("kd,dk->k", through, normal)
    bits = 1 << np.arange(PLANES)
    counts = [
        np.unique((x @ normal > offset) @ bits, return_counts=True)[1] for x in (pairs, reference)
    ]
    drawn = min(len(pairs), len(reference))
    return rarefied(counts[0], drawn) / rarefied(counts[1], drawn)


def rarefied(counts: NDArray[Any], drawn: int) -> float:
    """The expected number of distinct kinds among ``drawn`` individuals, without replacement.

    See Hurlbert 1971: ``Σ_i 1 − C(N − N_i, n) / C(N, n)``.

    Args:
      counts: N_i, how many individuals each kind has.
      drawn: n.
    """
    total, rest = counts.sum(), counts.sum() - counts
    missed = np.exp(_log_choose(rest, drawn) - _log_choose(total, drawn))
    return float(np.sum(1.0 - np.where(rest >= drawn, missed, 0.0)))


def _log_choose(n: Any, k: int) -> Any:
    """log C(n, k); of no meaning if n < k."""
    n = np.maximum(n, k)
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)

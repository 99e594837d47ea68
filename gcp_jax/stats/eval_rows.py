"""Scores of ``eval.jsonl`` rows.

A row is one evaluation of one seed. A task that defines success is scored by its success rate, any
other by its mean return.

In finetuning every seed has a policy of its own. Before it all seeds evaluate one clone, each from
its own start states: their episodes are episodes of one policy, and their differences say nothing
about other clones. Rows of several clones differ in ``CLONE``, and so do those of the policies
that were finetuned from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gcp_jax.json_files import problem_of
from gcp_jax.stats.intervals import (
    MISSING,
    Interval,
    Returns,
    Success,
    difference,
    mean_return,
    success_of_clones,
)

Row = Mapping[str, Any]

CLONE = "clone"  # what rows of several runs may have: which clone a policy is, or began as
_BEFORE_FINETUNING = ("pretrain", "base")  # stages

_TASK_EPISODES = "eval/episodes/"  # prefix of the counts of one task of several


class BeforeAfter(NamedTuple):
    """One line of the table of scores: one seed, one task, or all seeds pooled."""

    label: str
    before: Interval | None  # None if not evaluated (yet)
    after: Interval | None
    score_name: str = "success"  # or "return"

    @property
    def change(self) -> Interval | None:
        """after − before, in the unit of the score; None if either is not known."""
        if self.before is None or self.after is None:
            return None
        return difference(self.after, self.before)

    def cells(self) -> tuple[str, str, str, str]:
        """The texts of label, before, after and change for a table."""
        before = self.before.format(self.score_name) if self.before else MISSING
        after = self.after.format(self.score_name) if self.after else MISSING
        return self.label, before, after, self._change_text()

    def estimates(self) -> tuple[str, str, str]:
        """The texts of before, after and change without their intervals."""
        _, before, after, change = self.cells()
        return before.partition(" [")[0], after.partition(" [")[0], change.partition(" [")[0]

    def _change_text(self) -> str:
        change = self.change
        if change is None:
            return MISSING
        if self.score_name == "success":
            return change.points()
        return change.change()


class ScorePoint(NamedTuple):
    """The score over all seeds after a number of environment steps."""

    env_steps: int
    score: Interval


class LastRows(NamedTuple):
    """The evaluations that a run is summarised by, by seed."""

    before: dict[int, Row]  # of the policy before finetuning
    after: dict[int, Row]  # the last of finetuning


def score_name_of(row: Row) -> str:
    """The name of the score of a row's task: "success", or "return" if it defines no success."""
    return "success" if "eval/successes" in row else "return"


def problem_of_score(row: Row, like: Row) -> str:
    """What is wrong with the score of a row, in a few words; "" if nothing is.

    Args:
      row: the row.
      like: a row of the same file, which has the same score.
    """
    if score_name_of(like) == "return":
        return problem_of(
            dict(row), {"eval/episodes": int, "eval/return": float, "eval/return_std": float}
        )
    shape = {"eval/episodes": int, "eval/successes": int, "eval/success": float}
    for name in _task_names([row]):
        shape |= {f"{_TASK_EPISODES}{name}": int, f"eval/successes/{name}": int}
    problem = problem_of(dict(row), shape)
    if problem:
        return problem
    for name in ("", *(f"/{task}" for task in _task_names([row]))):
        successes = row[f"eval/successes{name}"]
        episodes = row[f"eval/episodes{name}"]
        if not 0 <= successes <= episodes or (episodes == 0 and not name):
            return f"seed {row['seed']} has {successes} successes of {episodes} episodes"
    try:
        unpack_success_bits(row)
    except ValueError as error:
        return str(error)
    return ""


def score(row: Row) -> float:
    """The score of a row."""
    return float(row[f"eval/{score_name_of(row)}"])


def pooled_score(rows: Sequence[Row], confidence: float = 0.95) -> Interval | None:
    """The score over rows of several seeds, one row a seed; None without rows.

    The interval covers seeds, and clones, that were not trained if there are several of them here;
    of one policy it is that of its episodes.
    """
    if not rows:
        return None
    clones = _by_clone(rows)
    if score_name_of(rows[0]) == "success":
        return success_of_clones(
            [[Success.merged([*map(_counts, each)]) for each in policies] for policies in clones],
            confidence,
        )
    returns = [Returns.merged([*map(_returns, each)]) for policies in clones for each in policies]
    return mean_return(
        means=[each.mean for each in returns],
        stds=[each.std for each in returns],
        episodes=[each.episodes for each in returns],
        confidence=confidence,
    )


def score_curve(eval_rows: Iterable[Row]) -> list[ScorePoint]:
    """The pooled score after each number of environment steps at which every seed was evaluated.

    The base policy is the point at zero steps; rows of cloning are left out.
    """
    by_steps: dict[int, dict[int, Row]] = {}
    for row in eval_rows:
        if row["stage"] != "pretrain":
            by_steps.setdefault(row["env_steps"], {})[row["seed"]] = row
    seeds = max((len(rows) for rows in by_steps.values()), default=0)
    curve = []
    for steps, rows in sorted(by_steps.items()):
        interval = pooled_score(list(rows.values()))
        if interval is not None and len(rows) == seeds:
            curve.append(ScorePoint(env_steps=steps, score=interval))
    return curve


def last_rows(eval_rows: Iterable[Row]) -> LastRows:
    """Each seed's last evaluations before and after finetuning.

    Before is the last row of stage ``base``, or of ``pretrain`` if there is none.
    """
    last: dict[str, dict[int, Row]] = {"base": {}, "pretrain": {}, "finetune": {}}
    for row in eval_rows:
        last[row["stage"]][row["seed"]] = row
    return LastRows(before=last["base"] or last["pretrain"], after=last["finetune"])


def before_after(eval_rows: Iterable[Row]) -> list[BeforeAfter]:
    """The table of scores of one run, from its ``eval.jsonl`` rows.

    Returns:
        A line per seed, then one per task over all seeds if the environment holds several, then the
        pooled line. Empty if nothing was evaluated.
    """
    before, after = last_rows(eval_rows)
    if not (before or after):
        return []
    score_name = score_name_of(next(iter((before or after).values())))
    lines = []
    for seed in sorted(before.keys() | after.keys()):
        lines.append(
            BeforeAfter(
                label=f"seed {seed}",
                before=_score_of_seed(before, seed),
                after=_score_of_seed(after, seed),
                score_name=score_name,
            )
        )
    old = list(before.values())
    new = list(after.values())
    for name in _task_names([*old, *new]):
        lines.append(
            BeforeAfter(
                label=name, before=_success_of_task(old, name), after=_success_of_task(new, name)
            )
        )
    pooled = BeforeAfter(
        label="pooled", before=pooled_score(old), after=pooled_score(new), score_name=score_name
    )
    return [*lines, pooled]


def pack_success_bits(success: ArrayLike) -> str:
    """Success flags [E] as the hexadecimal bits that an ``eval.jsonl`` row stores.

    The order of the episodes is that of their start states.
    """
    return np.packbits(np.asarray(success, bool)).tobytes().hex()


def unpack_success_bits(row: Row) -> NDArray[np.bool_] | None:
    """The success flags [E] of a row; None if it has none.

    Raises:
        ValueError: the flags do not agree with the row's counts.
    """
    bits = row.get("eval/success_bits")
    if not isinstance(bits, str):
        return None
    packed = np.frombuffer(bytes.fromhex(bits), np.uint8)
    if len(packed) != -(-row["eval/episodes"] // 8):
        raise ValueError(
            f"eval/success_bits has {8 * len(packed)} bits for {row['eval/episodes']} episodes"
        )
    success = np.unpackbits(packed, count=row["eval/episodes"]).astype(bool)
    if success.sum() != row["eval/successes"]:
        raise ValueError(
            f"eval/success_bits has {success.sum()} successes, "
            f"eval/successes is {row['eval/successes']}"
        )
    return success


def _score_of_seed(rows: Mapping[int, Row], seed: int) -> Interval | None:
    return pooled_score([rows[seed]]) if seed in rows else None


def _task_names(rows: Iterable[Row]) -> list[str]:
    """The tasks of an environment that holds several, sorted."""
    names: set[str] = set()
    for row in rows:
        names.update(
            key.removeprefix(_TASK_EPISODES) for key in row if key.startswith(_TASK_EPISODES)
        )
    return sorted(names)


def _success_of_task(rows: Sequence[Row], task: str) -> Interval | None:
    """Success over the rows in which ``task`` was sampled."""
    clones = _by_clone([row for row in rows if f"eval/episodes/{task}" in row])
    counts = [
        [Success.merged([_counts(row, f"/{task}") for row in each]) for each in policies]
        for policies in clones
    ]
    return success_of_clones(counts) if counts else None


def _by_clone(rows: Iterable[Row]) -> list[list[list[Row]]]:
    """The rows of each policy of each clone.

    The policy of a clone itself has a row for every seed, a finetuned policy has one.
    """
    clones: dict[Any, dict[Any, list[Row]]] = {}
    for index, row in enumerate(rows):
        is_clone = row.get("stage") in _BEFORE_FINETUNING
        policy = row["stage"] if is_clone else index
        clones.setdefault(row.get(CLONE), {}).setdefault(policy, []).append(row)
    return [list(policies.values()) for policies in clones.values()]


def _counts(row: Row, suffix: str = "") -> Success:
    return Success(row[f"eval/successes{suffix}"], row[f"eval/episodes{suffix}"])


def _returns(row: Row) -> Returns:
    return Returns(row["eval/return"], row["eval/return_std"], row["eval/episodes"])

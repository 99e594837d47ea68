"""Numbers as the text of a table cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gcp_jax.report.read import is_number
from gcp_jax.stats.eval_rows import LastRows
from gcp_jax.stats.intervals import MISSING


def format_count(value: float | None) -> str:
    """``12,345``, or a dash if it is not known."""
    return f"{value:,.0f}" if is_number(value) else MISSING


def format_percent(rate: float | None) -> str:
    """A rate in [0, 1] as ``40.0 %``, or a dash if it is not known."""
    return f"{100 * rate:.1f} %" if is_number(rate) else MISSING


def format_duration(seconds: float | None) -> str:
    """``14.2 s``, ``2 min 12 s`` or ``3 h 07 min``, or a dash if it is not known."""
    if not is_number(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def format_versions(versions: object) -> str:
    """``jax 0.10.2, flax 0.12.8, …``."""
    if not isinstance(versions, Mapping):
        return MISSING
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def format_episodes(eval_rows: Iterable[Mapping[str, Any]]) -> str:
    """How many episodes each evaluation had; empty without evaluations."""
    counts = sorted({row["eval/episodes"] for row in eval_rows})
    if not counts:
        return ""
    return f"{' or '.join(map(str, counts))} episodes per seed from fixed start states"


def describe_intervals(last: LastRows) -> list[str]:
    """What the intervals of a run's pooled scores cover, in sentences."""
    texts = []
    if last.before:
        episodes = sum(row["eval/episodes"] for row in last.before.values())
        texts.append(
            f"Before finetuning there is one policy, the clone: its interval is that of all its "
            f"{episodes:,} episodes and does not cover other clones."
        )
    if len(last.after) == 1:
        (row,) = last.after.values()
        texts.append(
            f"One seed was trained: its interval is that of its {row['eval/episodes']:,} episodes "
            "and does not cover other seeds."
        )
    if len(last.after) > 1:
        texts.append(
            f"The pooled interval after finetuning covers seeds that were not trained, from the "
            f"{len(last.after)} that were."
        )
    return texts


def known(value: Any) -> str:
    """The value as text, or a dash if there is none."""
    return str(value) if value not in (None, "", []) else MISSING


def plural(count: int, noun: str) -> str:
    """``1 task``, ``2 tasks``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

"""Rows that a run has written and that its files no longer hold.

The files of rows are only appended to; a row is missing if somebody cut or deleted a file. It
cannot be computed again, so a resumed run says what is missing, and its report marks the gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gcp_jax.config import Member
from gcp_jax.json_files import DictOf, ListOf, read_json
from gcp_jax.run import checkpoint, metrics
from gcp_jax.run.folder import finished_summary
from gcp_jax.run.sizes import Cadence

CADENCE = dict.fromkeys(Cadence._fields, int) | {"name": str}
RECORD = {  # what is read of config.json
    "config": {"seed": int, "seeds": int, "population": DictOf(ListOf(float))},
    "cadences": {"pretrain": CADENCE, "finetune": CADENCE},
}
Place = tuple[str, str, int, int, int]  # stage, population, seed, env_steps, updates


class Gap(NamedTuple):
    """The missing rows of one stage in one file."""

    file: str
    stage: str
    missing: int
    written: int  # rows of the stage that the file should hold
    first: int  # progress of the first missing row
    last: int  # and of the last
    unit: str  # of progress: "env steps" or "updates"

    def __str__(self) -> str:
        span = f"{self.first:,}" if self.first == self.last else f"{self.first:,} to {self.last:,}"
        return (
            f"{self.file} lacks {self.missing} of the {self.written} rows of {self.stage} "
            f"(at {span} {self.unit})"
        )


def find_gaps(folder: Path) -> list[Gap]:
    """The rows that are missing from a run folder up to its newest checkpoint, or up to its end.

    Raises:
      ValueError: a file of rows is malformed.
    """
    record = read_json(folder / "config.json")
    if "cadences" not in record:  # begun by an earlier version
        return []
    record = read_json(folder / "config.json", RECORD)
    gaps = []
    for file, in_file in (("metrics.jsonl", _metrics_places), ("eval.jsonl", _eval_places)):
        present = {_place(row) for row in metrics.rows(folder / file, metrics.ROW)}
        for stage, cadence, clock in _clocks(folder, record["cadences"]):
            expected = list(in_file(stage, cadence, clock, record["config"]))
            missing = [place for place in expected if place not in present]
            if missing:
                gaps.append(_gap(file, stage, cadence, missing, len(expected)))
    return gaps


def _clocks(folder: Path, saved: Mapping[str, Any]) -> Iterator[tuple[str, Cadence, int]]:
    """Each stage with its cadence and the segments that it has certainly done."""
    pretrain = Cadence(**saved["pretrain"])
    finetune = Cadence(**saved["finetune"])
    checkpoints = folder / "checkpoints"
    finetuned = checkpoint.latest(checkpoints / "finetune") or 0
    if finished_summary(folder):
        finetuned = finetune.segments
    yield "pretrain", pretrain, checkpoint.latest(checkpoints / "pretrain") or 0
    yield "base", finetune, finetuned
    yield "finetune", finetune, finetuned


def _metrics_places(
    stage: str, cadence: Cadence, clock: int, config: Mapping[str, Any]
) -> Iterator[Place]:
    if stage == "base":
        return
    members = _members(config, stage)
    if stage == "pretrain":
        members = members[:1]  # one clone for all seeds
    for done in range(1, clock + 1):
        yield from _places(stage, members, **cadence.counters(done))


def _eval_places(
    stage: str, cadence: Cadence, clock: int, config: Mapping[str, Any]
) -> Iterator[Place]:
    members = _members(config, stage)
    if stage == "base":
        if clock:
            yield from _places(stage, members, env_steps=0, updates=0)
        return
    for done in range(1, clock + 1):
        if cadence.evaluates(done):
            yield from _places(stage, members, **cadence.counters(done))


def _members(config: Mapping[str, Any], stage: str) -> list[Member]:
    """The members of a stage, as ``RunConfig.members``; a population begins with finetuning."""
    seeds = range(config["seed"], config["seed"] + config["seeds"])
    population = config["population"] if stage == "finetune" else {}
    points = list(zip(*population.values(), strict=True)) or [()]
    return [
        Member(seed=seed, values=dict(zip(population, point, strict=True)))
        for point in points
        for seed in seeds
    ]


def _places(
    stage: str, members: Sequence[Member], *, env_steps: int, updates: int
) -> Iterator[Place]:
    for member in members:
        yield stage, member.label, member.seed, env_steps, updates


def _place(row: Mapping[str, Any]) -> Place:
    return (
        row.get("stage", ""),
        row.get("population", ""),
        row.get("seed", -1),
        row.get("env_steps", -1),
        row.get("updates", -1),
    )


def _gap(file: str, stage: str, cadence: Cadence, missing: Sequence[Place], written: int) -> Gap:
    column = 3 if cadence.env_steps else 4
    progress = [int(place[column]) for place in missing]
    return Gap(
        file=file,
        stage=stage,
        missing=len(missing),
        written=written,
        first=min(progress),
        last=max(progress),
        unit=cadence.unit,
    )

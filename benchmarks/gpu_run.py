"""Steps that share a limited time, and their results, which are on disk after every case."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.run import table
from gcp_jax.atomic_files import write_json, write_text

Figures = dict[str, Any]  # plain values for JSON
Found = dict[str, dict[str, Figures]]  # by step and case

NOT_RUN = "not run: no time left"
LONGEST_ERROR = 300  # characters


class Context(NamedTuple):
    """What a case is given."""

    seconds: float  # that are left for it
    found: Found  # the results of the cases before it


class Case(NamedTuple):
    """One measurement."""

    name: str
    measure: Callable[[Context], Figures]


class Step(NamedTuple):
    """Cases that share a part of the time, the most important ones first."""

    name: str
    about: str  # what is measured, for the page
    share: float  # of the time of the run, relative to the shares of the other steps
    cases: Sequence[Case]


class Results:
    """The results of one run in its folder: ``results.json`` and a page of tables, ``gpu.md``.

    Both files are written anew after every case.

    Attributes:
      found: the figures so far, by step and case.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], steps: Sequence[Step]) -> None:
        self._folder = folder
        self._facts = dict(facts)
        self._steps = steps
        self.found: Found = {}
        self._write()

    def add(self, step: str, case: str, figures: Figures) -> None:
        """Write the figures of a case."""
        self.found.setdefault(step, {})[case] = figures
        self._write()

    def _write(self) -> None:
        write_json(self._folder / "results.json", {**self._facts, "steps": self.found})
        write_text(self._folder / "gpu.md", page(self._facts, self._steps, self.found))


def new_folder(parent: Path, name: str) -> Path:
    """Make the folder ``NAME_1``, or that of the first number which is not taken.

    Raises:
      OSError: it cannot be made.
    """
    number = 1
    while True:
        folder = parent / f"{name}_{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def run_steps(
    steps: Sequence[Step],
    results: Results,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run all steps; the number of cases that failed.

    A step ends when its share and those of the steps before it are used up, so that time which a
    step leaves over is left to the next. A case is begun if more time is left to its step than the
    longest case of the step took. A case that raises is written with its error, in one
    line, and the next one is run.

    Args:
      steps: in this order.
      results: where they are written.
      seconds: of the whole run.
      clock: the time in seconds.
    """
    start = clock()
    total = sum(step.share for step in steps)
    share = 0.0
    failures = 0
    for step in steps:
        share += step.share
        end = start + seconds * share / total
        longest = 0.0
        for case in step.cases:
            began = clock()
            if end - began <= longest:
                figures: Figures = {"note": NOT_RUN}
            else:
                figures = _measure(case, Context(seconds=end - began, found=results.found))
                took = clock() - began
                longest = max(longest, took)
                if "note" in figures:
                    failures += 1
                figures["took_s"] = round(took, 1)
            results.add(step.name, case.name, figures)
            print(f"{step.name}, {case.name}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    return failures


def _measure(case: Case, context: Context) -> Figures:
    """The figures of a case, or its error as a note."""
    try:
        return dict(case.measure(context))
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return {"note": f"failed: {text[:LONGEST_ERROR]}"}


def page(facts: Mapping[str, Any], steps: Sequence[Step], found: Found) -> str:
    """Markdown: a table for every step with results, and one for every figure that is a list."""
    commit = (facts["commit"] or "unknown")[:12]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    parts = [
        f"# {facts['machine']}\n\n"
        f"`{facts['command']}`, {facts['began']}, commit {commit}; {versions}. "
        "`took_s` is the time of a case with compiling.\n"
    ]
    for step in steps:
        cases = found.get(step.name)
        if cases is None:
            continue
        parts.append(f"## {step.name}\n\n{step.about}\n\n{table(_plain(cases))}\n")
        for case, figures in cases.items():
            for name, records in figures.items():
                if isinstance(records, list):
                    rows = {str(i): record for i, record in enumerate(records, start=1)}
                    parts.append(f"{case}, {name}:\n\n{table(rows)}\n")
    return "\n".join(parts)


def _plain(cases: Mapping[str, Figures]) -> dict[str, Figures]:
    """The figures that fit into a cell of a table."""
    return {
        case: {
            name: value.replace("|", r"\|") if isinstance(value, str) else value
            for name, value in figures.items()
            if not isinstance(value, list)
        }
        for case, figures in cases.items()
    }

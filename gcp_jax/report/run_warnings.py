"""What a reader must know about a run's files: rows that are missing, code that changed."""

from __future__ import annotations

from collections.abc import Iterable

from gcp_jax.report.read import RunFiles
from gcp_jax.run.row_gaps import find_gaps


def run_warnings(runs: Iterable[RunFiles]) -> list[str]:
    """One line for each gap in the rows of a run, and for code that changed during it."""
    by_folder = {run.folder: run for run in runs}  # the points of a population share one
    lines = []
    for folder, run in by_folder.items():
        lines += [f"{folder.name}: {gap}: they were deleted" for gap in find_gaps(folder)]
        if "earlier_code" in run.record:
            lines.append(f"{folder.name}: its code changed before it was finished")
    return lines

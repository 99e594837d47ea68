"""What a reader must know about a run: missing rows, changed code, decay, inflating critics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gcp_jax.report.read import Row, RunFiles, is_number, population_points
from gcp_jax.run.guard_rails import RESTORED_TO
from gcp_jax.run.row_gaps import find_gaps
from gcp_jax.stats import guard_rules
from gcp_jax.stats.guard_rules import Span


def run_warnings(runs: Iterable[RunFiles]) -> list[str]:
    """One line for each thing that a reader must know."""
    runs = list(runs)
    by_folder = {run.folder: run for run in runs}  # the points of a population share one
    lines = []
    for folder, run in by_folder.items():
        lines += [f"{folder.name}: {gap}: they were deleted" for gap in find_gaps(folder)]
        if "earlier_code" in run.record:
            lines.append(f"{folder.name}: its code changed before it was finished")
        if run.stopped:
            lines.append(f"{folder.name}: {run.stopped.rstrip('.')}")
    for run in runs:
        for seed in run.seeds:
            lines += [f"{run.label}: seed {seed} {problem}" for problem in _of_seed(run, seed)]
    return lines


def _of_seed(run: RunFiles, seed: int) -> list[str]:
    """What the rules of ``stats.guard_rules`` find of one seed."""
    of_seed = [row for row in run.evals if row["seed"] == seed]
    bases = [row for row in of_seed if row["stage"] == "base"]
    evals = [row for row in of_seed if row["stage"] == "finetune"]
    base = bases[-1] if bases else None
    lines = []
    if base is not None:
        lines += [_describe(span) for span in guard_rules.spans_below(evals, base)]
    lines += [
        f"was set back at {row['env_steps']:,} env steps to its state of "
        f"{row[RESTORED_TO]:,} (finetune.on_decay=restore)"
        for row in evals
        if is_number(row.get(RESTORED_TO))
    ]
    segments = [row for row in run.metrics if row["seed"] == seed and row["stage"] == "finetune"]
    found = guard_rules.first_inflation(segments, evals, base, _gamma(run, of_seed))
    if found:
        lines.append(
            f"has critics that overestimate more and more at {found.env_steps:,} env steps: "
            f"Q − realised return is {found.gap:,.3g}, and returns are of size {found.scale:,.3g}"
        )
    return lines


def _describe(span: Span) -> str:
    begin = f"below its base policy from {span.begin:,}"
    if span.end is None:
        return f"is {begin} env steps on"
    return f"was {begin} to {span.end:,} env steps"


def _gamma(run: RunFiles, rows: Iterable[Row]) -> float:
    """The discount of a run, or of its point of a population; 1 if it is not recorded."""
    algorithm = run.config.get("algorithm")
    gamma = algorithm.get("gamma") if isinstance(algorithm, Mapping) else None
    for point in population_points(rows):
        values = dict(part.partition("=")[::2] for part in point.split(","))
        gamma = float(values["gamma"]) if "gamma" in values else gamma
    return gamma if is_number(gamma) else 1.0

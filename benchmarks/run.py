"""Measure the project's speed; every ratio is of two times in one process.

    python -m benchmarks.run [NAME …] [--quick] [--json]

    update    one gradient update of each method against its matrix products alone
    rollout   acting, with sampling of the policy, against bare physics stepping
    segment   a segment's time in physics, sampling, updates, and the rest
    seeds     seeds in one program against as many separate runs
    devices   one seed split over devices: speed, collectives, equality
    startup   from the command to the first update, cold and warm; memory against the plan
    launch    the cost of launching a run of a sweep

Results are appended to ``benchmarks/results/NAME.json`` with the machine, the versions and the
commit; the newest of each make the table in ``benchmarks/README.md``. With --quick the sizes are
the smallest, and nothing is written. Figures are printed to standard error; with --json the last
line of standard output is one JSON object of them. ``python -m benchmarks.gpu`` measures what needs
an accelerator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import devices, launch, rollout, seeds, segment, startup, timing, update
from gcp_jax.atomic_files import write_json
from gcp_jax.experiments import runtime
from gcp_jax.run.provenance import git_commit, package_versions

BENCHMARKS: dict[str, Callable[..., Iterator[timing.Measured]]] = {
    "update": update.run,
    "rollout": rollout.run,
    "segment": segment.run,
    "seeds": seeds.run,
    "devices": devices.run,
    "startup": startup.run,
    "launch": launch.run,
}
VIRTUAL_DEVICES = {"devices": 8}  # of a CPU, for the benchmarks that need more than one
HERE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the named benchmarks, or all of them; returns the exit code."""
    arguments = _make_parser().parse_args(argv)
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        print(
            f"benchmarks.run: there is no {unknown[0]!r}; allowed: {', '.join(BENCHMARKS)}.",
            file=sys.stderr,
        )
        return 2
    names = arguments.names or list(BENCHMARKS)
    results: dict[str, Any] = {}
    if len(names) == 1:
        results = measure(names[0], arguments.folder, quick=arguments.quick)
    else:
        for name in names:
            results |= _measure_in_process(name, arguments.folder, quick=arguments.quick)
    if arguments.json:
        print(json.dumps(results))
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all"
    )
    parser.add_argument(
        "--quick", action="store_true", help="the smallest sizes; nothing is written"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object as the last line of standard output"
    )
    parser.add_argument("--folder", type=Path, default=HERE, help="where results and page go")
    return parser


def measure(name: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Measure one benchmark in this process.

    If a case fails, the results of the cases before it are kept.

    Returns:
      {name: {case: figures}}.
    """
    runtime.prepare_cpu(VIRTUAL_DEVICES.get(name, 1))
    print(f"measuring {name} …", file=sys.stderr)
    cases: dict[str, dict[str, Any]] = {}
    try:
        for case, figures in BENCHMARKS[name](quick=quick):
            cases[case] = figures
            print(f"{case}: {json.dumps(figures)}", file=sys.stderr)
    finally:
        if cases and not quick:
            keep(folder, name, cases)
    print(table(cases), file=sys.stderr)
    return {name: cases}


def _measure_in_process(name: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Measure one benchmark in a new process, so that it cannot affect the next."""
    command = [sys.executable, "-m", "benchmarks.run", name, "--json", f"--folder={folder}"]
    if quick:
        command.append("--quick")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def keep(folder: Path, name: str, figures: Mapping[str, Any]) -> None:
    """Append to the results of a benchmark and write the page again."""
    path = folder / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    entries = json.loads(path.read_text()) if path.exists() else []
    entry = {
        "machine": timing.machine(),
        "versions": package_versions(),
        "commit": git_commit(),
        "figures": figures,
    }
    write_json(path, [*entries, entry])
    (folder / "README.md").write_text(page(folder / "results"))


def about(name: str) -> str:
    """What a benchmark measures: the docstring of its module, on one line."""
    docstring = sys.modules[BENCHMARKS[name].__module__].__doc__ or ""
    return " ".join(docstring.split())


def page(results: Path) -> str:
    """Markdown: the newest result of every benchmark, with what it measured."""
    parts = [
        "# Benchmarks\n\n"
        "Generated by `python -m benchmarks.run`, which says what each of them measures.\n"
    ]
    for name in BENCHMARKS:
        path = results / f"{name}.json"
        if path.exists():
            entry = json.loads(path.read_text())[-1]
            commit = (entry["commit"] or "unknown")[:12]
            source = f"{entry['machine']}, jax {entry['versions']['jax']}, commit {commit}"
            parts.append(f"## {name}\n\n{about(name)}\n\n{source}\n\n{table(entry['figures'])}\n")
    return "\n".join(parts)


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: one line for each case."""
    columns = list(dict.fromkeys(column for case in figures.values() for column in case))
    rows = [["", *columns], ["---"] * (len(columns) + 1)]
    for name, case in figures.items():
        rows.append([name, *(_cell(case.get(column, "")) for column in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['ratio']:.2f} (spread {value['spread']:.2f})"
    if isinstance(value, (int, float)):
        return f"{value:,}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())

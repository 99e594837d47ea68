"""Measure the project's speed; every figure is a ratio inside one process.

    python -m benchmarks.run [NAME …] [--quick] [--json]

    update    one gradient update of each method at its authors' shapes, against plain matrix products of the same shapes
    rollout   acting, policy sampling included, against bare physics stepping
    segment   a segment's time in physics, sampling, updates, and the rest
    seeds     seeds in one program against as many separate runs
    devices   one seed split over devices: speed, collectives, equality
    startup   from the command to the first update, cold and warm; memory against the plan
    launch    what a launcher of sweeps costs a run

Results are appended to ``benchmarks/results/NAME.json`` with machine, versions and commit, and the newest of each make the table in
``benchmarks/README.md``; --quick, on the smallest sizes, writes nothing. What is printed goes to standard error; with --json the last line
of standard output is one JSON object of the figures.
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
from gcp_jax.run.training import git_commit, package_versions

BENCHMARKS: dict[str, Callable[..., Iterator[timing.Measured]]] = {
    "update": update.run,
    "rollout": rollout.run,
    "segment": segment.run,
    "seeds": seeds.run,
    "devices": devices.run,
    "startup": startup.run,
    "launch": launch.run,
}
VIRTUAL = {"devices": 8}  # devices that a CPU stands for, where it is more than one
HERE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the named benchmarks, or all; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(BENCHMARKS)}; all where none is given",
    )
    parser.add_argument(
        "--quick", action="store_true", help="the smallest sizes; nothing is written"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object as the last line of standard output"
    )
    parser.add_argument("--folder", type=Path, default=HERE, help="where results and page go")
    chosen = parser.parse_args(argv)
    folder = chosen.folder
    unknown = [name for name in chosen.names if name not in BENCHMARKS]
    if unknown:
        print(
            f"benchmarks.run: there is no {unknown[0]!r}; allowed: {', '.join(BENCHMARKS)}.",
            file=sys.stderr,
        )
        return 2
    names = chosen.names or list(BENCHMARKS)
    found = measured(names[0], folder, quick=chosen.quick) if len(names) == 1 else {}
    for name in names if len(names) > 1 else ():
        found |= _apart(name, folder, quick=chosen.quick)
    if chosen.json:
        print(json.dumps(found))
    return 0


def measured(name: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Measure one benchmark in this process. Cases measured before one that fails are kept."""
    runtime.prepare_cpu(VIRTUAL.get(name, 1))
    print(f"measuring {name} …", file=sys.stderr)
    found: dict[str, dict[str, Any]] = {}
    try:
        for case, figures in BENCHMARKS[name](quick=quick):
            found[case] = figures
            print(f"{case}: {json.dumps(figures)}", file=sys.stderr)
    finally:
        if found and not quick:
            keep(folder, name, found)
    print(table(found), file=sys.stderr)
    return {name: found}


def _apart(name: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Measure one benchmark in a process of its own, which leaves nothing behind for the next."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.run",
        name,
        "--json",
        f"--folder={folder}",
        *(["--quick"] if quick else []),
    ]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def keep(folder: Path, name: str, figures: Mapping[str, Any]) -> None:
    """Append to the results and write the page anew."""
    path = folder / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    entries = json.loads(path.read_text()) if path.exists() else []
    about = " ".join((sys.modules[BENCHMARKS[name].__module__].__doc__ or "").split())
    entry = {
        "about": about,
        "machine": timing.machine(),
        "versions": package_versions(),
        "commit": git_commit(),
        "figures": figures,
    }
    write_json(path, [*entries, entry])
    (folder / "README.md").write_text(page(folder / "results"))


def page(results: Path) -> str:
    """The newest result of every benchmark, with what it measured then."""
    parts = [
        "# Benchmarks\n\nGenerated by `python -m benchmarks.run`, which says what each of them measures.\n"
    ]
    for name in BENCHMARKS:
        path = results / f"{name}.json"
        if path.exists():
            entry = json.loads(path.read_text())[-1]
            where = f"{entry['machine']}, jax {entry['versions']['jax']}, commit {(entry['commit'] or 'unknown')[:12]}"
            parts.append(f"## {name}\n\n{entry['about']}\n\n{where}\n\n{table(entry['figures'])}\n")
    return "\n".join(parts)


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: one line a case."""
    columns = list(dict.fromkeys(column for case in figures.values() for column in case))
    rows = [["", *columns], ["---"] * (len(columns) + 1)]
    rows += [
        [name, *(_cell(case.get(column, "")) for column in columns)]
        for name, case in figures.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['ratio']:.2f} (spread {value['spread']:.2f})"
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


if __name__ == "__main__":
    sys.exit(main())

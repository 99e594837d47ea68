"""One run of all measurements that need an accelerator, within a number of minutes.

    python -m benchmarks.gpu [STEP …] [--minutes=9] [--quick] [--folder=DIR]

    check        device and versions, a matrix product, an update of OGPO, a step of MJX
    matrix       rate of a large matrix product in float32, TF32 and bfloat16
    physics      acting, with sampling of the policy, against bare physics, in many environments
    updates      updates at their authors' shapes, against the rate of the matrix product
    segment      a segment with one update per environment step: physics, acting, updates
    seeds        8 and 32 seeds in one program against one seed
    determinism  the cost of XLA's flags for determinism, and which runs are equal bit for bit
    recipe       OGPO as its authors train it, on peg_insert, until the time is up

Every run has a folder of its own, ``DEVICE_NUMBER`` in DIR. After every case its results are
written there (``results.json``, and as tables ``gpu.md``), so that a run that is killed keeps what
it has finished. A case that fails is recorded with its error. A case for which no time is left is
recorded as not run. With --quick the sizes are the smallest, QC takes the place of OGPO in segments
and trainings, programs are compiled without optimization, and a CPU will do. The exit code is 1 if
a case failed, 2 for bad arguments or without an accelerator.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import jax

from benchmarks import gpu_cases, gpu_processes, timing
from benchmarks.gpu_run import Results, Step, new_folder, run_steps
from gcp_jax.experiments import runtime
from gcp_jax.run.provenance import git_commit, package_versions

STEPS = (
    "check",
    "matrix",
    "physics",
    "updates",
    "segment",
    "seeds",
    "determinism",
    "recipe",
)
ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks" / "results" / "gpu"
QUICK_FOLDER = ROOT / "runs" / "gpu"
LONGEST_MINUTES = 1440.0
QUICK_COMPILATION = "--xla_backend_optimization_level=0"


class _Parser(argparse.ArgumentParser):
    """Prints one line for bad arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"benchmarks.gpu: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named steps, or all of them; returns the exit code."""
    began = time.monotonic()
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _make_parser().parse_args(words)
    problem = _prepare(quick=arguments.quick)
    if problem:
        print(f"benchmarks.gpu: {problem}", file=sys.stderr)
        return 2
    kind = jax.devices()[0].device_kind
    print(f"measuring {kind} …", file=sys.stderr)
    parent = arguments.folder or (QUICK_FOLDER if arguments.quick else FOLDER)
    try:
        folder = new_folder(parent.resolve(), re.sub(r"\W+", "_", kind).lower())
    except OSError as error:
        print(f"benchmarks.gpu: --folder={parent}: {error.strerror}.", file=sys.stderr)
        return 2
    facts = {
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *words]),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": timing.machine(),
        "versions": package_versions(),
        "commit": git_commit(),
    }
    every = make_steps(folder, quick=arguments.quick)
    steps = [step for step in every if step.name in (arguments.steps or STEPS)]
    gpu_processes.exit_on_sigterm()
    left = 60 * arguments.minutes - (time.monotonic() - began)
    failures = run_steps(steps, Results(folder, facts, steps), seconds=left)
    print(f"results: {folder / 'gpu.md'}", file=sys.stderr)
    return 1 if failures else 0


def make_steps(folder: Path, *, quick: bool) -> list[Step]:
    """All steps, in the order of ``STEPS``.

    Args:
      folder: of the run; what a step writes besides its results goes there.
      quick: the smallest sizes.
    """
    return [*gpu_cases.make_steps(quick=quick), *gpu_processes.make_steps(folder, quick=quick)]


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "steps",
        nargs="*",
        type=_step,
        metavar="STEP",
        help=f"of {', '.join(STEPS)}; default: all",
    )
    parser.add_argument(
        "--minutes", type=_minutes, default=9.0, help="of the whole run; default: %(default)g"
    )
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, also on a CPU")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the folder of the run is made; default: benchmarks/results/gpu, and runs/gpu "
        "with --quick",
    )
    return parser


def _step(text: str) -> str:
    if text not in STEPS:
        raise argparse.ArgumentTypeError(f"there is no step {text!r}; allowed: {', '.join(STEPS)}.")
    return text


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes <= LONGEST_MINUTES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not allowed; give a number of minutes above 0, at most "
            f"{LONGEST_MINUTES:g}."
        )
    return minutes


def _prepare(*, quick: bool) -> str:
    """Set what JAX reads at its start; returns why nothing can be measured here, or ""."""
    # Steps in other processes need memory of the same device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if quick:
        os.environ["XLA_FLAGS"] = f"{QUICK_COMPILATION} {os.environ.get('XLA_FLAGS', '')}".strip()
    runtime.prepare_cpu()
    runtime.fix_numerics()
    if problem := runtime.missing_devices():
        return problem
    if jax.default_backend() == "cpu" and not quick:
        return "JAX has no accelerator here, only a CPU; add --quick to run on it."
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        runtime.compilation_cache()
    return ""


if __name__ == "__main__":
    sys.exit(main())

"""The steps of ``benchmarks.gpu`` that run in other processes: determinism, the authors' recipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_cases import AUTHORS_FIELDS, QUICK_FIELDS
from benchmarks.gpu_run import Case, Context, Figures, Step
from gcp_jax.run import metrics

ROOT = Path(__file__).parent.parent
DETERMINISTIC = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
WITHOUT_FLAGS = "without flags"
WITH_FLAGS = "with flags"
STOPPING_SECONDS = 25.0  # for the training to end its segment or evaluation, and to save

RECIPE_TASK = "peg_insert"
# The constants of arXiv 2605.03065 besides those of AUTHORS_FIELDS; the training is endless.
RECIPE_FIELDS: dict[str, Any] = {
    **AUTHORS_FIELDS,
    "algorithm.actor_lr": 4.5e-5,
    "algorithm.lr_cycle": 50_000,
    "algorithm.actor_tau": 0.005,
    "algorithm.critic_lr": 3e-4,
    "algorithm.critic_tau": 0.05,
    "algorithm.gamma": 0.99,
    "finetune.env_steps": 1_000_000_000,
    "finetune.learning_starts": 10_000,
    "evaluation.every": 2_048,
    "checkpoint.every": 1_000_000_000,
    "video": False,
}
QUICK_RECIPE_FIELDS: dict[str, Any] = {
    **QUICK_FIELDS,
    "demonstrations.episodes": 16,
    "pretrain.updates": 50,
    "finetune.env_steps": 256,
    "finetune.learning_starts": 64,
    "evaluation.episodes": 8,
    "evaluation.every": 128,
    "video": False,
}


def make_steps(folder: Path, *, quick: bool) -> list[Step]:
    """The steps ``determinism`` and ``recipe``.

    Args:
      folder: of the run; the training of the recipe is written to ``runs/recipe`` in it.
      quick: the smallest sizes.
    """
    return [_determinism_step(quick=quick), _recipe_step(folder, quick=quick)]


def _determinism_step(*, quick: bool) -> Step:
    command = [sys.executable, "-m", "benchmarks.gpu_determinism"]
    cases = {WITHOUT_FLAGS: "", WITH_FLAGS: DETERMINISTIC}
    if quick:
        command.append("--quick")
    else:
        cases |= {f"{case}, again": flags for case, flags in cases.items()}

    def measure(case: str, flags: str) -> Callable[[Context], Figures]:
        return lambda context: determinism(case, flags, command, context)

    return Step(
        name="determinism",
        about=f"Segments of OGPO on `{'reach' if quick else 'peg_insert'}`, in a process for every "
        f"case, with `XLA_FLAGS={DETERMINISTIC}` and without. Compared are all bytes of the state: "
        "of two trainings in the process, and with the first process of the same flags. `cost` is "
        "the time of a segment over that of the first process without flags.",
        share=18,
        cases=[Case(case, measure(case, flags)) for case, flags in cases.items()],
    )


def determinism(case: str, flags: str, command: Sequence[str], context: Context) -> Figures:
    """Run ``gpu_determinism`` with flags, and compare it with the cases before.

    Raises:
      RuntimeError: the process failed, or had no time to end.
    """
    report = run_json(command, flags, context.seconds)
    one, two = report["digests"]
    before = context.found.get("determinism", {})
    figures: Figures = {
        "segment_ms": report["segment_ms"],
        "digest": one[:16],
        "equal_in_process": _yes_or_no(one == two),
    }
    first = before.get(case.removesuffix(", again"), {})
    if "digest" in first:
        figures["equal_to_first"] = _yes_or_no(figures["digest"] == first["digest"])
    baseline = before.get(WITHOUT_FLAGS, {}).get("segment_ms")
    if baseline:
        figures["cost"] = round(report["segment_ms"] / baseline, 3)
    return figures


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def run_json(command: Sequence[str], flags: str, seconds: float) -> dict[str, Any]:
    """The JSON object that a command prints last.

    Args:
      command: the command; it runs in the folder of the repository.
      flags: added to XLA_FLAGS.
      seconds: after which it is killed.

    Raises:
      RuntimeError: it failed, with the last line that it printed, or it was killed.
    """
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
    try:
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"killed after {seconds:.0f} s: no time left") from None
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {_last_line(done.stderr)}")
    report: dict[str, Any] = json.loads(_last_line(done.stdout))
    return report


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def _recipe_step(folder: Path, *, quick: bool) -> Step:
    task, fields = ("reach", QUICK_RECIPE_FIELDS) if quick else (RECIPE_TASK, RECIPE_FIELDS)
    return Step(
        name="recipe",
        about="OGPO with the networks, chains, critics and rates of its authors and one update per "
        "environment step, on a clone. `seconds` are from the start of the run, with cloning and "
        "compiling; `train_seconds` are those of the segments alone.",
        share=20,
        cases=[
            Case(task, lambda context: recipe(task, fields, folder / "runs" / "recipe", context))
        ],
    )


def recipe(task: str, fields: dict[str, Any], run: Path, context: Context) -> Figures:
    """Train until shortly before the time is up.

    Args:
      task: the task; its configuration is that of ``experiments/configs``.
      fields: that differ, by their dotted names.
      run: the run folder.
      context: the time.

    Returns:
      The last evaluation, how the training ended, and "curve", one record per evaluation of the
      clone ("env_steps" 0) and of finetuning.

    Raises:
      RuntimeError: nothing was evaluated; the message has the last line that was printed.
    """
    command = [
        sys.executable,
        "-m",
        "gcp_jax.launch.cli.main",
        "train",
        f"--config=experiments/configs/{task}.py",
        f"--run_dir={run}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]
    log = run.with_suffix(".log")
    ended = run_until(command, log, max(context.seconds - STOPPING_SECONDS, 0.0))
    points = curve(run)
    if not points:
        raise RuntimeError(f"{ended} before its first evaluation: {_last_line(log.read_text())}")
    return {"ended": ended, "base_success": points[0]["success"], **points[-1], "curve": points}


def run_until(
    command: Sequence[str], log: Path, seconds: float, stopping: float = STOPPING_SECONDS
) -> str:
    """Run a command; after some seconds ask it to stop (SIGTERM).

    Args:
      command: the command; it runs in the folder of the repository.
      log: where its output goes.
      seconds: after which it is asked to stop.
      stopping: seconds that it then has, before it is killed.

    Returns:
      How it ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            return _wait_or_stop(process, seconds, stopping)
        finally:
            process.kill()


def _wait_or_stop(process: subprocess.Popen[bytes], seconds: float, stopping: float) -> str:
    try:
        return f"ended with exit code {process.wait(seconds)}"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    try:
        return f"stopped with exit code {process.wait(stopping)}"
    except subprocess.TimeoutExpired:
        return "killed"


def exit_on_sigterm() -> None:
    """Have SIGTERM raise SystemExit, so that a process which was started here is killed first."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))


def curve(run: Path) -> list[Figures]:
    """The evaluations of the clone and of finetuning, oldest first."""
    return [
        {
            "env_steps": row["env_steps"],
            "updates": row["updates"],
            "seconds": row["seconds"],
            "train_seconds": row["train_seconds"],
            "success": round(row["eval/success"], 4),
        }
        for row in metrics.eval_rows(run / "eval.jsonl")
        if row["stage"] != "pretrain"
    ]

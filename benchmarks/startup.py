"""Seconds from the command to the first update, and memory against the plan.

Each start is a process of its own, with an empty ("cold") or a warm compilation cache: ``gcp-jax
train`` on ``peg_insert`` with its defaults except for a cloning of one update, no warm-up and
segments of one chunk. It is killed as soon as the first finetuned numbers are written. ``cloning``
is the first update of all, ``finetuning`` the first segment of the method. ``of_plan`` is the
memory that XLA allocates for the compiled segment, over the prediction of ``gcp-jax plan``.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks import setup, timing
from gcp_jax.experiments.plan import plan
from gcp_jax.types import PyTree

TASK = "peg_insert"
FIELDS = {
    "pretrain.updates": 1,
    "pretrain.evaluate_every": 1,
    "finetune.learning_starts": 0,
    "finetune.unroll_chunks": 1,
    "evaluation.every": 10**9,
    "video": False,
}
SMALL = {
    "policy.hidden": "(16,)",
    "algorithm.critic_hidden": "(16,)",
    "evaluation.episodes": 4,
    "finetune.envs": 8,
}
STAGES = {"cloning": '"stage": "pretrain"', "finetuning": '"stage": "finetune"'}
TIME_LIMIT = 900.0  # seconds
MIB = 2**20


def run(*, quick: bool) -> Iterator[timing.Measured]:
    """Cold and warm starts, and the memory of a segment."""
    repeats = 5
    task = TASK
    fields: dict[str, Any] = dict(FIELDS)
    if quick:
        repeats = 1
        task = "reach"
        fields |= SMALL
    starts: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            for name, measured in starts.items():
                measured.append(start(Path(folder) / name, cache, task, fields))
    for name, measured in starts.items():
        medians = {
            f"{stage}_s": round(statistics.median(each[stage] for each in measured), 1)
            for stage in STAGES
        }
        yield name, medians
    yield "memory", memory(task, small=quick)


def start(folder: Path, cache: Path, task: str, fields: dict[str, Any]) -> dict[str, float]:
    """Seconds to the first rows of cloning and of finetuning.

    Raises:
      RuntimeError: the command ends before.
    """
    program = [sys.executable, "-m", "gcp_jax.launch.cli.main", "train"]
    flags = [f"--config=experiments/configs/{task}.py", f"--run_dir={folder}"]
    flags += [f"--config.{name}={value}" for name, value in fields.items()]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as for a user, bytecode is cached
    log = folder / "metrics.jsonl"
    seconds: dict[str, float] = {}
    began = time.monotonic()
    with subprocess.Popen(
        [*program, *flags],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while "finetuning" not in seconds and time.monotonic() < began + TIME_LIMIT:
            if process.poll() is not None:
                raise RuntimeError(
                    f"{' '.join([*program, *flags])} ended with {process.returncode} before its "
                    "first update."
                )
            text = log.read_text() if log.exists() else ""
            for stage, mark in STAGES.items():
                if mark in text:
                    seconds.setdefault(stage, time.monotonic() - began)
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    return seconds


def memory(task: str, *, small: bool) -> dict[str, Any]:
    """MiB of a compiled segment, and of the plan."""
    fields: dict[str, Any] = {}
    if small:
        fields = {"finetune__envs": 8, "policy__hidden": (16,)}
    made = setup.make_run(task, **fields)
    train = made.start()
    compiled = made.learner.compile(train)
    while_collecting = _peak_bytes(compiled.collect) + _bytes(train.learner.buffer_state)
    while_learning = _peak_bytes(compiled.learn) + _bytes(train.env_state)
    peak = max(while_collecting, while_learning)
    planned = plan.plan(made.config, made.task, peak=True)["peak_bytes"]
    return {
        "segment_mib": round(peak / MIB, 1),
        "planned_mib": round(planned / MIB, 1),
        "of_plan": round(peak / planned, 2),
    }


def _peak_bytes(program: Any) -> int:
    """Arguments, results that do not reuse an argument's memory, and temporaries."""
    found = program.memory_analysis()
    temporaries = found.temp_size_in_bytes - found.alias_size_in_bytes
    return int(found.argument_size_in_bytes + found.output_size_in_bytes + temporaries)


def _bytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

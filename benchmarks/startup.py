"""Seconds from the command to the first update, with an empty and with a warm compilation cache, and memory against the plan.

Every start is a process of its own: ``gcp-jax train`` on ``peg_insert`` with all its defaults but for a cloning of one update, no
warm-up and finetuning segments of one chunk, killed as soon as the first finetuned numbers are written. ``cloning`` is the first
update of all, ``finetuning`` the first segment of the method. ``memory`` is what XLA set aside for the compiled segment, over what
``gcp-jax plan`` foretold.
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
LIMIT = 900.0  # seconds


def run(*, quick: bool) -> Iterator[timing.Measured]:
    """Cold and warm, and the memory of a segment."""
    repeats, task, fields = (1, "reach", {**FIELDS, **SMALL}) if quick else (5, TASK, FIELDS)
    spent: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name, found in spent.items():
                found.append(start(Path(folder) / name, Path(folder) / "cache", task, fields))
    for name, found in spent.items():
        stages = ("cloning", "finetuning")
        yield (
            name,
            {
                f"{stage}_s": round(statistics.median(each[stage] for each in found), 1)
                for stage in stages
            },
        )
    yield "memory", memory(task, small=quick)


def start(folder: Path, cache: Path, task: str, fields: dict[str, Any]) -> dict[str, float]:
    """Seconds to the first rows of cloning and of finetuning. Raises RuntimeError where the command ends before."""
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    command = [
        sys.executable,
        "-m",
        "gcp_jax.launch.cli.main",
        "train",
        f"--config=experiments/configs/{task}.py",
        *words,
    ]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # Python keeps its bytecode, as it does unless told otherwise
    began, log = time.monotonic(), folder / "metrics.jsonl"
    found: dict[str, float] = {}
    with subprocess.Popen(
        [*command, f"--config.run_dir={folder}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while "finetuning" not in found and time.monotonic() < began + LIMIT:
            if process.poll() is not None:
                raise RuntimeError(
                    f"{' '.join(command)} ended with {process.returncode} before its first update."
                )
            text = log.read_text() if log.exists() else ""
            for stage, name in (("pretrain", "cloning"), ("finetune", "finetuning")):
                if f'"stage": "{stage}"' in text:
                    found.setdefault(name, time.monotonic() - began)
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    return found


def memory(task: str, *, small: bool) -> dict[str, Any]:
    """Bytes of a compiled segment, and the plan's."""
    fields: dict[str, Any] = {"finetune__envs": 8, "policy__hidden": (16,)} if small else {}
    made = setup.make(task, **fields)
    train = made.start()
    compiled = made.learner.compile(train)
    peak = max(
        _peak(compiled.collect) + _bytes(train.store),
        _peak(compiled.learn) + _bytes(train.env),
    )
    foretold = plan.plan(made.config, made.task, peak=True)["peak_bytes"]
    return {
        "segment_mib": round(peak / 2**20, 1),
        "planned_mib": round(foretold / 2**20, 1),
        "of_plan": round(peak / foretold, 2),
    }


def _peak(program: Any) -> int:
    """Bytes of a compiled program: arguments, results that do not take an argument's place, and what is between."""
    found = program.memory_analysis()
    between = found.temp_size_in_bytes - found.alias_size_in_bytes
    return int(found.argument_size_in_bytes + found.output_size_in_bytes + between)


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

"""The entry point of a run that only counts, without JAX: sweeps are tested with it.

Its numbers follow from its configuration. It saves every ``SAVE`` steps and writes the rows of a
run, so that its folder reads like that of a training.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

from gcp_jax.atomic_files import write_json
from gcp_jax.launch.worker import Job
from gcp_jax.run.errors import Interrupted, Paused

SAVE = 4  # steps between checkpoints
EVALUATE = 8  # steps between evaluations
EPISODES = 100
GOOD_LR = 1e-3
LEARNED = 32  # steps after which the score depends on the learning rate alone


def count(job: Job) -> None:
    """Count to ``finetune.env_steps``, one step in ``COUNTING_SECONDS``.

    ``demonstrations.path`` says how it fails: "fail" (always), "fail once" or "die once" (by
    SIGKILL).
    """
    signals: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda signum, frame: signals.append(signum))
    try:
        _count(job, Path(job.folder), signals)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _count(job: Job, folder: Path, signals: list[int]) -> None:
    total = job.config["finetune"]["env_steps"]
    seconds = float(os.environ.get("COUNTING_SECONDS", "0"))
    write_json(folder / "config.json", {"config": job.config})
    state = _saved_state(folder)
    _fail(job.config["demonstrations"]["path"], folder)
    while state["step"] < total:
        _count_once(job, folder, state)
        time.sleep(seconds)
        last = state["step"] == total
        evaluate = last or state["step"] % EVALUATE == 0
        if evaluate:
            state["rows"] += _eval_rows(job, state["step"])
        if last or signals or state["step"] % SAVE == 0:
            write_json(folder / "saved.json", state)
            _write_rows(folder, state)
        if signals:
            raise Interrupted("stopped", signals[0])
        if job.until and evaluate and state["step"] >= job.until and not last:
            raise Paused("paused")
    write_json(folder / "summary.json", {"number": state["number"]})


def _saved_state(folder: Path) -> dict:
    path = folder / "saved.json"
    if path.exists():
        return json.loads(path.read_text())
    return {"step": 0, "number": "", "rows": []}


def _count_once(job: Job, folder: Path, state: dict) -> None:
    """Take a step: the number is a hash of the last one, the step and the configuration."""
    state["step"] += 1
    words = f"{state['number']}{state['step']}{job.config['algorithm']}{job.config['seed']}"
    state["number"] = hashlib.sha256(words.encode()).hexdigest()
    with open(folder / "steps.txt", "a") as file:
        file.write(f"{state['step']}\n")


def _eval_rows(job: Job, step: int) -> list[dict]:
    """A row for each member. Its score grows with the step and is best near ``GOOD_LR``."""
    population = job.config["population"].get("critic_lr")
    if population is None:
        return [_eval_row(job, step, job.config["algorithm"].get("critic_lr", GOOD_LR))]
    return [_eval_row(job, step, lr) | {"population": f"critic_lr={lr:g}"} for lr in population]


def _eval_row(job: Job, step: int, lr: float) -> dict:
    success = min(lr / GOOD_LR, GOOD_LR / lr) * min(step / LEARNED, 1.0)
    return {
        "stage": "finetune",
        "env_steps": step,
        "updates": 0,
        "seed": job.config["seed"],
        "eval/success": success,
        "eval/successes": round(EPISODES * success),
        "eval/episodes": EPISODES,
    }


def _write_rows(folder: Path, state: dict) -> None:
    base = {
        "stage": "base",
        "env_steps": 0,
        "updates": 0,
        "seed": 0,
        "eval/success": 0.1,
        "eval/successes": 10,
        "eval/episodes": EPISODES,
    }
    rows = [base, *state["rows"]]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = {"stage": "finetune", "env_steps": state["step"], "seed": 0, "train_seconds": 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def _fail(how: str, folder: Path) -> None:
    first = not (folder / "failed").exists()
    (folder / "failed").touch()
    if how == "fail" or (how == "fail once" and first):
        raise ValueError("counted wrongly")
    if how == "die once" and first:
        os.kill(os.getpid(), signal.SIGKILL)

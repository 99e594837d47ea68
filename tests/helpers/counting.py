"""A run that only counts, in no time and with no JAX: what sweeps are tested with. Its numbers follow from its configuration, it
saves every ``SAVE`` steps, and it writes the rows of a run, so that its folder tells all that a trained one's would."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

from gcp_jax.atomic_files import write_json
from gcp_jax.launch.worker import Job
from gcp_jax.run.training import Interrupted, Paused

SAVE, EVALUATE = 4, 8


def count(job: Job) -> None:
    """Count to ``finetune.env_steps``, a step in ``COUNTING_SECONDS``. ``pretrain.artifact`` says how it misbehaves: "fail" always,
    "fail once", "die once" (by SIGKILL)."""
    folder, total = Path(job.folder), job.config["finetune"]["env_steps"]
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: asked.append(signum))
    try:
        _count(job, folder, total, asked)
    finally:
        signal.signal(signal.SIGTERM, before)


def _count(job: Job, folder: Path, total: int, asked: list[int]) -> None:
    saved, pause = folder / "saved.json", float(os.environ.get("COUNTING_SECONDS", "0"))
    write_json(folder / "config.json", {"config": job.config})
    state = (
        json.loads(saved.read_text()) if saved.exists() else {"step": 0, "number": "", "rows": []}
    )
    _misbehave(job.config["pretrain"]["artifact"], folder)
    while state["step"] < total:
        state["step"] += 1
        words = f"{state['number']}{state['step']}{job.config['algorithm']}{job.config['seed']}"
        state["number"] = hashlib.sha256(words.encode()).hexdigest()
        with open(folder / "steps.txt", "a") as file:
            file.write(f"{state['step']}\n")
        time.sleep(pause)
        ends = state["step"] == total
        if ends or state["step"] % EVALUATE == 0:
            state["rows"] += _evaluated(job, state)
        if ends or asked or state["step"] % SAVE == 0:
            write_json(saved, state)
            _write_rows(folder, state)
        if asked:
            raise Interrupted("stopped", asked[0])
        if job.until and state["step"] % EVALUATE == 0 and state["step"] >= job.until and not ends:
            raise Paused("paused")
    write_json(folder / "summary.json", {"number": state["number"]})


def _evaluated(job: Job, state: dict) -> list[dict]:
    """A row for each member: as good as its learning rate is near 1e-3, and better with every step."""
    population = job.config["population"].get(
        "critic_lr", [job.config["algorithm"].get("critic_lr", 1e-3)]
    )
    rows = []
    for lr in population:
        good = min(lr / 1e-3, 1e-3 / lr) * min(state["step"] / 32, 1.0)
        who = {"population": f"critic_lr={lr:g}"} if job.config["population"] else {}
        row = {
            "stage": "finetune",
            "env_steps": state["step"],
            "updates": 0,
            "seed": job.config["seed"],
            **who,
        }
        rows.append(
            {**row, "eval/success": good, "eval/successes": round(100 * good), "eval/episodes": 100}
        )
    return rows


def _write_rows(folder: Path, state: dict) -> None:
    base = {"stage": "base", "env_steps": 0, "updates": 0, "seed": 0}
    rows = [
        {**base, "eval/success": 0.1, "eval/successes": 10, "eval/episodes": 100},
        *state["rows"],
    ]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = {"stage": "finetune", "env_steps": state["step"], "seed": 0, "train_seconds": 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def _misbehave(how: str, folder: Path) -> None:
    before = (folder / "misbehaved").exists()
    (folder / "misbehaved").touch()
    if how == "fail" or (how == "fail once" and not before):
        raise ValueError("counted wrongly")
    if how == "die once" and not before:
        os.kill(os.getpid(), signal.SIGKILL)

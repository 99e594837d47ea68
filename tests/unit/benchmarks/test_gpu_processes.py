"""The steps in other processes: comparing digests, stopping a training, reading its curve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers.runs import environment

from benchmarks import gpu_processes
from benchmarks.gpu_cases import AUTHORS_FIELDS, QUICK_FIELDS, make_run
from benchmarks.gpu_determinism import digest
from benchmarks.gpu_run import Context
from gcp_jax.experiments import api

STUBBORN = """
import signal, sys, time
def stop(signum, frame):
    print("saved", flush=True)
    if sys.argv[1] == "stops":
        sys.exit()
signal.signal(signal.SIGTERM, stop)
print("began", flush=True)
while True:
    time.sleep(0.05)
"""

ENDLESS = """
import sys
from pathlib import Path
from benchmarks import gpu_processes
gpu_processes.exit_on_sigterm()
command = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
gpu_processes.run_until(command, Path(sys.argv[1]), 60.0)
"""


def test_digests_are_compared_within_a_process_and_with_the_first(monkeypatch):
    reports = iter(
        [
            {"segment_ms": 10.0, "digests": ["a", "b"]},
            {"segment_ms": 15.0, "digests": ["c", "c"]},
            {"segment_ms": 10.0, "digests": ["b", "b"]},
            {"segment_ms": 15.0, "digests": ["c", "c"]},
        ]
    )
    monkeypatch.setattr(gpu_processes, "run_json", lambda *words: next(reports))
    found = {"determinism": {}}
    for case in ("without flags", "with flags", "without flags, again", "with flags, again"):
        context = Context(seconds=1.0, found=found)
        found["determinism"][case] = gpu_processes.determinism(case, "", [], context)
    without, flags, without_again, flags_again = found["determinism"].values()
    assert without == {"segment_ms": 10.0, "digest": "a", "equal_in_process": "no"}
    assert flags["equal_in_process"] == "yes" and flags["cost"] == 1.5
    assert "equal_to_first" not in flags
    assert without_again["equal_to_first"] == "no" and flags_again["equal_to_first"] == "yes"


def test_a_digest_has_every_bit_and_every_key():
    tree = {"x": np.zeros(3, np.float32), "key": jax.random.key(0)}
    assert digest(tree) == digest(dict(tree))
    assert digest(tree) != digest({**tree, "x": np.array([0.0, 0.0, -0.0], np.float32)})
    assert digest(tree) != digest({**tree, "key": jax.random.key(1)})


def test_the_curve_begins_with_the_clone(tmp_path):
    rows = [
        {"stage": stage, "seed": 0, "env_steps": env_steps, "updates": 3, "seconds": 2.5}
        | {"train_seconds": 1.0, "eval/episodes": 8, "eval/successes": won, "eval/success": won / 8}
        for stage, env_steps, won in (("pretrain", 0, 1), ("base", 0, 2), ("finetune", 128, 6))
    ]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    points = gpu_processes.curve(tmp_path)
    assert [(point["env_steps"], point["success"]) for point in points] == [(0, 0.25), (128, 0.75)]
    assert gpu_processes.curve(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("peg_insert", gpu_processes.RECIPE_FIELDS),
        ("peg_insert", AUTHORS_FIELDS),
        ("push_t", QUICK_FIELDS),
        ("reach", gpu_processes.QUICK_RECIPE_FIELDS),
    ],
)
def test_the_fields_exist_and_take_one_update_per_environment_step(task, fields):
    config = api.make_config(None, {"env.name": task, **fields})
    assert config.finetune.utd == 1.0
    sizes = make_run(task, fields).sizes
    assert sizes.updates == sizes.env_steps


@pytest.mark.process
@pytest.mark.parametrize(
    ("behaviour", "ended"), [("stops", "stopped with exit code 0"), ("continues", "killed")]
)
def test_a_command_is_asked_to_stop_and_then_killed(tmp_path, behaviour, ended):
    log = tmp_path / "runs" / "recipe.log"
    command = [sys.executable, "-c", STUBBORN, behaviour]
    assert gpu_processes.run_until(command, log, 1.0, stopping=0.5) == ended
    assert log.read_text() == "began\nsaved\n"


@pytest.mark.process
def test_a_command_that_ends_by_itself_is_not_stopped(tmp_path):
    command = [sys.executable, "-c", "print('done')"]
    log = tmp_path / "log"
    assert gpu_processes.run_until(command, log, 60.0) == "ended with exit code 0"


@pytest.mark.process
def test_a_process_that_fails_or_is_too_slow_is_one_line():
    flags = "import json, os; print('first'); print(json.dumps(os.environ['XLA_FLAGS']))"
    run = gpu_processes.run_json
    assert run([sys.executable, "-c", flags], "--xla_a=1", 60.0).endswith("--xla_a=1")
    with pytest.raises(RuntimeError, match="^exit code 1: KeyError: 'no'$"):
        run([sys.executable, "-c", "{}['no']"], "", 60.0)
    with pytest.raises(RuntimeError, match="^killed after 1 s: no time left$"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], "", 1.0)


@pytest.mark.process
def test_a_run_that_is_ended_ends_its_training(tmp_path):
    log = tmp_path / "log"
    with subprocess.Popen([sys.executable, "-c", ENDLESS, str(log)], env=environment()) as process:
        while not (log.exists() and log.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)

"""Whole runs in processes of their own: what they leave, kills, signals, full disks, bad input."""

from __future__ import annotations

import ast
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.damage import flip_a_bit, largest
from helpers.runs import CLI, CONFIG, TINY, environment, last_json, run, train_command, train_flags

from benchmarks.equality import checkpoint_arrays, run_content, untimed_rows
from gcp_jax.run.checkpoint import SIGNATURE

pytestmark = pytest.mark.process

ROW_FILES = ("metrics.jsonl", "eval.jsonl")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder and the summary of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return folder, last_json(run(train_command(folder)))


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a condition while the process runs."""
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def signed_checkpoints(folder: Path) -> list[int]:
    """The clocks of the finished checkpoints of a run's finetuning, oldest first."""
    paths = (folder / "checkpoints" / "finetune").glob(f"*/{SIGNATURE}")
    return sorted(int(path.parent.name) for path in paths)


def assert_equal_to(undisturbed: tuple[Path, dict], folder: Path, summary: dict) -> None:
    """The run has the undisturbed one's results, rows, parameters and replay, bit for bit."""
    reference, reference_summary = undisturbed
    assert summary["success_per_seed"] == reference_summary["success_per_seed"]
    assert summary["best"] == reference_summary["best"]
    assert run_content(folder) == run_content(reference)
    arrays = checkpoint_arrays(folder)
    expected = checkpoint_arrays(reference)
    assert arrays.keys() == expected.keys() and len(arrays) > 50
    for name, value in arrays.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_run_leaves_everything_it_promises(undisturbed):
    folder, summary = undisturbed
    keys = "base_success success success_per_seed env_steps updates best seconds compile_seconds"
    assert set(summary) == {*keys.split(), "run_dir"}
    assert summary["env_steps"] == 1536 and len(summary["success_per_seed"]) == 2
    # 12 segments of 128 steps, 2 of warm-up, 8 updates each
    assert summary["updates"] == 80
    policies = ("policy/base", "policy/seed_0", "policy/seed_1", "policy/best/seed_1")
    for name in ("config.json", *ROW_FILES, *policies):
        assert (folder / name).exists()
    facts = json.loads((folder / "policy" / "base" / "policy.json").read_text())["demonstrations"]
    assert facts["episodes"] > 0 and {"trajectory_quality", "coverage"} <= facts.keys()
    page = (folder / "report" / "report.html").read_text()
    assert "Trajectory quality" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (folder / "report" / "curves.png").exists()
    stages = [row["stage"] for row in untimed_rows(folder / "eval.jsonl")]
    assert stages.count("base") == 2 and stages.count("finetune") == 6


def test_a_killed_run_with_a_damaged_checkpoint_resumes_to_equal_the_undisturbed_one(
    undisturbed, tmp_path
):
    """Bit for bit. It is killed by SIGKILL; its newest checkpoint is the damaged one."""
    folder = tmp_path / "killed"
    process = start(train_command(folder))
    wait_until(lambda: len(signed_checkpoints(folder)) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    older, newest = signed_checkpoints(folder)[-2:]
    flip_a_bit(largest(folder / "checkpoints" / "finetune" / str(newest)))
    resumed = run(train_command(folder))
    assert f"checkpoint {newest} of finetune is damaged" in resumed.stderr
    assert f"resuming from {older}" in resumed.stderr
    assert "resuming finetune at" in resumed.stderr
    assert_equal_to(undisturbed, folder, last_json(resumed))


def test_a_full_disk_ends_a_run_in_one_line_and_the_same_command_resumes_it(undisturbed, tmp_path):
    """No file may exceed 40 KiB: rows fit, a checkpoint does not.

    The run is resumed while ``time.time()`` jumps back and forth.
    """
    folder = tmp_path / "run"
    script = 'export PYTHONDONTWRITEBYTECODE=1; ulimit -f 40 && exec "$@"'
    full = run(["bash", "-c", script, "bash", *train_command(folder)])
    lines = full.stderr.splitlines()
    assert full.returncode == 2 and lines[-1].startswith("gcp-jax train: "), full.stderr
    assert "cannot write checkpoint" in lines[-1]
    assert "Traceback" not in full.stderr
    assert not (folder / "summary.json").exists()
    program = "\n".join(
        (
            "import random, sys, time",
            "real_time = time.time",
            "time.time = lambda: real_time() + random.uniform(-1e8, 1e8)",
            "from gcp_jax.launch.cli import main",
            "sys.exit(main.main(sys.argv[1:]))",
        )
    )
    resumed = run([sys.executable, "-c", program, "train", *train_flags(folder)])
    assert_equal_to(undisturbed, folder, last_json(resumed))


def start_host(folder: Path, base: Path, index: int, port: int) -> subprocess.Popen[str]:
    """One of two hosts of a run that starts from a saved policy."""
    command = train_command(folder, **{"pretrain.saved_policy": str(base)})
    return start([*command, f"--hosts=127.0.0.1:{port},2,{index}"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_hosts_of_which_one_was_killed_resume_to_equal_one_process(undisturbed, tmp_path):
    """Each host has a seed; they start from the policy that the one process cloned.

    The survivor ends by itself: with one line if it waits for numbers of the other host, by JAX if
    it waits to save.
    """
    reference, reference_summary = undisturbed
    folder = tmp_path / "hosts"
    base = reference / "policy" / "base"
    port = free_port()
    first, second = (start_host(folder, base, index, port) for index in range(2))
    wait_until(lambda: len(signed_checkpoints(folder)) >= 1, second)
    second.send_signal(signal.SIGKILL)
    _, errors = first.communicate(timeout=120)
    last_line = errors.strip().splitlines()[-1]
    ended_by_us = first.returncode == 3 and "start them all again" in last_line
    ended_by_jax = first.returncode == -signal.SIGABRT and "another task died" in errors
    assert ended_by_us or ended_by_jax
    second.communicate()
    assert second.returncode == -signal.SIGKILL

    port = free_port()
    first, second = (start_host(folder, base, index, port) for index in range(2))
    output, errors = first.communicate(timeout=400)
    second_output, _ = second.communicate(timeout=400)
    assert (first.returncode, second.returncode) == (0, 0), errors[-3000:]
    assert "resuming finetune" in errors and "{" not in second_output
    summary = json.loads(output.splitlines()[-1])
    assert summary["success_per_seed"] == pytest.approx(
        reference_summary["success_per_seed"], abs=0.07
    )
    assert row_places(folder) == [
        place for place in row_places(reference) if place[0] == "finetune"
    ]
    arrays = checkpoint_arrays(folder)
    expected = checkpoint_arrays(reference)
    assert arrays.keys() == expected.keys()
    for name, value in arrays.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def row_places(folder: Path) -> list[tuple[str, int, int]]:
    """The stage, the seed and the updates of every row of metrics."""
    rows = untimed_rows(folder / "metrics.jsonl")
    return [(row["stage"], row["seed"], row["updates"]) for row in rows]


def test_sigterm_saves_a_run_and_its_configuration_cannot_change(tmp_path):
    folder = tmp_path / "run"
    process = start(train_command(folder, **{"finetune.env_steps": "1280000"}))
    rows_file = folder / "metrics.jsonl"
    wait_until(lambda: rows_file.exists() and '"finetune"' in rows_file.read_text(), process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "saved at" in errors.strip().splitlines()[-1]
    rows = untimed_rows(rows_file)
    env_steps = max(row["env_steps"] for row in rows if row["stage"] == "finetune")
    assert max(ocp.utils.checkpoint_steps(folder / "checkpoints" / "finetune")) * 128 == env_steps
    again = run(train_command(folder, **{"finetune.env_steps": "1536"}))
    assert again.returncode == 2 and "finetune.env_steps=1280000" in again.stderr


def test_a_run_of_a_sweep_that_was_paused_equals_the_run_alone(undisturbed, tmp_path):
    reference, _ = undisturbed
    fields = {name: ast.literal_eval(value) for name, value in TINY.items() if name != "seeds"}
    file = tmp_path / "one.py"
    folder = tmp_path / "sweep"
    file.write_text(
        "from gcp_jax.launch import Halving, Sweep\n"
        "def get_sweep():\n"
        f"    return Sweep({CONFIG!r}, fields={fields}, seeds=2, halving=Halving((512,)))\n"
    )
    command = [*CLI, "sweep", str(file), f"--run_dir={folder}", "--max_parallel=1", "--json"]
    assert last_json(run(command))["finished"] == 1
    [job] = (folder / "runs").iterdir()
    attempts = [json.loads(line) for line in (job / "attempts.jsonl").read_text().splitlines()]
    assert [row["outcome"] for row in attempts if "outcome" in row] == ["paused", "finished"]
    assert "resuming finetune at 512 of 1536 env steps" in (job / "log.txt").read_text()
    for name in ROW_FILES:
        assert untimed_rows(job / name) == untimed_rows(reference / name)


def test_a_finished_run_is_left_alone(undisturbed):
    folder, summary = undisturbed
    before = {path: path.stat().st_mtime_ns for path in folder.glob("policy/*/*")}
    assert last_json(run(train_command(folder))) == summary
    assert {path: path.stat().st_mtime_ns for path in folder.glob("policy/*/*")} == before


def test_a_saved_policy_evaluates_to_what_was_recorded(undisturbed):
    folder, summary = undisturbed
    policy = str(folder / "policy" / "seed_1")
    found = last_json(run([*CLI, "evaluate", policy, "--episodes=16", "--seed=1", "--json"]))
    assert found["success"] == pytest.approx(summary["success_per_seed"][1], abs=1e-6)
    assert found["low"] <= found["success"] <= found["high"]


def test_bad_input_ends_the_process_with_exit_code_2(tmp_path):
    done = run(train_command(tmp_path / "run", **{"finetune.utdd": "1"}))
    assert done.returncode == 2 and done.stdout == ""
    assert "utdd" in done.stderr.strip().splitlines()[-1]

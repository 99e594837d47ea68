"""Whole runs through the command line, in processes of their own: the path, resume after a kill, signals, bad input."""

from __future__ import annotations

import ast
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.damage import flip_a_bit, largest
from helpers.runs import CONFIG, TINY, command, environment, last_json, run

from benchmarks.faults import untimed
from benchmarks.kills import arrays
from gcp_jax.run.checkpoint import SIGNATURE


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, last_json(run(command(folder)))


def test_a_run_leaves_everything_it_promises(whole):
    folder, summary = whole
    keys = "base_success success success_per_seed env_steps updates seconds compile_seconds run_dir"
    assert set(summary) == set(keys.split())
    assert summary["env_steps"] == 1536 and len(summary["success_per_seed"]) == 2
    # 12 segments of 128 steps, 2 of warm-up, 8 updates each
    assert summary["updates"] == 80
    for name in (
        "config.json",
        "metrics.jsonl",
        "eval.jsonl",
        "policy/base",
        "policy/seed_0",
        "policy/seed_1",
    ):
        assert (folder / name).exists()
    known = json.loads((folder / "policy" / "base" / "policy.json").read_text())["demonstrations"]
    assert known["episodes"] > 0 and {"trajectory_quality", "coverage"} <= known.keys()
    page = (folder / "report" / "report.html").read_text()
    assert "Trajectory quality" in page
    assert (
        "http://" not in page.replace("http://www.w3.org", "")
        and (folder / "report" / "curves.png").exists()
    )
    stages = [row["stage"] for row in untimed(folder / "eval.jsonl")]
    assert stages.count("base") == 2 and stages.count("finetune") == 6


def test_killed_its_newest_checkpoint_damaged_and_started_again_equals_undisturbed_bit_for_bit(
    whole, tmp_path
):
    folder = tmp_path / "killed"
    victim = subprocess.Popen(
        command(folder), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoints = folder / "checkpoints" / "finetune"
    deadline = time.monotonic() + 400
    while victim.poll() is None and len(list(checkpoints.glob(f"*/{SIGNATURE}"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    older, newest = sorted(int(path.parent.name) for path in checkpoints.glob(f"*/{SIGNATURE}"))[
        -2:
    ]
    flip_a_bit(largest(checkpoints / str(newest)))
    resumed = run(command(folder))
    assert (
        f"checkpoint {newest} of finetune is damaged" in resumed.stderr
        and f"going on from {older}" in resumed.stderr
    )
    assert "resuming finetune" in resumed.stderr
    assert_equal_to(whole, folder, last_json(resumed))


def assert_equal_to(whole: tuple[Path, dict], folder: Path, summary: dict) -> None:
    """The run in ``folder`` has the undisturbed one's results, rows, parameters and replay, bit for bit."""
    assert summary["success_per_seed"] == whole[1]["success_per_seed"]
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert untimed(folder / name) == untimed(whole[0] / name)
    a, b = arrays(folder), arrays(whole[0])
    assert a.keys() == b.keys() and len(a) > 50
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


@pytest.mark.unmeasured
def test_a_full_disk_ends_a_run_in_one_line_and_the_same_command_goes_on_whatever_the_clock_says(
    whole, tmp_path
):
    """No file may grow beyond 40 KiB: rows fit, a checkpoint does not. Then time.time() leaps to and fro."""
    folder = tmp_path / "run"
    full = run(
        [
            "bash",
            "-c",
            'export PYTHONDONTWRITEBYTECODE=1; ulimit -f 40 && exec "$@"',
            "bash",
            *command(folder),
        ]
    )
    told = [
        line for line in full.stderr.splitlines() if line.startswith("gcp-jax train: ")
    ]  # orbax's threads say more
    assert full.returncode == 2 and len(told) == 1 and "cannot write checkpoint" in told[0], (
        full.stderr
    )
    assert not (folder / "summary.json").exists()
    leap = "import sys, time, random; t = time.time; time.time = lambda: t() + random.uniform(-1e8, 1e8)"
    program = f"{leap}; from experiments import cli; sys.exit(cli.main(sys.argv[1:]))"
    resumed = run([sys.executable, "-c", program, *command(folder)[3:]])
    assert_equal_to(whole, folder, last_json(resumed))


def host(folder: Path, base: Path, index: int, port: int) -> subprocess.Popen[str]:
    arguments = [
        *command(folder, **{"pretrain.artifact": str(base)}),
        f"--hosts=127.0.0.1:{port},2,{index}",
    ]
    return subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.unmeasured
def test_two_hosts_one_of_them_killed_and_both_started_again_equal_one(whole, tmp_path):
    """A seed on each host, from the artifact that the one process cloned. The survivor ends by itself: told in one line where
    it waits for numbers of the other, by JAX where it waits to save."""
    folder, base, port = tmp_path / "hosts", whole[0] / "policy" / "base", free_port()
    both = [host(folder, base, index, port) for index in range(2)]
    checkpoints = folder / "checkpoints" / "finetune"
    deadline = time.monotonic() + 400
    while not list(checkpoints.glob(f"*/{SIGNATURE}")):
        assert time.monotonic() < deadline and both[1].poll() is None, both[1].communicate()[1][
            -3000:
        ]
        time.sleep(0.01)
    both[1].send_signal(signal.SIGKILL)
    _, errors = both[0].communicate(timeout=120)
    told = both[0].returncode == 3 and "start them all again" in errors.strip().splitlines()[-1]
    assert told or (both[0].returncode == -signal.SIGABRT and "another task died" in errors)
    both[1].communicate()
    assert both[1].returncode == -signal.SIGKILL
    port = free_port()
    both = [host(folder, base, index, port) for index in range(2)]
    (out, errors), (quiet, _) = (process.communicate(timeout=400) for process in both)
    assert [process.returncode for process in both] == [0, 0], errors[-3000:]
    assert "resuming finetune" in errors and "{" not in quiet
    summary, reference = json.loads(out.splitlines()[-1]), whole[1]
    assert summary["success_per_seed"] == pytest.approx(reference["success_per_seed"], abs=0.07)
    rows, expected = (
        [(row["stage"], row["seed"], row["updates"]) for row in untimed(path / "metrics.jsonl")]
        for path in (folder, whole[0])
    )
    assert rows == [row for row in expected if row[0] == "finetune"]
    a, b = arrays(folder), arrays(whole[0])
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_allclose(value, b[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.unmeasured
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path):
    folder = tmp_path / "run"
    arguments = command(folder, **{"finetune.env_steps": "1280000"})
    process = subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 400
    while (
        not (folder / "metrics.jsonl").exists()
        or '"finetune"' not in (folder / "metrics.jsonl").read_text()
    ):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "saved at" in errors.strip().splitlines()[-1]
    rows = untimed(folder / "metrics.jsonl")
    done = max(row["env_steps"] for row in rows if row["stage"] == "finetune")
    again = run(command(folder, **{"finetune.env_steps": "1536"}))
    assert again.returncode == 2 and "finetune.env_steps=1280000" in again.stderr
    assert max(ocp.utils.checkpoint_steps(folder / "checkpoints" / "finetune")) * 128 == done


@pytest.mark.unmeasured
def test_a_run_of_a_sweep_paused_and_gone_on_is_the_run_alone(whole, tmp_path):
    fields = {name: ast.literal_eval(value) for name, value in TINY.items() if name != "seeds"}
    file, folder = tmp_path / "one.py", tmp_path / "sweep"
    file.write_text(
        "from launch import Halving, Sweep\n"
        f"def get_sweep():\n    return Sweep({CONFIG!r}, fields={fields}, seeds=2, halving=Halving((512,)))\n"
    )
    words = ["sweep", str(file), f"--run_dir={folder}", "--slots=1", "--json"]
    assert (
        last_json(run([sys.executable, "-m", "gcp_jax.launch.cli.main", *words]))["finished"] == 1
    )
    [own] = (folder / "runs").iterdir()
    attempts = [json.loads(line) for line in (own / "attempts.jsonl").read_text().splitlines()]
    assert [row["outcome"] for row in attempts if "outcome" in row] == ["paused", "finished"]
    assert "resuming finetune at 512 of 1536 env steps" in (own / "log.txt").read_text()
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert untimed(own / name) == untimed(whole[0] / name)


@pytest.mark.unmeasured
def test_a_finished_run_is_left_alone(whole):
    folder, summary = whole
    before = {path: path.stat().st_mtime_ns for path in folder.glob("policy/*/*")}
    assert last_json(run(command(folder))) == summary
    assert {path: path.stat().st_mtime_ns for path in folder.glob("policy/*/*")} == before


@pytest.mark.unmeasured
def test_a_saved_policy_evaluates_to_what_was_recorded(whole):
    folder, summary = whole
    program = [
        sys.executable,
        "-m",
        "gcp_jax.launch.cli.main",
        "evaluate",
        str(folder / "policy" / "seed_1"),
    ]
    found = last_json(run([*program, "--episodes=16", "--seed=1", "--json"]))
    assert found["success"] == pytest.approx(summary["success_per_seed"][1], abs=1e-6)
    assert found["low"] <= found["success"] <= found["high"]


def test_bad_input_ends_the_process_with_exit_code_2(tmp_path):
    done = run(command(tmp_path / "run", **{"finetune.utdd": "1"}))
    assert (
        done.returncode == 2
        and done.stdout == ""
        and "utdd" in done.stderr.strip().splitlines()[-1]
    )

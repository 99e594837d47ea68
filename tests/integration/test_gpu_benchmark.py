"""All steps of ``benchmarks.gpu`` with the smallest sizes, on a CPU."""

import json
import sys

import pytest
from helpers.runs import run

from benchmarks import gpu
from gcp_jax.run.metrics import rows

pytestmark = [pytest.mark.slow, pytest.mark.process]


def test_all_steps_run_on_a_cpu(tmp_path):
    words = ["--quick", "--minutes=30", f"--folder={tmp_path}"]  # all cases, however slow
    done = run([sys.executable, "-m", "benchmarks.gpu", *words])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "measuring cpu …" in done.stderr
    folder = tmp_path / "cpu_1"
    steps = json.loads((folder / "results.json").read_text())["steps"]
    assert tuple(steps) == gpu.STEPS
    assert not [case for cases in steps.values() for case in cases.values() if "note" in case]
    assert steps["physics"]["push_t 8"]["best_of_8_steps_per_s"] > 0
    assert steps["updates"]["dppo 5000×10 bfloat16"]["of_matrix_rate"]["ratio"] > 0
    assert steps["segment"]["push_t"]["number_of_updates"] == 32
    assert steps["seeds"]["2 seeds"]["throughput"]["ratio"] > 0
    assert {case["equal_in_process"] for case in steps["determinism"].values()} == {"yes"}
    assert steps["determinism"]["with flags"]["cost"] > 0
    recipe = steps["recipe"]["reach"]
    evaluated = rows(folder / "runs" / "recipe" / "eval.jsonl")
    assert recipe["ended"] == "ended with exit code 0"
    assert recipe["success"] == evaluated[-1]["eval/success"]
    assert [point["env_steps"] for point in recipe["curve"]] == [0, 128, 256]
    assert "## recipe" in (folder / "gpu.md").read_text()

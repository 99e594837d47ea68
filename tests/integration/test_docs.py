"""The code of the guides works: it is written to a user's own file and run by its name."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.unmeasured]

ROOT = Path(__file__).parent.parent.parent
GUIDES = ROOT / "docs" / "guides"
ALGORITHM = (GUIDES / "add_a_method.md").read_text(encoding="utf-8")
ENVIRONMENT = (GUIDES / "add_an_environment.md").read_text(encoding="utf-8")
TINY = (
    "env.horizon=16",
    "policy.hidden=(8,)",
    "policy.steps=2",
    "demonstrations.episodes=8",
    "pretrain.updates=2",
    "pretrain.evaluate_every=2",
    "finetune.env_steps=384",
    "finetune.learning_starts=128",
    "finetune.envs=8",
    "finetune.unroll_chunks=4",
    "finetune.batch_size=16",
    "finetune.utd=0.02",
    "evaluation.episodes=8",
    "evaluation.every=384",
    "video=False",
    "algorithm.critics=2",
    "algorithm.critic_hidden=(8,)",
)


def documented(guide: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    return code


def gcp_jax(folder: Path, *words: str) -> dict:
    """Run a command from ``folder``; its JSON object."""
    command = [sys.executable, "-m", "gcp_jax.launch.cli.main", *words, "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_documented_method_runs_from_a_file_of_the_user(tmp_path):
    lines = documented(ALGORITHM).splitlines()
    assert len(lines) < 120
    assert max(map(len, lines)) <= 100
    (tmp_path / "my_method.py").write_text(documented(ALGORITHM))
    own = (
        "env.name=reach",
        "algorithm.module=my_method",
        "algorithm.temperature=0.5",
        "run_dir=run",
    )
    assert (
        gcp_jax(tmp_path, "train", *(f"--config.{word}" for word in (*own, *TINY)))["updates"] > 0
    )
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    last = [row for row in rows if row["stage"] == "finetune"][-1]
    common = {
        "action_std",
        "base_action_rmse",
        "ratio_step_0",
        "kl_step_1",
        "critic_sign_agreement",
    }
    assert {f"train/{name}" for name in common | {"actor_loss", "weight"}} <= last.keys()
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (config["algorithm"]["module"], config["algorithm"]["temperature"]) == ("my_method", 0.5)


def test_the_documented_environment_is_checked_demonstrated_cloned_and_finetuned(tmp_path):
    (tmp_path / "my_env.py").write_text(documented(ENVIRONMENT))
    own = "--config.env.module=my_env"
    assert gcp_jax(tmp_path, "check", own)["env"] == "my_env"
    demos = gcp_jax(
        tmp_path, "demos", own, "--quality=expert", "--episodes=8", "--out=demos/my_env"
    )
    assert demos["success"] == 1.0 and len(demos["modes"]) == 2
    cloned = (
        own,
        "--config.demonstrations.path=demos/my_env",
        "--config.run_dir=run",
        "--config.env.tolerance_mm=5",
    )
    assert (
        gcp_jax(tmp_path, "train", *cloned, *(f"--config.{word}" for word in TINY))["updates"] > 0
    )
    played = gcp_jax(tmp_path, "evaluate", "run/policy/seed_0", "--episodes=8")
    assert played["success"] == played["recorded"]


def test_the_commands_of_the_guides_name_what_exists():
    assert (ROOT / "experiments" / "configs" / "peg_insert.py").is_file()
    for path in re.findall(r"`((?:gcp_jax|algorithms|envs)/\w+\.py)`", ALGORITHM + ENVIRONMENT):
        assert (ROOT / path).is_file() or (ROOT / "gcp_jax" / path).is_file(), path

"""The documented method is what the documentation says: under 80 lines, outside the package, run by name."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "add_an_algorithm.md").read_text(encoding="utf-8")
TINY = (
    "env.name=reach", "env.horizon=16", "policy.hidden=(8,)", "policy.steps=2", "demonstrations.episodes=8", "pretrain.updates=2",
    "pretrain.evaluate_every=2", "finetune.env_steps=384", "finetune.warmup_steps=128", "finetune.envs=8", "finetune.rows=4",
    "finetune.batch_size=16", "finetune.utd=0.02", "evaluation.episodes=8", "evaluation.every=384", "video=False",
    "algorithm.module=my_method", "algorithm.temperature=0.5", "algorithm.critics=2", "algorithm.critic_hidden=(8,)",
)  # fmt: skip


def documented() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    return code


def test_the_documented_method_runs_from_a_file_of_the_user(tmp_path):
    assert len(documented().splitlines()) < 80
    (tmp_path / "my_method.py").write_text(documented())
    command = [sys.executable, "-m", "experiments.cli", "train", "--json", "--config.run_dir=run"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    words = [f"--config.{word}" for word in TINY]
    done = subprocess.run([*command, *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["updates"] > 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["stage"] == "finetune"][-1]
    common = {"action_spread", "distance_from_base", "ratio_step_0", "kl_step_1", "agreement"}
    assert {f"train/{name}" for name in common | {"actor_loss", "weight"}} <= last.keys()
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (config["algorithm"]["module"], config["algorithm"]["temperature"]) == ("my_method", 0.5)


def test_the_commands_of_the_guide_name_what_exists():
    assert (ROOT / "experiments" / "configs" / "peg_insert.py").is_file()
    for path in re.findall(r"`(gcp_jax/\w+\.py|algorithms/\w+\.py)`", GUIDE):
        assert (ROOT / path).is_file() or (ROOT / "gcp_jax" / path).is_file(), path

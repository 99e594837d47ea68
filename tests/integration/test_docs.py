"""The guides can be followed: their code is written to files and their commands are run, word for
word but shorter.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from helpers.runs import environment

from gcp_jax.core.policy import PolicyConfig, make_policy
from gcp_jax.experiments import api
from gcp_jax.run import saved_policy
from gcp_jax.types import Specs

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent.parent
GUIDES = ROOT / "docs" / "guides"
METHOD = (GUIDES / "add_a_method.md").read_text(encoding="utf-8")
ENVIRONMENT = (GUIDES / "add_an_environment.md").read_text(encoding="utf-8")
SAVED_POLICY = (GUIDES / "load_a_policy.md").read_text(encoding="utf-8")
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


SHORTER = {
    "check": (),
    "train": tuple(f"--config.{word}" for word in TINY),
    "demos": ("--episodes=8",),
    "evaluate": ("--episodes=8",),
}
"""Flags by which a documented command is made short; what the guide says stays as it is."""


def documented(guide: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    return code


def commands(guide: str) -> list[list[str]]:
    """The words of every command in a guide, in their order."""
    blocks = re.findall(r"```bash\n(.*?)```", guide, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("gcp-jax ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def follow(folder: Path, guide: str, *further: str) -> dict[str, dict]:
    """Run every command of a guide; the JSON objects by the commands' names."""
    said = {}
    for name, *words in commands(guide):
        extra = further if name == "train" else ()
        said[name] = gcp_jax(folder, name, *words, *SHORTER[name], *extra)
    return said


def gcp_jax(folder: Path, *words: str) -> dict:
    """Run a command from ``folder``; its JSON object."""
    command = [sys.executable, "-m", "gcp_jax.launch.cli.main", *words, "--json"]
    env = {**environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_guide_to_a_method_can_be_followed(tmp_path):
    lines = documented(METHOD).splitlines()
    assert len(lines) < 120
    assert max(map(len, lines)) <= 100
    (tmp_path / "my_method.py").write_text(documented(METHOD))
    said = follow(tmp_path, METHOD)
    assert said.keys() == {"check", "train"}
    assert {"act", "update", "export", "q_values", "devices", "learns"} < said["check"].keys()
    assert said["train"]["updates"] > 0
    run = tmp_path / "runs" / "mine"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["stage"] == "finetune"][-1]
    common = {
        "action_std",
        "base_action_rmse",
        "ratio_step_0",
        "kl_step_1",
        "critic_sign_agreement",
    }
    assert {f"train/{name}" for name in common | {"actor_loss", "weight"}} <= last.keys()
    config = json.loads((run / "config.json").read_text())["config"]
    assert (config["algorithm"]["module"], config["algorithm"]["temperature"]) == ("my_method", 0.5)


def test_the_guide_to_an_environment_can_be_followed(tmp_path):
    (tmp_path / "my_env.py").write_text(documented(ENVIRONMENT))
    said = follow(tmp_path, ENVIRONMENT, "--config.env.tolerance_mm=5")
    assert said.keys() == {"check", "demos", "train", "evaluate"}
    assert said["check"]["env"] == "my_env"
    assert said["check"]["demonstrator"].startswith("2 of 2 clean episodes succeed")
    assert "camera 'main'" in said["check"]["scene"]
    assert len(said["demos"]["modes"]) == 2
    assert said["train"]["updates"] > 0
    assert said["evaluate"]["success"] == said["evaluate"]["recorded"]
    own = "--config.env.module=my_env"
    expert = gcp_jax(tmp_path, "demos", own, "--quality=expert", "--episodes=8", "--out=demos/best")
    assert expert["success"] == 1.0


def test_the_guide_to_a_saved_policy_can_be_followed(tmp_path, monkeypatch):
    """Its blocks run one after the other, on a policy that was not trained."""
    env = api.make_env("peg_insert")
    specs = Specs(env.specs.obs_dim, env.specs.action_dim, chunk=4)
    policy = make_policy(PolicyConfig(hidden=(8,), steps=2), specs)
    facts = {"env": {"name": "peg_insert"}}
    for name in ("seed_0", "base"):
        saved_policy.save_policy(
            tmp_path / "runs" / "first" / "policy" / name,
            policy=policy,
            deployed=policy.untrained(jax.random.key(0)),
            facts=facts,
        )
    trained = []

    def train(config=None, overrides=None, *, run_dir=""):
        trained.append(api.make_config(config, overrides))
        return {"success": 0.0}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gcp_jax.train", train, raising=False)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", SAVED_POLICY, re.DOTALL):
        exec(compile(block, "load_a_policy.md", "exec"), names)
    assert trained[0].pretrain.saved_policy == "runs/first/policy/base"
    assert trained[0].algorithm.name == "qc"


def test_the_commands_of_the_guides_name_what_exists():
    assert (ROOT / "experiments" / "configs" / "peg_insert.py").is_file()
    for path in re.findall(r"`((?:gcp_jax|algorithms|envs)/\w+\.py)`", METHOD + ENVIRONMENT):
        assert (ROOT / path).is_file() or (ROOT / "gcp_jax" / path).is_file(), path

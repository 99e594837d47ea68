"""Small runs through the command line, in processes of their own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

CLI = [sys.executable, "-m", "gcp_jax.launch.cli.main"]
CONFIG = "experiments/configs/reach.py"
TINY = {
    "policy.hidden": "(16,16)",
    "policy.steps": "2",
    "algorithm.critic_hidden": "(16,16)",
    "algorithm.chains": "4",
    "algorithm.actor_states": "8",
    "algorithm.critics": "2",
    "demonstrations.episodes": "32",
    "pretrain.updates": "100",
    "pretrain.evaluate_every": "50",
    "pretrain.batch_size": "64",
    "finetune.envs": "8",
    "finetune.unroll_chunks": "4",
    "finetune.batch_size": "32",
    "finetune.env_steps": "1536",
    "finetune.learning_starts": "256",
    "finetune.capacity": "1024",
    "finetune.utd": "0.0625",
    "evaluation.episodes": "16",
    "evaluation.every": "512",
    "checkpoint.every": "256",
    "seeds": "2",
}

# Tests compile more than they run: level 0 takes a third of the compile time. Code generation is
# not split, because the other core runs tests of its own. An unknown flag aborts the process.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) < (0, 11):
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"


def train_flags(folder: Path, **fields: str | None) -> list[str]:
    """The flags of ``gcp-jax train`` with TINY and these fields; None: the field's default."""
    overrides = {name: value for name, value in {**TINY, **fields}.items() if value is not None}
    return [
        f"--config={CONFIG}",
        f"--run_dir={folder}",
        *(f"--config.{name}={value}" for name, value in overrides.items()),
        "--json",
    ]


def train_command(folder: Path, **fields: str | None) -> list[str]:
    """The command of this training."""
    return [*CLI, "train", *train_flags(folder, **fields)]


def environment() -> dict[str, str]:
    """The environment variables of a run's process: one device, a shared compilation cache."""
    variables = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    default_cache = Path.home() / ".cache" / "gcp-jax" / "tests"
    cache = os.environ.get("GCP_JAX_TEST_CACHE") or str(default_cache)
    return {
        **variables,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": QUICK_COMPILATION,
    }


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=900, check=False
    )


def last_json(done: subprocess.CompletedProcess[str]) -> dict:
    """The JSON object on the last line of a command that succeeded."""
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])

"""Small runs through the command line, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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


def command(folder: Path, *extra: str, **fields: str | None) -> list[str]:
    """The training with TINY and these fields; one that is None is left at its default."""
    given = {name: value for name, value in {**TINY, **fields}.items() if value is not None}
    overrides = [f"--config.{name}={value}" for name, value in given.items()]
    program = [sys.executable, "-m", "gcp_jax.launch.cli.main", "train", f"--config={CONFIG}"]
    return [*program, f"--config.run_dir={folder}", *overrides, "--json", *extra]


def environment() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    cache = os.environ.get("GCP_JAX_TEST_CACHE") or str(
        Path.home() / ".cache" / "gcp-jax" / "tests"
    )
    quick = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"  # mostly these runs compile
    return {
        **clean,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": quick,
    }


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, env=environment(), timeout=500, check=False
    )


def last_json(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])

"""``gcp-jax plan``: what a run will do and hold, from shapes alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import memory
from gcp_jax import learner, policy
from gcp_jax import train as training
from gcp_jax.config import Run
from gcp_jax.types import PyTree


def plan(config: Run, task: training.Task, *, peak: bool = False) -> dict[str, Any]:
    """Numbers of a run; nothing is compiled or allocated. Raises ConfigError where sizes do not fit.

    peak: also the memory of a segment of finetuning over all devices, for which the segment is traced (seconds).
    """
    size = training.sizes(config, task.env.specs)
    base = policy.make(config.policy, size.specs)
    shapes = jax.eval_shape(lambda: _train(config, task, base, size))
    batch = config.finetune.batch_size
    members = len(config.members)
    learning = max(size.segments - size.warmup, 0)
    return {
        "env": config.env["name"],
        "algorithm": config.algorithm["name"],
        "seeds": config.seeds,
        **({"members": members} if config.population else {}),
        "env_steps_per_seed": size.segments * size.env_steps,
        "warmup_env_steps": size.warmup * size.env_steps,
        "env_steps_per_segment": size.env_steps,
        "segments": size.segments,
        "updates_per_segment": size.updates,
        "updates": learning * size.updates,
        "utd": size.updates / size.env_steps,
        "batch_size": batch,
        "evaluations": -(-size.segments // size.evaluate),
        "replay_steps": size.capacity * config.finetune.envs * config.policy.chunk,
        "policy_parameters": _count(shapes["net"]),
        "state_bytes": members * _bytes(shapes["train"].state),
        "replay_bytes": members * _bytes(shapes["train"].store),
        "env_bytes": members * _bytes(shapes["train"].env),
        "batches_bytes": members * size.updates * batch * _bytes_per_sample(size),
        **({"peak_bytes": _peak(config, task)} if peak else {}),
    }


def _peak(config: Run, task: training.Task) -> int:
    """What is alive at once in a segment, the state it begins with included."""
    dry = training.Training(config, task, Path(), "").dry
    return memory.temporaries(jax.make_jaxpr(dry)().jaxpr)


def _train(config: Run, task: training.Task, base: policy.Policy, size: training.Sizes) -> dict[str, PyTree]:
    algorithm = training.method(config, base, size)
    fine, specs = config.finetune, size.specs
    collection = learner.Collection(task.env, fine.envs, size.rows, fine.fresh, size.warmup)
    pretrained = base.untrained(jax.random.key(0))
    train = learner.initial(lambda values: (algorithm, None), specs, collection, jnp.int32(0), pretrained, {})
    return {"net": pretrained["net"], "train": train}


def _bytes_per_sample(size: training.Sizes) -> int:
    """One transition of a batch: two observations, a chunk with its mask, two numbers and two flags."""
    specs = size.specs
    return 4 * (2 * specs.obs_dim + specs.flat_action_dim + specs.chunk + 2) + 2


def _count(tree: PyTree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def text(numbers: dict[str, Any]) -> str:
    """The plan as a person reads it."""
    lines = ["plan"]
    for name, value in numbers.items():
        if name.endswith("_bytes"):
            shown = f"{value / 2**20:,.1f} MiB"
        elif isinstance(value, float):
            shown = f"{value:g}"
        else:
            shown = f"{value:,}" if isinstance(value, int) else str(value)
        lines.append(f"  {name.removesuffix('_bytes').replace('_', ' '):<24} {shown}")
    return "\n".join(lines)

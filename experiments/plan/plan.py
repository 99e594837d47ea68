"""``gcp-jax plan``: what a run will do and hold, from shapes alone."""

from __future__ import annotations

import json
import math
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax import envs
from gcp_jax.config import RunConfig
from gcp_jax.core import policy
from gcp_jax.experiments.plan import flops, peak_memory
from gcp_jax.learner import loop
from gcp_jax.run import training
from gcp_jax.types import Algorithm, Array, PyTree, Specs


def plan(config: RunConfig, task: training.TaskInterface, *, peak: bool = False) -> dict[str, Any]:
    """Numbers of a run; nothing is compiled or allocated. Raises ConfigError where sizes do not fit.

    peak: also the memory of a segment of finetuning over all devices, for which the segment is traced (seconds).
    """
    size = training.run_sizes(config, task.env.specs)
    base = policy.make_policy(config.policy, size.specs)
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


class Cost(NamedTuple):
    """Work of a run: multiplications and additions of all its networks' training, and environment steps, over all members."""

    flops: float
    env_steps: int
    steps_per_s: float  # of the environment as it was measured (``envs/measured.json``); 0 where it never was

    def hours(self, rate: float) -> float:
        """On a machine that does ``rate`` operations a second. Compiling, acting and evaluations come on top."""
        simulated = self.env_steps / self.steps_per_s if self.steps_per_s else 0.0
        return (self.flops / rate + simulated) / 3600


def cost(config: RunConfig, task: training.TaskInterface) -> Cost:
    """Of cloning and finetuning, by the products in the jaxpr of an update (seconds of tracing)."""
    size, fine, members = (
        training.run_sizes(config, task.env.specs),
        config.finetune,
        len(config.members),
    )
    base = policy.make_policy(config.policy, size.specs)
    algorithm = training.build_algorithm(config, base, size)
    pretrained = jax.eval_shape(base.untrained, jax.random.key(0))
    state = jax.eval_shape(algorithm.init, jax.random.key(0), pretrained)
    shapes = batches(algorithm, size.specs, state, rows=size.rows, columns=fine.envs)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes)
    update = flops.flops(flops.count(algorithm.update, state, one, jax.random.key(0)))
    cloned = 0 if config.pretrain.artifact else config.pretrain.updates * config.pretrain.batch_size
    steps = size.segments * size.env_steps * members
    learning = max(size.segments - size.warmup, 0) * size.updates * members
    forward_and_back = 6 * _count(
        pretrained["net"]
    )  # two operations a weight, and twice that backwards
    measured = json.loads(Path(envs.__file__).with_name("measured.json").read_text())
    speeds = measured.get(config.env["name"], {}).get("speed", {})
    speed = max((each["task_steps_per_s"] for each in speeds.values()), default=0.0)
    return Cost(cloned * forward_and_back + learning * update, steps, speed)


def batches(
    algorithm: Algorithm, specs: Specs, state: PyTree, *, rows: int, columns: int
) -> PyTree:
    """Shapes of the batches [U, B, ...] that a first segment of ``rows`` chunks in ``columns`` environments makes."""

    def made(state: PyTree, key: Array) -> PyTree:
        item = loop.segment_item(specs, lambda obs: algorithm.act(state, obs, key), columns)
        segment = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:])), item)
        _, segment = algorithm.preprocess_segment(state, segment)
        return algorithm.source.step(algorithm.source.init(item), segment, key, jnp.int32(0))[1]

    return jax.eval_shape(made, state, jax.random.key(0))


def rate() -> float:
    """Operations a second of this machine, by a matrix product of the size that updates have."""
    x = jnp.ones((1024, 512))
    product = jax.jit(lambda x: x @ x.T)
    jax.block_until_ready(product(x))
    spent = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(product(x))
        spent.append(time.perf_counter() - began)
    return 2 * 1024 * 512 * 1024 / statistics.median(spent)


def _peak(config: RunConfig, task: training.TaskInterface) -> int:
    """What is alive at once in a segment, the state it begins with included."""
    dry = training.Training(config, task, Path(), "").dry
    return peak_memory.temporaries(jax.make_jaxpr(dry)().jaxpr)


def _train(
    config: RunConfig, task: training.TaskInterface, base: policy.Policy, size: training.Sizes
) -> dict[str, PyTree]:
    algorithm = training.build_algorithm(config, base, size)
    fine, specs = config.finetune, size.specs
    collection = loop.CollectConfig(
        task.env, fine.envs, size.rows, fine.reset_pool_size, size.warmup
    )
    pretrained = base.untrained(jax.random.key(0))
    train = loop.initial_train_state(
        lambda values: (algorithm, None), specs, collection, jnp.int32(0), pretrained, {}
    )
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

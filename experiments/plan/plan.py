"""``gcp-jax plan``: the sizes of a run and what it will take, from shapes alone."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax import envs
from gcp_jax.config import RunConfig
from gcp_jax.experiments.plan import flops, peak_memory
from gcp_jax.json_files import read_json
from gcp_jax.learner import loop
from gcp_jax.run.assemble import FinetuneSetup, assemble_finetuning, trace_first_segment
from gcp_jax.run.size_notes import size_notes
from gcp_jax.run.sizes import RunSizes, run_sizes, stage_cadences
from gcp_jax.run.task import TaskInterface
from gcp_jax.types import Algorithm, Array, PyTree, Specs


def plan(config: RunConfig, task: TaskInterface, *, peak: bool = False) -> dict[str, Any]:
    """The sizes of a run. Nothing is compiled or allocated.

    Args:
      config: the run.
      task: its task.
      peak: also estimate the memory of a segment of finetuning over all devices, for which the
        segment is traced (seconds).

    Raises:
      ConfigError: if sizes do not fit together.
    """
    size = run_sizes(config, task.env.specs)
    shapes = jax.eval_shape(lambda: _initial_state(config, task))
    train = shapes["train"]
    batch = config.finetune.batch_size
    members = len(config.members)
    state_bytes = members * _bytes(train.learner.state)
    learning_segments = size.segments - size.warmup_segments
    numbers: dict[str, Any] = {
        "env": config.env.name,
        "algorithm": config.algorithm.name,
        "seeds": config.seeds,
    }
    if config.population:
        numbers["members"] = members
    if not config.pretrain.saved_policy:
        pretrain = stage_cadences(config, size).pretrain
        numbers["cloning_updates"] = pretrain.segments * pretrain.updates
    numbers |= {
        "env_steps_per_seed": size.segments * size.env_steps,
        "warmup_env_steps": size.warmup_segments * size.env_steps,
        "env_steps_per_segment": size.env_steps,
        "segments": size.segments,
        "updates_per_segment": size.updates,
        "updates": learning_segments * size.updates,
        "utd": size.updates / size.env_steps,
        "batch_size": batch,
        "evaluations": -(-size.segments // size.evaluate_every),
        "replay_steps": size.capacity * config.finetune.envs * config.policy.chunk,
        "policy_parameters": _count(shapes["net"]),
        "state_bytes": state_bytes,
        "replay_bytes": members * _bytes(train.learner.buffer_state),
        "env_bytes": members * _bytes(train.env_state),
        **({"best_state_bytes": state_bytes} if config.finetune.on_decay == "restore" else {}),
        "batches_bytes": members * size.updates * batch * _bytes_per_sample(size),
    }
    if peak:
        numbers["peak_bytes"] = _peak(config, task)
    notes = size_notes(config, size)
    if notes:
        numbers["notes"] = notes
    return numbers


class Cost(NamedTuple):
    """The work of a run over all its members."""

    flops: float  # multiplications and additions of training all networks
    env_steps: int
    steps_per_s: float  # of the environment, from envs/measured.json; 0 if it was not measured

    def hours(self, rate: float) -> float:
        """Hours on a machine with ``rate`` operations a second.

        Compiling, acting and evaluations are not included.
        """
        simulation = self.env_steps / self.steps_per_s if self.steps_per_s else 0.0
        return (self.flops / rate + simulation) / 3600


def cost(config: RunConfig, task: TaskInterface) -> Cost:
    """The work of cloning and finetuning, from the jaxpr of an update (seconds of tracing)."""
    setup = assemble_finetuning(config, task)
    size = setup.sizes
    members = len(config.members)
    pretrained = jax.eval_shape(setup.policy.untrained, jax.random.key(0))
    samples = 0
    if not config.pretrain.saved_policy:
        pretrain = stage_cadences(config, size).pretrain
        samples = pretrain.segments * pretrain.updates * config.pretrain.batch_size
    # two operations a weight forwards, twice that backwards
    cloning = samples * 6 * _count(pretrained["net"])
    updates = (size.segments - size.warmup_segments) * size.updates * members
    return Cost(
        flops=cloning + updates * _update_flops(setup, pretrained),
        env_steps=size.segments * size.env_steps * members,
        steps_per_s=_measured_speed(config.env.name),
    )


def _update_flops(setup: FinetuneSetup, pretrained: PyTree) -> int:
    """Operations of one update of the method."""
    algorithm = setup.algorithm
    state = jax.eval_shape(algorithm.init, jax.random.key(0), pretrained)
    shapes = batches(
        algorithm,
        setup.sizes.specs,
        state,
        rows=setup.sizes.unroll_chunks,
        columns=setup.config.finetune.envs,
    )
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes)
    return flops.flops(flops.count(algorithm.update, state, batch, jax.random.key(0)))


def _measured_speed(env: str) -> float:
    """Steps per second of a task as ``benchmarks.environments`` measured it; 0 if it did not."""
    measured = read_json(Path(envs.__file__).with_name("measured.json"))
    speeds = measured.get(env, {}).get("speed", {})
    return max((each["task_steps_per_s"] for each in speeds.values()), default=0.0)


def batches(
    algorithm: Algorithm, specs: Specs, state: PyTree, *, rows: int, columns: int
) -> PyTree:
    """Shapes of the batches [U, B, ...] that the first segment gives.

    Args:
      algorithm: the method.
      specs: the sizes of the task.
      state: the method's state, or its shapes.
      rows: L, chunks of a segment.
      columns: N, environments.
    """

    def first_batches(state: PyTree, key: Array) -> PyTree:
        item = loop.segment_item(specs, lambda obs: algorithm.act(state, obs, key), columns)
        segment = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:])), item)
        _, segment = algorithm.preprocess_segment(state, segment)
        source = algorithm.source
        return source.step(source.init(item), source.data, segment, key, jnp.int32(0))[1]

    return jax.eval_shape(first_batches, state, jax.random.key(0))


def rate() -> float:
    """Operations a second of this machine, by a matrix product of the size that updates have."""
    x = jnp.ones((1024, 512))
    product = jax.jit(lambda x: x @ x.T)
    jax.block_until_ready(product(x))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(x))
        seconds.append(time.perf_counter() - start)
    return 2 * 1024 * 512 * 1024 / statistics.median(seconds)


def text(numbers: dict[str, Any]) -> str:
    """The plan as lines for people."""
    lines = ["plan"]
    for name, value in numbers.items():
        if name == "notes":
            lines += [f"  note: {note}" for note in value]
            continue
        label = name.removesuffix("_bytes").replace("_", " ")
        lines.append(f"  {label:<24} {_value_text(name, value)}")
    return "\n".join(lines)


def _value_text(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{value / 2**20:,.1f} MiB"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def _peak(config: RunConfig, task: TaskInterface) -> int:
    """Bytes alive at once in a segment, the state it begins with included."""
    jaxpr = jax.make_jaxpr(lambda: trace_first_segment(config, task))().jaxpr
    return peak_memory.temporaries(jaxpr)


def _initial_state(config: RunConfig, task: TaskInterface) -> dict[str, PyTree]:
    """The parameters of an untrained policy, and the state that finetuning starts with."""
    setup = assemble_finetuning(config, task)
    pretrained = setup.policy.untrained(jax.random.key(0))
    train = loop.initial_train_state(
        lambda values: (setup.algorithm, None),
        setup.sizes.specs,
        setup.collect_config(),
        jnp.int32(0),
        pretrained,
        {},
    )
    return {"net": pretrained["net"], "train": train}


def _bytes_per_sample(size: RunSizes) -> int:
    """Bytes of a transition: two observations, a chunk with its mask, two numbers, two flags."""
    specs = size.specs
    return 4 * (2 * specs.obs_dim + specs.flat_action_dim + specs.chunk + 2) + 2


def _count(tree: PyTree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))

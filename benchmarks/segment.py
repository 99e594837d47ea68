"""Where the time of a segment goes: physics, sampling, updates, and the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import environments, setup, timing
from gcp_jax import algorithms, envs
from gcp_jax.experiments.plan import plan
from gcp_jax.learner import xla_options
from gcp_jax.types import Array, PRNGKey, PyTree

METHODS = ("ogpo", "dsrl", "residual", "expo", "qc", "fql", "dppo")


def run(*, quick: bool) -> Iterator[timing.Measured]:
    """Every method on ``peg_insert`` with its defaults."""
    if quick:
        yield "qc", measure("peg_insert", "qc", num_envs=8, repeats=2)
        return
    for method in METHODS:
        yield method, measure("peg_insert", method, num_envs=64, repeats=5)


def measure(task: str, method: str, num_envs: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of a segment and of each of its parts alone, as ``figures`` returns them."""
    fields: dict[str, Any] = {"finetune__envs": num_envs}
    if not algorithms.on_policy(algorithms.load(method)):
        # An on-policy method needs the rows of a whole segment for its minibatches.
        fields["finetune__unroll_chunks"] = setup.UNROLL_CHUNKS
    made = setup.make_run(task, method, **fields)
    train = made.start()
    segment = made.learner.compile(train).segment
    state = jax.tree.map(lambda x: jnp.copy(x[0]), train.learner.state)
    env_steps = made.sizes.unroll_chunks * made.sizes.specs.chunk
    programs = {
        "segment": setup.make_stepper(segment, train),
        "physics": environments.make_physics(envs.make(task), num_envs, env_steps),
        "sampling": _make_sampling(made, state),
        "updates": _make_updates(made, state),
    }
    updates = made.algorithm.source.updates
    return figures(timing.measure(programs, repeats), updates)


def _make_sampling(made: setup.BenchmarkRun, state: PyTree) -> Any:
    """The policy's actions for a segment, one call after the other."""
    obs = jnp.zeros((made.config.finetune.envs, made.sizes.specs.obs_dim))

    @jax.jit
    def sample(state: PyTree, key: PRNGKey) -> Array:
        def act(total: Array, key: PRNGKey) -> tuple[Array, None]:
            chunk, _ = made.algorithm.act(state, obs + total, key)
            return total + jnp.mean(chunk), None

        keys = jax.random.split(key, made.sizes.unroll_chunks)
        total: Array
        total, _ = jax.lax.scan(act, jnp.float32(0), keys)
        return total

    key = jax.random.key(0)
    return lambda: sample(state, key)


def _make_updates(made: setup.BenchmarkRun, state: PyTree) -> Any:
    """The updates of a segment, on batches of ones."""
    algorithm = made.algorithm
    shapes = plan.batches(
        algorithm,
        made.sizes.specs,
        state,
        rows=made.sizes.unroll_chunks,
        columns=made.config.finetune.envs,
    )
    batches = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)

    @partial(jax.jit, compiler_options=xla_options.learning_options())
    def update(state: PyTree, batches: PyTree, key: PRNGKey) -> PyTree:
        keys = jax.random.split(key, algorithm.source.updates)
        return jax.lax.scan(
            lambda state, inputs: algorithm.update(state, *inputs), state, (batches, keys)
        )

    key = jax.random.key(0)
    return lambda: update(state, batches, key)


def figures(seconds: Mapping[str, timing.Seconds], updates: int) -> dict[str, Any]:
    """Milliseconds of the segment and of its parts, their shares of it, and the share of the rest.

    ``rest`` is rewards, resets, replay and diagnostics. ``updates_per_s`` is what the updates alone
    reach.

    Args:
      seconds: of the segment and of its parts.
      updates: of a segment.
    """
    parts = [name for name in seconds if name != "segment"]
    whole = seconds["segment"].wall
    sums = [sum(seconds[part].wall[i] for part in parts) for i in range(len(whole))]
    measured = timing.paired_ratio(sums, whole)
    result = {f"{name}_ms": round(1e3 * s.median_wall, 2) for name, s in seconds.items()}
    for part in parts:
        share = timing.paired_ratio(seconds[part].wall, whole).median
        result[part] = round(share, 3)
    result["rest"] = round(1.0 - measured.median, 3)
    result["spread"] = round(measured.spread, 3)
    result["updates_per_s"] = round(updates / seconds["updates"].median_wall, 1)
    return result

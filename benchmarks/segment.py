"""Where the time of a segment goes: physics, sampling, updates, and everything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import environments, setup, timing
from gcp_jax import algorithms
from gcp_jax.experiments.plan import plan
from gcp_jax.learner import xla_options
from gcp_jax.types import Array, PyTree

METHODS = ("ogpo", "dsrl", "residual", "expo", "qc", "fql", "dppo")


def run(*, quick: bool) -> Iterator[timing.Measured]:
    """Every method on ``peg_insert`` with its defaults for many environments."""
    methods, envs = (("qc",), 8) if quick else (METHODS, 64)
    for method in methods:
        yield method, measure("peg_insert", method, envs, 2 if quick else 5)


def measure(task: str, method: str, envs: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of a segment and of its parts alone; ``rest`` is what is left: rewards, resets, replay, diagnostics."""
    once = algorithms.on_policy(algorithms.load(method))  # it makes its minibatches of the rows
    short = {} if once else {"finetune__rows": setup.ROWS}
    made = setup.make(task, method, finetune__envs=envs, **short)
    algorithm, rows, specs = made.algorithm, made.size.rows, made.size.specs
    train = made.start()
    segment = made.learner.compile(train).segment
    state = jax.tree.map(lambda x: jnp.copy(x[0]), train.state)
    obs, key = jnp.zeros((envs, specs.obs_dim)), jax.random.key(0)

    @jax.jit
    def sample(state: PyTree, key: Array) -> Array:
        def act(total: Array, key: Array) -> tuple[Array, None]:
            chunk, _ = algorithm.act(state, obs + total, key)
            return total + jnp.mean(chunk), None

        return jax.lax.scan(act, jnp.float32(0), jax.random.split(key, rows))[0]

    shapes = plan.batches(algorithm, specs, state, rows=rows, columns=envs)
    batches = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)

    @partial(jax.jit, compiler_options=xla_options.learning_options())
    def update(state: PyTree, batches: PyTree, key: Array) -> PyTree:
        keys = jax.random.split(key, algorithm.source.updates)
        return jax.lax.scan(
            lambda state, inputs: algorithm.update(state, *inputs), state, (batches, keys)
        )

    programs = {
        "segment": setup.stepper(segment, train),
        "physics": environments.physics(environments.envs.make(task), envs, rows * specs.chunk),
        "sampling": lambda: sample(state, key),
        "updates": lambda: update(state, batches, key),
    }
    return told(timing.measure(programs, repeats))


def told(spent: Mapping[str, timing.Spent]) -> dict[str, Any]:
    """Milliseconds of the segment and of its parts, their shares of it, and what they leave over."""
    parts = [name for name in spent if name != "segment"]
    whole = spent["segment"].wall
    together = [sum(spent[part].wall[i] for part in parts) for i in range(len(whole))]
    shares = {part: round(timing.ratio(spent[part].wall, whole).median, 3) for part in parts}
    rest = timing.ratio(together, whole)
    milliseconds = {f"{name}_ms": round(1e3 * times.seconds, 2) for name, times in spent.items()}
    return {
        **milliseconds,
        **shares,
        "rest": round(1.0 - rest.median, 3),
        "spread": round(rest.spread, 3),
    }

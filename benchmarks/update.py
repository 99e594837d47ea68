"""One gradient update of each method at its authors' shapes, against plain matrix products of the same shapes.

A program's products are counted in its own jaxpr (XLA's estimate counts the body of a loop once) and each is timed alone, in the
same process: ``of_products`` is the time they would take by themselves, over the time of the update.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import timing
from gcp_jax import algorithms
from gcp_jax.core import policy
from gcp_jax.core.policy import PolicyConfig
from gcp_jax.experiments.plan import flops, plan
from gcp_jax.learner import batch_sources, xla_options
from gcp_jax.types import Array, PyTree, Specs

SPECS = Specs(obs_dim=23, action_dim=7, chunk=4)
WIDE = (512,) * 4
CRITICS = {"critics": 10, "critic_hidden": WIDE}


class Case(NamedTuple):
    """A method with the fields that are not its defaults, its policy, and the states of a batch."""

    method: str
    fields: dict[str, Any]
    policy: PolicyConfig
    batch: int


_FLOW = PolicyConfig(chunk=4, hidden=WIDE, steps=10)
_OGPO = {**CRITICS, "success_critic": True}  # one actor and two critic steps
CASES = {
    "ogpo 256×32": Case("ogpo", {**_OGPO, "chains": 32, "actor_states": 256}, _FLOW, 256),
    "ogpo 64×16": Case("ogpo", {**_OGPO, "chains": 16, "actor_states": 64}, _FLOW, 64),
    "dppo 5000×10": Case(
        "dppo",
        {"value_hidden": (256,) * 3},
        PolicyConfig(chunk=4, hidden=(512,) * 3, steps=10),
        5000,
    ),
    **{name: Case(name, CRITICS, _FLOW, 256) for name in ("dsrl", "residual", "expo", "qc", "fql")},
}
QUICK = PolicyConfig(chunk=4, hidden=(32,) * 2, steps=2)


def run(*, quick: bool) -> Iterator[timing.Measured]:
    """Every case."""
    for name, case in CASES.items():
        yield name, measure(case, quick=quick)


def measure(case: Case, *, quick: bool = False) -> dict[str, Any]:
    """Milliseconds, operations, and the fraction of the rate of plain products."""
    fields, batch, repeats = case.fields, case.batch, 5
    if quick:
        narrow = {name: (16,) for name in fields if name.endswith("hidden")}
        fields, batch, repeats = (
            {**fields, **narrow, **({"actor_states": 8} if "chains" in fields else {})},
            8,
            2,
        )
    update, inputs = program(case.method, fields, QUICK if quick else case.policy, batch)
    inside = flops.count(update, *inputs)
    options = xla_options.learning_options()
    compiled = jax.jit(update).lower(*inputs).compile(options)
    programs = {str(product): run for product, run in flops.alone(inside, options).items()}
    spent = timing.measure({"update": lambda: compiled(*inputs), **programs}, repeats)
    whole = spent["update"]
    weighed = [(times, spent[str(product)]) for product, times in inside.items()]
    wall = [sum(times * each.wall[i] for times, each in weighed) for i in range(repeats)]
    cpu = [sum(times * each.cpu[i] for times, each in weighed) for i in range(repeats)]
    costs = compiled.cost_analysis() or {}
    return {
        "ms": round(1e3 * whole.seconds, 2),
        "cpu_ms": round(1e3 * whole.cpu_seconds, 2),
        "gflop": round(1e-9 * flops.flops(inside), 3),
        "gflop_xla": round(1e-9 * costs.get("flops", float("nan")), 3),
        "of_products": timing.ratio(wall, whole.wall).told(),
        "of_products_cpu": timing.ratio(cpu, whole.cpu).told(),
        "products": sum(inside.values()),
    }


def program(
    method: str, fields: dict[str, Any], config: PolicyConfig, batch: int
) -> tuple[Any, tuple[Any, ...]]:
    """``update`` of a method and arguments for it, made up."""
    module, base = algorithms.load(method), policy.make_policy(config, SPECS)
    settings = module.Config(**fields)
    if algorithms.on_policy(module):
        needs = module.rollout_needs(settings)
        source = batch_sources.on_policy(rows=needs["minibatches"], columns=batch, **needs)
    else:
        source = batch_sources.replay(
            capacity=4, batch_size=batch, updates=1, **algorithms.replay_needs(module, settings)
        )
    algorithm = module.make(settings, base, source)
    rows, columns = (needs["minibatches"], batch) if algorithms.on_policy(module) else (1, 4)
    state = jax.jit(algorithm.init)(jax.random.key(1), jax.jit(base.untrained)(jax.random.key(0)))
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
        plan.batches(algorithm, SPECS, state, rows=rows, columns=columns),
    )
    return algorithm.update, (state, _made_up(shapes), jax.random.key(3))


def _made_up(shapes: PyTree) -> PyTree:
    """Numbers of order one."""
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(4), len(leaves))

    def leaf(like: jax.ShapeDtypeStruct, key: Array) -> Array:
        if jnp.issubdtype(like.dtype, jnp.floating):
            return jax.random.uniform(key, like.shape, like.dtype, minval=0.1)
        return jnp.zeros(like.shape, like.dtype)

    return jax.tree.unflatten(
        tree, [leaf(like, key) for like, key in zip(leaves, keys, strict=True)]
    )

"""One gradient update of each method at its authors' shapes, against its matrix products alone.

A program's products are counted in its own jaxpr (XLA's estimate counts the body of a loop once),
and each is timed alone, in the same process. ``of_products`` is the time that they would take by
themselves over the time of the update. ``of_plain`` is the time of OGPO's update over that of the
same update written plainly (``benchmarks.plain``) and compiled with XLA's own options.
``temporaries_mib`` is the memory that the update needs besides its arguments and results.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import plain, timing
from gcp_jax import algorithms
from gcp_jax.algorithms import ogpo
from gcp_jax.core.policy import PolicyConfig, make_policy
from gcp_jax.experiments.plan import flops, plan
from gcp_jax.learner import batch_sources, xla_options
from gcp_jax.types import Array, PRNGKey, PyTree, Specs

SPECS = Specs(obs_dim=23, action_dim=7, chunk=4)
WIDE = (512,) * 4
CRITICS = {"critics": 10, "critic_hidden": WIDE}


class Case(NamedTuple):
    """A method at its authors' shapes."""

    method: str
    fields: dict[str, Any]  # that differ from the method's defaults
    policy: PolicyConfig
    batch: int  # states


_FLOW = PolicyConfig(chunk=4, hidden=WIDE, steps=10)
_OGPO = {**CRITICS, "success_critic": True}  # one actor and two critic steps
CASES = {
    "ogpo 256×32": Case("ogpo", {**_OGPO, "chains": 32, "actor_states": 256}, _FLOW, 256),
    "ogpo 256×32 in 16 blocks": Case(
        "ogpo", {**_OGPO, "chains": 32, "actor_states": 256, "actor_blocks": 16}, _FLOW, 256
    ),
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
        if quick:
            yield name, measure(shrink(case), repeats=2)
        else:
            yield name, measure(case, repeats=5)


def shrink(case: Case) -> Case:
    """The case with small networks and a batch of 8."""
    fields = dict(case.fields)
    for name in fields:
        if name.endswith("hidden"):
            fields[name] = (16,)
    if "chains" in fields:
        fields["actor_states"] = 8
    if "actor_blocks" in fields:
        fields["actor_blocks"] = 2
    return Case(case.method, fields, QUICK, batch=8)


def measure(case: Case, *, repeats: int) -> dict[str, Any]:
    """Milliseconds, operations, and the time of the products over that of the update."""
    update, inputs = make_update(case)
    products = flops.count(update, *inputs)
    options = xla_options.learning_options()
    compiled = jax.jit(update).lower(*inputs).compile(options)
    programs = {"update": lambda: compiled(*inputs)}
    for product, program in flops.alone(products, options).items():
        programs[str(product)] = program
    if case.method == "ogpo":
        compiled_plain = jax.jit(make_plain_update(case)).lower(*inputs).compile()
        programs["plain"] = lambda: compiled_plain(*inputs)
    seconds = timing.measure(programs, repeats)
    whole = seconds["update"]
    weighted = [(times, seconds[str(product)]) for product, times in products.items()]
    wall = [sum(times * each.wall[i] for times, each in weighted) for i in range(repeats)]
    cpu = [sum(times * each.cpu[i] for times, each in weighted) for i in range(repeats)]
    costs = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    assert memory is not None
    of_plain = {}
    if "plain" in seconds:
        of_plain = {
            "of_plain": timing.paired_ratio(whole.wall, seconds["plain"].wall).figures(),
            "of_plain_cpu": timing.paired_ratio(whole.cpu, seconds["plain"].cpu).figures(),
        }
    return {
        "ms": round(1e3 * whole.median_wall, 2),
        "cpu_ms": round(1e3 * whole.median_cpu, 2),
        "gflop": round(1e-9 * flops.flops(products), 3),
        "gflop_xla": round(1e-9 * costs.get("flops", float("nan")), 3),
        "of_products": timing.paired_ratio(wall, whole.wall).figures(),
        "of_products_cpu": timing.paired_ratio(cpu, whole.cpu).figures(),
        "products": sum(products.values()),
        "temporaries_mib": round(memory.temp_size_in_bytes / 2**20),
        **of_plain,
    }


def make_plain_update(case: Case) -> Any:
    """OGPO's update of a case, written plainly: (state, batch, key) -> state."""
    config = ogpo.Config(**case.fields)
    policy = make_policy(case.policy, SPECS)
    return plain.PlainOGPO(config, policy, case.batch).update


def make_update(case: Case) -> tuple[Any, tuple[Any, ...]]:
    """``update`` of a method, and random arguments for it."""
    method = algorithms.load(case.method)
    policy = make_policy(case.policy, SPECS)
    settings = method.Config(**case.fields)
    if algorithms.on_policy(method):
        needs = method.rollout_needs(settings)
        rows = needs["minibatches"]
        columns = case.batch
        source = batch_sources.on_policy(rows=rows, columns=columns, **needs)
    else:
        rows = 1
        columns = 4
        needs = algorithms.replay_needs(method, settings)
        source = batch_sources.replay(capacity=4, batch_size=case.batch, updates=1, **needs)
    algorithm = method.make(settings, policy, source)
    pretrained = jax.jit(policy.untrained)(jax.random.key(0))
    state = jax.jit(algorithm.init)(jax.random.key(1), pretrained)
    batches = plan.batches(algorithm, SPECS, state, rows=rows, columns=columns)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches)
    return algorithm.update, (state, _random_like(batch), jax.random.key(3))


def _random_like(shapes: PyTree) -> PyTree:
    """Floating-point numbers in [0.1, 1); zeros for all others."""
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(4), len(leaves))

    def fill(like: jax.ShapeDtypeStruct, key: PRNGKey) -> Array:
        if jnp.issubdtype(like.dtype, jnp.floating):
            return jax.random.uniform(key, like.shape, like.dtype, minval=0.1)
        return jnp.zeros(like.shape, like.dtype)

    filled = [fill(like, key) for like, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, filled)

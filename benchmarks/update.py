"""One gradient update of each method at its authors' shapes, against its matrix products alone.

A program's products are counted in its own jaxpr (XLA's estimate counts the body of a loop once),
and each is timed alone, in the same process. ``of_products`` is the time that they would take by
themselves over the time of the update. ``of_plain`` is the time of OGPO's update over that of the
same update written plainly (``benchmarks.plain``) and compiled with XLA's own options.
``temporaries_mib`` is the memory that the update needs besides its arguments and results. OGPO
computes the densities of the blocks of chains in which its critics agree on the sign of an
advantage. Critics that were never trained agree on hardly any, so their parameters are moved
towards those of the first until they agree on about 30 % (``agree``), as in runs on ``peg_insert``;
"at once" is the update without blocks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import plain, timing
from gcp_jax import algorithms
from gcp_jax.algorithms import ogpo
from gcp_jax.core.critic import CriticState
from gcp_jax.core.policy import PolicyConfig, make_policy
from gcp_jax.experiments.plan import flops, plan
from gcp_jax.learner import batch_sources, xla_options
from gcp_jax.types import Array, Metrics, PRNGKey, PyTree, Specs

SPECS = Specs(obs_dim=23, action_dim=7, chunk=4)
WIDE = (512,) * 4
CRITICS = {"critics": 10, "critic_hidden": WIDE}


class Case(NamedTuple):
    """A method at its authors' shapes."""

    method: str
    fields: dict[str, Any]  # that differ from the method's defaults
    policy: PolicyConfig
    batch: int  # states
    similarity: float = 0.0  # of the critics: 0 their own parameters, 1 those of the first


_FLOW = PolicyConfig(chunk=4, hidden=WIDE, steps=10)


def _ogpo(states: int, chains: int, **fields: Any) -> Case:
    """One actor and two critic steps."""
    sizes = {"chains": chains, "actor_states": states}
    fields = {**CRITICS, "success_critic": True, **sizes, **fields}
    return Case("ogpo", fields, _FLOW, batch=states, similarity=0.8)


CASES = {
    "ogpo 256×32": _ogpo(256, 32),
    "ogpo 256×32 at once": _ogpo(256, 32, actor_blocks=1),
    "ogpo 64×16": _ogpo(64, 16),
    "ogpo 64×16 at once": _ogpo(64, 16, actor_blocks=1),
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
    return case._replace(fields=fields, policy=QUICK, batch=8)


def measure(case: Case, *, repeats: int) -> dict[str, Any]:
    """Milliseconds, operations, and the time of the products over that of the update."""
    update, inputs = make_update(case)
    options = xla_options.learning_options()
    compiled = jax.jit(update).lower(*inputs).compile(options)
    _, metrics = compiled(*inputs)
    products = executed_products(case, update, inputs, metrics)
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
    of_ogpo = {}
    if "plain" in seconds:
        of_ogpo = {
            "agree": round(float(metrics["advantage_nonzero_fraction"]), 3),
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
        **of_ogpo,
    }


def executed_products(
    case: Case, update: Any, inputs: tuple[Any, ...], metrics: Metrics
) -> Counter[flops.Product]:
    """The products of an update, of OGPO's blocks of chains those that were computed.

    Args:
      case: the case.
      update: its update.
      inputs: its arguments.
      metrics: its metrics.
    """
    turns = None
    if case.method == "ogpo":
        chains = case.fields["actor_states"] * case.fields["chains"]
        size = chains // ogpo.Config(**case.fields).blocks_of(chains)
        used = round(float(metrics["advantage_nonzero_fraction"]) * chains)
        turns = math.ceil(used / size)
    return flops.count(update, *inputs, turns=turns)


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
    if case.similarity:
        state = state._replace(critic=_similar_critics(state.critic, case.similarity))
    batches = plan.batches(algorithm, SPECS, state, rows=rows, columns=columns)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches)
    return algorithm.update, (state, _random_like(batch), jax.random.key(3))


def _similar_critics(critic: CriticState, similarity: float) -> CriticState:
    """Move the parameters of all critics towards those of the first."""

    def move(params: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x + similarity * (x[:1] - x), params)

    return critic._replace(params=move(critic.params), target_params=move(critic.target_params))


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

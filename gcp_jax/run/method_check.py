"""Contracts of a finetuning method that need no compilation: shapes, purity, devices.

``gcp-jax check`` and the start of every run with a method of the user's own call ``check_method``.
Each contract is a function of a ``Case`` that returns what it saw in one line, or raises
``ContractError``; to add one, add it to ``CONTRACTS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from gcp_jax import contracts
from gcp_jax import mesh as mesh_lib
from gcp_jax.config import ConfigError, RunConfig
from gcp_jax.contracts import ContractError, require
from gcp_jax.core.policy import Policy, make_policy
from gcp_jax.learner import loop
from gcp_jax.run.assemble import build_algorithm
from gcp_jax.run.sizes import RunSizes, run_sizes
from gcp_jax.types import Algorithm, PyTree

GUIDE = "docs/guides/add_a_method.md"
CHUNK = "[environments, chunk, action dimensions]; policy.unflatten makes it of [..., D]"
STATES = 5  # states of q_values
SAMPLES = 3  # actions of each


class MethodError(ContractError):
    """A method breaks a contract; one line: which function, what it returned, what it must."""


class Case(NamedTuple):
    """A method and the shapes of what its functions take."""

    algorithm: Algorithm
    policy: Policy
    sizes: RunSizes
    envs: int  # N
    key: Any
    pretrained: PyTree
    state: PyTree  # what ``init`` returns
    batch: PyTree  # of one update
    segment: PyTree  # what ``preprocess_segment`` returns


def check_method(config: RunConfig, env_specs: Any) -> dict[str, str]:
    """Check the contracts of the configured method; nothing is compiled.

    Args:
      config: the run.
      env_specs: the specs of its environment.

    Returns:
      What was seen, by the contract's name.

    Raises:
      MethodError: at the first broken contract.
      ConfigError: sizes contradict each other.
    """
    name = config.algorithm.module or config.algorithm.name
    try:
        case = make_case(config, env_specs)
        return {contract: check(case) for contract, check in CONTRACTS.items()}
    except (ConfigError, MethodError):
        raise
    except ContractError as error:
        raise MethodError(f"the method {name!r} breaks its contract: {error} ({GUIDE})") from error


def make_case(config: RunConfig, env_specs: Any) -> Case:
    """Build the method and derive the shapes of its arguments.

    Raises:
      ContractError: ``make``, ``init``, ``act``, ``preprocess_segment`` or the source fails.
    """
    sizes = run_sizes(config, env_specs)
    policy = make_policy(config.policy, sizes.specs)
    try:
        algorithm = build_algorithm(config, policy, sizes)
    except ConfigError:
        raise
    except Exception as error:  # whatever a user's ``make`` raises
        raise ContractError(f"make fails: {contracts.describe_error(error)}") from error
    require(
        isinstance(algorithm, Algorithm),
        f"make returns a {type(algorithm).__name__}, must be a gcp_jax.types.Algorithm",
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    pretrained = jax.eval_shape(policy.untrained, key)
    state = contracts.shapes_of("init", algorithm.init, key, pretrained)
    _require_arrays("init returns a state", state)
    case = Case(
        algorithm=algorithm,
        policy=policy,
        sizes=sizes,
        envs=config.finetune.envs,
        key=key,
        pretrained=pretrained,
        state=state,
        batch=None,
        segment=None,
    )
    segment = _preprocessed(case, _collected(case))
    return case._replace(segment=segment, batch=_one_batch(case, segment))


def _require_arrays(what: str, tree: PyTree) -> None:
    for path, leaf in contracts.layout(tree).items():
        require("[" in leaf, f"{what} whose leaf {path} is a {leaf}, must be an array")


def _struct(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _collected(case: Case) -> PyTree:
    """The segment that ``act`` fills, after a check of what it returns."""
    specs, algorithm = case.sizes.specs, case.algorithm
    obs = _struct((case.envs, specs.obs_dim))
    result = contracts.shapes_of("act", algorithm.act, case.state, obs, case.key)
    require(
        isinstance(result, tuple) and len(result) == 2,
        f"act returns a {type(result).__name__}, must be a pair (chunk, extras), e.g. with {{}}",
    )
    chunk, extras = result
    _require_chunk("act", chunk, (case.envs, specs.chunk, specs.action_dim))
    for path, leaf in jax.tree_util.tree_leaves_with_path(extras):
        require(
            leaf.shape[:1] == (case.envs,),
            f"act returns extras{jax.tree_util.keystr(path)} as {contracts.text_of(leaf)}, must "
            f"have the axis [{case.envs}] of environments first",
        )

    def acted(obs: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), result)

    one_row = jax.eval_shape(lambda: loop.segment_item(specs, acted, case.envs))
    rows = case.sizes.unroll_chunks
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), one_row)


def _require_chunk(name: str, chunk: Any, shape: tuple[int, ...]) -> None:
    found, wanted = contracts.text_of(chunk), f"float32{list(shape)}"
    require(found == wanted, f"{name} returns the chunk {found}, must be {wanted} = {CHUNK}")


def _preprocessed(case: Case, segment: PyTree) -> PyTree:
    """What ``preprocess_segment`` returns, after a check."""
    preprocess = case.algorithm.preprocess_segment
    result = contracts.shapes_of("preprocess_segment", preprocess, case.state, segment)
    require(
        isinstance(result, tuple) and len(result) == 2 and hasattr(result[1], "steps"),
        "preprocess_segment must return a pair: (state, segment)",
    )
    state, processed = result
    _require_same("preprocess_segment", "state", case.state, state)
    _require_same("preprocess_segment", "segment.steps", segment.steps, processed.steps)
    return processed


def _require_same(name: str, what: str, before: PyTree, after: PyTree) -> None:
    found = contracts.changes(before, after)
    listed = ", ".join(f"{what}{change}" for change in found[:3])
    require(
        not found,
        f"{name} must return the structure, shapes and dtypes that it received; {listed}",
    )


def _one_batch(case: Case, segment: PyTree) -> PyTree:
    """The batch of one update, as the method's source makes it."""
    source = case.algorithm.source
    clock = jax.ShapeDtypeStruct((), jnp.int32)
    one_row = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), segment)
    buffer = contracts.shapes_of("source.init", source.init, one_row)
    _, batches = contracts.shapes_of(
        "source.step", source.step, buffer, source.data, segment, case.key, clock
    )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches)


# Contracts ---------------------------------------------------------------------------------------


def acting(case: Case) -> str:
    """``act`` returns a chunk [N, h, A] of float32; it is pure and draws from its key."""
    algorithm, specs = case.algorithm, case.sizes.specs
    obs = _struct((case.envs, specs.obs_dim))
    args = (case.state, obs, case.key)
    traced = contracts.check_pure(
        "act", algorithm.act, args, contracts.variables(algorithm.act, algorithm.update)
    )
    contracts.check_key("act", traced, _index_of_key(args))
    return f"chunk float32{[case.envs, specs.chunk, specs.action_dim]}, pure"


def _index_of_key(args: tuple[Any, ...]) -> int:
    """Which input of a jaxpr the last argument is."""
    return len(jax.tree.leaves(args)) - 1


def updating(case: Case) -> str:
    """``update`` keeps the state's structure, is pure, and draws from its key."""
    algorithm = case.algorithm
    args = (case.state, case.batch, case.key)
    watched = contracts.variables(algorithm.update, algorithm.act)
    traced = contracts.check_pure("update", algorithm.update, args, watched)
    result = traced.out
    require(
        isinstance(result, tuple) and len(result) == 2,
        f"update returns a {type(result).__name__}, must be a pair: (state, metrics)",
    )
    state, metrics = result
    _require_same("update", "state", case.state, state)
    _require_metrics(metrics)
    contracts.check_key("update", traced, _index_of_key(args))
    return f"{len(jax.tree.leaves(state))} leaves kept, {len(metrics)} scalar metrics, pure"


def _require_metrics(metrics: Any) -> None:
    require(
        isinstance(metrics, dict) and metrics and all(isinstance(name, str) for name in metrics),
        f"update returns metrics as a {type(metrics).__name__}, must be a dict {{name: scalar}} "
        "with at least one",
    )
    for name, value in metrics.items():
        found = contracts.text_of(value)
        scalar = found.endswith("[]") and jnp.issubdtype(value.dtype, jnp.floating)
        require(
            scalar,
            f"update returns the metric {name!r} as {found}, must be float32[]; "
            "take jnp.mean of it",
        )


def exporting(case: Case) -> str:
    """``export`` returns the policy's network and normalizer; ``eval_policy`` can act by it."""
    algorithm, specs = case.algorithm, case.sizes.specs
    deployed = contracts.shapes_of("export", algorithm.export, case.state)
    for name, like in case.pretrained.items():
        require(
            isinstance(deployed, dict) and name in deployed,
            f"export returns {_keys_of(deployed)}, must be a dict with 'net' and 'normalizer' (and "
            f"whatever else eval_policy needs): {name!r} is missing",
        )
        _require_same("export", f"[{name!r}]", like, deployed[name])
    obs = _struct((case.envs, specs.obs_dim))
    chunk = contracts.shapes_of("eval_policy", algorithm.eval_policy, deployed, obs, case.key)
    _require_chunk("eval_policy", chunk, (case.envs, specs.chunk, specs.action_dim))
    return f"{', '.join(deployed)}; eval_policy acts by it"


def _keys_of(deployed: Any) -> str:
    return str(list(deployed)) if isinstance(deployed, dict) else f"a {type(deployed).__name__}"


def valuing(case: Case) -> str:
    """``q_values`` returns a value [M, B, G] of every critic for every action."""
    q_values, specs = case.algorithm.q_values, case.sizes.specs
    if q_values is None:
        return "the method has no critics"
    obs = _struct((STATES, specs.obs_dim))
    chunk = _struct((STATES, SAMPLES, specs.chunk, specs.action_dim))
    values = contracts.shapes_of("q_values", q_values, case.state, obs, chunk)
    found = contracts.text_of(values)
    shape: tuple[int, ...] = getattr(values, "shape", ())
    require(
        found.startswith("float32") and len(shape) == 3 and shape[1:] == (STATES, SAMPLES),
        f"q_values returns {found} for {STATES} states with {SAMPLES} actions each, must be "
        f"float32[critics, {STATES}, {SAMPLES}]",
    )
    return f"{shape[0]} critics"


def devices(case: Case) -> str:
    """The state that ``update`` returns is the same on all devices of a seed."""
    varying: list[str] = []

    def update(state: PyTree, batch: PyTree, key: Any) -> Any:
        state, _ = case.algorithm.update(state, batch, key)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            if mesh_lib.DATA in _varying_axes(leaf):
                varying.append(jax.tree_util.keystr(path))
        return jnp.zeros(())

    mesh = AbstractMesh((1, 2), (mesh_lib.SEED, mesh_lib.DATA), axis_types=(AxisType.Auto,) * 2)
    parts = (P(), P(mesh_lib.DATA), P())
    split = jax.shard_map(update, mesh=mesh, in_specs=parts, out_specs=P(), check_vma=True)
    contracts.shapes_of("update, on two devices,", split, case.state, case.batch, case.key)
    require(
        not varying,
        f"update returns another state{varying[0] if varying else ''} on every device of a seed "
        f"({len(varying)} leaves in all): take gradients with optim.gradient_step and other means "
        "over the batch with mesh.batch_mean",
    )
    return "the state is the same on all devices of a seed"


def _varying_axes(x: Any) -> Any:
    """The mesh axes over which ``shard_map`` types x as varying."""
    aval = jax.typeof(x)
    return aval.mat.varying if hasattr(aval, "mat") else aval.vma


CONTRACTS: dict[str, Callable[[Case], str]] = {
    "act": acting,
    "update": updating,
    "export": exporting,
    "q_values": valuing,
    "devices": devices,
}

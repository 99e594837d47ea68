"""Contracts of an environment that need no compilation: shapes and dtypes, by tracing.

``gcp-jax check``, ``gcp-jax demos`` and the start of every run call ``check_shapes``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import contracts
from gcp_jax.contracts import ContractError, require
from gcp_jax.envs.protocol import Demonstrator, Env, State

PyTree = Any


class EnvError(ContractError):
    """An environment breaks a contract; one line: which, where, measured against allowed."""


def check_shapes(env: Env) -> str:
    """Check the contract ``shapes``; nothing is compiled.

    Returns:
      What was seen.

    Raises:
      EnvError: if the contract is broken.
    """
    return run_contract(env, "shapes", lambda: shapes(env))


def run_contract(env: Env, name: str, contract: Callable[[], str]) -> str:
    """Run one contract; its complaint gets the environment's and its own name in front.

    Raises:
      EnvError: if it is broken.
    """
    try:
        return contract()
    except ContractError as error:
        task = env.specs.name
        raise EnvError(f"{task} breaks the contract {name!r}: {error}") from error


def shapes(env: Env) -> str:
    """Results have the protocol's shapes and dtypes; a step keeps the structure of the state."""
    specs = env.specs
    for field in ("obs_dim", "action_dim", "horizon", "control_dt"):
        value = getattr(specs, field)
        require(value > 0, f"specs.{field} is {value}, must be positive")
    start = contracts.shapes_of("reset", env.reset, _key())
    _check_start(env, start)
    action = jax.ShapeDtypeStruct((specs.action_dim,), jnp.float32)
    after = contracts.shapes_of("step", env.step, start, action)
    changes = contracts.changes(start, after)
    require(not changes, f"a step changes the state's structure: {', '.join(changes[:3])}")
    _check_task(env, start)
    leaves = len(jax.tree.leaves(start))
    demonstrator = _check_demonstrator(env, start) if env.demonstrator else "no demonstrator"
    return (
        f"obs float32[{specs.obs_dim}], action [{specs.action_dim}], "
        f"{leaves} leaves kept by a step, {demonstrator}"
    )


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _check_start(env: Env, start: Any) -> None:
    """The state that a reset returns."""
    require(isinstance(start, State), f"reset returns a {type(start).__name__}, must be a State")
    flag, number = ((), jnp.bool_), ((), jnp.float32)
    expected = {
        "obs": ((env.specs.obs_dim,), jnp.float32),
        "reward": number,
        "terminated": flag,
        "truncated": flag,
        "success": flag,
        "diverged": flag,
        "time": ((), jnp.int32),
    }
    for field, (shape, dtype) in expected.items():
        found = contracts.text_of(getattr(start, field))
        wanted = f"{jnp.dtype(dtype)}{list(shape)}"
        require(found == wanted, f"{field} after reset is {found}, must be {wanted}")
    typed = jnp.issubdtype(start.key.dtype, jax.dtypes.prng_key)
    require(typed, f"key after reset is {start.key.dtype}, must be a typed key (jax.random.key)")


def _check_task(env: Env, start: Any) -> None:
    """``Env.task`` of an environment that holds several tasks."""
    if not env.specs.tasks:
        return
    require(
        env.task is not None,
        f"specs.tasks names {len(env.specs.tasks)} tasks, but Env.task is None",
    )
    assert env.task is not None
    _require_integer("task", contracts.shapes_of("task", env.task, start))


def _require_integer(name: str, found: Any) -> None:
    text = contracts.text_of(found)
    require("int" in text and text.endswith("[]"), f"{name} returns {text}, must be int32[]")


def _check_demonstrator(env: Env, start: Any) -> str:
    """``init``, ``act`` and ``mode`` of the demonstrator, of a traced noise."""
    make = env.demonstrator
    assert make is not None
    made = contracts.call("demonstrator", make, 0.0)
    require(
        isinstance(made, Demonstrator),
        f"demonstrator returns a {type(made).__name__}, must be a Demonstrator",
    )
    modes = made.modes
    require(
        isinstance(modes, int) and modes >= 1,
        f"demonstrator.modes is {modes!r}, must be a whole number of at least 1",
    )
    noise = jax.ShapeDtypeStruct((), jnp.float32)
    key = _key()
    memory = contracts.shapes_of(
        "demonstrator.init",
        lambda noise, key, state: make(noise).init(key, state),
        noise,
        key,
        start,
    )
    result = contracts.shapes_of(
        "demonstrator.act",
        lambda noise, memory, state, key: make(noise).act(memory, state, key),
        noise,
        memory,
        start,
        key,
    )
    require(
        isinstance(result, tuple) and len(result) == 2,
        f"demonstrator.act returns a {type(result).__name__}, must be a pair: (action, memory)",
    )
    action, after = result
    found, wanted = contracts.text_of(action), f"float32[{env.specs.action_dim}]"
    require(found == wanted, f"demonstrator.act returns the action {found}, must be {wanted}")
    changes = contracts.changes(memory, after)
    require(
        not changes,
        "demonstrator.act must return the memory's structure, shapes and dtypes; "
        + ", ".join(f"memory{change}" for change in changes[:3]),
    )
    mode = contracts.shapes_of(
        "demonstrator.mode", lambda noise, memory: make(noise).mode(memory), noise, memory
    )
    _require_integer("demonstrator.mode", mode)
    return f"a demonstrator of {modes} modes"


def check_modes(taken: Any, modes: int) -> str:
    """Check the modes that a demonstrator took, [n] int32.

    Returns:
      Which they were.

    Raises:
      ContractError: if one is not among 0 … modes − 1.
    """
    seen = np.unique(np.asarray(taken))
    outside = seen[(seen < 0) | (seen >= modes)]
    require(
        not outside.size,
        f"demonstrator.mode returns {outside[:1]}, must be 0 … {modes - 1} (modes={modes})",
    )
    return f"modes {', '.join(str(mode) for mode in seen)} of {modes}"

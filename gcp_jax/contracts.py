"""Contracts of functions that a user wrote: shapes and purity, by tracing; nothing is compiled.

``envs.shapes`` and ``run.method_check`` state the contracts of tasks and of methods with these
pieces. Every complaint is one line that names the function, and what of its result is wrong.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import random
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.interpreters import partial_eval

PyTree = Any

MAX_MESSAGE = 200  # characters of another library's message
MAX_DEPTH = 4  # containers inside containers that are watched
MAX_ITEMS = 50  # items of a container that are watched
LIBRARIES = tuple(
    str(Path(sysconfig.get_paths()[name]).resolve()) for name in ("stdlib", "purelib", "platlib")
)
HERE = str(Path(__file__).resolve().parent)
DIVERGED = (  # what is said of episodes
    "diverged: an observation, a reward or the physics became NaN or infinite; gcp-jax check finds "
    "the first such step"
)


class ContractError(ValueError):
    """A function breaks a contract; one line: which, what it returned, what must be returned."""


class Traced(NamedTuple):
    """A function as JAX sees it."""

    jaxpr: Any  # ClosedJaxpr
    out: PyTree  # shapes of the result


def require(holds: Any, complaint: str) -> None:
    """Raise ContractError unless everything in ``holds`` is true."""
    if not bool(np.all(holds)):
        raise ContractError(complaint)


def call(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a user's function; what it raises becomes one line with the place in the user's file.

    Raises:
      ContractError: if the function raises anything.
    """
    try:
        return function(*args)
    except ContractError:
        raise
    except Exception as error:  # whatever a user's code raises
        raise ContractError(f"{name} fails: {describe_error(error)}") from error


def shapes_of(name: str, function: Callable[..., Any], *args: Any) -> PyTree:
    """The shapes of what a user's function returns.

    Raises:
      ContractError: if it cannot be traced.
    """
    return call(name, lambda: jax.eval_shape(_renewed(function), *args))


def trace(name: str, function: Callable[..., Any], *args: Any) -> Traced:
    """Trace a user's function anew, whatever JAX has kept of it.

    Raises:
      ContractError: if it cannot be traced.
    """
    return Traced(*call(name, lambda: jax.make_jaxpr(_renewed(function), return_shape=True)(*args)))


def _renewed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function as another object: JAX does not trace an object twice."""
    return lambda *args: function(*args)


def describe_error(error: BaseException) -> str:
    """An exception in one line, with the innermost line of the user's own code."""
    first = (str(error).strip() or "no message").partition("\n")[0][:MAX_MESSAGE]
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not _is_library(frame.filename, *LIBRARIES, HERE)]
    ours = [frame for frame in frames if not _is_library(frame.filename, *LIBRARIES)]
    place = ""
    if users or ours:
        frame = (users or ours)[-1]
        place = f" ({Path(frame.filename).name}:{frame.lineno}, in {frame.name})"
    return f"{type(error).__name__}: {first}{place}"


def _is_library(file: str, *folders: str) -> bool:
    path = str(Path(file).resolve())
    return path == str(Path(__file__).resolve()) or path.startswith(folders) or file[:1] == "<"


def text_of(leaf: Any) -> str:
    """A leaf's dtype and shape, ``float32[64, 4]``; of anything else its type."""
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return type(leaf).__name__


def layout(tree: PyTree) -> dict[str, str]:
    """Dtype and shape of every leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): text_of(leaf) for path, leaf in leaves}


def changes(before: PyTree, after: PyTree) -> list[str]:
    """A sentence for every leaf that differs between two trees of shapes."""
    if type(before) is not type(after):
        return [f" was a {type(before).__name__} and is a {type(after).__name__}"]
    old, new = layout(before), layout(after)
    paths = [path for path in old | new if old.get(path) != new.get(path)]
    found = [
        f"{path} was {old.get(path, 'absent')} and is {new.get(path, 'absent')}" for path in paths
    ]
    structures: list[Any] = [jax.tree.structure(before), jax.tree.structure(after)]
    if not found and structures[0] != structures[1]:
        found.append(" has other containers inside")
    return found


# Purity ------------------------------------------------------------------------------------------


def check_pure(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], watched: Mapping[str, Any]
) -> Traced:
    """Trace a function twice and require that both traces are the same.

    Args:
      name: of the function, for messages.
      function: the function.
      args: its arguments, or their shapes.
      watched: {name: object} of the Python variables that it could change.

    Returns:
      The trace.

    Raises:
      ContractError: if a trace fails, changes a Python variable, draws from Python's or numpy's
        global random numbers, or differs from the other one.
    """
    generators = _generators()
    first = trace(name, function, *args)
    before = _summary(watched)
    second = trace(name, function, *args)
    compiled_once = "a compiled function runs its Python only once"
    used = [each for each, state in _generators().items() if state != generators[each]]
    require(
        not used,
        f"{name} draws from {' and '.join(used)}: {compiled_once}, so the numbers never change; "
        "draw with jax.random and the function's key",
    )
    for path, value in _summary(watched).items():
        old = before.get(path, "absent")
        require(
            value == old,
            f"{name} changes the Python variable {path} ({old}, then {value}): {compiled_once}; "
            "keep it in the state, or return it as a metric",
        )
    require(
        _fingerprint(first.jaxpr, []) == _fingerprint(second.jaxpr, []),
        f"{name} is another function each time it is traced: {compiled_once}, so a number from "
        "Python (a clock, a counter, numpy.random) stays what it was; use the arguments alone",
    )
    return first


def check_key(name: str, traced: Traced, index: int) -> None:
    """Require that a function which draws random numbers draws them from its key.

    Args:
      name: of the function, for messages.
      traced: the function.
      index: which of the jaxpr's inputs is the key.

    Raises:
      ContractError: if it draws from another key.
    """
    jaxpr = traced.jaxpr.jaxpr
    needed, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    draws = any(equation.primitive.name == "random_bits" for equation in _equations(needed))
    require(
        used[index] or not draws,
        f"{name} draws random numbers, but not from its key: every call would draw the same ones; "
        "use the key that it is given",
    )


def _generators() -> dict[str, Any]:
    """The states of the global generators."""
    legacy = np.random.get_state(legacy=True)
    assert isinstance(legacy, tuple)
    return {
        "Python's random": hash(random.getstate()),
        "numpy.random": (legacy[1].tobytes(), *legacy[2:]),
    }


def _fingerprint(jaxpr: Any, rows: list[Any]) -> list[Any]:
    """The equations of a jaxpr and of those inside it: operations, wiring, literals, constants."""
    if hasattr(jaxpr, "consts"):
        rows += [as_numpy(array).tobytes() for array in jaxpr.consts]
        jaxpr = jaxpr.jaxpr
    numbers: dict[Any, int] = {}
    for variable in (*jaxpr.constvars, *jaxpr.invars):
        numbers[variable] = len(numbers)
    for equation in jaxpr.eqns:
        for x in equation.invars:
            rows.append(as_numpy(x.val).tobytes() if hasattr(x, "val") else numbers[x])
        rows.append(equation.primitive.name)
        for variable in equation.outvars:
            numbers[variable] = len(numbers)
            rows.append(str(variable.aval))
        for inner in _jaxprs_of(equation):
            _fingerprint(inner, rows)
    return rows


def as_numpy(value: Any) -> np.ndarray:
    """A number or an array in numpy; of random keys their words."""
    is_key = hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if is_key else value)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in _jaxprs_of(equation):
            yield from _equations(getattr(inner, "jaxpr", inner))


def _jaxprs_of(equation: Any) -> Iterator[Any]:
    """The jaxprs in the parameters of an equation."""
    for value in equation.params.values():
        items = value if isinstance(value, (tuple, list)) else (value,)
        yield from (item for item in items if hasattr(item, "eqns"))


def variables(*functions: Callable[..., Any]) -> dict[str, Any]:
    """The Python variables that functions can reach: {name: object}.

    These are the objects that they are methods of, what they close over, and the global variables
    of their modules.
    """
    found: dict[str, Any] = {}
    for function in functions:
        while isinstance(function, functools.partial):
            function = function.func
        function = inspect.unwrap(function)
        owner = getattr(function, "__self__", None)
        if owner is not None:
            found["self"] = owner
        function = getattr(function, "__func__", function)
        code = getattr(function, "__code__", None)
        if code is None:
            continue
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        found |= {name: _content(cell) for name, cell in cells}
        found |= {name: x for name, x in function.__globals__.items() if not name.startswith("__")}
    return found


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _summary(watched: Mapping[str, Any]) -> dict[str, str]:
    """What each watched variable holds, by path: sizes of containers, and plain values."""
    rows: dict[str, str] = {}
    for name, value in watched.items():
        _summarize(name, value, rows, MAX_DEPTH)
    return rows


def _summarize(path: str, value: Any, rows: dict[str, str], depth: int) -> None:
    if isinstance(value, (bool, int, float, str, bytes)) or value is None:
        rows[path] = repr(value)[:MAX_MESSAGE]
    elif isinstance(value, np.ndarray):
        rows[path] = f"{text_of(value)} with hash {hash(value.tobytes()):x}"
    elif isinstance(value, (list, tuple, dict, set)):
        rows[path] = f"a {type(value).__name__} of {len(value)}"
        if depth:
            for key, item in list(_items(value))[:MAX_ITEMS]:
                _summarize(f"{path}[{key!r}]", item, rows, depth - 1)
    elif depth and _is_plain_object(value):
        for key, item in vars(value).items():
            _summarize(f"{path}.{key}", item, rows, depth - 1)


def _items(container: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(container, dict):
        return iter(container.items())
    return iter(enumerate(container if isinstance(container, (list, tuple)) else ()))


def _is_plain_object(value: Any) -> bool:
    """Whether attributes of an object are watched: those of records and of the user's classes."""
    if isinstance(value, (type, jax.Array, jax.core.Tracer)) or not hasattr(value, "__dict__"):
        return False
    if callable(value):
        return False
    return dataclasses.is_dataclass(value) or type(value).__module__.partition(".")[0] not in (
        "jax",
        "flax",
        "optax",
        "numpy",
        "builtins",
    )

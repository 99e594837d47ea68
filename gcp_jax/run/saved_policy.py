"""A saved policy: a folder with ``arrays.npz`` and ``policy.json``.

``arrays.npz`` holds the parameters, the normalizer and a probe: a fixed batch of observations with
the policy's actions. ``policy.json`` describes the policy. A base policy is {"net", "normalizer"}.
A finetuned one may have more parts (a noise policy, an edit policy, critics to choose by); the
method's name and settings are saved with it, so that loading gives back the function that acts.

Functions that load take the name of a packaged policy in place of a folder
(``packaged_policies.locate``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import textwrap
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import algorithms
from gcp_jax.atomic_files import UNREADABLE
from gcp_jax.config_fields import build_config
from gcp_jax.core import policy as policies
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy, PolicyConfig
from gcp_jax.json_files import Maybe, parse_json, problem_of
from gcp_jax.run import packaged_policies
from gcp_jax.types import Array, Batch, BatchSource, PRNGKey, PyTree, Segment, Specs

FORMAT = 2  # of a saved policy
BASE_KEYS = {"net", "normalizer"}  # the parts of a base policy
MAX_BYTES = 2**32  # of arrays.npz
MAX_PROBE_ERROR = 1e-3  # largest difference of an action from the probe's

DESCRIPTION = {  # policy.json
    "format": int,
    "policy": dict,
    "specs": {"obs_dim": int, "action_dim": int, "chunk": int},
    "algorithm": Maybe({"name": str, "module": Maybe(str)}),
    "success": Maybe(float),
    "return": Maybe(float),
    "episodes": Maybe(int),
}

EvalPolicy = Callable[[PyTree, Array, PRNGKey], Array]  # (deployed, obs [N, O], key) -> [N, h, A]


class SavedPolicy(NamedTuple):
    """A loaded policy."""

    policy: Policy
    deployed: PyTree  # its parameters
    facts: dict[str, Any]  # the content of policy.json
    eval_policy: EvalPolicy  # how it acts


class SavedPolicyError(ValueError):
    """A saved policy cannot be used; the message names it, with the reason and the remedy."""


def save_policy(
    path: str | os.PathLike[str],
    *,
    policy: Policy,
    deployed: PyTree,
    facts: Mapping[str, Any],
    eval_policy: EvalPolicy | None = None,
) -> Path:
    """Save a policy, atomically.

    Args:
      path: a folder that does not exist.
      policy: the base policy's functions.
      deployed: the parameters; "normalizer" is among them.
      facts: plain values to save with it, such as the environment and the score. If ``deployed``
        has more parts than a base policy, "algorithm" must be among them: {"name", "module",
        **settings} of the method.
      eval_policy: how the policy acts; None: as a base policy.

    Returns:
      The folder.

    Raises:
      FileExistsError: the folder exists.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(
            f"{path} exists; a saved policy is never overwritten. Choose another folder."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = _flatten(deployed)
    arrays |= _probe(policy, eval_policy or policy.eval_policy, deployed)
    description = {
        "format": FORMAT,
        "policy": dataclasses.asdict(policy.config),
        "specs": policy.specs._asdict(),
        **facts,
    }
    scratch = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        np.savez(scratch / "arrays.npz", allow_pickle=False, **arrays)
        (scratch / "policy.json").write_text(json.dumps(description, indent=1))
        os.replace(scratch, path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return path


def load_saved_policy(path: str | os.PathLike[str]) -> SavedPolicy:
    """Load a policy and check that it still gives the actions of its probe.

    Raises:
      SavedPolicyError: there is none, it is damaged or of another format, or its actions differ by
        more than ``MAX_PROBE_ERROR``.
    """
    path = packaged_policies.locate(path)
    saved, arrays = _open(path)
    try:
        obs = jnp.asarray(arrays["probe/obs"])
        action = jax.jit(saved.eval_policy)(saved.deployed, obs, jax.random.key(0))
        error = float(np.max(np.abs(np.asarray(action) - arrays["probe/action"])))
    except (KeyError, TypeError, ValueError) as failure:
        raise _not_as_described(path, failure) from failure
    if not error <= MAX_PROBE_ERROR:
        raise SavedPolicyError(
            f"{path} gives other actions than when it was saved (largest difference {error:.2g}, "
            f"allowed {MAX_PROBE_ERROR:g}): its arrays were changed, or this version computes the "
            "policy differently."
        )
    return saved


def check_saved_policy(path: str | os.PathLike[str]) -> SavedPolicy:
    """Load a policy without computing an action, so that nothing is compiled.

    Raises:
      SavedPolicyError: there is none, or it is damaged or of another format.
    """
    saved, _ = _open(packaged_policies.locate(path))
    return saved


def env_section(path: str | os.PathLike[str], saved: SavedPolicy) -> dict[str, Any]:
    """The task that a policy was saved with: {"name", "module", and settings}.

    Raises:
      SavedPolicyError: its policy.json has none.
    """
    problem = problem_of(saved.facts, {"env": {"name": str, "module": Maybe(str)}})
    if problem:
        raise SavedPolicyError(
            f"{Path(path) / 'policy.json'}: {problem}; copy it again or train it anew."
        )
    env: dict[str, Any] = saved.facts["env"]
    return env


def is_intact(path: str | os.PathLike[str]) -> bool:
    """True if a folder holds a saved policy whose files are complete; nothing is computed."""
    try:
        arrays, _ = _read(Path(path))
    except SavedPolicyError:
        return False
    return {"probe/obs", "probe/action"} <= arrays.keys()


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the arrays of a saved policy and of what they mean, wherever it lies.

    Raises:
      SavedPolicyError: there is none, or it is damaged or of another format.
    """
    arrays, description = _read(packaged_policies.locate(path))
    meaning = {name: description.get(name) for name in ("policy", "specs", "algorithm")}
    found = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode())
    for name, x in sorted(arrays.items()):
        found.update(f"{name} {x.dtype} {x.shape}\0".encode())
        found.update(np.ascontiguousarray(x).tobytes())
    return found.hexdigest()


def holds(path: str | os.PathLike[str], deployed: PyTree) -> bool:
    """True if the policy saved in a folder has these parameters, bit for bit."""
    if not is_intact(path):
        return False
    arrays, _ = _read(Path(path))
    saved = {name: x for name, x in arrays.items() if not name.startswith("probe/")}
    expected = _flatten(deployed)
    return saved.keys() == expected.keys() and all(
        saved[name].tobytes() == x.tobytes() for name, x in expected.items()
    )


def saved_policy_config(path: str | os.PathLike[str]) -> PolicyConfig:
    """The settings of a saved policy, read without JAX.

    Raises:
      SavedPolicyError: there is none, or it is damaged or of another format.
    """
    path = packaged_policies.locate(path)
    description = _read_description(path)
    try:
        config: PolicyConfig = build_config(PolicyConfig, description["policy"], "policy.")
    except (KeyError, TypeError, ValueError) as failure:
        raise _not_as_described(path, failure) from failure
    return config


def _flatten(deployed: PyTree) -> dict[str, np.ndarray]:
    """Parameters as named arrays: "net/…", other parts, "normalizer/mean", "normalizer/std"."""
    nets = {name: part for name, part in deployed.items() if name != "normalizer"}
    flat = flax.traverse_util.flatten_dict(nets, sep="/")
    arrays = {name: np.asarray(x) for name, x in flat.items()}
    for name, x in deployed["normalizer"]._asdict().items():
        arrays[f"normalizer/{name}"] = np.asarray(x)
    return arrays


def _unflatten(arrays: Mapping[str, np.ndarray]) -> PyTree:
    nets = {
        name: jnp.asarray(x)
        for name, x in arrays.items()
        if name.split("/")[0] not in ("normalizer", "probe")
    }
    normalizer = Normalizer(
        mean=jnp.asarray(arrays["normalizer/mean"]), std=jnp.asarray(arrays["normalizer/std"])
    )
    return {**flax.traverse_util.unflatten_dict(nets, sep="/"), "normalizer": normalizer}


def _probe(policy: Policy, eval_policy: EvalPolicy, deployed: PyTree) -> dict[str, np.ndarray]:
    """A fixed batch of observations, and the policy's actions."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((8, policy.specs.obs_dim), dtype=np.float32)
    normalizer = deployed["normalizer"]
    obs = np.asarray(normalizer.mean)[None] + noise * np.asarray(normalizer.std)[None]
    action = jax.jit(eval_policy)(deployed, jnp.asarray(obs), jax.random.key(0))
    return {"probe/obs": obs, "probe/action": np.asarray(action)}


def _open(path: Path) -> tuple[SavedPolicy, dict[str, np.ndarray]]:
    """A saved policy and its arrays, with the probe.

    Raises:
      SavedPolicyError: there is none, or it is damaged or of another format.
    """
    arrays, facts = _read(path)
    try:
        config = build_config(PolicyConfig, facts["policy"])
        policy = policies.make_policy(config, Specs(**facts["specs"]))
        eval_policy, expected = _function_and_shapes(policy, facts)
        deployed = _unflatten(arrays)
        if jax.tree.map(jnp.shape, deployed) != jax.tree.map(jnp.shape, expected):
            raise ValueError("arrays of other names or shapes")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as failure:
        raise _not_as_described(path, failure) from failure
    return SavedPolicy(policy, deployed, facts, eval_policy), arrays


def _not_as_described(path: Path, failure: Exception) -> SavedPolicyError:
    reason = textwrap.shorten(str(failure), 300, placeholder=" …")
    return SavedPolicyError(f"{path} does not hold what its policy.json describes ({reason}).")


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description of a saved policy.

    Raises:
      SavedPolicyError: there is none, or it is damaged or of another format.
    """
    description = _read_description(path)
    with _reading(path):
        return _read_arrays(path / "arrays.npz"), description


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise SavedPolicyError if a file of the saved policy is missing or cannot be read."""
    try:
        yield
    except FileNotFoundError as error:
        missing = f"{Path(error.filename).name} is missing"
        raise SavedPolicyError(
            f"{path} is not a saved policy: {packaged_policies.names_hint(path) or missing}."
        ) from error
    except UNREADABLE as error:
        raise SavedPolicyError(
            f"{path} is damaged and cannot be read ({error}); copy it again or train it anew."
        ) from error


def _read_description(path: Path) -> dict[str, Any]:
    """The description of a saved policy.

    Raises:
      SavedPolicyError: there is none, or it is damaged or of another format.
    """
    with _reading(path):
        description = parse_json((path / "policy.json").read_text(encoding="utf-8"))
    saved_format = description.get("format") if isinstance(description, dict) else None
    if saved_format != FORMAT:
        raise SavedPolicyError(
            f"{path} is a saved policy of format {saved_format!r}, this version reads {FORMAT}; "
            "load it with the version that saved it, or train it anew."
        )
    problem = problem_of(description, DESCRIPTION)
    if problem:
        raise _not_as_described(path, ValueError(problem))
    found: dict[str, Any] = description
    return found


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an archive, which must not be compressed: no array is larger than the file.

    Raises:
      ValueError: the file is empty, larger than ``MAX_BYTES``, compressed, or holds something else.
    """
    size = path.stat().st_size
    if not 0 < size <= MAX_BYTES:
        raise ValueError(f"{path.name} has {size:,} bytes, allowed are 1 to {MAX_BYTES:,}")
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as zipped:
        for entry in zipped.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed, which a saved policy never is")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name, x in arrays.items():
        if not (isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.number)):
            raise ValueError(f"{path.name} holds {name!r}, which is no array of numbers")
    return arrays


def _function_and_shapes(policy: Policy, facts: Mapping[str, Any]) -> tuple[EvalPolicy, PyTree]:
    """How a saved policy acts, and the shapes that its parameters must have."""
    obs_dim = policy.specs.obs_dim
    base = {
        "net": jax.eval_shape(policy.init, jax.random.key(0)),
        "normalizer": Normalizer(mean=jnp.zeros(obs_dim), std=jnp.zeros(obs_dim)),
    }
    if "algorithm" not in facts:
        return policy.eval_policy, base
    settings = dict(facts["algorithm"])
    module = algorithms.load(settings.pop("name"), settings.pop("module", ""))
    algorithm = module.make(build_config(module.Config, settings), policy, _no_batches())

    def deployed_at_start() -> PyTree:
        return algorithm.export(algorithm.init(jax.random.key(0), base))

    return algorithm.eval_policy, jax.eval_shape(deployed_at_start)


def _no_batches() -> BatchSource:
    """A source without batches: a loaded policy acts, and does not learn."""

    def init(item: Segment) -> PyTree:
        return ()

    def step(
        buffer_state: PyTree, data: PyTree, segment: Segment, key: PRNGKey, clock: Array
    ) -> tuple[PyTree, Batch]:
        raise NotImplementedError("a saved policy does not learn")

    return BatchSource(init=init, step=step, partition_spec=(), updates=0, batch_size=0)

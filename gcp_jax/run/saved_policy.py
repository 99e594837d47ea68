"""The artifact a policy is saved as: ``arrays.npz`` (parameters, normalizer, probe) and ``policy.json``.

A plain policy is {"net", "normalizer"}; what a method deploys beside it (a noise policy, an edit policy, critics to choose by)
is saved too, with the method's name and configuration, so that loading gives back the function that acts.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import algorithms
from gcp_jax.atomic_files import UNREADABLE
from gcp_jax.config import build_config
from gcp_jax.core import policy as policies
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy, PolicyConfig
from gcp_jax.types import Array, PyTree, Specs

FORMAT = 1
BASE_KEYS = {"net", "normalizer"}
MAX_BYTES = 2**32  # bytes of an archive

EvalPolicy = Callable[[PyTree, Array, Array], Array]


class SavedPolicy(NamedTuple):
    """A loaded policy. ``eval_policy(deployed, obs [N, O], key) -> chunk [N, h, A]`` is how it acts."""

    policy: Policy
    deployed: PyTree
    facts: dict[str, Any]
    eval_policy: EvalPolicy


class SavedPolicyError(ValueError):
    """A policy artifact that cannot be used; the message says which, why, and what to do."""


def _probe(policy: Policy, eval_policy: EvalPolicy, deployed: PyTree) -> dict[str, np.ndarray]:
    """A fixed batch of observations, and the actions the policy gives for them."""
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((8, policy.specs.obs_dim), dtype=np.float32)
    obs = (
        np.asarray(deployed["normalizer"].mean)[None]
        + spread * np.asarray(deployed["normalizer"].std)[None]
    )
    action = jax.jit(eval_policy)(deployed, jnp.asarray(obs), jax.random.key(0))
    return {"probe/obs": obs, "probe/action": np.asarray(action)}


def save_policy(
    path: str | os.PathLike[str],
    *,
    policy: Policy,
    deployed: PyTree,
    facts: Mapping[str, Any],
    eval_policy: EvalPolicy | None = None,
) -> Path:
    """Save a policy artifact, atomically.

    facts: plain values to keep beside it: env, success, episodes, configuration; and where ``deployed`` is more than a plain
    policy, ``algorithm``: the method's {"name", "module", **fields}, whose ``eval_policy`` is to be given. An existing artifact is
    never overwritten: FileExistsError.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(
            f"{path} exists; a saved policy is never overwritten. Choose another folder."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    nets = {k: v for k, v in deployed.items() if k != "normalizer"}
    arrays = {k: np.asarray(v) for k, v in flax.traverse_util.flatten_dict(nets, sep="/").items()}
    arrays |= {
        f"normalizer/{k}": np.asarray(v) for k, v in deployed["normalizer"]._asdict().items()
    }
    arrays |= _probe(policy, eval_policy or policy.eval_policy, deployed)
    meta = {
        "format": FORMAT,
        "policy": dataclasses.asdict(policy.config),
        "specs": policy.specs._asdict(),
        **facts,
    }
    scratch = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        np.savez(scratch / "arrays.npz", allow_pickle=False, **arrays)
        (scratch / "policy.json").write_text(json.dumps(meta, indent=1))
        os.replace(scratch, path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return path


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an archive that is no larger than LARGEST and holds nothing packed: what is read is no larger than the file."""
    content = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
    if not content:
        raise ValueError(
            f"{path.name} has {path.stat().st_size:,} bytes, allowed are 1 to {MAX_BYTES:,}"
        )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        packed = [
            each.filename for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED
        ]
    if packed:
        raise ValueError(f"{packed[0]} is compressed, which a saved policy never is")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        meta = json.loads((path / "policy.json").read_text())
        arrays = _arrays(path / "arrays.npz")
    except FileNotFoundError as error:
        raise SavedPolicyError(
            f"{path} is not a policy artifact: {Path(error.filename).name} is missing."
        ) from error
    except UNREADABLE as error:
        raise SavedPolicyError(
            f"{path} is damaged and cannot be read ({error}); copy it again or train it anew."
        ) from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise SavedPolicyError(
            f"{path} is of artifact format {found}; this version reads {FORMAT}."
        )
    return arrays, meta


def _method(policy: Policy, facts: Mapping[str, Any]) -> tuple[EvalPolicy, PyTree]:
    """How the saved policy acts, and the shapes its parameters must have."""
    net = jax.eval_shape(policy.init, jax.random.key(0))
    plain = {"net": net, "normalizer": Normalizer(*[jnp.zeros(policy.specs.obs_dim)] * 2)}
    if "algorithm" not in facts:
        return policy.eval_policy, plain
    fields = dict(facts["algorithm"])
    module = algorithms.load(fields.pop("name"), fields.pop("module", ""))
    algorithm = module.make(build_config(module.Config, fields), policy, None)
    return algorithm.eval_policy, jax.eval_shape(
        lambda: algorithm.export(algorithm.init(jax.random.key(0), plain))
    )


def load_saved_policy(path: str | os.PathLike[str]) -> SavedPolicy:
    """Load an artifact, after checking that it still gives its stored batch of actions.

    Raises ArtifactError for a missing, damaged or foreign one, and where the actions differ by more than 1e-3.
    """
    path = Path(path)
    found, arrays = _opened(path)
    try:
        action = jax.jit(found.eval_policy)(
            found.deployed, jnp.asarray(arrays["probe/obs"]), jax.random.key(0)
        )
        error = float(np.max(np.abs(np.asarray(action) - arrays["probe/action"])))
    except (KeyError, TypeError, ValueError) as failure:
        raise SavedPolicyError(
            f"{path} does not hold what its policy.json describes ({failure})."
        ) from failure
    if not error <= 1e-3:
        raise SavedPolicyError(
            f"{path} gives other actions than when it was saved (largest difference {error:.2g}, allowed 1e-3): "
            "its arrays were changed, or this version computes the policy differently."
        )
    return found


def check_saved_policy(path: str | os.PathLike[str]) -> SavedPolicy:
    """The same, without computing an action: nothing is compiled."""
    return _opened(Path(path))[0]


def _opened(path: Path) -> tuple[SavedPolicy, dict[str, np.ndarray]]:
    arrays, meta = _read(path)
    try:
        policy = policies.make_policy(
            build_config(PolicyConfig, meta["policy"]), Specs(**meta["specs"])
        )
        eval_policy, expected = _method(policy, meta)
        nets = {
            k: jnp.asarray(v)
            for k, v in arrays.items()
            if k.split("/")[0] not in ("normalizer", "probe")
        }
        normalizer = Normalizer(
            jnp.asarray(arrays["normalizer/mean"]), jnp.asarray(arrays["normalizer/std"])
        )
        deployed = {**flax.traverse_util.unflatten_dict(nets, sep="/"), "normalizer": normalizer}
        if jax.tree.map(jnp.shape, deployed) != jax.tree.map(jnp.shape, expected):
            raise ValueError("arrays of other names or shapes")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as failure:
        raise SavedPolicyError(
            f"{path} does not hold what its policy.json describes ({failure})."
        ) from failure
    return SavedPolicy(policy, deployed, meta, eval_policy), arrays

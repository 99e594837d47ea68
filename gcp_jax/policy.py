"""Generative control policies over flattened chunks, and the artifact a policy is saved as.

A ``Policy`` hides its family behind the functions every algorithm needs; algorithms flatten chunks to D = h·A and pass
normalised observations. Leading axes of ``obs`` and of the samples broadcast: [B, 1, O] beside [B, G, D].
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import tokenize
import uuid
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import flow
from gcp_jax.mesh import sample_keys
from gcp_jax.networks import Normaliser, VelocityNet
from gcp_jax.types import Array, PyTree, Specs

FAMILIES = ("flow",)
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """The policy's network and sampler. ``chunk`` is h; ``steps`` is K; for the rest see ``flow.Sampler``."""

    family: str = "flow"
    chunk: int = 4
    hidden: tuple[int, ...] = (128, 128, 128)
    steps: int = 5
    sigma: float = 0.05
    scheme: str = "paper"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"policy.family is {self.family!r}; allowed: {', '.join(FAMILIES)}.")
        if self.chunk < 1:
            raise ValueError(f"policy.chunk is {self.chunk}; a chunk has at least 1 action (4 is usual).")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"policy.hidden is {self.hidden}; give at least one positive width, e.g. (128, 128, 128).")

    @property
    def sampler(self) -> flow.Sampler:
        """How chains are drawn."""
        return flow.Sampler(self.steps, self.sigma, self.scheme)


class Policy(NamedTuple):
    """A generative policy as pure functions of its network parameters.

    init:           (key) -> params
    sample:         (params, obs, z [..., D]) -> action [..., D]                deterministic sampler
    chain:          (params, obs, noise [..., K+1, D]) -> chain [..., K+1, D]   stochastic sampler
    action:         (chain) -> action [..., D]
    log_density:    (params, obs, chain) -> [...]                               normalised, of the whole chain
    imitation_loss: (params, obs, action, mask [..., h], z, t [...]) -> [...]   per sample
    """

    init: Callable[[Array], PyTree]
    sample: Callable[[PyTree, Array, Array], Array]
    chain: Callable[[PyTree, Array, Array], Array]
    action: Callable[[Array], Array]
    log_density: Callable[[PyTree, Array, Array], Array]
    imitation_loss: Callable[..., Array]
    config: PolicyConfig
    specs: Specs

    def flatten(self, chunk: Array) -> Array:
        """[..., h, A] -> [..., D]."""
        return chunk.reshape(*chunk.shape[:-2], self.specs.flat_action_dim)

    def unflatten(self, action: Array) -> Array:
        """[..., D] -> [..., h, A]."""
        return action.reshape(*action.shape[:-1], self.specs.chunk, self.specs.action_dim)

    def draw_chains(self, params: PyTree, obs: Array, key: Array, count: int) -> Array:
        """``count`` chains for each normalised obs [B, O], with one key a state: [B, count, K+1, D]; key is consumed."""
        shape = (count, self.config.steps + 1, self.specs.flat_action_dim)
        noise = jax.vmap(lambda k: jax.random.normal(k, shape))(sample_keys(key, obs.shape[0]))
        return self.chain(params, obs[:, None], noise)

    def imitate(self, params: PyTree, obs: Array, chunk: Array, mask: Array, key: Array) -> Array:
        """Imitation loss of each sample [B] with fresh noise and times: obs [B, O], chunk [B, h, A], mask [B, h]."""

        def draw(key: Array) -> tuple[Array, Array]:
            noise_key, time_key = jax.random.split(key)
            return jax.random.normal(noise_key, (self.specs.flat_action_dim,)), jax.random.uniform(time_key)

        z, t = jax.vmap(draw)(sample_keys(key, obs.shape[0]))
        return self.imitation_loss(params, obs, self.flatten(chunk), mask, z, t)

    def greedy(self, deployed: PyTree, obs: Array, key: Array) -> Array:
        """What is evaluated and deployed: the deterministic sampler from fresh noise, obs [N, O] -> chunks [N, h, A].

        deployed: {"net": params, "normaliser": Normaliser}, the content of an artifact.
        """
        draw = jax.vmap(lambda k: jax.random.normal(k, (self.specs.flat_action_dim,)))
        z = draw(sample_keys(key, obs.shape[0]))
        return self.unflatten(self.sample(deployed["net"], deployed["normaliser"](obs), z))


def make(config: PolicyConfig, specs: Specs) -> Policy:
    """Build a policy of ``config.family``."""
    net = VelocityNet(specs.obs_dim, specs.flat_action_dim, config.hidden)
    sampler = config.sampler

    def init(key: Array) -> PyTree:
        shapes = [(1, specs.obs_dim), (1, specs.flat_action_dim), (1,)]
        return net.init(key, *[jnp.zeros(shape) for shape in shapes])["params"]

    def velocity(params: PyTree, obs: Array, inner: int = 0) -> flow.Velocity:
        encoded = jnp.asarray(net.apply({"params": params}, obs, method="encode"))
        encoded = encoded.reshape(*encoded.shape[:-1], *(1,) * inner, encoded.shape[-1])
        return lambda x, t: jnp.asarray(net.apply({"params": params}, encoded, x, t, method="velocity"))

    def imitation_loss(params: PyTree, obs: Array, action: Array, mask: Array, z: Array, t: Array) -> Array:
        mask = jnp.repeat(mask, specs.action_dim, axis=-1)
        return flow.matching_loss(velocity(params, obs), action=action, z=z, t=t, mask=mask)

    return Policy(
        init=init,
        sample=lambda params, obs, z: flow.ode_sample(velocity(params, obs), z, sampler),
        chain=lambda params, obs, noise: flow.sde_sample(velocity(params, obs), noise, sampler),
        action=flow.action,
        log_density=lambda params, obs, chain: flow.chain_log_density(velocity(params, obs, 1), chain, sampler),
        imitation_loss=imitation_loss,
        config=config,
        specs=specs,
    )


class ArtifactError(ValueError):
    """A policy artifact that cannot be used; the message says which, why, and what to do."""


def _deterministic_batch(policy: Policy, deployed: PyTree) -> dict[str, np.ndarray]:
    """A fixed batch of observations, and the actions the policy gives for them; the probe stored in an artifact."""
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((8, policy.specs.obs_dim), dtype=np.float32)
    obs = np.asarray(deployed["normaliser"].mean)[None] + spread * np.asarray(deployed["normaliser"].std)[None]
    action = jax.jit(policy.greedy)(deployed, jnp.asarray(obs), jax.random.key(0))
    return {"probe/obs": obs, "probe/action": np.asarray(action)}


def save(path: str | os.PathLike[str], *, policy: Policy, deployed: PyTree, facts: Mapping[str, Any]) -> Path:
    """Save a policy artifact, atomically: ``arrays.npz`` (parameters, normaliser, probe) and ``policy.json``.

    facts: plain values to keep beside it: env, success, episodes, configuration. An existing artifact is never
    overwritten: FileExistsError.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; a saved policy is never overwritten. Choose another folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"net/{k}": np.asarray(v) for k, v in flax.traverse_util.flatten_dict(deployed["net"], sep="/").items()}
    arrays |= {f"normaliser/{k}": np.asarray(v) for k, v in deployed["normaliser"]._asdict().items()}
    arrays |= _deterministic_batch(policy, deployed)
    meta = {"format": FORMAT, "policy": dataclasses.asdict(policy.config), "specs": policy.specs._asdict(), **facts}
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


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        meta = json.loads((path / "policy.json").read_text())
        content = io.BytesIO((path / "arrays.npz").read_bytes())
        with np.load(content, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is not a policy artifact: {Path(error.filename).name} is missing.") from error
    except (ValueError, OSError, EOFError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile) as error:
        raise ArtifactError(
            f"{path} is damaged and cannot be read ({error}); copy it again or train it anew."
        ) from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise ArtifactError(f"{path} is of artifact format {found}; this version reads {FORMAT}.")
    return arrays, meta


def _check_shapes(policy: Policy, deployed: PyTree) -> None:
    expected = {
        "net": jax.eval_shape(policy.init, jax.random.key(0)),
        "normaliser": Normaliser(*[jnp.zeros(policy.specs.obs_dim)] * 2),
    }
    if jax.tree.map(jnp.shape, deployed) != jax.tree.map(jnp.shape, expected):
        raise ValueError("arrays of other names or shapes")


def _probe_error(policy: Policy, deployed: PyTree, arrays: Mapping[str, np.ndarray]) -> float:
    action = jax.jit(policy.greedy)(deployed, jnp.asarray(arrays["probe/obs"]), jax.random.key(0))
    return float(np.max(np.abs(np.asarray(action) - arrays["probe/action"])))


def load(path: str | os.PathLike[str]) -> tuple[Policy, PyTree, dict[str, Any]]:
    """Load an artifact: (policy, deployed, facts), after checking that it still gives its stored batch of actions.

    Raises ArtifactError for a missing, damaged or foreign one, and where the actions differ by more than 1e-3.
    """
    path = Path(path)
    arrays, meta = _read(path)
    try:
        config = PolicyConfig(**{**meta["policy"], "hidden": tuple(meta["policy"]["hidden"])})
        policy = make(config, Specs(**meta["specs"]))
        nets = {k.removeprefix("net/"): jnp.asarray(v) for k, v in arrays.items() if k.startswith("net/")}
        normaliser = Normaliser(jnp.asarray(arrays["normaliser/mean"]), jnp.asarray(arrays["normaliser/std"]))
        deployed = {"net": flax.traverse_util.unflatten_dict(nets, sep="/"), "normaliser": normaliser}
        _check_shapes(policy, deployed)
        error = _probe_error(policy, deployed, arrays)
    except (KeyError, TypeError, ValueError) as failure:
        raise ArtifactError(f"{path} does not hold what its policy.json describes ({failure}).") from failure
    if not error <= 1e-3:
        raise ArtifactError(
            f"{path} gives other actions than when it was saved (largest difference {error:.2g}, allowed 1e-3): "
            "its arrays were changed, or this version computes the policy differently."
        )
    return policy, deployed, meta

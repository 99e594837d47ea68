"""Proves that an environment keeps the protocol's contracts, whatever simulates it.

Each contract is a function of a ``Probe`` that returns what it measured in one line or raises
``EnvError``; to add one, add it to ``CONTRACTS``. What only happens at success is seen as far as
random actions succeed.

The physics is compiled once for many environments (``probe``), and once more for the single
environment that ``batching`` compares with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.probe import Probe, Programs, compiled, make_probe
from gcp_jax.envs.protocol import Env, State
from gcp_jax.envs.wrappers import autoreset

Array = jax.Array

RTOL, ATOL = 1e-3, 1e-4  # how far a batched, compiled step may be from a single, uncompiled one


class EnvError(ValueError):
    """An environment breaks a contract; one line: which, where, measured against allowed."""


def check_env(
    env: Env, key: Array, n: int = 8, steps: int = 1000, programs: Programs | None = None
) -> dict[str, str]:
    """Check every contract.

    Args:
      env: the environment.
      key: a random key; consumed.
      n: number of environments.
      steps: random steps of each.
      programs: ``compiled(env, steps)``, if it is at hand.

    Returns:
      What was measured, by the contract's name.

    Raises:
      EnvError: at the first broken contract.
      ValueError: if ``steps`` does not cover an episode.
    """
    if steps <= env.specs.horizon:
        raise ValueError(
            f"check_env needs more steps than the horizon {env.specs.horizon}; got {steps}"
        )
    measured = {"shapes": _run(env, "shapes", functools.partial(shapes, env, key))}
    probe = make_probe(env, programs or compiled(env, steps), key, n)
    for name, contract in CONTRACTS.items():
        measured[name] = _run(env, name, functools.partial(contract, probe))
    return measured


def _run(env: Env, name: str, contract: Callable[[], str]) -> str:
    """Run one contract; its complaint gets the environment's and its own name in front."""
    try:
        return contract()
    except EnvError as error:
        raise EnvError(f"{env.specs.name} breaks the contract {name!r}: {error}") from None


def _require(holds: Any, complaint: str) -> None:
    if not bool(np.all(holds)):
        raise EnvError(complaint)


def shapes(env: Env, key: Array) -> str:
    """Fields have the protocol's shapes and dtypes; a step keeps the structure of the state."""
    specs = env.specs
    for field in ("obs_dim", "action_dim", "horizon", "control_dt"):
        value = getattr(specs, field)
        _require(value > 0, f"specs.{field} is {value}, must be positive")
    start = jax.eval_shape(env.reset, key)
    flag, number = ((), jnp.bool_), ((), jnp.float32)
    expected = {
        "obs": ((specs.obs_dim,), jnp.float32),
        "reward": number,
        "terminated": flag,
        "truncated": flag,
        "success": flag,
        "diverged": flag,
        "time": ((), jnp.int32),
    }
    for field, (shape, dtype) in expected.items():
        leaf = getattr(start, field)
        actual = f"{leaf.dtype}{list(leaf.shape)}"
        wanted = f"{jnp.dtype(dtype)}{list(shape)}"
        _require(actual == wanted, f"{field} after reset is {actual}, must be {wanted}")
    typed = jnp.issubdtype(start.key.dtype, jax.dtypes.prng_key)
    _require(typed, f"key after reset is {start.key.dtype}, must be a typed key (jax.random.key)")
    after = jax.eval_shape(env.step, start, jax.ShapeDtypeStruct((specs.action_dim,), jnp.float32))
    changes = _changes(_layout(start), _layout(after))
    _require(not changes, f"a step changes the state's structure: {', '.join(changes[:3])}")
    leaves = len(jax.tree.leaves(start))
    return (
        f"obs float32[{specs.obs_dim}], action [{specs.action_dim}], {leaves} leaves kept by a step"
    )


def _layout(state: State) -> dict[str, str]:
    """Shape and dtype of every leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """A sentence for every leaf that differs."""
    paths = [path for path in before | after if before.get(path) != after.get(path)]
    return [
        f"{path} was {before.get(path, 'absent')} and is {after.get(path, 'absent')}"
        for path in paths
    ]


def _as_numpy(tree: Any) -> list[np.ndarray]:
    """Leaves as numpy, keys as their data."""

    def convert(leaf: Array) -> np.ndarray:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return [convert(leaf) for leaf in jax.tree.leaves(tree)]


def _equal(a: Any, b: Any) -> bool:
    pairs = zip(_as_numpy(a), _as_numpy(b), strict=True)
    return all(np.array_equal(x, y, equal_nan=True) for x, y in pairs)


def _gap(a: Array, b: Array) -> float:
    """Largest |a − b| beyond the relative tolerance."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.max(np.abs(x - y) - RTOL * np.abs(y), initial=0.0))


def deterministic(probe: Probe) -> str:
    """Reset and step are functions: the same arguments give the same bits."""
    _require(_equal(probe.reset(probe.keys), probe.starts), "two resets with the same key differ")
    first = probe.step(probe.starts, probe.actions)
    second = probe.step(probe.starts, probe.actions)
    _require(_equal(first, second), "two steps from the same state with the same action differ")
    return "reset and step repeat bit for bit"


def keys(probe: Probe) -> str:
    """Other keys give other starts; a key that was used is not handed on."""
    obs = np.asarray(probe.starts.obs)
    distinct = len(np.unique(obs, axis=0))
    _require(
        distinct == len(obs), f"{len(obs)} keys give {distinct} different starts, must all differ"
    )
    [given], [kept] = _as_numpy(probe.keys), _as_numpy(probe.starts.key)
    _require(
        np.any(given != kept, axis=-1),
        "reset returns the key it was given: split it and return an unused part",
    )
    other = probe.starts._replace(key=jax.random.split(probe.keys[0], len(obs)))
    with_key, _ = probe.step(probe.starts, probe.actions)
    with_other_key, _ = probe.step(other, probe.actions)
    stochastic = not _equal(
        with_key._replace(key=other.key), with_other_key._replace(key=other.key)
    )
    [key_after] = _as_numpy(with_key.key)
    changed = np.any(key_after != kept, axis=-1)
    _require(
        changed | (not stochastic),
        "step draws from the state's key and returns it unchanged: split it",
    )
    kind = "stochastic" if stochastic else "deterministic given the state"
    return f"{distinct} different starts; step is {kind}"


def batching(probe: Probe) -> str:
    """A batched, compiled step equals a single, uncompiled one within tolerance."""
    start, action = jax.tree.map(lambda x: x[0], (probe.starts, probe.actions))
    batched, _ = probe.step(probe.starts, probe.actions)
    single = probe.env.step(start, action)
    gaps = {
        "reset": _gap(probe.starts.obs[0], probe.env.reset(probe.keys[0]).obs),
        "step": max(_gap(batched.obs[0], single.obs), _gap(batched.reward[0], single.reward)),
    }
    for what, gap in gaps.items():
        difference = f"the batched, compiled {what} is {gap:.1e} from the single, uncompiled one"
        _require(gap < ATOL, f"{difference}, allowed {ATOL:.0e}")
    return f"batched and compiled differs from single and uncompiled by {max(gaps.values()):.1e}"


def clipping(probe: Probe) -> str:
    """An action outside [-1, 1] acts as its clipped self."""
    large = 4.0 * probe.actions
    unclipped, _ = probe.step(probe.starts, large)
    clipped, _ = probe.step(probe.starts, jnp.clip(large, -1.0, 1.0))
    gap = max(_gap(unclipped.obs, clipped.obs), _gap(unclipped.reward, clipped.reward))
    _require(
        gap == 0.0,
        f"actions outside [-1, 1] change the step by {gap:.1e} against clipped ones, allowed 0",
    )
    return "actions outside [-1, 1] act as clipped"


def finite(probe: Probe) -> str:
    """No number becomes NaN or infinite under random actions."""
    record = probe.record
    arrays = (record.step.obs, record.step.next_obs, record.step.reward)
    bad = sum(int(np.sum(~np.isfinite(x))) for x in arrays)
    diverged = int(np.sum(record.diverged))
    total = record.diverged.size
    _require(bad + diverged == 0, f"{diverged} of {total} random steps diverged, allowed 0")
    return f"{total} random steps, none diverged"


def endings(probe: Probe) -> str:
    """Success terminates; no episode is terminated and truncated; the horizon truncates."""
    step, time, horizon = probe.record.step, probe.record.time, probe.env.specs.horizon
    done = step.terminated | step.truncated
    lone = int(np.sum(step.success & ~step.terminated))
    _require(lone == 0, f"{lone} steps succeed without terminating")
    both = int(np.sum(step.terminated & step.truncated))
    _require(both == 0, f"{both} steps are terminated and truncated at once")
    early = step.truncated & (time < horizon) & ~probe.record.diverged
    _require(
        ~early, f"truncated at step {time[early][:1]} of {horizon}: the time limit is the wrapper's"
    )
    _require(
        done | (time < horizon),
        f"an episode is still running after {time.max()} steps, the horizon is {horizon}",
    )
    ended, cut, reached = (int(np.sum(x)) for x in (step.terminated, step.truncated, step.success))
    return f"{ended} terminated, {cut} truncated at {horizon}, {reached} successes"


def successor(probe: Probe) -> str:
    """next_obs is the next observation of the episode, never the next episode's first one."""
    record = probe.record
    done = record.step.terminated | record.step.truncated
    is_next = np.all(record.step.next_obs == record.next_start, axis=-1)
    _require(
        is_next | done, "next_obs inside an episode is not the observation of the following step"
    )
    _require(
        ~is_next | ~done,
        "next_obs at an episode's end is the next episode's start, must be the true successor",
    )
    used = jax.random.wrap_key_data(jnp.asarray(record.key[done]))
    likely_keys = [used, *jnp.moveaxis(jax.vmap(jax.random.split)(used), 1, 0)]
    starts = np.stack([_start_obs(probe, keys) for keys in likely_keys])
    fresh = np.any(np.all(starts == record.step.next_obs[done], axis=-1))
    _require(
        ~fresh,
        "next_obs at an episode's end is a fresh start: step resets by itself, "
        "leave that to autoreset",
    )
    return f"true successors at {np.sum(~done)} steps inside episodes and {np.sum(done)} ends"


def _start_obs(probe: Probe, keys: Array) -> np.ndarray:
    """Observations [K, O] after resets with ``keys`` [K], by the program for n keys at a time."""
    n = len(probe.keys)
    rows = []
    for first in range(0, len(keys), n):
        batch = jnp.minimum(first + jnp.arange(n), len(keys) - 1)
        rows.append(np.asarray(probe.reset(keys[batch]).obs))
    return np.concatenate(rows)[: len(keys)]


def pool(probe: Probe) -> str:
    """Autoreset starts finished environments afresh and leaves the others alone."""
    n = len(probe.keys)
    moved, _ = probe.step(probe.starts, probe.actions)
    ended = moved._replace(terminated=jnp.arange(n) % 2 == 0)
    new_keys = jax.random.split(probe.keys[1], n)
    state = autoreset(ended, probe.reset(new_keys), new_keys)
    fresh = np.asarray(ended.terminated)
    _require(~np.asarray(state.done), "a state from reset is already done")
    _require(np.asarray(state.time)[fresh] == 0, "a state from reset has a time other than 0")
    _require(np.asarray(state.reward)[fresh] == 0, "a state from reset has a reward other than 0")
    _require(
        np.asarray(state.obs == moved.obs)[~fresh],
        "autoreset touched an environment that was not done",
    )
    return f"{fresh.sum()} of {n} restarted, the others untouched"


CONTRACTS: dict[str, Callable[[Probe], str]] = {
    "deterministic": deterministic,
    "keys": keys,
    "batching": batching,
    "clipping": clipping,
    "finite": finite,
    "endings": endings,
    "successor": successor,
    "pool": pool,
}

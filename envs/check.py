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

from gcp_jax.contracts import as_numpy
from gcp_jax.contracts import require as _require
from gcp_jax.envs import scenes
from gcp_jax.envs.probe import Probe, Programs, compiled, make_probe
from gcp_jax.envs.protocol import Env, State
from gcp_jax.envs.shapes import EnvError as EnvError
from gcp_jax.envs.shapes import check_modes, check_shapes, run_contract
from gcp_jax.envs.wrappers import autoreset

Array = jax.Array

RTOL, ATOL = 1e-3, 1e-4  # how far a batched, compiled step may be from a single, uncompiled one


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
    measured = {"shapes": check_shapes(env)}
    probe = make_probe(env, programs or compiled(env, steps), key, n)
    for name, contract in CONTRACTS.items():
        measured[name] = run_contract(env, name, functools.partial(contract, probe))
    return measured


def _as_numpy(tree: Any) -> list[np.ndarray]:
    return [as_numpy(leaf) for leaf in jax.tree.leaves(tree)]


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
    if diverged:
        first = _first_divergence(probe)
        raise EnvError(f"{diverged} of {total} random steps diverged, allowed 0; {first}")
    _require(bad == 0, f"{bad} numbers of {total} random steps are NaN or infinite, allowed 0")
    return f"{total} random steps, none diverged"


def _first_divergence(probe: Probe) -> str:
    """Where and what of the state became NaN or infinite first."""
    time, index = np.argwhere(probe.record.diverged)[0]
    before, _ = probe.programs.roll(
        probe.starts, probe.inputs, probe.pool, jnp.int32(time), jnp.bool_(True)
    )
    state = jax.tree.map(lambda x: x[index], before)
    action = probe.inputs.action[time, index]
    after = probe.env.step(state, action)
    names = [
        f"{jax.tree_util.keystr(path)[1:]} = {np.asarray(leaf)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(after._replace(key=after.time))
        if not np.all(np.isfinite(np.asarray(leaf)))
    ]
    place = f"first at step {int(state.time)} with action {np.round(np.asarray(action), 2)}"
    return " ".join(f"{place}, where step returns {', '.join(names) or 'finite numbers'}".split())


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


def demonstrator(probe: Probe) -> str:
    """The demonstrator's actions lie in [-1, 1] and its modes in 0 … modes − 1, in whole episodes.

    Every other environment has noise 0, the others 1.
    """
    make = probe.env.demonstrator
    if make is None:
        return "none: clone a dataset, or start from a saved policy"
    noise = (jnp.arange(len(probe.keys)) % 2).astype(jnp.float32)
    memory = jax.jit(jax.vmap(lambda noise, key, state: make(noise).init(key, state)))(
        noise, probe.keys, probe.starts
    )

    def one(noise: Any, memory: Any, state: State, key: Array) -> tuple[Array, Any]:
        return make(noise).act(memory, state, key)

    act = jax.jit(jax.vmap(one))
    state = probe.starts
    for time in range(probe.env.specs.horizon):
        running = ~np.asarray(state.done)
        if not running.any():
            break
        step_keys = jax.vmap(lambda key, time=time: jax.random.fold_in(key, time))(probe.keys)
        action, memory = act(noise, memory, state, step_keys)
        _require_action(np.asarray(action)[running], time)
        state, _ = probe.step(state, action)
    mode = jax.vmap(lambda noise, memory: make(noise).mode(memory))(noise, memory)
    seen = check_modes(mode, make(0.0).modes)
    clean = np.asarray(state.success)[::2]
    return f"{clean.sum()} of {len(clean)} clean episodes succeed; {seen}"


def _require_action(action: np.ndarray, time: int) -> None:
    outside = action[~(np.abs(action) <= 1.0 + ATOL)]
    _require(
        not outside.size,
        f"demonstrator.act returns {outside[:1]} at step {time}, must lie in [-1, 1]",
    )


def scene(probe: Probe) -> str:
    """The camera exists, the poses fit the model, and a picture is drawn if one can be."""
    if probe.env.scene is None:
        return "none: no videos"
    states = jax.tree.map(lambda x: x[:1], probe.starts)
    return scenes.check_scene(probe.env, states)


CONTRACTS: dict[str, Callable[[Probe], str]] = {
    "deterministic": deterministic,
    "keys": keys,
    "finite": finite,
    "batching": batching,
    "clipping": clipping,
    "endings": endings,
    "successor": successor,
    "pool": pool,
    "demonstrator": demonstrator,
    "scene": scene,
}

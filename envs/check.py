"""Proves that an environment keeps the protocol's contracts, whatever simulates it. Compiles its step twice.

Each contract is a function of a ``Probe`` that returns what it measured in one line or raises ``EnvError``; adding one
to ``CONTRACTS`` is all it takes. What only happens at success is seen as far as random actions succeed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.protocol import Env, State
from gcp_jax.envs.wrappers import autoreset, training
from gcp_jax.types import Step

Array = jax.Array

RTOL, ATOL = 1e-3, 1e-4  # how far a batched, compiled step may be from a single, uncompiled one


class EnvError(ValueError):
    """An environment breaks a contract; one line: which, where, measured against allowed."""


class Record(NamedTuple):
    """A rollout of random actions with resets, leaves [T, n, ...]; numpy once it is complete."""

    step: Step
    key: Array  # [T, n, words] the state's key before the step
    time: Array  # [T, n] after the step
    diverged: Array  # [T, n]
    following: Array  # [T, n, O] observation the next step starts from, after autoreset


class Programs(NamedTuple):
    """Of many environments through the wrappers of training.

    reset: (keys [n]) -> State;  step: (State, actions [n, A]) -> (State, Step)
    """

    reset: Callable[[Array], State]
    step: Callable[[State, Array], tuple[State, Step]]


class Probe(NamedTuple):
    """What the contracts look at, made once."""

    env: Env
    keys: Array  # [n] typed
    reset: Callable[[Array], State]  # batched, compiled
    step: Callable[
        [State, Array], tuple[State, Step]
    ]  # batched, compiled, through the wrappers; actions [n, A]
    starts: State  # leaves [n, ...]
    actions: Array  # [n, A] in [-1, 1]
    record: Record


def check_env(
    env: Env, key: Array, n: int = 8, steps: int = 1000, programs: Programs | None = None
) -> dict[str, str]:
    """Check every contract on ``n`` environments over ``steps`` random steps each; ``key`` is consumed.

    programs: ``compiled(env)``, where it is at hand. Returns what was measured, by the contract's name. Raises EnvError at
    the first broken contract, ValueError where ``steps`` does not cover an episode.
    """
    if steps <= env.specs.horizon:
        raise ValueError(
            f"check_env needs more steps than the horizon {env.specs.horizon}; got {steps}"
        )
    measured = {"shapes": _named(env, "shapes", functools.partial(shapes, env, key))}
    probe = _probe(env, programs or compiled(env), key, n, steps)
    for name, contract in CONTRACTS.items():
        measured[name] = _named(env, name, functools.partial(contract, probe))
    return measured


def _named(env: Env, name: str, contract: Callable[[], str]) -> str:
    """Run one contract; its complaint gets the environment's and its own name in front."""
    try:
        return contract()
    except EnvError as error:
        raise EnvError(f"{env.specs.name} breaks the contract {name!r}: {error}") from None


def _require(holds: Any, complaint: str) -> None:
    if not bool(np.all(holds)):
        raise EnvError(complaint)


def compiled(env: Env, options: dict[str, Any] | None = None) -> Programs:
    """The programs of an environment, which compile at their first call; options: XLA's, of the step's compilation."""
    stack = training(env)

    @functools.partial(jax.jit, compiler_options=options)
    def step(state: State, actions: Array) -> tuple[State, Step]:
        new, record = stack.step(state, actions[:, None])
        return new, jax.tree.map(lambda x: x[:, 0], record)

    return Programs(jax.jit(stack.reset), step)


def _probe(env: Env, programs: Programs, key: Array, n: int, steps: int) -> Probe:
    """Roll out random actions."""
    reset_key, action_key, roll_key = jax.random.split(key, 3)
    reset, step = programs
    keys = jax.random.split(reset_key, n)
    starts = reset(keys)
    actions = jax.random.uniform(action_key, (n, env.specs.action_dim), minval=-1.0, maxval=1.0)
    return Probe(
        env, keys, reset, step, starts, actions, _roll(env, programs, starts, roll_key, steps)
    )


def _roll(env: Env, programs: Programs, state: State, key: Array, steps: int) -> Record:
    """Random actions, every finished environment going on from a pool of fresh states."""
    n, rows = state.time.shape[0], []
    renewed = jax.jit(autoreset)
    for time in range(steps):
        pool_key, draw_key, action_key = jax.random.split(jax.random.fold_in(key, time), 3)
        actions = jax.random.uniform(action_key, (n, env.specs.action_dim), minval=-1.0, maxval=1.0)
        held = jax.random.key_data(state.key)
        new, record = programs.step(state, actions)
        state = new
        if np.any(state.done):
            state = renewed(
                state, programs.reset(jax.random.split(pool_key, n)), jax.random.split(draw_key, n)
            )
        rows.append(Record(record, held, new.time, new.diverged, state.obs))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(rows))


def shapes(env: Env, key: Array) -> str:
    """Fields have the protocol's shapes and dtypes, and a step returns the structure it was given."""
    specs = env.specs
    for field in ("obs_dim", "action_dim", "horizon", "control_dt"):
        _require(
            getattr(specs, field) > 0, f"specs.{field} is {getattr(specs, field)}, must be positive"
        )
    start = jax.eval_shape(env.reset, key)
    flag, number = ((), jnp.bool_), ((), jnp.float32)
    expected = dict(
        obs=((specs.obs_dim,), jnp.float32),
        reward=number,
        terminated=flag,
        truncated=flag,
        success=flag,
    )
    for field, (shape, dtype) in (expected | dict(diverged=flag, time=((), jnp.int32))).items():
        leaf = getattr(start, field)
        found = f"{leaf.dtype}{list(leaf.shape)}"
        wanted = f"{jnp.dtype(dtype)}{list(shape)}"
        _require(found == wanted, f"{field} after reset is {found}, must be {wanted}")
    typed = jnp.issubdtype(start.key.dtype, jax.dtypes.prng_key)
    _require(typed, f"key after reset is {start.key.dtype}, must be a typed key (jax.random.key)")
    after = jax.eval_shape(env.step, start, jax.ShapeDtypeStruct((specs.action_dim,), jnp.float32))
    changed = _changed(_layout(start), _layout(after))
    _require(not changed, f"a step changes the state's structure: {', '.join(changed[:3])}")
    leaves = len(jax.tree.leaves(start))
    return (
        f"obs float32[{specs.obs_dim}], action [{specs.action_dim}], {leaves} leaves kept by a step"
    )


def _layout(state: State) -> dict[str, str]:
    """Shape and dtype of every leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The leaves that are not the same in both, told."""
    paths = [path for path in before | after if before.get(path) != after.get(path)]
    return [
        f"{path} was {before.get(path, 'absent')} and is {after.get(path, 'absent')}"
        for path in paths
    ]


def _numbers(tree: Any) -> list[np.ndarray]:
    """Leaves as numpy, keys as their data."""

    def number(leaf: Array) -> np.ndarray:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return [number(leaf) for leaf in jax.tree.leaves(tree)]


def _same(a: Any, b: Any) -> bool:
    return all(
        np.array_equal(x, y, equal_nan=True) for x, y in zip(_numbers(a), _numbers(b), strict=True)
    )


def _gap(a: Array, b: Array) -> float:
    """Largest |a − b| beyond the relative tolerance."""
    one, other = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.max(np.abs(one - other) - RTOL * np.abs(other), initial=0.0))


def deterministic(probe: Probe) -> str:
    """Reset and step are functions: the same arguments give the same bits."""
    _require(_same(probe.reset(probe.keys), probe.starts), "two resets with the same key differ")
    first, second = (probe.step(probe.starts, probe.actions) for _ in range(2))
    _require(_same(first, second), "two steps from the same state with the same action differ")
    return "reset and step repeat bit for bit"


def keys(probe: Probe) -> str:
    """Other keys give other starts; a key that was used is not handed on."""
    obs = np.asarray(probe.starts.obs)
    distinct = len(np.unique(obs, axis=0))
    _require(
        distinct == len(obs), f"{len(obs)} keys give {distinct} different starts, must all differ"
    )
    given, kept = _numbers(probe.keys)[0], _numbers(probe.starts.key)[0]
    _require(
        np.any(given != kept, axis=-1),
        "reset returns the key it was given: split it and return an unused part",
    )
    other = probe.starts._replace(key=jax.random.split(probe.keys[0], len(obs)))
    (one, _), (two, _) = (probe.step(start, probe.actions) for start in (probe.starts, other))
    stochastic = not _same(one._replace(key=other.key), two._replace(key=other.key))
    changed = np.any(_numbers(one.key)[0] != kept, axis=-1)
    _require(
        changed | (not stochastic),
        "step draws from the state's key and returns it unchanged: split it",
    )
    return f"{distinct} different starts; step is {'stochastic' if stochastic else 'deterministic given the state'}"


def batching(probe: Probe) -> str:
    """A batched, compiled step equals a single, uncompiled one within tolerance."""
    single, action = jax.tree.map(lambda x: x[0], (probe.starts, probe.actions))
    together, _ = probe.step(probe.starts, probe.actions)
    alone = probe.env.step(single, action)
    gaps = {
        "reset": _gap(probe.starts.obs[0], probe.env.reset(probe.keys[0]).obs),
        "step": max(_gap(together.obs[0], alone.obs), _gap(together.reward[0], alone.reward)),
    }
    for what, gap in gaps.items():
        told = f"the batched, compiled {what} is {gap:.1e} from the single, uncompiled one"
        _require(gap < ATOL, f"{told}, allowed {ATOL:.0e}")
    return f"batched and compiled differs from single and uncompiled by {max(gaps.values()):.1e}"


def clipping(probe: Probe) -> str:
    """An action outside [-1, 1] acts as its clipped self."""
    beyond = 4.0 * probe.actions
    (loud, _), (clipped, _) = (
        probe.step(probe.starts, action) for action in (beyond, jnp.clip(beyond, -1.0, 1.0))
    )
    gap = max(_gap(loud.obs, clipped.obs), _gap(loud.reward, clipped.reward))
    _require(
        gap == 0.0,
        f"actions outside [-1, 1] change the step by {gap:.1e} against clipped ones, allowed 0",
    )
    return "actions outside [-1, 1] act as clipped"


def finite(probe: Probe) -> str:
    """No number leaves the finite range under random actions."""
    record = probe.record
    bad = sum(
        int(np.sum(~np.isfinite(x)))
        for x in (record.step.obs, record.step.next_obs, record.step.reward)
    )
    held = int(np.sum(record.diverged))
    _require(bad + held == 0, f"{held} of {record.diverged.size} random steps diverged, allowed 0")
    return f"{record.diverged.size} random steps, none diverged"


def endings(probe: Probe) -> str:
    """Success terminates; an episode is terminated or truncated, never both; the horizon truncates, exactly."""
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
    """next_obs is the following observation inside an episode, and never the next episode's first one."""
    record = probe.record
    done = record.step.terminated | record.step.truncated
    inside = np.all(record.step.next_obs == record.following, axis=-1)
    _require(
        inside | done, "next_obs inside an episode is not the observation of the following step"
    )
    _require(
        ~inside | ~done,
        "next_obs at an episode's end is the next episode's start, must be the true successor",
    )
    held = jax.random.wrap_key_data(jnp.asarray(record.key[done]))
    likely = [held, *jnp.moveaxis(jax.vmap(jax.random.split)(held), 1, 0)]
    starts = np.stack([np.asarray(probe.reset(k).obs) for k in likely])
    fresh = np.any(np.all(starts == record.step.next_obs[done], axis=-1))
    _require(
        ~fresh,
        "next_obs at an episode's end is a fresh start: step resets by itself, leave that to autoreset",
    )
    return f"true successors at {np.sum(~done)} steps inside episodes and {np.sum(done)} ends"


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

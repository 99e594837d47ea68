"""Wrappers on an environment small enough to compute by hand: a counter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gcp_jax.envs.physics.common import initial_state, next_state
from gcp_jax.envs.protocol import Env, EnvSpecs, State
from gcp_jax.envs.wrappers import autoreset, chunk, guard, select, time_limit, training, vector

HORIZON = 5
SPECS = EnvSpecs(
    "counter",
    obs_dim=1,
    action_dim=1,
    horizon=HORIZON,
    control_dt=1.0,
    success="the count exceeds 2.5",
)


def _reset(key):
    start_key, state_key = jax.random.split(key)
    count = jax.random.uniform(start_key, (1,), maxval=0.1)
    return initial_state(count, count, state_key)


def _step(state, action):
    count = state.physics + action
    return next_state(state, physics=count, obs=count, success=count[0] > 2.5, bonus=5.0)


@pytest.fixture
def counter():
    """Counts up by its action, succeeds above 2.5."""
    return Env(_reset, _step, SPECS)


def _explosive(state, action):
    new = _step(state, action)
    return new._replace(obs=jnp.where(action > 0.9, jnp.nan, new.obs))


def test_select_takes_whole_states_with_their_keys(counter):
    one, two = counter.reset(jax.random.key(0)), counter.reset(jax.random.key(1))
    chosen = select(jnp.asarray(True), one, two)
    assert chosen.obs == one.obs
    assert jax.random.key_data(chosen.key).tolist() == jax.random.key_data(one.key).tolist()


def test_guard_holds_the_last_finite_state(counter):
    env = guard(counter._replace(step=_explosive))
    state = env.step(env.reset(jax.random.key(0)), jnp.full(1, 0.5))
    held = env.step(state, jnp.ones(1))
    assert held.obs == state.obs and held.physics == state.physics
    assert held.diverged and held.truncated and not held.terminated and not held.success
    assert held.reward == 0.0


def test_guard_leaves_finite_steps_alone(counter):
    state = counter.reset(jax.random.key(0))
    action = jnp.full(1, 0.5)
    jax.tree.map(
        np.testing.assert_array_equal,
        *(jax.tree.map(_number, e.step(state, action)) for e in (counter, guard(counter))),
    )


def _number(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_time_limit_truncates_at_the_horizon(counter):
    env, state = time_limit(counter), counter.reset(jax.random.key(0))
    for time in range(1, HORIZON + 1):
        state = env.step(state, jnp.zeros(1))
        assert state.time == time and bool(state.truncated) == (time == HORIZON)
    assert not state.terminated


def test_ending_at_the_horizon_counts_as_terminated(counter):
    env, state = time_limit(counter), counter.reset(jax.random.key(0))
    for _ in range(HORIZON):
        state = env.step(state, jnp.full(1, 0.55))
    assert state.success and state.terminated and not state.truncated


def test_chunk_freezes_after_the_end(counter):
    env, start = chunk(time_limit(counter)), counter.reset(jax.random.key(0))
    end, steps = env.step(start, jnp.ones((4, 1)))
    assert steps.executed.tolist() == [True, True, True, False]
    assert steps.success.tolist()[:3] == [False, False, True]
    assert end.time == 3 and end.obs == steps.next_obs[2] == steps.next_obs[3]
    np.testing.assert_allclose(steps.reward[:3], [-1.0, -1.0, 4.0])


def test_chunk_records_true_successors(counter):
    _, steps = chunk(time_limit(counter)).step(
        counter.reset(jax.random.key(0)), jnp.full((4, 1), 0.2)
    )
    np.testing.assert_array_equal(steps.next_obs[:-1], steps.obs[1:])


def test_training_equals_the_single_environment(counter):
    stack, single = training(counter), chunk(time_limit(guard(counter)))
    keys, chunks = jax.random.split(jax.random.key(0), 3), jnp.full((3, 4, 1), 0.7)
    states, steps = stack.step(stack.reset(keys), chunks)
    assert steps.obs.shape == (3, 4, 1) and states.time.shape == (3,)
    _, alone = single.step(single.reset(keys[1]), chunks[1])
    np.testing.assert_array_equal(steps.next_obs[1], alone.next_obs)


def test_autoreset_renews_only_finished_environments(counter):
    stack = vector(chunk(counter))
    keys = jax.random.split(jax.random.key(0), 4)
    state = stack.reset(keys)._replace(
        terminated=jnp.array([True, False, True, False]), time=jnp.full(4, 3)
    )
    pool = stack.reset(jax.random.split(jax.random.key(1), 2))
    fresh = autoreset(state, pool, keys)
    assert fresh.time.tolist() == [0, 3, 0, 3] and not fresh.done.any()
    np.testing.assert_array_equal(fresh.obs[1::2], state.obs[1::2])
    assert np.isin(fresh.obs[::2], pool.obs).all()


def test_autoreset_gives_equal_starts_different_keys(counter):
    stack = vector(chunk(counter))
    keys = jax.random.split(jax.random.key(0), 2)
    state: State = stack.reset(keys)._replace(terminated=jnp.ones(2, bool))
    fresh = autoreset(state, stack.reset(keys[:1]), keys)
    assert fresh.obs[0] == fresh.obs[1]
    assert (jax.random.key_data(fresh.key)[0] != jax.random.key_data(fresh.key)[1]).any()

"""Demonstrations of the smallest task: shapes, freezing, repeatability, quality levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gcp_jax import envs
from gcp_jax.envs.demos.collect import collect
from gcp_jax.envs.shapes import EnvError
from gcp_jax.envs.tasks import reach

EPISODES = 256


@pytest.fixture(scope="module")
def env():
    """The reach task."""
    return envs.make("reach")


@pytest.fixture(scope="module")
def mixed(env):
    """Steps [T, E, ...] and Info of the mixed level, as numpy."""
    return jax.device_get(collect(env, reach.QUALITY["mixed"], jax.random.key(0), EPISODES))[:2]


def test_shapes_are_time_major(env, mixed):
    steps, info = mixed
    assert steps.obs.shape == (env.specs.horizon, EPISODES, env.specs.obs_dim)
    assert steps.action.shape == (env.specs.horizon, EPISODES, env.specs.action_dim)
    assert steps.executed.shape == (env.specs.horizon, EPISODES)
    assert info.success.shape == info.mode.shape == info.length.shape == (EPISODES,)


def test_actions_stay_in_range(mixed):
    assert np.abs(mixed[0].action).max() <= 1.0


def test_steps_after_the_end_are_not_executed(mixed):
    steps, info = mixed
    np.testing.assert_array_equal(steps.executed.sum(0), info.length)
    time = np.arange(len(steps.executed))[:, None]
    np.testing.assert_array_equal(steps.executed, time < info.length)


def test_frozen_steps_keep_the_last_observation(mixed):
    steps, _ = mixed
    frozen = ~steps.executed
    np.testing.assert_array_equal(steps.obs[frozen], steps.next_obs[frozen])


def test_each_episode_succeeds_at_most_once_and_ends_there(mixed):
    steps, info = mixed
    reached = steps.success & steps.executed
    np.testing.assert_array_equal(reached.sum(0), info.success)
    np.testing.assert_array_equal(steps.terminated & steps.executed, reached)


def test_successors_chain_inside_episodes(mixed):
    steps, _ = mixed
    going_on = steps.executed[1:]
    np.testing.assert_array_equal(steps.next_obs[:-1][going_on], steps.obs[1:][going_on])


def test_same_key_same_demonstrations(env, mixed):
    again, *_ = collect(env, reach.QUALITY["mixed"], jax.random.key(0), EPISODES)
    np.testing.assert_array_equal(again.action, mixed[0].action)


@pytest.mark.parametrize(
    ("level", "low", "high"),
    [("expert", 0.95, 1.0), ("mixed", 0.55, 0.75), ("poor", 0.2, 0.4), ("bad", 0.03, 0.15)],
)
def test_quality_levels_give_their_success(env, level, low, high):
    _, info, *_ = collect(env, reach.QUALITY[level], jax.random.key(1), EPISODES)
    assert low <= info.success.mean() <= high


def test_a_shifted_goal_is_where_demonstrations_end():
    env = envs.make("reach", demonstrated_goal_shift=0.3, tolerance=0.05)
    steps, info = collect(env, 0.0, jax.random.key(0), EPISODES)[:2]
    end = np.asarray(steps.next_obs[-1])[np.asarray(info.mode) == 1]  # not stopped by the disc
    np.testing.assert_allclose(end[:, :2], end[:, 2:] + [0.0, 0.3], atol=1e-3)
    assert not np.any(info.success)


def test_both_ways_are_drawn_equally_and_go_different_ways(mixed):
    steps, info = mixed
    assert abs(info.mode.mean() - 0.5) < 0.1
    side = steps.obs[6, :, 1]
    assert side[info.mode == 1].min() > side[info.mode == 0].max() - 0.2
    assert side[info.mode == 1].mean() > 0.2 > -0.2 > side[info.mode == 0].mean()


def test_environment_without_demonstrator_is_refused(env):
    with pytest.raises(ValueError, match="'reach' has no demonstrator"):
        collect(env._replace(demonstrator=None), 0.0, jax.random.key(0), 2)


def with_reward(env, reward):
    """The task with another reward of the first step, a function of the new state."""

    def step(state, action):
        new = env.step(state, action)
        return new._replace(reward=jnp.where(new.time == 1, reward(new), new.reward))

    return env._replace(step=step)


def test_demonstrations_that_all_diverge_are_refused_and_some_are_noted(env, capsys):
    short = env._replace(specs=env.specs._replace(horizon=3))
    key = jax.random.key(0)
    message = "8 of 8 demonstrations of reach diverged: an observation, a reward or the physics"
    with pytest.raises(EnvError, match=message):
        collect(with_reward(short, lambda state: jnp.inf), 0.0, key, 8)
    assert capsys.readouterr().err == ""
    collect(
        with_reward(short, lambda state: jnp.where(state.obs[-1] > 0, jnp.nan, 0.0)), 0.0, key, 8
    )
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: ") and " of 8 demonstrations of reach diverged" in line
    collect(short, 0.0, key, 8)
    assert capsys.readouterr().err == ""

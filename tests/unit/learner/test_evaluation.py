"""Evaluation against one episode at a time in plain Python, from start states that only seed and
episode number decide.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gcp_jax import envs
from gcp_jax.envs.protocol import NO_SUCCESS
from gcp_jax.envs.wrappers import training
from gcp_jax.learner import evaluation
from gcp_jax.mesh import sample_keys

TASK = envs.make("reach", horizon=10, tolerance=1.2)
ENV = training(TASK)
EPISODES, CHUNK = 8, 4
ROWS = 3  # chunks that cover the horizon
SEEDS = np.array([5, 9])
GAINS = np.array([0.26, 6.0], np.float32)


def greedy(deployed, obs, key):
    """Steer for the goal, the later actions of a chunk ever more timid; [E, 4] -> [E, CHUNK, 2]."""
    direction = jnp.clip(deployed["gain"] * (obs[:, 2:] - obs[:, :2]), -1.0, 1.0)
    return direction[:, None] * jnp.array([1.0, 0.9, 0.8, 0.7])[None, :, None]


class Evaluated:
    """The same evaluation twice on one mesh, and how often the policy was traced for it."""

    def __init__(self, mesh):
        traces = collections.Counter()

        def counted(*args):
            traces["greedy"] += 1
            return greedy(*args)

        evaluate = evaluation.build_evaluation(
            counted, ENV, mesh=mesh, episodes=EPISODES, chunk=CHUNK
        )
        self.results, self.traced = [], []
        for _ in range(2):
            outcome, film = evaluate({"gain": jnp.asarray(GAINS)}, jnp.asarray(SEEDS))
            self.results.append((jax.device_get(outcome), jax.device_get(film.obs)))
            self.traced.append(dict(traces))


@pytest.fixture(scope="module")
def single(devices):
    return Evaluated(devices())


@pytest.fixture(scope="module")
def square(devices):
    return Evaluated(devices(seed=2, data=2))


@pytest.fixture(scope="module")
def played():
    """Every episode of both seeds by a plain loop: (success, return, length, observations after
    each control step).
    """
    step = jax.jit(TASK.step)
    result = []
    for seed, gain in zip(SEEDS, GAINS, strict=True):
        reset_key, _ = jax.random.split(
            jax.random.fold_in(jax.random.key(evaluation.EVALUATION_STREAM), seed)
        )
        for key in sample_keys(reset_key, EPISODES):
            state, total, length, seen, actions = TASK.reset(key), 0.0, 0, [], []
            while not state.terminated and length < TASK.specs.horizon:
                actions = actions or list(greedy({"gain": gain}, state.obs[None], None)[0])
                state = step(state, actions.pop(0))
                total, length = total + float(state.reward), length + 1
                seen.append(np.asarray(state.obs))
            result.append(
                (bool(state.success), total, length, seen + [seen[-1]] * (ROWS * CHUNK - len(seen)))
            )
    return [
        np.array(column).reshape(2, EPISODES, *np.shape(column)[1:])
        for column in zip(*result, strict=True)
    ]


def test_outcomes_are_those_of_episodes_played_one_by_one(single, played):
    success, total, length, _ = played
    outcome, _ = single.results[0]
    np.testing.assert_array_equal(outcome.success, success)
    np.testing.assert_allclose(outcome.episode_return, total)
    np.testing.assert_array_equal(outcome.length, length)
    assert not outcome.diverged.any()
    assert 0 < success.sum() < success.size
    assert len(np.unique(length)) > 2


def test_the_film_shows_the_first_episodes_of_each_device_after_every_step(single, square, played):
    seen = np.moveaxis(played[3], 1, 2)
    np.testing.assert_allclose(single.results[0][1], seen[:, :, : evaluation.FILMED], atol=1e-6)
    np.testing.assert_allclose(square.results[0][1], seen[:, :, : 2 * evaluation.FILMED], atol=1e-6)


def test_evaluations_repeat_exactly_and_do_not_depend_on_devices(single, square):
    (first, film), (second, again) = single.results
    jax.tree.map(np.testing.assert_array_equal, (first, film), (second, again))
    jax.tree.map(np.testing.assert_array_equal, first, square.results[0][0])


def test_evaluation_is_traced_once(single, square):
    for run in (single, square):
        assert run.traced[0]["greedy"] > 0
        assert run.traced[1] == run.traced[0]


def test_episodes_that_do_not_divide_over_the_devices_are_refused(devices):
    with pytest.raises(
        ValueError,
        match="evaluation.episodes is 6; it must be a positive multiple of the 4 devices",
    ):
        evaluation.build_evaluation(greedy, ENV, mesh=devices(data=4), episodes=6, chunk=CHUNK)


def test_rows_sum_up_each_seed():
    outcome = evaluation.EvalOutcome(
        success=np.array([[True, False, True, True], [False, False, False, False]]),
        episode_return=np.array([[1.0, -8.0, 2.0, 3.0], [-8.0, -8.0, -8.0, -4.0]]),
        length=np.array([[4, 8, 3, 2], [8, 8, 8, 4]]),
        diverged=np.array([[False] * 4, [False, False, False, True]]),
        task=np.array([[0, 2, 0, 2], [0, 0, 0, 0]]),
    )
    rows = evaluation.eval_rows(outcome, seeds=[5, 9], specs=TASK.specs)
    assert rows == [
        {
            "seed": 5,
            "eval/success": 0.75,
            "eval/successes": 3,
            "eval/episodes": 4,
            "eval/success_bits": "b0",
            "eval/return": -0.5,
            "eval/return_std": (77 / 3) ** 0.5,
            "eval/length": 4.25,
            "eval/diverged": 0,
        },
        {
            "seed": 9,
            "eval/success": 0.0,
            "eval/successes": 0,
            "eval/episodes": 4,
            "eval/success_bits": "00",
            "eval/return": -7.0,
            "eval/return_std": 2.0,
            "eval/length": 7.0,
            "eval/diverged": 1,
        },
    ]
    by_return = evaluation.eval_rows(
        outcome, seeds=[5, 9], specs=TASK.specs._replace(success=NO_SUCCESS)
    )
    assert by_return == [
        {k: v for k, v in row.items() if "success" not in k and k != "eval/success_bits"}
        for row in rows
    ]


def test_rows_tell_the_success_of_each_task_that_came_up():
    flags, numbers = np.zeros((1, 4), bool), np.zeros((1, 4))
    outcome = evaluation.EvalOutcome(
        success=np.array([[True, False, True, True]]),
        episode_return=numbers,
        length=numbers,
        diverged=flags,
        task=np.array([[0, 2, 0, 2]]),
    )
    (row,) = evaluation.eval_rows(
        outcome, seeds=[5], specs=TASK.specs._replace(tasks=("push", "stack", "door"))
    )
    by_task = {key: value for key, value in row.items() if key.count("/") == 2}
    assert by_task == {
        "eval/successes/push": 2,
        "eval/episodes/push": 2,
        "eval/successes/door": 1,
        "eval/episodes/door": 2,
    }


def test_the_task_of_an_episode_is_read_from_its_state(devices):
    several = training(TASK._replace(task=lambda state: state.time % 2))
    program = evaluation.build_evaluation(
        greedy, several, mesh=devices(data=1), episodes=8, chunk=CHUNK
    )
    outcome, _ = jax.device_get(program({"gain": jnp.asarray(GAINS[1:])}, jnp.asarray(SEEDS[:1])))
    np.testing.assert_array_equal(outcome.task, outcome.length % 2)
    assert set(outcome.task.ravel()) == {0, 1}

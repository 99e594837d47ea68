"""Demonstrations: episodes end where the next one starts, whatever their flags say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcp_jax.core import returns
from gcp_jax.core.demonstrations import MAX_STEPS, demonstrations_of, make_demonstrations
from gcp_jax.learner import batch_sources
from gcp_jax.types import Step

STEPS, CHUNK, GAMMA = 24, 4, 0.9


def steps_of(start, *, terminated=(), truncated=()):
    """STEPS steps whose numbers are their row, with flags at the ends of these episodes."""
    row = np.arange(STEPS, dtype=np.float32)
    ends = np.append(start[1:], STEPS) - 1
    flags = np.zeros((2, STEPS), bool)
    flags[0, ends[list(terminated)]] = True
    flags[1, ends[list(truncated)]] = True
    no = np.zeros(STEPS, bool)
    return Step(
        obs=row[:, None],
        action=(row / STEPS)[:, None],
        reward=row + 1,
        next_obs=row[:, None] + 0.5,
        terminated=flags[0],
        truncated=flags[1],
        success=no,
        executed=~no,
    )


@st.composite
def recordings(draw):
    """Where any number of episodes of any lengths start, and which of them carry which flag."""
    start = [0, *sorted(draw(st.sets(st.integers(1, STEPS - 1))))]
    episodes = st.sets(st.sampled_from(range(len(start))))
    return np.array(start), draw(episodes), draw(episodes)


@jax.jit
def all_windows(data):
    window = batch_sources.dataset_windows(data, jnp.arange(STEPS), CHUNK)
    to_go = batch_sources.dataset_returns_to_go(data, GAMMA)
    return returns.fold_chunk(window, GAMMA), to_go


def window_by_definition(start, terminated, first):
    """The transition from step ``first``, its rows, and its return to go."""
    episode = int(np.searchsorted(start, first, side="right")) - 1
    end = np.append(start[1:], STEPS)[episode]
    rows = np.arange(first, min(first + CHUNK, end))
    at_end = rows[-1] == end - 1
    final = episode in terminated and at_end
    rest = np.arange(first, end)
    total = np.sum(GAMMA ** np.arange(len(rest)) * (rest + 1))
    return {
        "mask": np.arange(CHUNK) < len(rows),
        "reward": np.sum(GAMMA ** np.arange(len(rows)) * (rows + 1)),
        "discount": 0.0 if final else GAMMA ** len(rows),
        "next_obs": [rows[-1] + 0.5],
        "terminated": final,
        "truncated": at_end and not final,
        "action": np.append(rows, [rows[-1]] * (CHUNK - len(rows)))[:, None] / STEPS,
        "to_go": total if episode in terminated else np.nan,
    }


@given(recordings())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_window_leaves_its_episode(recording):
    """Of any lengths and with any flags missing: from each start the steps to the end, which a
    value follows unless it terminated.
    """
    start, terminated, truncated = recording
    made = make_demonstrations(steps_of(start, terminated=terminated, truncated=truncated), start)
    transitions, to_go = jax.device_get(
        all_windows(batch_sources.Dataset(steps=made.steps, end=made.end))
    )
    found = {**transitions._asdict(), "to_go": to_go}
    expected = [window_by_definition(start, terminated, first) for first in range(STEPS)]
    for name in expected[0]:
        wanted = np.asarray([each[name] for each in expected], np.float64)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, err_msg=name)


def test_time_major_episodes_are_laid_one_after_the_other():
    """Episodes of 3, 0 and 2 steps; the empty one is left out."""
    executed = np.arange(3)[:, None] < np.array([3, 0, 2])
    number = np.arange(9, dtype=np.float32).reshape(3, 3)
    no = np.zeros((3, 3), bool)
    wide = number[..., None]
    made = demonstrations_of(Step(wide, wide, number, wide + 1, no, no, no, executed))
    np.testing.assert_array_equal(made.steps.reward, [0, 3, 6, 2, 5])
    np.testing.assert_array_equal(made.steps.next_obs[:, 0], [1, 4, 7, 3, 6])
    np.testing.assert_array_equal(made.start, [0, 3])
    np.testing.assert_array_equal(made.length, [3, 2])
    np.testing.assert_array_equal(made.end, [3, 3, 3, 5, 5])
    np.testing.assert_array_equal(made.steps.truncated, [False, False, True, False, True])
    np.testing.assert_array_equal(made.returns(), [9, 7])


def test_the_first_episodes():
    start = np.array([0, 10, 13])
    whole = make_demonstrations(steps_of(start), start)
    part = whole.first(2)
    np.testing.assert_array_equal(part.steps.reward, np.arange(13) + 1)
    np.testing.assert_array_equal(part.start, [0, 10])
    jax.tree.map(np.testing.assert_array_equal, whole.first(3), whole)


def test_memory_is_that_of_the_steps():
    """One episode of 500 steps beside 100 of 10: nothing is padded to the longest."""
    start = np.append(0, 500 + 10 * np.arange(100))
    row = np.zeros(1500, np.float32)
    no = row > 0
    steps = Step(row[:, None], row[:, None], row, row[:, None], no, no, no, ~no)
    source = batch_sources.dataset(
        make_demonstrations(steps, start), chunk=4, batch_size=4, updates=1, gamma=1.0
    )
    held = sum(x.nbytes for x in jax.tree.leaves(source.data))
    assert held == sum(x.nbytes for x in jax.tree.leaves(steps)) + 4 * len(row)


def test_the_digest_is_of_every_number_and_of_the_ends():
    start = np.array([0, 10, 13])
    steps = steps_of(start, terminated=[1])
    digest = make_demonstrations(steps, start).digest()
    assert len(digest) == 64
    assert make_demonstrations(jax.tree.map(np.copy, steps), start).digest() == digest
    others = [make_demonstrations(steps, np.array([0, 10, 14]))]
    for name in set(Step._fields) - {"executed"}:
        changed = np.array(getattr(steps, name))
        changed[5] = (
            ~changed[5] if changed.dtype == bool else np.nextafter(changed[5], np.float32(9))
        )
        others.append(make_demonstrations(steps._replace(**{name: changed}), start))
    assert len({digest, *(other.digest() for other in others)}) == 9
    assert make_demonstrations(steps, start).first(2).digest() != digest


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "The demonstrations hold no executed step; generate or load at least one episode"),
        (MAX_STEPS + 1, "hold 2,147,483,648 steps, more than 2,147,483,647; lower demonstrations"),
    ],
)
def test_none_and_too_many_steps_are_refused(count, message):
    x = np.broadcast_to(np.float32(0), (count,))
    wide = x[:, None]
    no = np.broadcast_to(False, (count,))
    with pytest.raises(ValueError, match=message):
        make_demonstrations(Step(wide, wide, x, wide, no, no, no, no), np.array([0]))

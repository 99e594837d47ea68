"""Training episodes by the segment in which they started, against a simulation written by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcp_jax.learner.rollout import segments_spanned
from gcp_jax.run.episode_cohorts import EpisodeCohorts
from gcp_jax.run.stage_loop import episode_columns

NAMES = ("episodes", "successes", "returns", "lengths", "diverged")


def simulate(rng, *, envs, segments, unroll_chunks, horizon, draw):
    """Episodes (first row, last row, success) of environments that restart; rows are chunks.

    ``draw(rng)`` is (success, rows that a success takes).
    """
    episodes = []
    for _ in range(envs):
        row = 0
        while row < segments * unroll_chunks:
            success, length = draw(rng)
            length = min(length, horizon) if success else horizon
            episodes.append((row, row + length - 1, success))
            row += length
    return episodes


def sums_of_segment(episodes, segment, *, unroll_chunks, ages):
    """What the rollout returns after a segment, for one member: leaves [1, K + 1]."""
    sums = {f"episode/{name}": np.zeros((1, ages)) for name in NAMES}
    for first, last, success in episodes:
        if last // unroll_chunks == segment:
            age = segment - first // unroll_chunks
            gained = (1, success, 10 * success, last - first + 1, 0)
            for name, value in zip(NAMES, gained, strict=True):
                sums[f"episode/{name}"][0, age] += value
    return sums


@settings(max_examples=30, deadline=None)
@given(
    unroll_chunks=st.integers(1, 5),
    horizon=st.integers(1, 12),
    envs=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_every_row_is_the_cohort_whose_time_limit_has_just_passed(
    unroll_chunks, horizon, envs, seed
):
    span = segments_spanned(horizon, 1, unroll_chunks)
    episodes = simulate(
        np.random.default_rng(seed),
        envs=envs,
        segments=12,
        unroll_chunks=unroll_chunks,
        horizon=horizon,
        draw=lambda rng: (rng.random() < 0.5, int(rng.integers(1, horizon + 1))),
    )
    cohorts = EpisodeCohorts()
    for segment in range(12):
        numbers = sums_of_segment(episodes, segment, unroll_chunks=unroll_chunks, ages=span + 1)
        cohorts.add(numbers)
        columns = episode_columns(cohorts, 0, numbers)
        ended = [e for e in episodes if e[1] // unroll_chunks == segment]
        assert columns["episode/ended"] == len(ended)
        started = [e for e in episodes if e[0] // unroll_chunks == segment - span]
        if not started:
            assert set(columns) == {"episode/ended", "episode/diverged"}
            continue
        assert all(last // unroll_chunks <= segment for _, last, _ in started)
        assert columns["episode/episodes"] == len(started)
        assert columns["episode/success"] == pytest.approx(np.mean([e[2] for e in started]))
        lengths = [last - first + 1 for first, last, _ in started]
        assert columns["episode/length"] == pytest.approx(np.mean(lengths))
        window = range(max(segment - 2 * span, 0), segment - span + 1)
        recent = [e for e in episodes if e[0] // unroll_chunks in window]
        assert cohorts.recent().episodes == len(recent)
        assert cohorts.recent().success == pytest.approx(np.mean([e[2] for e in recent]))


@pytest.mark.parametrize(
    ("horizon", "chunk", "unroll_chunks", "expected"),
    [(10, 4, 3, 1), (100, 4, 1, 24), (4, 4, 8, 0), (8, 4, 8, 1), (64, 4, 16, 1), (65, 4, 16, 1)],
)
def test_the_last_episode_of_a_segment_ends_so_many_segments_later(
    horizon, chunk, unroll_chunks, expected
):
    assert segments_spanned(horizon, chunk, unroll_chunks) == expected
    last_row = unroll_chunks - 1 + -(-horizon // chunk) - 1  # it starts in the segment's last row
    assert last_row // unroll_chunks == expected


def test_a_clone_that_seldom_succeeds_is_never_shown_at_100_percent():
    """A policy of 6 % whose successes take 10 of 50 rows: of what has ended in the first segments
    100 % succeeded; no row of the cohorts is far from 6 %."""
    rng = np.random.default_rng(0)
    episodes = simulate(
        rng,
        envs=1000,
        segments=40,
        unroll_chunks=8,
        horizon=50,
        draw=lambda rng: (rng.random() < 0.06, 10),
    )
    span = segments_spanned(50, 1, 8)
    cohorts = EpisodeCohorts()
    ended_rates = []
    shown = []
    for segment in range(40):
        numbers = sums_of_segment(episodes, segment, unroll_chunks=8, ages=span + 1)
        cohorts.add(numbers)
        ended = numbers["episode/episodes"].sum()
        if ended:
            ended_rates.append(numbers["episode/successes"].sum() / ended)
        if segment < span:
            assert cohorts.recent() is None and cohorts.newest(0) is None
        else:
            shown.append(cohorts.recent())
    assert max(ended_rates) == 1.0
    assert len(shown) == 40 - span
    for means in shown:
        assert means.episodes >= 1000  # every environment starts one within a time limit
        assert means.success == pytest.approx(0.06, abs=0.025)
        assert means.score("success") == means.success


def test_a_stage_that_continues_shows_what_one_that_never_stopped_shows():
    rng = np.random.default_rng(1)
    segments = [{f"episode/{name}": rng.integers(0, 9, (2, 3)) for name in NAMES} for _ in range(8)]
    whole = EpisodeCohorts()
    for numbers in segments:
        whole.add(numbers)
    first = EpisodeCohorts()
    for numbers in segments[:5]:
        first.add(numbers)
    second = EpisodeCohorts(json.loads(json.dumps(first.host_state())))
    for numbers in segments[5:]:
        second.add(numbers)
    assert second.host_state() == whole.host_state()
    assert [second.newest(i) for i in (0, 1)] == [whole.newest(i) for i in (0, 1)]
    assert second.recent() == whole.recent()


def test_a_checkpoint_without_cohorts_begins_them_anew():
    cohorts = EpisodeCohorts()
    numbers = {f"episode/{name}": np.ones((1, 2)) for name in NAMES}
    cohorts.add(numbers)
    assert cohorts.newest(0) is None  # its oldest episodes started before
    cohorts.add(numbers)
    assert cohorts.newest(0).episodes == 2


def test_a_stage_that_collects_nothing_has_no_episode_columns():
    cohorts = EpisodeCohorts()
    cohorts.add({"train/loss": np.ones(1)})
    assert cohorts.recent() is None and cohorts.host_state() == []
    assert episode_columns(cohorts, 0, {"train/loss": np.ones(1)}) == {}

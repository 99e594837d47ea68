"""Sources against a recorded history: whatever is drawn must be a window of what was written, and
everything can be drawn.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gcp_jax.core import returns
from gcp_jax.core.demonstrations import demonstrations_of
from gcp_jax.learner import batch_sources, population, ring
from gcp_jax.types import Batch, Segment, Step, Transition

GAMMA = 0.9
CAPACITY, LENGTH, COLUMNS, CHUNK = 6, 2, 3, 4
SEGMENTS = 8
UPDATES, BATCH = 24, 48


def record(rng, rows, columns, chunk):
    """Chunk rows [rows, columns, chunk] as a rollout records them, in numpy.

    ``obs`` is (column, number of the executed step in its column), so that a window says where it
    comes from. Episodes end at random steps; the rest of their chunk repeats the frozen state, with
    rewards no sum may contain.
    """
    shape = (rows, columns, chunk)
    steps = Step(
        obs=np.zeros((*shape, 2), np.float32),
        action=rng.uniform(-1, 1, (*shape, 2)).astype(np.float32),
        reward=rng.standard_normal(shape).astype(np.float32),
        next_obs=np.zeros((*shape, 2), np.float32),
        terminated=np.zeros(shape, bool),
        truncated=np.zeros(shape, bool),
        success=np.zeros(shape, bool),
        executed=np.ones(shape, bool),
    )
    count = np.zeros(columns)
    for row, column in np.ndindex(rows, columns):
        ended = None
        for i in range(chunk):
            at = (row, column, i)
            steps.obs[at] = column, count[column]
            if ended is not None:
                steps.executed[at], steps.reward[at] = False, 1e6
                steps.terminated[at], steps.truncated[at], steps.success[at] = ended
            else:
                count[column] += 1
                kind = rng.random()
                steps.terminated[at], steps.truncated[at], steps.success[at] = (
                    kind < 0.12,
                    0.12 <= kind < 0.16,
                    kind < 0.09,
                )
                if kind < 0.16:
                    ended = steps.terminated[at], steps.truncated[at], steps.success[at]
            steps.next_obs[at] = column, count[column]
    return steps


class Place(NamedTuple):
    row: int
    column: int
    offset: int


class History:
    """What was recorded, and what can be said of any step once rows up to ``newest`` are known."""

    def __init__(self, steps):
        self.steps = steps
        self.chunk = steps.reward.shape[2]
        self.places = {
            (column, steps.obs[row, column, offset, 1]): Place(row, column, offset)
            for row, column, offset in np.argwhere(steps.executed)
        }

    def segment(self, clock, length, extras=None):
        rows = slice(clock * length, (clock + 1) * length)
        return jax.tree.map(
            lambda x: jnp.asarray(x[rows]),
            Segment(steps=self.steps, extras={} if extras is None else extras),
        )

    def place(self, obs):
        return self.places[int(obs[0]), obs[1]]

    def steps_from(self, place):
        """The flat indices from ``place`` to its episode's end, or to the last recorded row;
        executed steps only.
        """
        for flat in range(
            place.row * self.chunk + place.offset, len(self.steps.reward) * self.chunk
        ):
            at = (flat // self.chunk, place.column, flat % self.chunk)
            yield at
            if self.steps.terminated[at] or self.steps.truncated[at]:
                return

    def window(self, place):
        """The transition of a window of ``chunk`` steps from ``place``, by its definition; actions
        after its end are 0.
        """
        window = list(self.steps_from(place))[: self.chunk]
        last = window[-1]
        action = np.zeros((self.chunk, self.steps.action.shape[-1]), np.float32)
        action[: len(window)] = [self.steps.action[at] for at in window]
        return Transition(
            obs=self.steps.obs[window[0]],
            action=action,
            mask=(np.arange(self.chunk) < len(window)).astype(np.float32),
            reward=sum(GAMMA**i * self.steps.reward[at] for i, at in enumerate(window)),
            discount=GAMMA ** len(window) * (1 - self.steps.terminated[last]),
            next_obs=self.steps.next_obs[last],
            terminated=self.steps.terminated[last],
            truncated=self.steps.truncated[last],
        )

    def return_to_go(self, place, newest):
        """Realised return; NaN unless the episode terminates in a row up to ``newest``."""
        window = list(self.steps_from(place))
        if window[-1][0] > newest or not self.steps.terminated[window[-1]]:
            return np.nan
        return sum(GAMMA**i * self.steps.reward[at] for i, at in enumerate(window))

    def succeeds(self, place, newest):
        last = list(self.steps_from(place))[-1]
        return last[0] <= newest and bool(self.steps.success[last])

    def successful_rows(self, oldest, newest):
        """Number of rows of each column whose episode has succeeded by ``newest``."""
        columns = self.steps.reward.shape[1]
        rows = range(oldest, newest + 1)
        return np.array(
            [sum(self.succeeds(Place(row, c, 0), newest) for row in rows) for c in range(columns)]
        )


@pytest.fixture(scope="module")
def history():
    return History(record(np.random.default_rng(0), SEGMENTS * LENGTH, COLUMNS, CHUNK))


def drive(source, history, *, segments=SEGMENTS, length=LENGTH, extras=None):
    """Feed the history segment by segment: (clock, store, batch) after each, leaves of the batch
    [U, B, ...] in numpy.
    """
    step = jax.jit(source.step)
    store = source.init(history.segment(0, length, extras))
    for clock in range(segments):
        key = jax.random.key(clock)
        segment = history.segment(clock, length, extras)
        store, batch = step(store, source.data, segment, key, jnp.int32(clock))
        yield clock, store, jax.tree.map(np.asarray, batch)


def places_of(history, transitions):
    """The place of each transition [U, B], by the step its observation names, in order."""
    return [history.place(obs) for obs in transitions.obs.reshape(-1, 2)]


def assert_windows(history, transitions):
    """Every transition [U, B] is the history's window from its place, as far as its mask shows;
    returns the places.
    """
    places = places_of(history, transitions)
    expected = jax.tree.map(lambda *x: np.stack(x), *[history.window(place) for place in places])
    transitions = transitions._replace(action=transitions.action * transitions.mask[..., None])
    for name in ("obs", "action", "mask", "next_obs", "terminated", "truncated"):
        wanted = getattr(expected, name)
        np.testing.assert_array_equal(
            getattr(transitions, name).reshape(wanted.shape), wanted, err_msg=name
        )
    for name in ("reward", "discount"):
        np.testing.assert_allclose(
            getattr(transitions, name).ravel(), getattr(expected, name), rtol=1e-5, atol=1e-5
        )
    return places


@pytest.fixture(scope="module")
def replayed(history):
    """Every batch of a replay that holds 6 of 16 rows, with returns to go."""
    source = batch_sources.replay(
        capacity=CAPACITY, batch_size=BATCH, updates=UPDATES, gamma=GAMMA, to_go=True
    )
    return [(clock, batch) for clock, _, batch in drive(source, history)]


def test_the_ring_returns_windows_of_its_history_and_all_of_them(history, replayed):
    """Through three wrap-arounds: each draw is a true window of rows still held, each executed
    start is drawn, and the newest row, whose continuation is not known yet, is only entered at its
    beginning.
    """
    for clock, batch in replayed:
        newest = (clock + 1) * LENGTH - 1
        oldest = max(newest + 1 - CAPACITY, 0)
        drawn = set(assert_windows(history, batch.transitions))
        held = {place for place in history.places.values() if oldest <= place.row <= newest}
        assert drawn == {place for place in held if place.row < newest or place.offset == 0}


def test_columns_are_stratified_and_rows_uniform(history, replayed):
    """Each batch takes B/N samples of each column. Rows before the newest are uniform (χ², level
    10⁻⁶).
    """
    clock, batch = replayed[-1]
    columns = batch.transitions.obs[..., 0]
    for column in range(COLUMNS):
        np.testing.assert_array_equal(np.sum(columns == column, -1), BATCH // COLUMNS)
    places = places_of(history, batch.transitions)
    rows = np.bincount(
        [place.row - ((clock + 1) * LENGTH - CAPACITY) for place in places], minlength=CAPACITY
    )
    starts = np.array([CHUNK] * (CAPACITY - 1) + [1])
    assert stats.chisquare(rows, len(places) * starts / starts.sum()).pvalue > 1e-6


def test_returns_to_go_are_realised_or_unknown(history, replayed):
    for clock, batch in replayed:
        newest = (clock + 1) * LENGTH - 1
        expected = [
            history.return_to_go(place, newest) for place in places_of(history, batch.transitions)
        ]
        np.testing.assert_allclose(batch.return_to_go.ravel(), expected, rtol=1e-4, atol=1e-4)
    assert 0 < np.isnan(expected).sum() < len(expected)


def test_the_success_view_holds_successful_episodes_only(history, monkeypatch):
    """A column without success (0) weighs nothing and the mean weight is 1; below the minimum the
    ordinary sample stands in at weight 1.
    """
    monkeypatch.setattr(ring, "MIN_SUCCESSES", 4)
    history = History(
        history.steps._replace(success=history.steps.success & (np.arange(COLUMNS)[:, None] > 0))
    )
    source = batch_sources.replay(
        capacity=CAPACITY, batch_size=BATCH, updates=UPDATES, gamma=GAMMA, success=True
    )
    modes = set()
    for clock, _, batch in drive(source, history):
        newest = (clock + 1) * LENGTH - 1
        oldest = max(newest + 1 - CAPACITY, 0)
        available = history.successful_rows(oldest, newest)
        enough = available.sum() >= 4
        modes.add(bool(enough))
        if not enough:
            jax.tree.map(np.testing.assert_array_equal, batch.success, batch.transitions)
            np.testing.assert_array_equal(batch.success_weight, 1.0)
            continue
        column = np.tile(np.arange(BATCH) * COLUMNS // BATCH, (UPDATES, 1))
        drawable = available[column] > 0
        np.testing.assert_allclose(
            batch.success_weight, drawable / drawable.mean(-1, keepdims=True), rtol=1e-6
        )
        drawn = assert_windows(
            history, jax.tree.map(lambda x, keep=batch.success_weight > 0: x[keep], batch.success)
        )
        held = {place for place in history.places.values() if oldest <= place.row <= newest}
        assert set(drawn) == {place for place in held if history.succeeds(place, newest)}
    assert modes == {False, True}


def test_aligned_windows_carry_their_own_extras_and_are_uniform(history):
    """Each chunk row of each column is as likely as any other, the newest included."""
    extras = {"id": np.arange(SEGMENTS * LENGTH * COLUMNS, dtype=np.float32).reshape(-1, COLUMNS)}
    source = batch_sources.replay(
        capacity=CAPACITY, batch_size=BATCH, updates=UPDATES, gamma=GAMMA, aligned=True
    )
    for clock, _, batch in drive(source, history, extras=extras):
        newest = (clock + 1) * LENGTH - 1
        drawn = assert_windows(history, batch.transitions)
        assert {place.offset for place in drawn} == {0}
        np.testing.assert_array_equal(
            batch.transitions.extras["id"].ravel(), [p.row * COLUMNS + p.column for p in drawn]
        )
        rows = np.bincount(
            [newest - place.row for place in drawn], minlength=min(newest + 1, CAPACITY)
        )
        assert len(rows) == min(newest + 1, CAPACITY)
        assert stats.chisquare(rows).pvalue > 1e-6


def test_fewer_samples_than_columns_reach_every_column():
    source = batch_sources.replay(capacity=2, batch_size=2, updates=64, gamma=GAMMA)
    many = History(record(np.random.default_rng(2), 2, 5, 1))
    *_, (_, _, batch) = drive(source, many, segments=2, length=1)
    assert set(batch.transitions.obs[..., 0].ravel()) == set(range(5))


@pytest.fixture(scope="module")
def episodes():
    """Five episodes of 1 to 10 steps, time-major [10, 5], and frozen after their end."""
    rng = np.random.default_rng(3)
    lengths = np.array([1, 4, 6, 9, 10])
    time = np.arange(10)[:, None]
    executed = time < lengths
    count = np.minimum(time, lengths - 1)
    obs = np.stack(np.broadcast_arrays(np.arange(5), count), -1).astype(np.float32)
    after = np.stack(np.broadcast_arrays(np.arange(5), np.minimum(time + 1, lengths)), -1).astype(
        np.float32
    )
    ended = time >= lengths - 1
    action = rng.uniform(-1, 1, (10, 5, 2)).astype(np.float32)
    reward = np.where(executed, rng.standard_normal((10, 5)), 1e6).astype(np.float32)
    success = np.broadcast_to(np.arange(5) % 2 == 0, ended.shape)
    return Step(
        obs, action, reward, after, ended & success, ended & ~success, ended & success, executed
    )


@pytest.fixture(scope="module")
def demonstrations(episodes):
    return demonstrations_of(episodes)


def chunk_rows(episodes, chunk):
    """The episodes [T, N] as rows of a ring [T/h, N, h], padded with steps not executed."""
    padding = -len(episodes.reward) % chunk

    def rows(x):
        x = np.concatenate([x, np.zeros((padding, *x.shape[1:]), x.dtype)])
        return np.moveaxis(x.reshape(-1, chunk, *x.shape[1:]), 1, 2)

    return jax.tree.map(rows, episodes)


def test_windows_of_a_dataset_are_those_of_its_episodes_in_a_ring(episodes, demonstrations):
    """From each start, everything but what was proposed after the end: there it is the last action
    again.
    """
    source = batch_sources.dataset(demonstrations, chunk=4, batch_size=4, updates=1, gamma=GAMMA)
    rows = chunk_rows(episodes, 4)
    column, row, offset = np.argwhere(np.moveaxis(rows.executed, 1, 0)).T
    start = ring.WindowStart(row=row, column=column, offset=offset)
    expected = returns.fold_chunk(ring.window_steps(rows, start), GAMMA)
    data = jax.tree.map(jnp.asarray, source.data)
    window = batch_sources.dataset_windows(data, jnp.arange(30), 4)
    found = returns.fold_chunk(window, GAMMA)
    for name in set(found._fields) - {"action", "extras"}:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    executed = found.mask[..., None] > 0
    np.testing.assert_array_equal(found.action * executed, expected.action * executed)
    last = np.take_along_axis(found.action, np.sum(executed, 1, keepdims=True) - 1, axis=1)
    np.testing.assert_array_equal(found.action, np.where(executed, found.action, last))


def test_dataset_is_uniform_over_executed_steps(episodes, demonstrations):
    source = batch_sources.dataset(
        demonstrations, chunk=CHUNK, batch_size=BATCH, updates=UPDATES, gamma=GAMMA
    )
    store, batch = jax.jit(source.step)(
        source.init(None), source.data, None, jax.random.key(0), jnp.int32(0)
    )
    assert store is None
    jax.tree.map(np.testing.assert_array_equal, source.data.steps, demonstrations.steps)
    history = History(chunk_rows(episodes, CHUNK))
    drawn = assert_windows(history, jax.tree.map(np.asarray, batch.transitions))
    counts = [drawn.count(place) for place in history.places.values()]
    assert len(counts) == 30
    assert sum(counts) == UPDATES * BATCH
    assert stats.chisquare(counts).pvalue > 1e-6
    assert (batch.success, batch.success_weight, batch.return_to_go) == (None, None, None)


@pytest.mark.parametrize("steps", [3, 6_000_000, 2**25, 2**31 - 1])
def test_any_number_of_steps_is_drawn_uniformly(steps):
    """By the last digits and the quarter of what is drawn: a float32 has 2²³ values (χ²)."""
    drawn = np.asarray(batch_sources.uniform_steps(jax.random.key(1), 4096, steps))
    assert drawn.dtype == np.int32 and drawn.min() >= 0 and drawn.max() < steps
    for kinds in (drawn % min(steps, 64), drawn * 4 // steps if steps < 2**29 else drawn >> 29):
        assert stats.chisquare(np.bincount(kinds)).pvalue > 1e-6


@pytest.mark.parametrize("steps", [3, 70_000, 6_000_000, 2**25, 2**31 - 1])
def test_any_place_of_a_replay_is_drawn_uniformly(steps):
    _, draw = ring._stratified_columns(jax.random.key(1), 4096, 4)
    drawn = np.asarray(draw.below(jnp.int32(steps), steps))
    assert drawn.min() >= 0 and drawn.max() < steps
    for kinds in (drawn % min(steps, 64), drawn * 4 // steps if steps < 2**29 else drawn >> 29):
        assert stats.chisquare(np.bincount(kinds)).pvalue > 1e-6


def test_small_replays_draw_from_a_float(monkeypatch):
    """Exact draws would change the runs of before; they differ, so the switch does something."""
    _, draw = ring._stratified_columns(jax.random.key(1), 64, 4)
    before = np.minimum((np.asarray(draw.uniform) * 1000).astype(int), 999)
    np.testing.assert_array_equal(draw.below(jnp.int32(1000), 1000), before)
    monkeypatch.setattr(ring, "MAX_FROM_FLOAT", 999)
    assert np.any(draw.below(jnp.int32(1000), 1000) != before)


def test_returns_to_go_of_demonstrations_reach_to_a_termination(episodes, demonstrations):
    """Episodes 0, 2 and 4 terminate; of the truncated ones the return is not known."""
    source = batch_sources.dataset(
        demonstrations, chunk=CHUNK, batch_size=BATCH, updates=2, gamma=GAMMA, to_go=True
    )
    _, batch = jax.jit(source.step)(None, source.data, None, jax.random.key(0), jnp.int32(0))
    history = History(chunk_rows(episodes, CHUNK))
    newest = len(episodes.reward)
    expected = [
        history.return_to_go(place, newest)
        for place in places_of(history, jax.tree.map(np.asarray, batch.transitions))
    ]
    np.testing.assert_allclose(batch.return_to_go.ravel(), expected, rtol=1e-5, atol=1e-5)
    assert 0 < np.isnan(expected).sum() < len(expected)


def test_rollout_visits_every_chunk_once_an_epoch_in_fresh_order():
    rows, columns, epochs, minibatches = 6, 5, 3, 2
    history = History(record(np.random.default_rng(4), rows, columns, CHUNK))
    extras = {"id": np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)}
    source = batch_sources.on_policy(
        epochs=epochs, minibatches=minibatches, rows=rows, columns=columns, gamma=GAMMA
    )
    assert (source.updates, source.batch_size) == (
        epochs * minibatches,
        rows // minibatches * columns,
    )
    *_, (_, store, batch) = drive(source, history, segments=1, length=rows, extras=extras)
    assert store is None
    visited = batch.transitions.extras["id"].reshape(epochs, rows * columns)
    np.testing.assert_array_equal(np.sort(visited), np.tile(np.arange(rows * columns), (epochs, 1)))
    assert len(np.unique(visited, axis=0)) == epochs
    expected = [Place(*divmod(int(number), columns), 0) for number in visited.ravel()]
    assert assert_windows(history, batch.transitions) == expected
    for part in batch.transitions.extras["id"].reshape(-1, rows // minibatches * columns):
        np.testing.assert_array_equal(np.bincount(part.astype(int) % columns), rows // minibatches)


def test_rollout_needs_minibatches_that_divide_its_rows():
    with pytest.raises(
        ValueError, match="minibatches is 4, which does not divide the segment length 6"
    ):
        batch_sources.on_policy(epochs=1, minibatches=4, rows=6, columns=2, gamma=GAMMA)


def test_gamma_of_demonstrations_may_vary_in_a_population(demonstrations):
    gamma = population.TracedHyperparameter("gamma", jnp.float32(GAMMA), (GAMMA, 0.95))
    source = batch_sources.dataset(
        demonstrations, chunk=CHUNK, batch_size=4, updates=2, gamma=gamma, to_go=True
    )
    _, batch = jax.eval_shape(source.step, None, source.data, None, jax.random.key(0), 0)
    assert batch.return_to_go.shape == (2, 4)
    varying, fixed = (
        jax.jit(lambda data, g=g: batch_sources.dataset_returns_to_go(data, g))(source.data)
        for g in (gamma, GAMMA)
    )
    np.testing.assert_array_equal(varying, fixed)


@pytest.mark.parametrize("to_go", [False, True])
def test_mix_sets_batches_of_both_sources_side_by_side(history, episodes, demonstrations, to_go):
    replay = batch_sources.replay(
        capacity=CAPACITY, batch_size=6, updates=3, gamma=GAMMA, to_go=to_go
    )
    dataset = batch_sources.dataset(
        demonstrations, chunk=CHUNK, batch_size=10, updates=3, gamma=GAMMA, to_go=to_go
    )
    source = batch_sources.mix_sources(replay, dataset)
    assert (source.updates, source.batch_size) == (3, 16)
    assert source.partition_spec == (replay.partition_spec, dataset.partition_spec)
    assert source.data == (None, dataset.data)
    other = History(chunk_rows(episodes, CHUNK))
    for clock, (stored, _), batch in drive(source, history, segments=2):
        assert batch.transitions.reward.shape == (3, 16)
        first, second = (
            jax.tree.map(lambda x, part=part: x[:, part], batch.transitions)
            for part in (slice(6), slice(6, None))
        )
        places = assert_windows(history, first)
        others = assert_windows(other, second)
        if not to_go:
            assert batch.return_to_go is None
            continue
        newest = (clock + 1) * LENGTH - 1
        expected = [history.return_to_go(place, newest) for place in places]
        np.testing.assert_allclose(
            batch.return_to_go[:, :6].ravel(), expected, rtol=1e-4, atol=1e-4
        )
        expected = [other.return_to_go(place, CAPACITY) for place in others]
        np.testing.assert_allclose(
            batch.return_to_go[:, 6:].ravel(), expected, rtol=1e-4, atol=1e-4
        )
    assert stored.steps.reward.shape == (CAPACITY, COLUMNS, CHUNK)


@pytest.mark.parametrize("first", [False, True])
def test_returns_to_go_of_one_mixed_source_are_not_dropped(history, demonstrations, first):
    replay = batch_sources.replay(
        capacity=CAPACITY, batch_size=6, updates=3, gamma=GAMMA, to_go=first
    )
    dataset = batch_sources.dataset(
        demonstrations, chunk=CHUNK, batch_size=10, updates=3, gamma=GAMMA, to_go=not first
    )
    source = batch_sources.mix_sources(replay, dataset)
    segment = history.segment(0, LENGTH)
    store = jax.eval_shape(source.init, segment)
    with pytest.raises(ValueError, match="Only one of two mixed sources gives returns to go"):
        jax.eval_shape(source.step, store, source.data, segment, jax.random.key(0), jnp.int32(0))


def test_mixed_sources_need_the_same_number_of_updates(demonstrations):
    two, three = (
        batch_sources.dataset(demonstrations, chunk=4, batch_size=4, updates=n, gamma=GAMMA)
        for n in (2, 3)
    )
    with pytest.raises(ValueError, match="the same number of updates; got 2 and 3"):
        batch_sources.mix_sources(two, three)


def test_four_devices_draw_what_one_draws(devices):
    """Columns and batch are split alike, so the parts of four devices joined are the batch of one,
    success view included.
    """
    steps = record(np.random.default_rng(5), 2, 8, CHUNK)
    segment = jax.tree.map(jnp.asarray, Segment(steps=steps, extras={}))
    source = batch_sources.replay(
        capacity=2, batch_size=16, updates=2, gamma=GAMMA, success=True, to_go=True
    )
    rows = jax.sharding.PartitionSpec(None, "data")

    def run(count):
        def first(segment):
            store = source.init(segment)
            return source.step(store, None, segment, jax.random.key(0), jnp.int32(0))[1]

        mesh = devices(data=count)
        return jax.jit(
            jax.shard_map(first, mesh=mesh, in_specs=(rows,), out_specs=rows, check_vma=False)
        )(segment)

    one, four = run(1), run(4)
    assert isinstance(four, Batch)
    jax.tree.map(np.testing.assert_array_equal, one, four)

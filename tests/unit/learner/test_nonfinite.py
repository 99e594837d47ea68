"""What is not finite: gradients and states decide, metrics are only shown."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gcp_jax.core import optim
from gcp_jax.learner import nonfinite, updates
from gcp_jax.types import Algorithm, Array, Batch

UPDATES = 4
OPTIMIZER = optax.adam(0.1)


class State(NamedTuple):
    params: Array
    opt_state: tuple


def toy(*, show_gap):
    """Fit a number to rewards; with ``show_gap`` also a mean over rewards above 0."""

    def update(state, batch, key):
        reward = batch.transitions

        def loss(params):
            value = jnp.mean((params - reward) ** 2)
            return value, {"fit_loss": value}

        params, opt_state, metrics = optim.gradient_step(
            loss, state.params, state.opt_state, OPTIMIZER, name="fit"
        )
        if show_gap:
            won = reward > 0.0
            gap = jnp.sum(jnp.where(won, reward, 0.0)) / jnp.sum(won)
            metrics = {"reward_where_won": gap, **metrics}
        return State(params=params, opt_state=opt_state), metrics

    return Algorithm(**{**dict.fromkeys(Algorithm._fields), "update": update})


def learn(algorithm, rewards):
    """Four updates on rewards [4, B]: the state, and the row with what was not finite in it."""
    params = jnp.zeros(())
    state = State(params=params, opt_state=OPTIMIZER.init(params))
    keys = jax.random.split(jax.random.key(0), UPDATES)
    run = jax.jit(lambda state, batch: updates.run_updates(algorithm, state, batch, keys))
    state, metrics = run(state, Batch(transitions=jnp.asarray(rewards, jnp.float32)))
    row = {f"train/{name}": float(x) for name, x in metrics.items()}
    return state, row, nonfinite.pop_nonfinite(row)


LOST = -np.ones((UPDATES, 3), np.float32)  # nobody wins
ONCE = np.concatenate([LOST[:3], np.full((1, 3), 0.5, np.float32)])


@pytest.mark.parametrize("rewards", [LOST, ONCE])
def test_a_metric_that_is_nan_for_a_good_reason_changes_nothing(rewards):
    """The policy is that of the method without the metric, bit for bit."""
    plain, plain_row, _ = learn(toy(show_gap=False), rewards)
    state, row, found = learn(toy(show_gap=True), rewards)
    assert found == (0, 0, "")
    jax.tree.map(np.testing.assert_array_equal, state, plain)
    assert state.params != 0.0
    gap = row.pop("train/reward_where_won", None)
    assert gap == (0.5 if rewards is ONCE else None)
    assert row == plain_row


def test_missing_numbers_do_not_stop_a_run_that_looks_for_nans():
    with jax.debug_nans(True):
        _, row, _ = learn(toy(show_gap=True), LOST)
        flag = jax.jit(nonfinite.flag_missing)
        flags = flag({"gap": jnp.log(jnp.ones(())) * 0.0, "q": jnp.ones(())})
    assert "train/reward_where_won" not in row and "train/fit_loss" in row
    assert {name: float(x) for name, x in flags.items()} == {
        "gap": 0.0,
        "q": 1.0,
        "missing/gap": 0.0,
        "missing/q": 0.0,
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_counted_and_its_loss_named(bad):
    """The metric that is missing comes first, but it is not the cause."""
    rewards = LOST.copy()
    rewards[1, 0] = bad
    _, row, found = learn(toy(show_gap=True), rewards)
    assert found == (1, 1, "fit_loss was not finite")
    assert row["train/nonfinite_updates"] == 1 and np.isfinite(list(row.values())).all()


def test_the_first_loss_or_gradient_that_is_not_finite_names_the_cause():
    """Three updates: in the second the gradient is broken because the loss was, in the third
    alone."""
    metrics = {
        "shown": jnp.array([1.0, jnp.nan, jnp.nan]),
        "z_loss": jnp.array([1.0, jnp.inf, 3.0]),
        "a_gradient_norm": jnp.array([4.0, jnp.nan, jnp.nan]),
    }

    def flags(*numbers):  # the order of a method's own dict, which a pytree would sort
        return nonfinite.update_flags(dict(zip(metrics, numbers, strict=True)))

    summary = nonfinite.nonfinite_summary(jax.vmap(flags)(*metrics.values()), jnp.bool(False))
    means = nonfinite.segment_means(metrics)
    row = {f"train/{name}": float(value) for name, value in (means | summary).items()}
    assert nonfinite.pop_nonfinite(row) == (2, 1, "z_loss was not finite")
    assert row == {
        "train/nonfinite_updates": 2.0,
        "train/shown": 1.0,
        "train/z_loss": 2.0,
        "train/a_gradient_norm": 4.0,
    }


def test_a_loss_whose_gradient_is_finite_does_not_count():
    metrics = {"z_loss": jnp.array([jnp.nan]), "z_gradient_norm": jnp.array([1.0])}
    flags = jax.vmap(nonfinite.update_flags)(metrics)
    assert not flags.skipped.any() and not flags.causes["z_loss"].any()


def test_what_is_not_finite_is_removed_from_a_row():
    row = {
        "train/nonfinite_updates": 0.0,
        "train/first_nonfinite_update": 0.0,
        "train/q": np.nan,
        "train/gap": 0.0,
        "train/missing/gap": 1.0,
        "train/kept": 2.0,
        "train/missing/kept": 0.0,
    }
    assert nonfinite.pop_nonfinite(row) == (0, 0, "")
    assert row == {"train/nonfinite_updates": 0.0, "train/kept": 2.0}


def test_a_discarded_state_counts_all_updates():
    flags = nonfinite.UpdateFlags(skipped=jnp.zeros(5), causes={"loss": jnp.zeros(5)})
    summary = nonfinite.nonfinite_summary(flags, jnp.bool(True))
    row = {f"train/{name}": float(value) for name, value in summary.items()}
    assert nonfinite.pop_nonfinite(row) == (5, 0, "a parameter was not finite")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_discarded(bad):
    old = {"net": jnp.zeros(3), "step": jnp.int32(4), "key": jax.random.key(0)}
    new = {"net": jnp.array([1.0, bad, 2.0]), "step": jnp.int32(5), "key": jax.random.key(1)}
    kept, discarded = nonfinite.keep_if_finite(old, new)
    assert discarded and kept["step"] == 4 and kept["key"] == old["key"]
    np.testing.assert_array_equal(kept["net"], old["net"])
    kept, discarded = nonfinite.keep_if_finite(old, {**new, "net": jnp.ones(3)})
    assert not discarded and kept["step"] == 5
    assert nonfinite.all_finite({"step": jnp.int32(1)})


def test_a_gradient_that_is_not_finite_changes_nothing():
    """log of a parameter that is 0 has none; the optimizer's moments stay as well."""
    optimizer = optax.adam(0.1)

    def loss(params):
        return jnp.sum(jnp.log(params["x"])), {}

    def step(params, opt_state):
        return optim.gradient_step(loss, params, opt_state, optimizer, name="x")

    ones = {"x": jnp.ones(2)}
    finite, _, metrics = step(ones, optimizer.init(ones))
    assert (finite["x"] < 1).all() and metrics["x_gradient_norm"] == pytest.approx(2**0.5)
    with_zero = {"x": jnp.array([0.0, 1.0])}
    params, opt_state, metrics = step(with_zero, optimizer.init(with_zero))
    np.testing.assert_array_equal(params["x"], with_zero["x"])
    assert opt_state[0].count == 0 and not np.isfinite(metrics["x_gradient_norm"])

"""A damaged checkpoint is reported and moved aside, and the one before it is restored."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.damage import flip_a_bit, largest, truncate
from jax.sharding import SingleDeviceSharding

from gcp_jax.run import checkpoint


def state(clock):
    return {
        "key": jax.random.key(clock),
        "net": jnp.arange(100_000.0) + clock,
        "clock": jnp.int32(clock),
    }


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "finetune"
    saved = checkpoint.Checkpoints(folder, keep=3)
    for clock in (1, 2, 3):
        saved.save(clock, state(clock), {"rows": [clock]})
    saved.close()
    return folder


@pytest.fixture
def folder(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "checkpoints" / "finetune")


def restored(folder):
    saved = checkpoint.Checkpoints(folder, keep=3)
    found = saved.restore(lambda: state(0), SingleDeviceSharding(jax.devices()[0]))
    saved.close()
    return found


DAMAGES = {
    "flipped": (lambda folder: flip_a_bit(largest(folder / "3")), "is not what was written"),
    "truncated": (lambda folder: truncate(largest(folder / "3")), "is not what was written"),
    "a file gone": (lambda folder: largest(folder / "3").unlink(), "is missing"),
    "half gone": (lambda folder: shutil.rmtree(folder / "3" / "train"), "is missing"),
    "signature gone": (
        lambda folder: (folder / "3" / checkpoint.SIGNATURE).unlink(),
        "it was never finished",
    ),
    "signature cut": (
        lambda folder: truncate(folder / "3" / checkpoint.SIGNATURE),
        "cannot be read",
    ),
}


@pytest.mark.parametrize(("harm", "problem"), DAMAGES.values(), ids=DAMAGES)
def test_the_one_before_is_restored(folder, tmp_path, capsys, harm, problem):
    harm(folder)
    checkpoint.set_damaged_aside(folder, tmp_path / "damaged")
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1 and "checkpoint 3 of finetune is damaged" in said and problem in said
    )
    assert "resuming from 2" in said and (tmp_path / "damaged" / "finetune-3").is_dir()
    assert checkpoint.latest(folder) == 2
    found, host = restored(folder)
    np.testing.assert_array_equal(found["net"], state(2)["net"])
    np.testing.assert_array_equal(
        jax.random.key_data(found["key"]), jax.random.key_data(state(2)["key"])
    )
    assert host == {"rows": [2]}


def test_what_was_damaged_is_saved_anew_and_damaged_again(folder, tmp_path):
    for name in ("finetune-3", "finetune-3-1"):
        flip_a_bit(largest(folder / "3"))
        checkpoint.set_damaged_aside(folder, tmp_path / "damaged")
        assert (tmp_path / "damaged" / name).is_dir()
        saved = checkpoint.Checkpoints(folder, keep=3)
        saved.save(3, state(3), {"rows": [3]})
        saved.close()
        assert checkpoint.latest(folder) == 3 and not checkpoint.damage(folder / "3")


def test_nothing_is_left_where_all_are_damaged(folder, tmp_path, capsys):
    for clock in (1, 2, 3):
        flip_a_bit(largest(folder / str(clock)))
    checkpoint.set_damaged_aside(folder, tmp_path / "damaged")
    assert "there is none before it" in capsys.readouterr().err
    assert checkpoint.latest(folder) is None and restored(folder) is None


def test_what_is_whole_is_left_alone(folder, tmp_path, capsys):
    checkpoint.set_damaged_aside(folder, tmp_path / "damaged")
    checkpoint.set_damaged_aside(tmp_path / "nothing", tmp_path / "damaged")
    assert capsys.readouterr().err == "" and not (tmp_path / "damaged").exists()
    assert restored(folder)[1] == {"rows": [3]}

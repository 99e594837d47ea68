"""A damaged checkpoint is reported and moved aside, and the one before it is restored."""

import logging
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
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


def test_arrays_of_the_host_are_restored_as_they_were(tmp_path):
    kept = {"deployed": {"w": np.arange(6.0).reshape(2, 3)}, "flags": np.array([True, False])}
    saved = checkpoint.Checkpoints(tmp_path / "finetune", keep=2)
    saved.save(1, state(1), {"rows": []})
    assert saved.restore_kept(kept) is None
    saved.save(2, state(2), {"rows": []}, kept)
    found = saved.restore_kept(kept)
    saved.close()
    jax.tree.map(np.testing.assert_array_equal, found, kept)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(found))
    folder = tmp_path / "finetune" / "2"
    assert checkpoint.missing_arrays(folder) == ""
    shutil.rmtree(folder / checkpoint.KEPT / "d")
    assert checkpoint.missing_arrays(folder) != ""


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


SPECIAL = r"[]*?\{}()!#$%&'+,:;<=>@^`|~ ü☃" + '"'
NAMES = st.text(st.sampled_from(SPECIAL), min_size=1, max_size=12)


def small_state(clock):
    return {"net": jnp.arange(4.0) + clock}


def saved_and_restored(folder, clock):
    """A state that was written to a folder and read from it again."""
    saved = checkpoint.Checkpoints(folder, keep=2)
    saved.save(3, small_state(clock), {})
    assert checkpoint.damage(folder / "3") == ""
    found, _ = saved.restore(lambda: small_state(0), SingleDeviceSharding(jax.devices()[0]))
    saved.close()
    return found


@hypothesis.settings(max_examples=4, deadline=None)
@hypothesis.given(name=NAMES)
@hypothesis.example("peg [v2]")
@hypothesis.example("gs:")
def test_checkpoints_are_restored_from_any_path(name):
    with tempfile.TemporaryDirectory() as root:
        found = saved_and_restored(Path(root) / name / "finetune", 7)
        np.testing.assert_array_equal(found["net"], small_state(7)["net"])


def test_a_folder_that_the_name_would_match_as_a_pattern_is_left_alone(tmp_path):
    for clock, name in enumerate(("abc", "a*")):
        found = saved_and_restored(tmp_path / name, clock)
        np.testing.assert_array_equal(found["net"], small_state(clock)["net"])


def test_a_checkpoint_without_its_arrays_is_not_signed(tmp_path, monkeypatch):
    """As orbax writes it to a path with brackets, with a warning only."""
    monkeypatch.setattr(checkpoint, "is_plain", lambda path: True)
    folder = tmp_path / "peg [v2]" / "finetune"
    saved = checkpoint.Checkpoints(folder, keep=2)
    with pytest.raises(OSError, match="cannot write checkpoint 3 to .*: it holds 0 of 1 arrays"):
        saved.save(3, small_state(3), {})
    assert checkpoint.damage(folder / "3") == "it was never finished"


def test_a_signature_does_not_bless_a_checkpoint_without_its_arrays(folder):
    for path in (folder / "3" / "train").rglob("manifest.ocdbt"):
        path.unlink()
    (folder / "3" / checkpoint.SIGNATURE).unlink()
    checkpoint._sign(folder / "3")
    assert "arrays" in checkpoint.damage(folder / "3")


def test_a_full_disk_is_said_in_one_line():
    reported = ValueError(
        "RESOURCE_EXHAUSTED: Error writing \"w4/0\" [source locations='file.cc:1\nfile.cc:2']\nmore"
    )
    assert checkpoint._reason(reported) == "the disk is full; free some space"
    assert checkpoint._reason(OSError(28, "No space left on device")).startswith("the disk is full")
    assert (
        checkpoint._reason(ValueError("INTERNAL: odd [source locations='a'\nb")) == "INTERNAL: odd"
    )


def test_errors_that_orbax_logs_besides_raising_them_are_not_printed(tmp_path):
    checkpoint.Checkpoints(tmp_path / "finetune", keep=2).close()

    def shown(level, path, name="absl", message=""):
        record = logging.LogRecord(name, level, path, 1, message, (), None)
        return bool(logging.getLogger(name).filter(record))

    assert not shown(logging.ERROR, "/site-packages/orbax/checkpoint/future.py")
    assert shown(logging.WARNING, "/site-packages/orbax/checkpoint/future.py")
    assert shown(logging.ERROR, "/site-packages/absl/app.py")
    never_retrieved = "Future exception was never retrieved: OCDBT database"
    assert not shown(logging.ERROR, "asyncio/base_events.py", "asyncio", never_retrieved)
    assert shown(logging.ERROR, "asyncio/base_events.py", "asyncio", "another future")


def test_a_closed_event_loop_prints_no_traceback(monkeypatch):
    """Tensorstore reports to the one that orbax has closed when a write failed."""
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: shown.append(unraisable))
    checkpoint._keep_failures_quiet.__wrapped__()
    sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError("Event loop is closed")))
    odd = SimpleNamespace(exc_value=RuntimeError("odd"))
    sys.unraisablehook(odd)
    assert shown == [odd]

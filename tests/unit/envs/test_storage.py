"""Datasets on disk: what is written is read, facts are of what is read, faults give one line."""

import json

import jax
import numpy as np
import pytest

from gcp_jax import envs
from gcp_jax.core.demonstrations import demonstrations_of
from gcp_jax.envs.demos import quality, storage
from gcp_jax.envs.demos.collect import collect
from gcp_jax.envs.tasks import reach

EPISODES = 12


@pytest.fixture(scope="module")
def collected():
    """Steps [T, E, ...] and Info of poor demonstrations: some succeed, some reach the horizon."""
    env = envs.make("reach")
    return jax.device_get(collect(env, reach.QUALITY["poor"], jax.random.key(0), EPISODES))[:2]


@pytest.fixture
def folder(collected, tmp_path):
    """A dataset on disk."""
    storage.write(tmp_path / "demos", *collected, {"env": {"name": "reach"}})
    return tmp_path / "demos"


def test_every_executed_step_is_kept_in_order(collected, folder):
    steps, info = collected
    dataset = storage.read(folder)
    for episode, first in enumerate(dataset.start):
        length = info.length[episode]
        for name, values in dataset.steps.items():
            np.testing.assert_array_equal(
                values[first : first + length], getattr(steps, name)[:length, episode]
            )
    assert len(dataset.steps["obs"]) == steps.executed.sum()


def test_facts_of_the_episodes_come_back(collected, folder):
    _, info = collected
    dataset = storage.read(folder)
    np.testing.assert_array_equal(dataset.length, info.length)
    np.testing.assert_array_equal(dataset.solved, info.success)
    np.testing.assert_array_equal(dataset.mode, info.mode)
    assert 0 < info.success.sum() < EPISODES
    assert dataset.facts["env"] == {"name": "reach"}


def test_arrays_stay_on_disk(folder):
    assert all(isinstance(values, np.memmap) for values in storage.read(folder).steps.values())


def test_a_run_reads_what_was_collected(collected, folder):
    steps, _ = collected
    found = storage.demonstrations(storage.read(folder))
    expected = demonstrations_of(steps)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found.digest() == expected.digest()
    assert isinstance(found.steps.obs, np.memmap)


@pytest.mark.parametrize("episodes", [1, 5, EPISODES])
def test_facts_are_of_the_episodes_selected(collected, folder, episodes):
    """Coverage needs all steps of the references, so it is known of the whole dataset only."""
    steps, info = collected
    _description(
        folder,
        **{"return": 99.0, "trajectory_quality": 99.0, "coverage": 0.5},
        reference_returns={"clean": -3.0, "random": -30.0},
    )
    found = storage.measured_facts(storage.read(folder).first(episodes))
    mean = quality.returns(jax.tree.map(lambda x: x[:, :episodes], steps)).mean()
    assert found["return"] == round(float(mean), 3)
    assert found["trajectory_quality"] == round(float(mean + 30.0) / 27.0, 3)
    assert found["episodes"] == episodes
    assert found["success"] == round(float(info.success[:episodes].mean()), 3)
    assert found.get("coverage") == (0.5 if episodes == EPISODES else None)


def test_without_the_references_a_part_has_no_trajectory_quality(folder):
    _description(folder, trajectory_quality=0.7, coverage=0.5)
    whole = storage.read(folder)
    assert storage.measured_facts(whole)["trajectory_quality"] == 0.7
    assert storage.measured_facts(whole.first(5)).keys() == {
        "episodes",
        "success",
        "modes",
        "return",
    }


def test_what_demos_measures_is_enough_for_a_part(tmp_path):
    """The trajectory quality of a part is that of a dataset of this part alone."""
    env = envs.make("reach")
    collected = jax.device_get(collect(env, reach.QUALITY["poor"], jax.random.key(0), EPISODES))
    dataset = storage.write(tmp_path / "demos", collected.steps, collected.info, collected.facts())
    part = jax.tree.map(lambda x: x[:, :5], collected.steps)
    expected = quality.measured(part, clean=collected.clean, random=collected.random)
    found = storage.measured_facts(dataset.first(5))
    for name in ("return", "trajectory_quality"):
        assert found[name] == pytest.approx(expected[name], abs=1e-3)
    whole = storage.measured_facts(dataset)
    for name in quality.NAMES:
        assert whole[name] == pytest.approx(dataset.facts[name], abs=1e-3)


def test_a_folder_with_something_in_it_is_left_alone(collected, folder):
    before = (folder / "obs.npy").read_bytes()
    with pytest.raises(FileExistsError, match="not empty; choose another --out"):
        storage.write(folder, *collected, {})
    assert (folder / "obs.npy").read_bytes() == before


def _array(folder, name, change):
    values = np.load(folder / f"{name}.npy")
    np.save(folder / f"{name}.npy", change(values))


def _set(index, value):
    def change(values):
        values[index] = value
        return values

    return change


def _description(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            lambda d: (d / "dataset.json").unlink(),
            "has no dataset.json: it is no dataset, or was not finished",
        ),
        (lambda d: _description(d, format=7), "dataset.json has format 7, must be 1"),
        (lambda d: (d / "action.npy").unlink(), "action.npy is missing"),
        (
            lambda d: (d / "action.npy").write_bytes(b"no array"),
            "action.npy cannot be read as a numpy array",
        ),
        (
            lambda d: _array(d, "action", _set((5, 0), 1.5)),
            r"action.npy row 5 is .*; every number must be in \[-1, 1\]",
        ),
        (
            lambda d: _array(d, "action", _set((5, 0), np.nan)),
            r"action.npy row 5 is .*; every number must be in",
        ),
        (
            lambda d: _array(d, "obs", _set((3, 1), np.inf)),
            "obs.npy row 3 is .*; every number must be finite",
        ),
        (
            lambda d: _array(d, "reward", lambda x: x[:-1]),
            r"reward.npy is float32\[\d+\], must be float32\[\d+\]",
        ),
        (
            lambda d: _array(d, "reward", lambda x: x.astype(float)),
            r"reward.npy is float64\[\d+\], must be float32",
        ),
        (
            lambda d: _array(d, "start", _set(1, 0)),
            r"start.npy must rise from 0 by 1 to \d+ steps an episode",
        ),
        (
            lambda d: _array(d, "start", lambda x: x[:-1]),
            r"start.npy has shape \(11,\), must be \(12,\)",
        ),
        (
            lambda d: _array(d, "mode", lambda x: x[:-1]),
            r"mode.npy has shape \(11,\), must be \(12,\)",
        ),
        (
            lambda d: _array(d, "terminated", _set(2, True)),
            "terminated.npy row 2 is true inside episode 0, which start.npy begins at row 0; only "
            "an episode's last row may be: clear the flag, or add 3 to start.npy",
        ),
        (
            lambda d: _array(d, "truncated", _set(-2, True)),
            r"truncated.npy row \d+ is true inside episode 11, which start.npy begins at row",
        ),
        (
            lambda d: _description(d, coverage="high"),
            "dataset.json has coverage 'high', must be a finite number or null",
        ),
        (
            lambda d: _description(d, reference_returns={"clean": [1], "random": 2}),
            r"dataset.json has reference_returns.clean \[1\], must be a finite number or null",
        ),
    ],
)
def test_damage_is_reported(folder, damage, complaint):
    damage(folder)
    with pytest.raises(storage.DatasetError, match=complaint):
        storage.read(folder)

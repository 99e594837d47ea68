"""Updates that are not finite are skipped, counted, named, and recomputed by ``gcp-jax debug``."""

import json

import numpy as np
import pytest

from gcp_jax.experiments import assemble, run_config
from gcp_jax.launch.cli import main
from gcp_jax.run import replay_fault
from gcp_jax.run.errors import RunError
from gcp_jax.run.metrics import rows
from gcp_jax.run.training import Training

pytestmark = pytest.mark.slow

TINY = {
    "policy.hidden": (16,),
    "policy.steps": 2,
    "algorithm.critic_hidden": (16,),
    "algorithm.critics": 2,
    "algorithm.samples": 4,
    "demonstrations.episodes": 16,
    "pretrain.updates": 20,
    "pretrain.evaluate_every": 20,
    "pretrain.batch_size": 32,
    "finetune.envs": 8,
    "finetune.unroll_chunks": 4,
    "finetune.batch_size": 32,
    "finetune.env_steps": 768,
    "finetune.learning_starts": 128,
    "finetune.capacity": 512,
    "finetune.utd": 0.0625,
    "evaluation.episodes": 8,
    "evaluation.every": 768,
    "checkpoint.every": 256,
    "video": False,
    "max_nonfinite_updates": 5,
}
TOO_LARGE = 1e30  # a learning rate


def make_config(**fields):
    config = run_config.defaults(env="reach")
    run_config.set_algorithm(config, "qc")
    run_config.override(config, {**TINY, **fields})
    return run_config.frozen_config(config)


def make_training(config, folder):
    return Training(config, assemble.make_task(config, film=False), folder, "gcp-jax train")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run whose critics become non-finite at their second update, and the error it ended with."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    config = make_config(**{"algorithm.critic_lr": TOO_LARGE})
    with pytest.raises(RunError) as raised:
        make_training(config, folder).run()
    return folder, str(raised.value)


def test_a_run_stops_after_too_many_and_names_the_first(stopped):
    folder, message = stopped
    assert message.startswith(
        "critic_loss was not finite in finetune of seed_0, at update 1 (256 env steps), and "
        "7 updates in all: nothing is left to train."
    )
    assert f"gcp-jax debug {folder}" in message and "max_nonfinite_updates=5" in message
    assert "\n" not in message
    assert not (folder / "summary.json").exists()
    counts = [
        row["train/nonfinite_updates"]
        for row in rows(folder / "metrics.jsonl")
        if "train/nonfinite_updates" in row
    ]
    assert sum(counts[:-1]) <= 5 < sum(counts)


def test_the_same_command_stops_at_the_same_place_and_writes_only_finite_numbers(stopped):
    folder, _ = stopped
    assert "NaN" not in (folder / "metrics.jsonl").read_text()
    training = make_training(make_config(**{"algorithm.critic_lr": TOO_LARGE}), folder)
    with pytest.raises(RunError, match="nothing is left to train"):
        training.run()


def test_debug_shows_the_first_update_that_was_not_finite(stopped, capsys):
    folder, _ = stopped
    assert main.main(["debug", str(folder), "--json"]) == 0
    output, errors = capsys.readouterr()
    found = json.loads(output.splitlines()[-1])
    assert found["metrics"]["critic_loss"] is None
    assert found["description"].startswith("critic_loss was not finite")
    assert "state.critic.params" in errors and "metric critic_loss" in errors
    with np.load(folder / "fault" / "update.npz") as arrays:
        critic = [arrays[name] for name in arrays if name.startswith("state.critic.params")]
        assert all(np.isfinite(x).all() for x in critic)
        assert max(np.abs(x).max() for x in critic) > 1e29
        assert np.isfinite(arrays["batch.transitions.obs"]).all()


def test_without_a_fault_there_is_nothing_to_debug(tmp_path, capsys):
    assert main.main(["debug", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no run" in capsys.readouterr().err
    message = "every update of .* was finite; there is nothing to debug"
    with pytest.raises(FileNotFoundError, match=message):
        replay_fault.load_fault(tmp_path)


def test_a_member_that_is_given_up_does_not_stop_the_others(tmp_path, capsys):
    config = make_config(**{"population.critic_lr": (1e-3, TOO_LARGE)})
    summary = make_training(config, tmp_path).run()
    [given_up] = summary["given_up"]
    assert "critic_lr=1e+30" in given_up
    errors = capsys.readouterr().err
    assert f"of {given_up}" in errors and "it is given up" in errors
    last_rows = [row for row in rows(tmp_path / "metrics.jsonl") if row["env_steps"] == 768]
    finite, broken = sorted(last_rows, key=lambda row: row["population"])
    assert (finite["population"], broken["population"]) == ("critic_lr=0.001", "critic_lr=1e+30")
    assert finite["train/nonfinite_updates"] == 0 and finite["train/critic_loss"] < 1e3
    assert broken["train/nonfinite_updates"] > 0 and "train/critic_loss" not in broken

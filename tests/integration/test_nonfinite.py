"""Updates that leave the finite numbers: skipped, counted, named, and shown once more."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gcp_jax import mesh
from gcp_jax.experiments import assemble
from gcp_jax.launch.cli import main
from gcp_jax.learner import nonfinite
from gcp_jax.run import replay_fault
from gcp_jax.run.metrics import rows
from gcp_jax.run.training import RunError, Training

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
    "evaluation.episodes": 8,
    "evaluation.every": 768,
    "checkpoint.every": 256,
    "video": False,
    "max_nonfinite_updates": 5,
}
TOO_LARGE = 1e30


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_state_with_a_number_that_is_not_finite_is_not_taken(bad):
    old = {"net": jnp.zeros(3), "step": jnp.int32(4), "key": jax.random.key(0)}
    new = {"net": jnp.array([1.0, bad, 2.0]), "step": jnp.int32(5), "key": jax.random.key(1)}
    kept, skipped = nonfinite.keep_if_finite(old, new)
    assert skipped and kept["step"] == 4 and kept["key"] == old["key"]
    np.testing.assert_array_equal(kept["net"], old["net"])
    taken, skipped = nonfinite.keep_if_finite(old, {**new, "net": jnp.ones(3)})
    assert not skipped and taken["step"] == 5
    assert nonfinite.all_finite({"step": jnp.int32(1)})


def test_the_first_metric_that_was_not_finite_names_the_fault():
    """Three updates; in the second ``later`` is NaN because ``earlier`` was, in the third by itself."""
    earlier, later = jnp.array([1.0, jnp.inf, 3.0]), jnp.array([4.0, jnp.nan, jnp.nan])
    broken = jax.vmap(lambda a, b: nonfinite.first_nonfinite_flags({"z_earlier": a, "a_later": b}))(
        earlier, later
    )
    told = nonfinite.nonfinite_summary(broken, jnp.bool(False))
    row = {f"train/{name}": float(value) for name, value in told.items()} | {"train/z_earlier": 2.0}
    assert nonfinite.mean_of_finite(earlier) == 2.0
    assert nonfinite.pop_nonfinite(row, ()) == (2, 1, "z_earlier was not finite")
    assert row == {"train/nonfinite_updates": 2.0, "train/z_earlier": 2.0}


def test_a_number_that_is_not_finite_although_all_updates_were_is_a_fault_without_end():
    row = {
        "train/nonfinite_updates": 0.0,
        "train/first_nonfinite_update": 0.0,
        "train/q": math.nan,
        "train/gap": math.nan,
    }
    assert nonfinite.pop_nonfinite(row, ["train/gap"]) == (math.inf, 0, "train/q became nan")
    assert row == {"train/nonfinite_updates": 0.0}
    assert nonfinite.pop_nonfinite({"train/gap": math.nan}, ["train/gap"]) == (0, 0, "")


def test_a_state_that_was_lost_counts_all_updates():
    broken = {"loss": jnp.zeros(5)}
    row = {
        f"train/{name}": float(value)
        for name, value in nonfinite.nonfinite_summary(broken, jnp.bool(True)).items()
    }
    assert nonfinite.pop_nonfinite(row, ()) == (5, 0, "a parameter was not finite")


def test_a_gradient_that_is_not_finite_is_not_followed():
    """log of a parameter that is 0 has none; the optimizer's moments stay as well."""
    optimizer = optax.adam(0.1)

    def step(params, opt):
        return mesh.gradient_step(lambda p: (jnp.sum(jnp.log(p["x"])), {}), params, opt, optimizer)

    fine, _, aux = step({"x": jnp.ones(2)}, optimizer.init({"x": jnp.ones(2)}))
    assert (fine["x"] < 1).all() and aux["gradient_norm"] == pytest.approx(2**0.5)
    broken = {"x": jnp.array([0.0, 1.0])}
    params, opt, aux = step(broken, optimizer.init(broken))
    np.testing.assert_array_equal(params["x"], broken["x"])
    assert opt[0].count == 0 and not np.isfinite(aux["gradient_norm"])


def configured(**fields):
    config = assemble.defaults(env="reach")
    assemble.set_algorithm(config, "qc")
    assemble.override(
        config, TINY | {name.replace("__", "."): value for name, value in fields.items()}
    )
    return config


def training(config, folder):
    config = assemble.frozen_config(config)
    return Training(config, assemble.make_task(config, film=False), folder, "gcp-jax train")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run whose critics leave the finite numbers at their second update, and what it said."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(RunError) as raised:
        training(configured(algorithm__critic_lr=TOO_LARGE), folder).run()
    return folder, str(raised.value)


def test_a_run_stops_after_a_bounded_number_and_says_what_was_first(stopped):
    folder, told = stopped
    assert told.startswith(
        "critic_loss was not finite in finetune of seed_0, at update 1 (256 env steps), and 7 updates"
    )
    assert f"gcp-jax debug {folder}" in told and "max_nonfinite_updates=5" in told
    assert not (folder / "summary.json").exists()
    skipped = [
        row["train/nonfinite_updates"]
        for row in rows(folder / "metrics.jsonl")
        if "train/nonfinite_updates" in row
    ]
    assert skipped[-1] > 5 - sum(skipped[:-1])


def test_nothing_that_is_not_finite_is_in_a_checkpoint_or_a_row(stopped):
    folder, _ = stopped
    assert "NaN" not in (folder / "metrics.jsonl").read_text()
    run = training(configured(algorithm__critic_lr=TOO_LARGE), folder)
    with pytest.raises(RunError, match="nothing is left to train"):
        run.run()  # the same command stops at the same place


def test_debug_shows_the_first_update_that_was_not_finite(stopped, capsys):
    folder, _ = stopped
    assert main.main(["debug", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert found["metrics"]["critic_loss"] is None and found["told"].startswith(
        "critic_loss was not finite"
    )
    assert "state.critic.net" in err and "metric critic_loss" in err
    with np.load(folder / "fault" / "update.npz") as arrays:
        state = [arrays[name] for name in arrays if name.startswith("state.critic.net")]
        assert (
            all(np.isfinite(x).all() for x in state) and max(np.abs(x).max() for x in state) > 1e29
        )
        assert np.isfinite(arrays["batch.transitions.obs"]).all()


def test_without_a_fault_there_is_nothing_to_debug(tmp_path, capsys):
    assert main.main(["debug", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no run" in capsys.readouterr().err
    with pytest.raises(
        FileNotFoundError, match="every update of .* was finite; there is nothing to debug"
    ):
        replay_fault.kept(tmp_path)


@pytest.mark.unmeasured
def test_a_seed_that_is_given_up_leaves_the_others_to_the_end(tmp_path, capsys):
    config = configured()
    with config.unlocked():
        config.population = {"critic_lr": (1e-3, TOO_LARGE)}
    summary = training(config, tmp_path).run()
    [given_up] = summary["given_up"]
    assert "critic_lr=1e+30" in given_up and f"of {given_up}" in capsys.readouterr().err
    ends = [row for row in rows(tmp_path / "metrics.jsonl") if row["env_steps"] == 768]
    by = {row["population"]: row for row in ends}
    assert (
        by["critic_lr=0.001"]["train/nonfinite_updates"] == 0
        and by["critic_lr=0.001"]["train/critic_loss"] < 1e3
    )
    assert (
        by["critic_lr=1e+30"]["train/nonfinite_updates"] > 0
        and "train/critic_loss" not in by["critic_lr=1e+30"]
    )

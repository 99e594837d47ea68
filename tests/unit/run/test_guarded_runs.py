"""Whole runs in this process that are watched: best policies, setting back, stopping, kills."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.run_configs import small_config

from benchmarks.equality import run_content, untimed_rows
from gcp_jax.experiments import assemble
from gcp_jax.report import run_page
from gcp_jax.run import checkpoint, run_policies, saved_policy
from gcp_jax.run.errors import Decayed, RunError
from gcp_jax.run.finetuned_policies import FinetunedPolicies
from gcp_jax.run.training import Training
from gcp_jax.stats import guard_rules

SEGMENT = 32  # env steps of a seed
TINY = {
    "env.horizon": 8,
    "demonstrations.episodes": 4,
    "evaluation.episodes": 4,
    "evaluation.every": SEGMENT,
    "checkpoint.every": 2 * SEGMENT,
    "checkpoint.keep": 9,
    "finetune.env_steps": 5 * SEGMENT,
    "finetune.learning_starts": SEGMENT,
    "policy.chunk": 4,
    "pretrain.evaluate_every": 2,
    "pretrain.updates": 2,
    "seeds": 2,
    "video": False,
}


@pytest.fixture(autouse=True)
def script(monkeypatch):
    """What evaluations find, by seed and segment: what tiny runs reach is chance."""
    found = SimpleNamespace(better={(0, 2), (1, 1), (1, 4)}, below=set())

    def place(row):
        return (row["seed"], row["env_steps"] // SEGMENT)

    def score(row):
        return float(place(row)[1]) if place(row) in found.better else 0.0

    monkeypatch.setattr(guard_rules, "is_below", lambda row, base: place(row) in found.below)
    monkeypatch.setattr("gcp_jax.run.guard_rails.score", score)
    return found


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The base policy of all runs."""
    folder = tmp_path_factory.mktemp("clone") / "run"
    return training(folder).pretrain()


def training(folder, **fields):
    config = small_config(**{**TINY, **fields})
    return Training(config, assemble.make_task(config, film=False), folder, "")


def kept_arrays(folder, clock):
    """The arrays of the host in a checkpoint, and the state of the algorithm, by name."""
    with ocp.CheckpointManager((folder / "checkpoints" / "finetune").resolve()) as manager:
        one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        restore = ocp.args.StandardRestore(fallback_sharding=one_device)
        found = manager.restore(clock, args=ocp.args.Composite(train=restore, kept=restore))

    def flat(tree):
        return {
            "/".join(map(str, name)): np.asarray(x)
            for name, x in ocp.utils.to_flat_dict(tree).items()
        }

    return flat(found["kept"]), flat(found["train"]["learner"]["state"])


def assert_same_run(folder, reference):
    """Rows, policies and the last checkpoint are equal, bit for bit."""
    assert run_content(folder) == run_content(reference)
    for one, other in zip(kept_arrays(folder, 5), kept_arrays(reference, 5), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)
    for name in ("seed_0", "seed_1"):
        one, other = (selection(each, name) for each in (folder, reference))
        assert one == other


def selection(folder, name):
    path = folder / "policy" / "best" / name / "policy.json"
    return json.loads(path.read_text())["selection"]


@pytest.mark.slow
def test_a_decayed_seed_is_set_back_and_a_killed_run_equals_this(
    tmp_path, monkeypatch, clone, script, capsys
):
    """Seed 0 is best at segment 2 and below its base at 3, where only its state is replaced.

    The second run is killed between this evaluation and its checkpoint, and then before any of its
    best policies fits the checkpoint from which it resumes.
    """
    script.below = {(0, 3)}
    fields = {"finetune.on_decay": "restore", "pretrain.saved_policy": str(clone)}
    reference = tmp_path / "whole"
    summary = training(reference, **fields).run()
    assert capsys.readouterr().err.count("set back to its state of 64 env steps") == 1
    rows = untimed_rows(reference / "eval.jsonl")
    set_back = [row for row in rows if "eval/restored_to" in row]
    assert [(row["seed"], row["env_steps"]) for row in set_back] == [(0, 96)]
    assert set_back[0]["eval/restored_to"] == 64

    _, at_best = kept_arrays(reference, 2)
    kept, after = kept_arrays(reference, 3)  # saved for the sake of this
    assert len(after) > 5
    for name, x in after.items():
        np.testing.assert_array_equal(x[0], at_best[name][0], err_msg=name)
        np.testing.assert_array_equal(kept[f"state/{name}"][0], x[0], err_msg=name)
    assert any(not np.array_equal(x[1], at_best[name][1]) for name, x in after.items())

    best = summary["best"]
    assert [entry["env_steps"] for entry in best["members"]] == [64, 128]
    assert best["members"][0]["evaluations"] == 6 and "biased upwards" in best["note"]
    page = run_page.write(reference).read_text()
    assert "was set back at 96 env steps to its state of 64" in page
    assert "biased upwards" in page

    killed = tmp_path / "killed"
    save = checkpoint.Checkpoints.save

    def save_until_best(self, clock, *arguments):
        if clock == 3:
            raise KeyboardInterrupt
        save(self, clock, *arguments)

    def save_no_policy(self, guard, fresh=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.Checkpoints, "save", save_until_best)
        training(killed, **fields).run()
    assert selection(killed, "seed_0")["env_steps"] == 64
    shutil.rmtree(killed / "policy" / "best" / "seed_1")  # as if killed between two policies
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FinetunedPolicies, "save_best", save_no_policy)
        training(killed, **fields).run()
    assert training(killed, **fields).run()["best"] == best
    assert_same_run(killed, reference)


@pytest.mark.slow
def test_a_run_that_is_below_its_base_stops_and_goes_on_as_a_warning(
    tmp_path, clone, script, capsys
):
    """It then equals a run that only warned."""
    script.below = {(0, 2), (1, 2)}
    fields = {"pretrain.saved_policy": str(clone), "finetune.on_decay": "stop"}
    folder = tmp_path / "stopped"
    message = r"stopped at 64 of 160 env steps, below the base policy \(finetune.on_decay=stop\): "
    for _ in range(2):  # the same command finds it stopped
        with pytest.raises(Decayed, match=message):
            training(folder, **fields).run()
    assert checkpoint.latest(folder / "checkpoints" / "finetune") == 2
    assert not (folder / "summary.json").exists()
    reason = json.loads((folder / run_policies.STOP_FILE).read_text())["reason"]
    assert reason.startswith("stopped at 64 of 160 env steps")
    for name in ("seed_0", "best/seed_0", "seed_1", "best/seed_1"):
        saved_policy.load_saved_policy(folder / "policy" / name)
    assert "stopped at 64 of 160" in run_page.write(folder).read_text()
    with pytest.raises(RunError, match="on_decay"):
        training(folder, **{**fields, "finetune.on_decay": "restore"}).run()

    warned = {**fields, "finetune.on_decay": "warn"}
    capsys.readouterr()
    training(folder, **warned).run()
    assert "moved to" not in capsys.readouterr().err
    assert not (folder / run_policies.STOP_FILE).exists()
    facts = json.loads((folder / "policy" / "seed_0" / "policy.json").read_text())
    assert run_policies.STOPPED not in facts
    reference = tmp_path / "warned"
    training(reference, **warned).run()
    assert run_content(folder) == run_content(reference)


@pytest.mark.slow
def test_the_best_policy_may_be_the_base_policy(tmp_path, clone, script):
    script.better = set()
    folder = tmp_path / "run"
    summary = training(folder, **{"pretrain.saved_policy": str(clone), "seeds": 1}).run()
    [entry] = summary["best"]["members"]
    assert entry["is_base"] and entry["env_steps"] == 0
    base, best = (
        saved_policy.load_saved_policy(folder / "policy" / name) for name in ("base", "best/seed_0")
    )
    jax.tree.map(np.testing.assert_array_equal, base.deployed, best.deployed)
    assert best.facts["success"] == entry["fresh"]
    assert "base policy" in run_page.write(folder).read_text()

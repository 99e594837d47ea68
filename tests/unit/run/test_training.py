"""Whole runs in this process: a task that is scored by its return."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.damage import truncate
from helpers.run_configs import small_config

from gcp_jax import envs
from gcp_jax.envs.demos import storage
from gcp_jax.envs.demos.collect import Info
from gcp_jax.envs.protocol import NO_SUCCESS
from gcp_jax.experiments import assemble
from gcp_jax.launch.cli import inspect
from gcp_jax.run import checkpoint, saved_policy
from gcp_jax.run.cloning import CLONE_STREAM
from gcp_jax.run.errors import RunError
from gcp_jax.run.training import Training
from gcp_jax.types import Step


@pytest.fixture
def run_by_return(monkeypatch):
    """Make reach a task without success; returns a function that makes a tiny run of it.

    ``bonus`` is added to the reward of every step, which is −1.
    """

    def make_run(folder, bonus, **fields):
        reach = envs.make("reach", horizon=8)

        def step(state, action):
            new = reach.step(state, action)
            return new._replace(
                reward=new.reward + bonus,
                success=jnp.zeros((), bool),
                terminated=jnp.zeros((), bool),
            )

        env = reach._replace(step=step, specs=reach.specs._replace(success=NO_SUCCESS))
        monkeypatch.setattr(assemble, "build_env", lambda choice: env)
        tiny = {
            "demonstrations.episodes": 4,
            "evaluation.episodes": 4,
            "finetune.learning_starts": 32,
            "pretrain.evaluate_every": 2,
            "pretrain.updates": 6,
            "finetune.env_steps": 64,
            "policy.chunk": 4,
            "video": False,
        }
        config = small_config(**{**tiny, **fields})
        return Training(config, assemble.make_task(config, film=False), folder, "")

    return make_run


@pytest.mark.slow
def test_a_task_without_success_is_cloned_trained_and_evaluated_by_its_return(
    tmp_path, run_by_return, capsys
):
    """Its actions are rescaled to the range of the demonstrations."""
    run = run_by_return(
        tmp_path, 3.0, **{"pretrain.stop_at_success": 0.9, "pretrain.rescale_actions": True}
    )
    key = jax.random.fold_in(jax.random.key(CLONE_STREAM), 0)
    demonstrations, _ = run.task.demonstrate(key)
    summary = run.run()
    rows = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert not any("success" in key for row in rows for key in row)
    assert summary["base_return"] == summary["return"] == 16.0  # 8 steps of −1 + 3
    pretrain_updates = [row["updates"] for row in rows if row["stage"] == "pretrain"]
    assert pretrain_updates == [2]  # the first evaluation, 16, is above 0.9 · 16
    assert "base policy: return 16.0" in capsys.readouterr().err
    lowest = demonstrations.steps.action.min(0)
    highest = demonstrations.steps.action.max(0)  # they span more than the least range
    for name in ("base", "seed_0"):
        kept = saved_policy.load_saved_policy(tmp_path / "policy" / name).policy.config
        np.testing.assert_allclose((kept.low, kept.high), (lowest, highest), atol=1e-6)
    found = inspect.evaluate_policy(tmp_path / "policy" / "seed_0", episodes=4, seed=0)
    assert found["return"] == 16.0 and "success" not in found
    assert (
        "return 16.0 [16.0, 16.0] over 4 episodes\nrecorded when it was saved: 16.0"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_what_was_asked_for_is_on_disk_at_the_end(tmp_path, run_by_return, capsys):
    """Empty and damaged policies are replaced, also in a finished run, from its checkpoints."""
    run_by_return(tmp_path, 3.0).pretrain()
    (tmp_path / "policy" / "seed_0").mkdir()
    summary = run_by_return(tmp_path, 3.0).run()
    assert "seed_0 is not the policy of this run; moved to" in capsys.readouterr().err
    policies = {path: path.read_bytes() for path in tmp_path.glob("policy/**/*.*")}
    rows = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "eval.jsonl")}
    assert len(policies) == 6

    shutil.rmtree(tmp_path / "policy" / "seed_0")
    truncate(tmp_path / "policy" / "base" / "arrays.npz")
    assert run_by_return(tmp_path, 3.0).run() == summary
    said = capsys.readouterr().err
    assert "holds a finished run that lacks policy/base, policy/seed_0" in said
    assert {path: path.read_bytes() for path in tmp_path.glob("policy/**/*.*")} == policies
    assert {name: (tmp_path / name).read_bytes() for name in rows} == rows

    assert run_by_return(tmp_path, 3.0).run() == summary
    assert "holds a finished run; nothing to do" in capsys.readouterr().err
    (tmp_path / "eval.jsonl").unlink()
    run_by_return(tmp_path, 3.0).run()
    assert "eval.jsonl lacks" in capsys.readouterr().err

    shutil.rmtree(tmp_path / "policy" / "seed_0")
    shutil.rmtree(tmp_path / "checkpoints" / "finetune")
    with pytest.raises(RunError, match="finished run whose policies and last checkpoint are gone"):
        run_by_return(tmp_path, 3.0).run()


def test_a_fraction_of_a_negative_return_is_refused(tmp_path, run_by_return):
    run = run_by_return(tmp_path, 0.0)
    message = r"stop_at_success is 0.45, a fraction of .* which is -8.0: it must be positive"
    with pytest.raises(RunError, match=message):
        run.run()


def clone_from(data, folder, **fields):
    config = small_config(
        **{
            "demonstrations.path": str(data),
            "demonstrations.episodes": 200,
            "pretrain.updates": 6,
            "pretrain.evaluate_every": 2,
            "evaluation.episodes": 4,
            "checkpoint.every": 1,
            "video": False,
            **fields,
        }
    )
    return Training(config, assemble.make_task(config, film=False), folder, "")


def recorded(path, *, changed=False):
    """200 episodes of 20 steps without any flag, for reach."""
    rng = np.random.default_rng(0)
    shape = (20, 200)
    no = np.zeros(shape, bool)
    obs = rng.standard_normal((*shape, 4)).astype(np.float32)
    obs[3, 7] += changed
    action = rng.uniform(-1, 1, (*shape, 2)).astype(np.float32)
    steps = Step(obs, action, np.ones(shape, np.float32), obs, no, no, no, ~no)
    info = Info(success=no[0], mode=np.full(200, -1), length=np.full(200, 20), diverged=no[0])
    return storage.write(path, steps, info, {"env": {"name": "reach"}})


@pytest.mark.slow
def test_cloning_resumes_bit_for_bit_and_only_with_its_data(tmp_path, monkeypatch):
    """The dataset, 400 kB here, is in no checkpoint; the data at its path must be the same."""
    data = tmp_path / "demos"
    recorded(data)
    whole = clone_from(data, tmp_path / "whole").pretrain()
    save = checkpoint.Checkpoints.save

    def save_and_stop(self, clock, *state):
        save(self, clock, *state)
        if clock == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.Checkpoints, "save", save_and_stop)
        clone_from(data, tmp_path / "stopped").pretrain()
    saved = tmp_path / "stopped" / "checkpoints" / "pretrain" / "1"
    assert sum(path.stat().st_size for path in saved.rglob("*")) < 200_000
    data.rename(tmp_path / "aside")
    recorded(data, changed=True)
    with pytest.raises(RunError, match="does not hold the demonstrations from which pretrain of"):
        clone_from(data, tmp_path / "stopped").pretrain()
    shutil.rmtree(data)
    (tmp_path / "aside").rename(data)
    resumed = clone_from(data, tmp_path / "stopped").pretrain()
    one, other = (saved_policy.load_saved_policy(path).deployed for path in (whole, resumed))
    jax.tree.map(np.testing.assert_array_equal, one, other)

"""What follows from a configuration before anything runs: sizes, the method's source, shares of demonstrations."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gcp_jax import envs
from gcp_jax.config import ConfigError
from gcp_jax.core import policy as policy_lib
from gcp_jax.envs.protocol import NO_SUCCESS
from gcp_jax.experiments import assemble
from gcp_jax.launch.cli import inspect
from gcp_jax.learner import batch_sources
from gcp_jax.run import saved_policy, training
from gcp_jax.types import Segment, Step

MARK = 99.0


def configured(algorithm="qc", **fields):
    config = assemble.defaults(env="reach")
    assemble.set_algorithm(config, algorithm)
    tiny = {
        "finetune.envs": 4,
        "finetune.unroll_chunks": 2,
        "finetune.batch_size": 16,
        "finetune.utd": 0.1,
        "policy.hidden": (8,),
    }
    assemble.override(config, {**tiny, **fields})
    return assemble.frozen_config(config)


def sized(config):
    return training.run_sizes(config, assemble.make_task(config, film=False).env.specs)


def record(shape, specs, mark):
    """Steps of ``shape`` whose observations are ``mark``."""
    zeros, no, yes = np.zeros(shape, np.float32), np.zeros(shape, bool), np.ones(shape, bool)
    obs = np.full((*shape, specs.obs_dim), mark, np.float32)
    return Step(obs, np.zeros((*shape, specs.action_dim), np.float32), zeros, obs, no, no, no, yes)


@pytest.mark.parametrize(("fraction", "marked"), [(0.0, 0), (0.25, 4), (0.5, 8)])
def test_demonstrations_take_their_share_of_every_batch(fraction, marked):
    config = configured(**{"finetune.demo_fraction": fraction})
    size = sized(config)
    base = policy_lib.make_policy(config.policy, size.specs)
    given = (
        batch_sources.chunk_windows(record((8, 3), size.specs, MARK), size.specs.chunk)
        if fraction
        else None
    )
    source = training.build_algorithm(config, base, size, given).source
    segment = jax.tree.map(
        jnp.asarray, Segment(record((2, 4, size.specs.chunk), size.specs, 0.0), {})
    )
    _, batch = jax.jit(source.step)(
        jax.jit(source.init)(segment), segment, jax.random.key(0), jnp.int32(0)
    )
    assert source.batch_size == 16
    assert batch.transitions.obs.shape[:2] == (size.updates, 16)
    np.testing.assert_array_equal(
        np.sum(np.asarray(batch.transitions.obs)[..., 0] == MARK, -1), marked
    )


def test_an_on_policy_method_passes_over_its_segment_and_does_not_warm_up():
    config = configured(
        "dppo", **{"algorithm.epochs": 3, "algorithm.minibatches": 2, "finetune.unroll_chunks": 4}
    )
    size = sized(config)
    assert (size.updates, size.warmup) == (6, 0)
    source = training.build_algorithm(
        config, policy_lib.make_policy(config.policy, size.specs), size
    ).source
    assert (source.updates, source.batch_size) == (6, 8)
    assert sized(configured()).warmup > 0


@pytest.mark.parametrize(
    ("algorithm", "fields", "message"),
    [
        (
            "dppo",
            {"finetune.demo_fraction": 0.5},
            "dppo learns from what it remembers of its own acting",
        ),
        (
            "dsrl",
            {"finetune.demo_fraction": 0.5, "algorithm.mode": "sac"},
            "dsrl learns from what it remembers",
        ),
        ("qc", {"finetune.demo_fraction": 0.01}, "16 replayed and 0 demonstrated transitions"),
        (
            "qc",
            {"finetune.demo_fraction": 0.3, "data": 2, "finetune.reset_pool": 2},
            r"must be positive multiples of data \(2\)",
        ),
    ],
)
def test_shares_that_cannot_be_had_are_refused(algorithm, fields, message):
    config = configured(algorithm, **fields)
    size = sized(config)
    with pytest.raises(ConfigError, match=message):
        training.build_algorithm(config, policy_lib.make_policy(config.policy, size.specs), size)


@pytest.fixture
def rewarded(monkeypatch):
    """Makes reach a task without success, with ``bonus`` added to every step's reward; gives a tiny run of it."""

    def run(folder, bonus, **fields):
        plain = envs.make("reach", horizon=8)

        def step(state, action):
            new = plain.step(state, action)
            return new._replace(
                reward=new.reward + bonus,
                success=jnp.zeros((), bool),
                terminated=jnp.zeros((), bool),
            )

        made = plain._replace(step=step, specs=plain.specs._replace(success=NO_SUCCESS))
        monkeypatch.setattr(envs, "make", lambda name, **settings: made)
        tiny = {
            "demonstrations.episodes": 4,
            "evaluation.episodes": 4,
            "finetune.learning_starts": 32,
        }
        tiny |= {
            "pretrain.evaluate_every": 2,
            "pretrain.updates": 6,
            "finetune.env_steps": 64,
            "policy.chunk": 4,
        }
        config = configured(**{**tiny, "video": False, **fields})
        return training.Training(config, assemble.make_task(config, film=False), folder, "")

    return run


def test_a_task_without_success_is_cloned_in_the_range_of_its_demonstrations_trained_and_evaluated_by_its_return(
    tmp_path, rewarded, capsys
):
    run = rewarded(
        tmp_path, 3.0, **{"pretrain.stop_at_success": 0.9, "pretrain.rescale_actions": True}
    )
    shown, _ = run.task.demonstrate(jax.random.fold_in(jax.random.key(training.CLONE_STREAM), 0))
    summary = run.run()
    rows = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert not any("success" in key for row in rows for key in row)
    assert {summary[key] for key in ("base_return", "return")} == {16.0}  # 8 steps of −1 + 3
    assert [row["updates"] for row in rows if row["stage"] == "pretrain"] == [
        2
    ]  # 16 is above 0.9 · 16
    assert "base policy: return 16.0" in capsys.readouterr().err
    for name in ("base", "seed_0"):  # reach's demonstrations span more than the least range
        kept = saved_policy.load_saved_policy(tmp_path / "policy" / name).policy.config
        np.testing.assert_allclose(
            (kept.low, kept.high), (shown.action.min((0, 1)), shown.action.max((0, 1))), atol=1e-6
        )
    found = inspect.evaluate(tmp_path / "policy" / "seed_0", episodes=4, seed=0)
    assert found["return"] == 16.0 and "success" not in found
    assert (
        "return 16.0 [16.0, 16.0] over 4 episodes\nrecorded when it was saved: 16.0"
        in capsys.readouterr().err
    )


def test_a_share_of_a_negative_return_is_refused(tmp_path, rewarded):
    run = rewarded(tmp_path, 0.0)
    with pytest.raises(
        training.RunError,
        match=r"pretrain.stop_at_success is 0.45, a share of .* which is -8.0: it must be positive",
    ):
        run.run()


@pytest.fixture
def begun(tmp_path):
    """A run that has just opened its folder, and what the folder says of it."""
    config = assemble.frozen_config(assemble.defaults(env="reach"))
    opened = training.Training(
        config, assemble.make_task(config, film=False), tmp_path, "gcp-jax train"
    )
    opened._open()
    return opened, tmp_path / "config.json"


def test_a_folder_of_another_format_is_refused(begun):
    opened, path = begun
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 0}))
    with pytest.raises(training.RunError, match="holds a run of format 0, this version reads 2"):
        opened._open()


def test_going_on_with_other_versions_is_told(begun, capsys):
    opened, path = begun
    there = json.loads(path.read_text())
    path.write_text(json.dumps({**there, "versions": {**there["versions"], "jax": "0.0.1"}}))
    opened._open()
    assert (
        f"this run began with jax 0.0.1, now it is {there['versions']['jax']}"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("until", "pauses"), [(0, []), (1, [2]), (256, [2]), (257, [4]), (512, [4])]
)
def test_a_run_pauses_at_the_first_evaluation_from_there_on(begun, until, pauses):
    opened, _ = begun
    opened.until = until
    cadence = training.Cadence(
        "finetune", segments=8, env_steps=128, updates=1, warmup=0, evaluate=2, checkpoint=8
    )
    assert [clock for clock in range(2, 9, 2) if opened._pauses(cadence, clock)] == pauses
    assert not opened._pauses(cadence._replace(env_steps=0), 2)

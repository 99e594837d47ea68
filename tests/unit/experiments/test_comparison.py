"""What a benchmark sets itself, and what its methods share, is not overridden silently."""

import pytest

from gcp_jax import envs
from gcp_jax.config import ConfigError
from gcp_jax.experiments import assemble, comparison, run_config


def choose(tmp_path, *, common=None, task=None, method=None, seeds=None, steps=None, flags=None):
    """A benchmark of qc with its defaults and with the fields of ``method``, on reach."""
    content = {
        "tasks": {"near": {"config": "reach", **(task or {})}},
        "methods": {
            "plain": {"algorithm": "qc"},
            "other": {"algorithm": "qc", **(method or {})},
        },
        "seeds": 2,
        "steps": 8192,
        "common": common or {},
    }
    path = tmp_path / "tiny.py"
    path.write_text(f"def get_config():\n    return {content!r}\n")
    return comparison.choose(
        file=str(path), algorithms=[], envs=[], seeds=seeds, steps=steps, overrides=flags or {}
    )


@pytest.mark.parametrize("field", comparison.SET_HERE)
def test_fields_that_a_benchmark_sets_itself_are_refused(tmp_path, field):
    """As flags and anywhere in a file; the message names what to use."""
    name = f"{field}clip" if field.endswith(".") else field
    remedy = comparison.SET_HERE[field].split("=")[0].split("(")[0]
    value = {name: 0}
    with pytest.raises(ConfigError, match=f"^--config.{name} cannot be used here; {remedy}"):
        choose(tmp_path, flags=value)
    for where, part in (("common", "common"), ("near", "task"), ("other", "method")):
        with pytest.raises(ConfigError, match=f"^{where}: {name} cannot be used here"):
            choose(tmp_path, **{part: value})


def test_flags_set_seeds_and_steps_of_all_runs(tmp_path):
    chosen = choose(tmp_path, seeds=5, steps=16384)
    assert {(run.seeds, run.finetune.env_steps) for run in chosen.runs["near"].values()} == {
        (5, 16384)
    }
    assert choose(tmp_path).seeds == 2


@pytest.mark.parametrize("part", ["task", "method"])
def test_a_field_of_a_part_and_of_every_run_is_refused(tmp_path, part):
    label = {"task": "near", "method": "other"}[part]
    fields = {part: {"finetune.utd": 0.5}}
    with pytest.raises(ConfigError, match=f"finetune.utd is set for {label} and for every run"):
        choose(tmp_path, common={"finetune.utd": 0.25}, **fields)
    with pytest.raises(ConfigError, match="set it in one of them"):
        choose(tmp_path, flags={"finetune.utd": 0.25}, **fields)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"demonstrations.episodes": 7},
            r"near: other sets demonstrations.episodes=7, but the methods of a task share a clone, "
            "which is made with 200; set it for the task",
        ),
        ({"pretrain.updates": 50}, r"pretrain.updates=50.*4000"),
        ({"env.horizon": 30}, r"env.horizon=30"),
        ({"seed": 4}, "seed=4"),
        ({"policy.hidden": (8,)}, r"policy.hidden is \(8,\), .* clone of near: other .* cannot"),
    ],
)
def test_a_method_cannot_ask_for_a_clone_of_its_own(tmp_path, method, message):
    chosen = choose(tmp_path, method=method)
    task = assemble.make_task(chosen.runs["near"]["plain"], film=False)
    with pytest.raises(ConfigError, match=message):
        comparison._check_comparable(chosen, {"near": task})


@pytest.mark.parametrize("task", envs.names())
def test_methods_with_the_defaults_of_a_task_share_its_clone(task):
    """Whatever the types of its fields."""
    run = run_config.frozen_config(run_config.defaults(env=task))
    comparison._check_clone("other", run, run)


def test_a_method_can_sample_the_clone_otherwise(tmp_path):
    chosen = choose(tmp_path, method={"policy.steps": 8})
    task = assemble.make_task(chosen.runs["near"]["plain"], film=False)
    comparison._check_comparable(chosen, {"near": task})
    plain, other = chosen.runs["near"].values()
    assert comparison._changed_policy_fields(plain, other) == ["policy.steps"]

"""Sweep files: axes, packing, identities, commands, and what is refused."""

from __future__ import annotations

import dataclasses
import math
import shlex

import numpy as np
import pytest
from scipy import stats

from gcp_jax.config import ConfigError
from gcp_jax.launch import (
    Halving,
    Search,
    Sweep,
    choice,
    drawn,
    grid,
    integers,
    log_uniform,
    spec,
    uniform,
    zipped,
)
from gcp_jax.launch.cli import main, sweep
from gcp_jax.run.training import config_hash

REACH = "experiments/configs/reach.py"
RATES = grid("algorithm.critic_lr", (1e-4, 1e-3))


def test_axes_give_the_points_they_name():
    assert grid("finetune.utd", (0.1, 0.2)) == [{"finetune.utd": 0.1}, {"finetune.utd": 0.2}]
    together = zipped({"policy.steps": (5, 10), "policy.sigma": (0.1, 0.05)})
    assert together == [
        {"policy.steps": 5, "policy.sigma": 0.1},
        {"policy.steps": 10, "policy.sigma": 0.05},
    ]


def test_random_axes_repeat_grow_and_have_their_distribution():
    space = {
        "a": log_uniform(1e-4, 1e-2),
        "b": uniform(-1, 3),
        "c": integers(2, 4),
        "d": choice("x", "y"),
    }
    few, many = drawn(space, count=5, seed=3), drawn(space, count=2000, seed=3)
    assert few == many[:5] != drawn(space, count=5, seed=2)
    logs = [math.log(point["a"]) for point in many]
    assert stats.kstest(logs, stats.uniform(math.log(1e-4), math.log(1e2)).cdf).pvalue > 1e-3
    assert stats.kstest([point["b"] for point in many], stats.uniform(-1, 4).cdf).pvalue > 1e-3
    assert np.bincount([point["c"] for point in many])[2:] == pytest.approx(
        [2000 / 3] * 3, rel=0.15
    )
    assert {point["d"] for point in many} == {"x", "y"}


def test_points_are_the_product_of_the_axes():
    runs = spec.runs(Sweep(REACH, (RATES, grid("finetune.utd", (0.1, 0.2, 0.4))), seeds=3))
    assert len(runs) == 6 and len({run.id for run in runs}) == 6
    assert {(r.config.algorithm["critic_lr"], r.config.finetune.utd) for r in runs} == {
        (lr, utd) for lr in (1e-4, 1e-3) for utd in (0.1, 0.2, 0.4)
    }
    assert all(run.config.seeds == 3 for run in runs)


def test_packed_fields_become_a_population_of_one_program():
    axes = (RATES, grid("finetune.utd", (0.1, 0.2)))
    runs = spec.runs(Sweep(REACH, axes, pack=("algorithm.critic_lr",), seeds=2))
    assert [run.config.population for run in runs] == [{"critic_lr": (1e-4, 1e-3)}] * 2
    assert [len(run.config.members) for run in runs] == [4, 4]


def test_spread_seeds_are_runs_of_their_own():
    runs = spec.runs(Sweep(REACH, (RATES,), seeds=3, spread_seeds=True))
    assert [(r.config.algorithm["critic_lr"], r.config.all_seeds) for r in runs] == [
        (lr, [seed]) for lr in (1e-4, 1e-3) for seed in range(3)
    ]


def test_a_method_on_an_axis_brings_its_own_fields():
    methods = spec.runs(Sweep(REACH, (grid("algorithm.name", ("ogpo", "dsrl")),)))
    assert "chains" in methods[0].config.algorithm and "chains" not in methods[1].config.algorithm
    assert "distill_steps" in methods[1].config.algorithm


def test_identity_follows_from_what_shapes_the_numbers():
    [one] = spec.runs(Sweep(REACH))
    same = dataclasses.replace(one.config, run_dir="elsewhere", video=not one.config.video)
    assert config_hash(same) == one.id
    assert config_hash(dataclasses.replace(one.config, seed=1)) != one.id


@pytest.mark.parametrize(
    "chosen",
    [
        Sweep(
            REACH,
            (RATES, grid("policy.hidden", ((16,), (16, 16)))),
            seeds=2,
            fields={"video": False},
        ),
        Sweep(REACH, (RATES,), pack=("algorithm.critic_lr",)),
        Sweep(REACH, (grid("algorithm.name", ("dsrl", "dppo")),), seeds=2, spread_seeds=True),
    ],
)
def test_its_command_repeats_a_run(chosen):
    for run in spec.runs(chosen):
        _, name, *rest = shlex.split(run.command)
        values, _ = main._parse(name, main.COMMANDS[name], rest)
        assert config_hash(main._run_config(values)) == run.id


def test_a_grown_sweep_keeps_its_runs():
    before = {run.id for run in spec.runs(Sweep(REACH, (RATES,)))}
    assert before < {
        run.id
        for run in spec.runs(Sweep(REACH, (grid("algorithm.critic_lr", (1e-4, 1e-3, 1e-2)),)))
    }


SPACE = {"algorithm.critic_lr": log_uniform(1e-4, 1e-2)}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: grid("finetune.utd", ()), "the axis of finetune.utd is empty"),
        (
            lambda: grid("finetune.utd", (0.1, 0.1)),
            "the axis of finetune.utd has the same point twice",
        ),
        (
            lambda: zipped({"a": (1,), "b": (1, 2)}),
            "zipped fields need as many values.*a has 1, b has 2",
        ),
        (lambda: drawn(SPACE, count=0), "count=0; it is empty"),
        (lambda: uniform(1, 1), "a range from 1 to 1 is empty"),
        (lambda: log_uniform(0, 1), "low must be positive"),
        (lambda: choice(), "a choice of no values"),
        (lambda: Sweep(REACH, ([],)), "an axis of the sweep is empty"),
        (lambda: Sweep(REACH, (RATES, RATES)), "algorithm.critic_lr is set twice"),
        (lambda: Sweep(REACH, (RATES,), pack=("finetune.utd",)), "pack names 'finetune.utd'"),
        (lambda: Sweep(REACH, seeds=0), "seeds is 0"),
        (lambda: Search({}, trials=3), "a search over no field"),
        (lambda: Search(SPACE, trials=0), "a search of 0 trials"),
        (lambda: Search(SPACE, trials=3, sampler="best"), "allowed: tpe, gp, random"),
        (lambda: Halving((10, 10)), "increasing numbers"),
        (lambda: Halving((10,), keep=1), "it must be 2 or more"),
        (
            lambda: Sweep(REACH, search=Search(SPACE, 3), halving=Halving((1,))),
            "cannot be had at once",
        ),
        (
            lambda: Sweep(
                REACH,
                (RATES,),
                pack=("algorithm.critic_lr",),
                search=Search({"a": uniform(0, 1)}, 3),
            ),
            "leave pack out",
        ),
        (
            lambda: spec.runs(Sweep(REACH, (grid("finetune.udt", (1,)),))),
            "there is no field 'finetune.udt'; did you mean 'utd'",
        ),
        (lambda: spec.runs(Sweep("nowhere.py")), "cannot read the sweep's config=nowhere.py"),
        (
            lambda: spec.runs(Sweep(REACH, (grid("seed", (0, 1)),), seeds=2, spread_seeds=True)),
            "the same configuration",
        ),
    ],
)
def test_nonsense_is_refused_in_one_line(make, said):
    with pytest.raises(ConfigError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is not a Python file"),
        ("x = 1", "has no get_sweep"),
        ("def get_sweep(): return 3", "returns int; it must return a launch.Sweep"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path, text, said):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        spec.load(str(path))


@pytest.mark.parametrize("name", ["learning_rates", "search"])
def test_the_sweeps_of_the_project_load(name):
    chosen = spec.load(f"experiments/sweeps/{name}.py")
    assert sweep.planned_runs(chosen)


def test_a_dry_run_tells_sizes_and_writes_nothing(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        f"from launch import *\ndef get_sweep():\n    return Sweep({REACH!r}, (grid('algorithm.critic_lr', (1e-4, 1e-3)),), seeds=2)\n"
    )
    found = sweep.dry_run(str(file))
    assert (found["jobs"], found["members"], found["clones"]) == (2, 4, 1)
    assert found["env_steps"] == sum(row["env_steps"] for row in found["runs"]) > 0
    assert found["hours"] > 0 and found["bytes"] > 0
    told = capsys.readouterr().err
    assert "critic_lr=0.0001" in told and "2 jobs of 4 trainings, from 1 shared clones" in told
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["mine.py"]


def test_twice_the_members_cost_twice(tmp_path):
    from gcp_jax.experiments import assemble
    from gcp_jax.experiments.plan import plan

    one, two = (spec.runs(Sweep(REACH, seeds=n))[0].config for n in (1, 2))
    task = assemble.make_task(one, film=False)
    single, double = plan.cost(one, task), plan.cost(two, task)
    cloned = (
        6
        * one.pretrain.updates
        * one.pretrain.batch_size
        * plan.plan(one, task)["policy_parameters"]
    )
    assert double.env_steps == 2 * single.env_steps
    assert double.flops - cloned == pytest.approx(2 * (single.flops - cloned))

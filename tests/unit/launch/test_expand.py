"""From a sweep to its runs: points, packing, identities, commands, and what is refused."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from gcp_jax.config import ConfigError
from gcp_jax.launch import Sweep, grid
from gcp_jax.launch.cli import main
from gcp_jax.launch.cli.parse import parse
from gcp_jax.launch.expand import expand, load_sweep
from gcp_jax.run.folder import config_hash

REACH = "experiments/configs/reach.py"
RATES = grid("algorithm.critic_lr", (1e-4, 1e-3))


def critic_lr(run):
    return run.config.algorithm.settings.critic_lr


def test_points_are_the_product_of_the_axes():
    runs = expand(Sweep(REACH, (RATES, grid("finetune.utd", (0.1, 0.2, 0.4))), seeds=3))
    assert len(runs) == 6 and len({run.id for run in runs}) == 6
    assert {(critic_lr(run), run.config.finetune.utd) for run in runs} == {
        (lr, utd) for lr in (1e-4, 1e-3) for utd in (0.1, 0.2, 0.4)
    }
    assert all(run.config.seeds == 3 for run in runs)


def test_packed_fields_become_a_population_of_one_program():
    axes = (RATES, grid("finetune.utd", (0.1, 0.2)))
    runs = expand(Sweep(REACH, axes, pack=("algorithm.critic_lr",), seeds=2))
    assert [run.config.population for run in runs] == [{"critic_lr": (1e-4, 1e-3)}] * 2
    assert [len(run.config.members) for run in runs] == [4, 4]
    assert runs[0].values == {
        "finetune.utd": 0.1,
        "algorithm.critic_lr": {"packed": (1e-4, 1e-3)},
    }


def test_spread_seeds_are_runs_of_their_own():
    runs = expand(Sweep(REACH, (RATES,), seeds=3, spread_seeds=True))
    assert [(critic_lr(run), run.config.all_seeds) for run in runs] == [
        (lr, [seed]) for lr in (1e-4, 1e-3) for seed in range(3)
    ]
    assert [run.values["seed"] for run in runs] == [0, 1, 2, 0, 1, 2]


def test_a_method_on_an_axis_brings_its_own_fields():
    methods = expand(Sweep(REACH, (grid("algorithm.name", ("ogpo", "dsrl")),)))
    assert hasattr(methods[0].config.algorithm.settings, "chains")
    assert not hasattr(methods[1].config.algorithm.settings, "chains")
    assert hasattr(methods[1].config.algorithm.settings, "distill_steps")


def test_identity_follows_from_what_shapes_the_numbers():
    [one] = expand(Sweep(REACH))
    same = dataclasses.replace(one.config, run_dir="elsewhere", video=not one.config.video)
    assert config_hash(same) == one.id
    assert config_hash(dataclasses.replace(one.config, seed=1)) != one.id


@pytest.mark.parametrize(
    "sweep",
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
def test_its_command_repeats_a_run(sweep):
    for run in expand(sweep):
        _, name, *rest = shlex.split(run.command)
        arguments = parse(name, main.load_command(name), rest)
        assert config_hash(arguments.run_config) == run.id


def test_a_grown_sweep_keeps_its_runs():
    before = {run.id for run in expand(Sweep(REACH, (RATES,)))}
    grown = Sweep(REACH, (grid("algorithm.critic_lr", (1e-4, 1e-3, 1e-2)),))
    assert before < {run.id for run in expand(grown)}


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (
            Sweep(REACH, (grid("finetune.udt", (1,)),)),
            "there is no field 'finetune.udt'; did you mean 'utd'",
        ),
        (Sweep("nowhere.py"), "cannot read the sweep's config=nowhere.py"),
        (
            Sweep(REACH, (grid("algorithm.name", ("ogpo", "")),)),  # "": that of the file
            "the same configuration",
        ),
    ],
)
def test_invalid_runs_are_refused_in_one_line(sweep, message):
    with pytest.raises(ConfigError, match=message) as error:
        expand(sweep)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a Python file"),
        ("x = 1", "there is no get_sweep"),
        ("def get_sweep(): return 3", "returns int; it must return a gcp_jax.launch.Sweep"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_sweep(str(path))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("config.seeds = 4", r"sets seeds=4, but the sweep runs 2; use Sweep\(seeds=…\)"),
        (
            "config.population = ml_collections.ConfigDict({'actor_lr': (1e-4,)})",
            r"sets population; name the varied fields in Sweep\(pack=…\)",
        ),
    ],
)
def test_what_the_file_sets_and_the_sweep_would_override_is_refused(tmp_path, setting, message):
    path = tmp_path / "mine.py"
    path.write_text(
        "import ml_collections\n"
        "from gcp_jax.experiments.run_config import defaults\n\n\n"
        f"def get_config():\n    config = defaults(env='reach')\n    {setting}\n    return config\n"
    )
    with pytest.raises(ConfigError, match=message):
        expand(Sweep(str(path), (RATES,), seeds=2))

"""Command lines: every spelling of a flag is the same flag, and a file may have any path."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcp_jax.config import ConfigError
from gcp_jax.experiments import comparison, run_config
from gcp_jax.launch.cli import main
from gcp_jax.launch.cli.parse import UsageError, parse

REACH = "experiments/configs/reach.py"


def parsed(name, *words):
    return parse(name, main.load_command(name), words)


VALUES = {
    "env.name": "reach",
    "seeds": "3",
    "finetune.utd": "0.5",
    "video": "false",
    "policy.hidden": "8,8",
    "algorithm.critic_hidden": "(8,)",
    "writers": "tensorboard,wandb",
    "population.actor_lr": "1e-4,3e-4",
    "demonstrations.noise": "0.25",
}
SPELLINGS = (
    ("--config.{}={}",),
    ("--config.{}", "{}"),
    ("-config.{}={}",),
    ("-config.{}", "{}"),
)


@settings(max_examples=6, deadline=None)
@given(chosen=st.lists(st.sampled_from(SPELLINGS), min_size=len(VALUES), max_size=len(VALUES)))
def test_spellings_of_a_field_are_one(chosen):
    words = []
    for (field, value), spelling in zip(VALUES.items(), chosen, strict=True):
        if len(spelling) == 1:
            words.append(spelling[0].format(field, value))
        else:
            words += [spelling[0].format(field), value]
    config = parsed("plan", *words).run_config
    assert config == parsed("plan", *(f"--config.{k}={v}" for k, v in VALUES.items())).run_config
    assert config.env.name == "reach" and config.policy.hidden == (8, 8)
    assert config.writers == ("tensorboard", "wandb") and not config.video
    assert config.population == {"actor_lr": (1e-4, 3e-4)}


@pytest.mark.parametrize(
    "words",
    [["--config", REACH], ["-config", REACH], [f"-config={REACH}"], [f"--config={REACH}"]],
    ids=" ".join,
)
def test_spellings_of_the_file_are_one(words):
    assert parsed("plan", *words).run_config.policy.hidden == (64, 64)


def test_a_negative_number_is_a_value_and_a_flag_is_none():
    assert parsed("sweep", "f.py", "--config.seed", "-3").overrides == {"seed": -3}
    with pytest.raises(UsageError, match=r"--config\.seed lacks its value"):
        parsed("sweep", "f.py", "--config.seed", "--dry-run")
    assert parsed("sweep", "f.py", "-dry-run", "-max_parallel", "3").flags.max_parallel == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tensorboard,wandb", ("tensorboard", "wandb")),
        ("tensorboard", ("tensorboard",)),
        ("(tensorboard, wandb)", ("tensorboard", "wandb")),
        ("('tensorboard','wandb')", ("tensorboard", "wandb")),
        ("()", ()),
        ("", ()),
        ("8", (8,)),
        ("[8, 8]", (8, 8)),
    ],
)
def test_a_tuple_is_split_at_its_commas(text, value):
    assert run_config.split_text(text) == value


def test_tuples_are_split_for_benchmarks_and_sweeps_too():
    config = run_config.defaults("reach")
    run_config.override(config, parsed("sweep", "f", "--config.writers=tensorboard,wandb").overrides)
    assert config.writers == ("tensorboard", "wandb")
    words = ["--algorithms=qc", "--envs=reach", "--config.writers=wandb,foo"]
    with pytest.raises(ConfigError, match="writers is 'foo'; allowed: jsonl, tensorboard, wandb"):
        comparison.choose(
            file="",
            algorithms=["qc"],
            envs=["reach"],
            seeds=1,
            steps=None,
            overrides=parsed("benchmark", *words).overrides,
        )


@pytest.mark.parametrize("name", ["a:b/reach.py", "a:b/c:d.py", ":/reach.py"])
def test_a_path_may_have_colons(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir()
    shutil.copy(REACH, path)
    assert parsed("plan", f"--config={path}").run_config.env.name == "reach"


def test_what_follows_the_path_is_the_argument(tmp_path):
    path = tmp_path / "a:b" / "poor.py"
    path.parent.mkdir()
    shutil.copy("experiments/configs/poor.py", path)
    config = parsed("plan", f"--config={path}:reach").run_config
    assert config.env.name == "reach" and config.demonstrations.quality == "poor"
    with pytest.raises(ConfigError, match="no environment is called 're:ach'|no suite is called"):
        parsed("plan", f"--config={path}:re:ach")


@pytest.mark.parametrize("name", ["train", "benchmark", "sweep"])
def test_two_run_folders_are_refused(name):
    arguments = parsed(name, "--run_dir=runs/a", "--config.run_dir=runs/b")
    with pytest.raises(UsageError, match="--run_dir=runs/a and --config.run_dir=runs/b name two"):
        arguments.run_dir()
    assert parsed(name, "--run_dir=runs/a", "--config.run_dir=runs/a").run_dir() == "runs/a"
    assert parsed(name).run_dir(default="runs/c") == "runs/c"


def test_an_unknown_writer_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(main, "compilation_cache", lambda: None)
    folder = tmp_path / "run"
    for value, words in [
        ("foo", "writers is 'foo'; allowed: jsonl, tensorboard, wandb."),
        ("tensorboard,foo", "writers is 'foo'"),
    ]:
        flags = [f"--config={REACH}", f"--run_dir={folder}", f"--config.writers={value}"]
        assert main.main(["train", *flags]) == 2
        assert words in capsys.readouterr().err and not folder.exists()

"""Command lines: every spelling of a flag is the same flag, and a file may have any path."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcp_jax.config import ConfigError
from gcp_jax.experiments import comparison, run_config
from gcp_jax.launch.cli import inspect, main
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
    run_config.override(
        config, parsed("sweep", "f", "--config.writers=tensorboard,wandb").overrides
    )
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
    with pytest.raises(UsageError, match="--run_dir=runs/a and --config.run_dir=runs/b are"):
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


MY_ENV = """
import dataclasses
from gcp_jax.config_fields import POSITIVE, field
from gcp_jax.envs.tasks import reach

@dataclasses.dataclass(frozen=True)
class Config(reach.Config):
    width_of_mine: float = field(2.5, POSITIVE, "m, the width of my own table")

QUALITY = reach.QUALITY

def make(config):
    return reach.make(reach.Config(horizon=config.horizon))
"""


@pytest.fixture
def own_task(tmp_path, monkeypatch):
    """A task of the user's own, in the working directory and in a folder below it."""
    monkeypatch.setattr(main, "compilation_cache", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "below").mkdir()
    for name in ("mine_in_a_file", "below/mine_below"):
        (tmp_path / f"{name}.py").write_text(MY_ENV)
    return tmp_path


@pytest.mark.parametrize("command", ["plan", "demos", "check", "render", "envs"])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("mine_in_a_file", "mine_in_a_file"),
        ("mine_in_a_file.py", "mine_in_a_file"),
        ("./mine_in_a_file.py", "mine_in_a_file"),
        ("below/mine_below.py", "below.mine_below"),
    ],
)
def test_an_own_task_is_taken_by_name_and_by_file(command, module, name, own_task):
    words = [f"--config.env.module={module}", "--config.env.width_of_mine=3"]
    arguments = parsed(command, *words)
    env = arguments.run_config.env
    assert (env.name, env.module, env.settings.width_of_mine) == (name, name, 3.0)
    arguments.require_task("this")


def test_a_file_elsewhere_or_of_another_name_is_one_line(own_task, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "theirs.py"
    elsewhere.write_text(MY_ENV)
    with pytest.raises(ConfigError, match="put the file's folder on PYTHONPATH and give theirs"):
        parsed("plan", f"--config.env.module={elsewhere}")
    (own_task / "my-env.py").write_text(MY_ENV)
    with pytest.raises(ConfigError, match="my-env is no module; rename it to letters, digits"):
        parsed("plan", "--config.env.module=my-env.py")


def test_the_fields_of_an_own_task_are_printed(own_task, capsys):
    assert main.main(["envs", "--config.env.module=mine_in_a_file.py"]) == 0
    shown = capsys.readouterr().out
    assert "--config.env.width_of_mine" in shown and "the width of my own table" in shown


def test_the_demonstrator_of_an_own_task_is_shown(own_task, monkeypatch):
    films = []
    monkeypatch.setattr(inspect.assemble, "write_video", lambda env, states, out: films.append(env))
    words = ["--config.env.module=mine_in_a_file.py", "--config.env.horizon=3", "--grid=1"]
    assert main.main(["render", *words]) == 0
    assert films[0].specs.horizon == 3


def test_a_film_of_another_kind_is_refused_before_anything_is_compiled(own_task, capsys):
    assert main.main(["render", "reach", "--out=film.avi"]) == 2
    assert "--out=film.avi must end in one of .mp4, .gif, .png" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("(8,)", "(16, 4)"), ("8", "16,4")])
def test_of_a_field_that_is_given_twice_the_last_counts(words):
    """absl would put the two tuples together."""
    first, last = words
    flags = [f"--config.policy.hidden={first}", "--config.policy.hidden", last]
    assert parsed("plan", *flags).run_config.policy.hidden == (16, 4)


def test_a_task_may_follow_the_flags(own_task):
    for words in (["reach", "--episodes=3"], ["--episodes", "3", "reach"], ["--json", "reach"]):
        arguments = parsed("demos", *words)
        assert arguments.run_config.env.name == "reach" and arguments.positional == []


def test_a_policy_to_render_has_its_own_task(own_task):
    (own_task / "reach").mkdir()  # a folder is no policy
    assert parsed("render", "reach").run_config.env.name == "reach"
    (own_task / "seed_0").mkdir()
    (own_task / "seed_0" / "policy.json").write_text("{}")
    arguments = parsed("render", "--grid=2", "seed_0")
    assert (arguments.positional, arguments.config) == (["seed_0"], None)
    with pytest.raises(UsageError, match="seed_0 is a saved policy, which has its own task"):
        parsed("render", "seed_0", "--config.env.horizon=3")


def test_a_working_directory_that_is_gone_is_named(own_task, capsys, monkeypatch):
    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(main.os, "getcwd", gone)
    monkeypatch.setenv("PWD", "/tmp/gone")
    assert main.main(["envs"]) == 2
    assert "/tmp/gone is gone; change to a folder that is there" in capsys.readouterr().err

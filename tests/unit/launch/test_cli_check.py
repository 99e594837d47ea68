"""``gcp-jax check``: which of task and method it checks, and settings of a task of one's own."""

import dataclasses
import json
import sys
import types

import pytest

from gcp_jax.config import ConfigError
from gcp_jax.config_fields import POSITIVE, field
from gcp_jax.experiments import method_trial, run_config
from gcp_jax.launch.cli import check, main, parse
from gcp_jax.run.method_check import MethodError


def run(*words):
    """The JSON of a check whose parts only say that they were called."""
    command = main.load_command("check")
    return command.run(parse.parse("check", command, words))


@pytest.fixture
def parts(monkeypatch):
    """Stand-ins for what is slow."""
    monkeypatch.setattr(check, "check_env", lambda env, key, n, steps: {"shapes": env.specs.name})
    monkeypatch.setattr(check, "check_method", lambda config, specs: {"act": "pure"})
    trial = method_trial.Trial(base=-0.5, end=-0.1, error=0.01, updates=10, env_steps=100)
    monkeypatch.setattr(check.method_trial, "try_method", lambda config: trial)


@pytest.mark.parametrize(
    ("words", "task", "method"),
    [
        (["reach"], "reach", None),
        (["--config.env.name=reach"], "reach", None),
        (["--config.algorithm.name=qc"], None, "qc"),
        (["--config.algorithm.gamma=0.9"], None, "ogpo"),
        (["reach", "--config.algorithm.name=qc"], "reach", "qc"),
    ],
)
def test_what_the_command_line_names_is_checked(words, task, method, parts):
    result = run(*words)
    assert (result.get("env"), result.get("method")) == (task, method)
    json.dumps(result)


def test_the_trial_of_a_method_is_shown_in_numbers(parts):
    assert run("--config.algorithm.name=qc")["learns"] == (
        "reward -0.500 → -0.100 (± 0.010; the optimum is 0) after 10 updates and 100 steps"
    )


def test_a_method_that_does_not_keep_its_contract_ends_the_command(monkeypatch, capsys):
    def broken(config, specs):
        raise MethodError("the method 'qc' breaks its contract: act returns nonsense")

    monkeypatch.setattr(check, "check_method", broken)
    assert main.main(["check", "--config.algorithm.name=qc"]) == main.BAD_INPUT
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "gcp-jax check: the method 'qc' breaks its contract: act returns nonsense"


@dataclasses.dataclass(frozen=True)
class Optional:
    goal_x: float | None = None
    limit: float | None = field(1.0, POSITIVE, "a limit")
    label: int | str | None = None
    sides: tuple[float, ...] | None = None


@pytest.fixture
def own_task(monkeypatch):
    """Make a module of the user with this configuration, called ``own_task``."""

    def build(config):
        module = types.ModuleType("own_task")
        module.Config, module.make = config, lambda config: None
        monkeypatch.setitem(sys.modules, "own_task", module)

    return build


def parsed(*words):
    command = main.load_command("check")
    arguments = parse.parse("check", command, ["--config.env.module=own_task", *words])
    return arguments.run_config.env.settings


def test_optional_settings_of_a_task_can_be_none_or_set(own_task):
    own_task(Optional)
    assert parsed() == Optional()
    assert parsed("--config.env.goal_x=0.3").goal_x == 0.3
    assert parsed("--config.env.label=4").label == 4
    assert parsed("--config.env.sides=(1.0,2.0)").sides == (1.0, 2.0)


def test_an_optional_setting_with_bounds_may_be_none(own_task):
    own_task(Optional)
    choice = {"name": "own_task", "module": "own_task"}
    assert run_config.build_env_choice({**choice, "limit": None}).settings.limit is None
    with pytest.raises(ConfigError, match=r"env.limit is -1.0; it must be positive"):
        run_config.build_env_choice({**choice, "limit": -1})


@dataclasses.dataclass
class Thawed:
    horizon: int = 3


@dataclasses.dataclass(frozen=True)
class WithoutDefault:
    horizon: int


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Thawed, "own_task.Config is not frozen; write @dataclass\\(frozen=True\\)"),
        (WithoutDefault, "own_task.Config.horizon has no default"),
        (dict, "own_task.Config is no dataclass"),
    ],
)
def test_a_config_that_is_no_frozen_dataclass_is_refused(config, message, own_task):
    own_task(config)
    with pytest.raises(ConfigError, match=message):
        parsed()

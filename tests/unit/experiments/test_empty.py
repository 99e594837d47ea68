"""Empty tuples, mappings and folders, and files that return something else: one line each."""

import dataclasses

import pytest

from gcp_jax import algorithms, envs
from gcp_jax.config import ConfigError, RunConfig
from gcp_jax.experiments import comparison, run_config
from gcp_jax.experiments.api import make_config
from gcp_jax.launch.cli import main
from gcp_jax.launch.expand import load_sweep

TUPLES = [
    (section, name, each.name)
    for section, names in [("env", envs.names()), ("algorithm", algorithms.names())]
    for name in names
    for each in dataclasses.fields(
        envs.load(name).config if section == "env" else algorithms.load(name).Config
    )
    if isinstance(each.default, tuple) and each.default and each.metadata.get("allowed")
]


@pytest.mark.parametrize(("section", "name", "field"), [*TUPLES, ("policy", "", "hidden")])
def test_no_tuple_may_be_empty_that_needs_a_value(section, name, field):
    values = {"env": {"name": "reach"}, section: {field: ()}}
    if name:
        values[section]["name"] = name
    with pytest.raises((ConfigError, ValueError)) as raised:
        run_config.resolve(values)
    message = str(raised.value)
    assert f"{section}.{field} is ()" in message and "\n" not in message


CONFIG = """
import ml_collections
from gcp_jax.experiments.run_config import defaults

def get_config():
    config = defaults("reach")
    {body}
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("pass", "its get_config() returns NoneType, no ConfigDict"),
        ("return []", "its get_config() returns list, no ConfigDict"),
        ("return {}", "its get_config() returns dict, no ConfigDict"),
        ("return ml_collections.ConfigDict()", "the configuration has no env.name; begin with"),
        ("return ml_collections.ConfigDict({'env': {}})", "has no env.name"),
        ("return ml_collections.ConfigDict({'env': 3})", "has no env.name"),
        ("config.algorithm = ml_collections.ConfigDict(); return config", "no algorithm.name"),
        ("del config.env.name; return config", "has no env.name"),
        ("config.finetune = 3; return config", "TypeError"),
        (
            "return ml_collections.ConfigDict({'env': {'name': 'reach'}, 'finetune': 3})",
            "finetune is 3; a section of fields is expected",
        ),
        (
            "return ml_collections.ConfigDict({'env': {'name': 'reach'}, 'population': None})",
            "population is None; a section of fields is expected",
        ),
    ],
)
def test_a_file_that_returns_no_configuration_is_one_line(tmp_path, body, words):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG.format(body=body))
    with pytest.raises(ConfigError) as raised:
        run_config.read_config_file(str(path), named=f"--config={path}")
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_sections_that_a_file_leaves_out_have_their_defaults(tmp_path):
    path = tmp_path / "mine.py"
    body = "return ml_collections.FrozenConfigDict({'env': {'name': 'reach'}, 'seeds': 2})"
    path.write_text(CONFIG.format(body=body))
    config = make_config(path, {"population.actor_lr": (1e-4,), "finetune.utd": 0.5})
    assert config.seeds == 2 and config.finetune.utd == 0.5
    expected = dataclasses.replace(config, seeds=1, population={})
    assert expected == make_config(None, {"env.name": "reach", "finetune.utd": 0.5})


def test_an_empty_configuration_in_python_is_one_line():
    import ml_collections

    with pytest.raises(ConfigError, match=r"config: the configuration has no env\.name"):
        make_config(ml_collections.ConfigDict())
    assert isinstance(make_config(run_config.defaults("reach")), RunConfig)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("None", "the content is None; an object is expected"),
        ("[]", "the content is []; an object is expected"),
        ("{}", "nothing to compare"),
        ("dict(tasks={}, methods={})", "nothing to compare"),
        ("dict(tasks=None, methods=None)", "nothing to compare"),
        ("dict(tasks=['reach'])", "'tasks' is ['reach']; an object is expected"),
        ("dict(tasks={'a': None})", "'tasks.a' is None; an object is expected"),
        ("dict(tasks={'a': {}})", "'tasks.a.config' is missing"),
        ("dict(tasks={'a': {'config': 'reach'}}, methods={'b': {}})", "'methods.b.algorithm'"),
        ("dict(tasks={3: {'config': 'reach'}})", "3 in 'tasks' is no name"),
        ("dict(tasks={'': {'config': 'reach'}})", "'' in 'tasks' is no name"),
        ("dict(seeds='3')", "'seeds' is '3'; a whole number is expected"),
        ("dict(common=[])", "'common' is []; an object is expected"),
    ],
)
def test_a_benchmark_file_that_returns_something_else_is_one_line(tmp_path, value, words):
    path = tmp_path / "mine.py"
    path.write_text(f"def get_config():\n    return {value}\n")
    with pytest.raises(ConfigError) as raised:
        comparison.choose(
            file=str(path), algorithms=[], envs=[], seeds=None, steps=None, overrides={}
        )
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("value", ["None", "[]", "{}", "()", "3"])
def test_a_sweep_file_that_returns_something_else_is_one_line(tmp_path, value):
    path = tmp_path / "mine.py"
    path.write_text(f"def get_sweep():\n    return {value}\n")
    with pytest.raises(ConfigError, match=r"it must return a gcp_jax\.launch\.Sweep"):
        load_sweep(str(path))


@pytest.mark.parametrize(
    "words",
    [
        ["report", "{}"],
        ["status", "{}"],
        ["evaluate", "{}"],
        ["debug", "{}"],
        ["render", "{}"],
        ["sweep", "{}"],
        ["benchmark", "--file={}"],
        ["plan", "--config={}"],
        ["plan", "--config.demonstrations.path={}"],
    ],
    ids=" ".join,
)
def test_an_empty_folder_is_one_line(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(main, "compilation_cache", lambda: None)
    assert main.main([word.format(tmp_path) for word in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and str(tmp_path) in lines[0]
    assert list(tmp_path.iterdir()) == []

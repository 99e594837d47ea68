"""A user's file that raises is one line with the file, the line and the user's own error."""

import os
import sys

import pytest

from gcp_jax import user_code
from gcp_jax.config import ConfigError
from gcp_jax.experiments import run_config
from gcp_jax.launch.cli import main, parse
from gcp_jax.launch.expand import load_sweep

FAULTS = {
    "syntax": (
        "def {function}(:\n    pass\n",
        "line 1 (def {function}(:): SyntaxError: invalid syntax",
    ),
    "name": (
        "x = 1\ny = undefined\n",
        "line 2 (y = undefined): NameError: name 'undefined' is not defined",
    ),
    "key": (
        "def {function}():\n    return {{}}['lr']\n",
        "line 2, in {function} (return {{}}['lr']): KeyError: 'lr'",
    ),
    "arithmetic": (
        "def {function}():\n    return 1 / 0\n",
        "line 2, in {function} (return 1 / 0): ZeroDivisionError: division by zero",
    ),
    "import": (
        "import nothing_of_the_kind\n",
        "line 1 (import nothing_of_the_kind): ModuleNotFoundError: No module named",
    ),
    "elsewhere": (
        "import json\n\n\ndef {function}():\n    return json.loads('{{')\n",
        "line 5, in {function} (return json.loads('{{')): JSONDecodeError: Expecting",
    ),
    "exit": (
        "import sys\n\n\ndef {function}():\n    sys.exit(0)\n",
        "line 5, in {function} (sys.exit(0)): SystemExit: 0; it must return instead of",
    ),
    "exit at once": ("raise SystemExit\n", "line 1 (raise SystemExit): SystemExit: None; it must"),
    "null": ("x = '\0'\n", "source code"),
    "encoding": ("x = '\udcff'\n", "SyntaxError"),
    "nothing": ("", "there is no {function}() in it; see experiments/"),
    "no function": ("{function} = 3\n", "there is no {function}() in it; see experiments/"),
    "arguments": (
        "def {function}(a, b, c):\n    pass\n",
        "TypeError: {function}() missing 3 required positional arguments",
    ),
}

READERS = {
    "get_config": lambda path: run_config.read_config_file(path, named=f"--config={path}"),
    "get_sweep": load_sweep,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("function", READERS)
def test_a_file_that_raises_is_one_line(fault, function, tmp_path):
    content, words = FAULTS[fault]
    path = tmp_path / "mine.py"
    path.write_text(content.format(function=function), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ConfigError) as raised:
        READERS[function](str(path))
    message = str(raised.value)
    assert str(path) in message and words.format(function=function) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "command", [["plan", "--config="], ["sweep", ""], ["benchmark", "--file="]], ids=str
)
def test_a_file_that_ends_the_program_is_bad_input(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(main, "compilation_cache", lambda: None)
    path = tmp_path / "mine.py"
    path.write_text("import sys\nsys.exit(0)\n")
    name, prefix = command
    assert main.main([name, f"{prefix}{path}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "line 2 (sys.exit(0)): SystemExit: 0" in lines[0]


@pytest.mark.parametrize("section", ["env", "algorithm"])
def test_a_module_that_raises_is_one_line(section, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(main, "compilation_cache", lambda: None)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"my_broken_{section}.py").write_text("import math\n\nlimit = math.sqrt(-1)\n")
    assert main.main(["plan", f"--config.{section}.module=my_broken_{section}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"my_broken_{section}.py, line 3 (limit = math.sqrt(-1)): ValueError: math" in lines[0]


MY_ENV = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    horizon: int = 5

def make(config):
    return {}["specs"]
"""


def test_an_error_inside_a_users_function_is_one_line(tmp_path, capsys, monkeypatch):
    """Of a kind that this package does not expect: it would be a traceback."""
    monkeypatch.setattr(main, "compilation_cache", lambda: None)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_keyless_env.py").write_text(MY_ENV)
    assert main.main(["plan", "--config.env.module=my_keyless_env"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert 'my_keyless_env.py, line 9, in make (return {}["specs"]): KeyError' in lines[0]


def test_an_error_of_this_package_keeps_its_traceback(capsys, monkeypatch):
    monkeypatch.setattr(main, "compilation_cache", lambda: None)
    monkeypatch.setattr(parse, "parse", lambda *arguments: {}["ours"])
    with pytest.raises(KeyError, match="ours"):
        main.main(["envs"])


def test_a_dataclass_in_a_users_file_finds_its_module(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from gcp_jax.experiments.run_config import defaults\n"
        "@dataclasses.dataclass\n"
        "class Mine:\n"
        "    steps: int = 3\n"
        "def get_config():\n"
        "    config = defaults('reach')\n"
        "    config.policy.steps = Mine().steps\n"
        "    return config\n"
    )
    config = run_config.read_config_file(str(path), named="mine")
    assert config.policy.steps == 3


def test_a_file_edited_within_a_second_is_the_new_one(tmp_path, monkeypatch):
    """Bytecode of the first would pass for the second: its size and its second are the same."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "sweep.py"
    for seeds in (3, 5):
        path.write_text(f"seeds = {seeds}\n")
        os.utime(path, (1_000_000_000, 1_000_000_000))
        assert user_code.load_file(path, "sweep.py").seeds == seeds
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.py"]

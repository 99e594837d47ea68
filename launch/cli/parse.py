"""Parsing a command line: flags by absl, the configuration by ml_collections.

A ``ConfigDict`` exists only in this file and in ``gcp_jax.experiments.run_config``: a command gets
its configuration as a ``RunConfig``, or as a few overriding fields.
"""

from __future__ import annotations

import ast
import contextlib
import enum
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from gcp_jax.config import RunConfig
from gcp_jax.experiments import run_config

PREFIX = "--config."
FILE = "--config="
POPULATION = "population."


class UsageError(ValueError):
    """The command line itself is wrong."""


class Configuration(enum.Enum):
    """Which ``--config`` flags a command takes."""

    NONE = enum.auto()
    OVERRIDES = enum.auto()  # --config.FIELD=VALUE, for every run that the command starts
    FULL = enum.auto()  # --config=FILE and --config.FIELD=VALUE
    OF_ENV = enum.auto()  # the same, and the first word is a task: short for --config.env.name


class Arguments(NamedTuple):
    """A parsed command line."""

    flags: SimpleNamespace  # the value of every flag that the command declares
    positional: list[str]
    config: RunConfig | None  # of commands that take Configuration.FULL or OF_ENV
    overrides: dict[str, Any]  # dotted field: value, of commands that take OVERRIDES
    explicit: frozenset[str]  # dotted fields of the configuration that flags set
    command_line: str  # as the user gave it
    fields: frozenset[str] = frozenset()  # dotted fields that --config.FIELD flags set

    @property
    def run_config(self) -> RunConfig:
        """The configuration of a command that takes one."""
        assert self.config is not None
        return self.config

    def run_dir(self, default: str = "") -> str:
        """The folder that ``--run_dir`` or ``--config.run_dir`` names.

        Raises:
          UsageError: if they name different folders.
        """
        by_flag = self.flags.run_dir
        by_field = self.overrides.get("run_dir", "")
        if self.config is not None:
            by_field = self.config.run_dir
        differ = by_flag and "run_dir" in self.explicit and by_flag != by_field
        if differ:
            raise UsageError(
                f"--run_dir={by_flag} and --config.run_dir={by_field} are the same setting; give "
                "one of them."
            )
        return by_flag or by_field or default

    def no_positional(self) -> None:
        """Raise UsageError if a word is no flag."""
        if self.positional:
            unexpected = f"unexpected {self.positional[0]!r}"
            raise UsageError(f"{unexpected}; flags look like --config.seeds=3.")

    def one_positional(self, what: str, example: str) -> str:
        """The only word that is no flag. Raises UsageError if there are none or several."""
        if len(self.positional) != 1:
            raise UsageError(f"name one {what}, e.g. {example}")
        return self.positional[0]


class Command(NamedTuple):
    """A subcommand of ``gcp-jax``."""

    run: Callable[[Arguments], dict[str, Any] | None]  # -> what --json prints; None: nothing
    usage: str  # what follows "gcp-jax COMMAND"
    description: str
    json: str  # what --json prints
    configuration: Configuration = Configuration.NONE
    define_flags: Callable[[flags.FlagValues], None] | None = None

    @property
    def has_config(self) -> bool:
        """Whether it takes a whole configuration."""
        return self.configuration in (Configuration.FULL, Configuration.OF_ENV)


def declared_flags(command: Command) -> flags.FlagValues:
    """The flags of a command with their defaults, without ``--config``."""
    declared = flags.FlagValues()
    if command.define_flags is not None:
        command.define_flags(declared)
    flags.DEFINE_bool(
        "json",
        False,
        f"print one JSON object as the last line of standard output: {command.json}",
        flag_values=declared,
    )
    return declared


def parse(name: str, command: Command, words: Sequence[str]) -> Arguments:
    """Parse the words after the command's name.

    Raises:
      UsageError, ConfigError, absl.flags.Error: in one line, if they cannot be used.
    """
    command_line = shlex.join(["gcp-jax", name, *words])
    words = _normalized(words, takes_env=command.configuration is Configuration.OF_ENV)
    explicit = frozenset(_config_fields(words))
    declared = declared_flags(command)
    fields = frozenset(_config_fields(words))
    config = None
    overrides: dict[str, Any] = {}
    if command.configuration is Configuration.OVERRIDES:
        overrides = _overrides(words)
        words = [word for word in words if not word.startswith(PREFIX)]
    if command.has_config:
        editable = _selected_config(words)
        words = [word for word in words if not word.startswith(FILE)]
        with _flag_errors():
            argv = [name, *words]
            config_flags.DEFINE_config_dict("config", editable, flag_values=declared, sys_argv=argv)
    with _flag_errors():
        positional = declared([name, *words])[1:]
    values = declared.flag_values_dict()
    if command.has_config:
        config = run_config.frozen_config(values.pop("config"))
    return Arguments(
        flags=SimpleNamespace(**values),
        positional=positional,
        config=config,
        overrides=overrides,
        explicit=explicit,
        command_line=command_line,
        fields=fields,
    )


def _normalized(words: Sequence[str], *, takes_env: bool) -> list[str]:
    """``--config FILE`` becomes ``--config=FILE``, a first word ENV ``--config.env.name=ENV``, and
    dashes in the names of flags underscores."""
    joined = [*_join_config(words)]
    if takes_env and joined and not joined[0].startswith("-"):
        joined[0] = f"{PREFIX}env.name={joined[0]}"
    return [_with_underscores(word) for word in joined]


def _join_config(words: Iterable[str]) -> Iterator[str]:
    rest = iter(words)
    for word in rest:
        yield f"{FILE}{next(rest, '')}" if word == "--config" else word


def _with_underscores(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def _selected_config(words: Sequence[str]) -> ml_collections.ConfigDict:
    """The configuration that ``--config.FIELD`` flags override.

    It is the file's, or the defaults, with the task and the method that the flags name, so that
    their own fields can be overridden too.
    """
    files = [word.removeprefix(FILE) for word in words if word.startswith(FILE)]
    if files:
        config = run_config.read_config_file(files[-1], named=f"{FILE}{files[-1]}")
    else:
        config = run_config.defaults()
    fields = _config_fields(words)
    run_config.select(config, run_config.Selection.of(fields))
    for field in fields:
        if field.startswith(POPULATION):
            _add_population_field(config, field.removeprefix(POPULATION))
        else:
            run_config.check_known(config, field)
    return config


def _add_population_field(config: ml_collections.ConfigDict, field: str) -> None:
    if field not in config.population:
        with config.unlocked():
            config.population[field] = ()


def _config_fields(words: Iterable[str]) -> dict[str, str]:
    """{field: text} of all ``--config.FIELD=text``; the last one counts."""
    fields = {}
    for word in words:
        if word.startswith(PREFIX):
            field, _, text = word.removeprefix(PREFIX).partition("=")
            fields[field] = text
    return fields


def _overrides(words: Iterable[str]) -> dict[str, Any]:
    """{field: value} of all ``--config.FIELD=VALUE``: Python literals, or else text."""
    words = list(words)
    for word in words:
        if word.startswith(PREFIX) and "=" not in word:
            raise UsageError(f"{word} lacks its value; write {word}=VALUE.")
        if word.startswith(FILE):
            raise UsageError(f"{word} cannot be used here, only --config.FIELD=VALUE.")
    return {field: _literal(text) for field, text in _config_fields(words).items()}


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@contextlib.contextmanager
def _flag_errors() -> Iterator[None]:
    """Turn what ml_collections raises for a bad flag into a UsageError."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, OSError) as error:
        message = str(error.args[0]) if error.args else str(error)
        raise UsageError(f"cannot read the configuration: {message}") from error

"""Parsing a command line: flags by absl, the configuration by ml_collections.

A ``ConfigDict`` exists only in this file and in ``gcp_jax.experiments.run_config``: a command gets
its configuration as a ``RunConfig``, or as a few overriding fields.
"""

from __future__ import annotations

import ast
import contextlib
import enum
import math
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from gcp_jax import envs
from gcp_jax.config import ConfigError, RunConfig
from gcp_jax.config_fields import MAX_COUNT
from gcp_jax.experiments import run_config

PREFIX = "--config."
FILE = "--config="
POPULATION = "population."
_FLAG = re.compile(r"--?[A-Za-z]")  # the beginning of a flag; numbers may begin with a dash


class UsageError(ValueError):
    """The command line itself is wrong."""


class Configuration(enum.Enum):
    """Which ``--config`` flags a command takes."""

    NONE = enum.auto()
    OVERRIDES = enum.auto()  # --config.FIELD=VALUE, for every run that the command starts
    FULL = enum.auto()  # --config=FILE and --config.FIELD=VALUE
    OF_ENV = enum.auto()  # the same, and a word is a task: short for --config.env.name
    OF_POLICY_OR_ENV = enum.auto()  # as OF_ENV, or a word is a saved policy, which has its own task


class Arguments(NamedTuple):
    """A parsed command line."""

    flags: SimpleNamespace  # the value of every flag that the command declares
    positional: list[str]
    config: RunConfig | None  # of commands that take a whole configuration
    overrides: dict[str, Any]  # dotted field: value, of commands that take OVERRIDES
    explicit: frozenset[str]  # dotted fields of the configuration that flags set
    command_line: str  # as the user gave it
    config_file: str = ""  # what --config=FILE names

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

    @property
    def names_task(self) -> bool:
        """Whether the command line says which task is meant."""
        return bool(self.config_file or self.explicit & {"env.name", "env.module"})

    def require_task(self, example: str) -> None:
        """Raise UsageError if the command line does not say which task is meant."""
        if not self.names_task:
            raise UsageError(
                f"name one task, e.g. {example}, or your own by --config.env.module=FILE"
            )

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
        return self.configuration not in (Configuration.NONE, Configuration.OVERRIDES)

    @property
    def takes_env(self) -> bool:
        """Whether a word is a task."""
        return self.configuration in (Configuration.OF_ENV, Configuration.OF_POLICY_OR_ENV)


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


def define_seed(declared: flags.FlagValues) -> None:
    """Declare ``--seed`` of the commands that play episodes."""
    flags.DEFINE_integer(
        "seed",
        0,
        "seed of the episodes",
        flag_values=declared,
        lower_bound=0,
        upper_bound=MAX_COUNT,
    )


def parse(name: str, command: Command, words: Sequence[str]) -> Arguments:
    """Parse the words after the command's name.

    Raises:
      UsageError, ConfigError, absl.flags.Error: in one line, if they cannot be used.
    """
    command_line = shlex.join(["gcp-jax", name, *words])
    declared = declared_flags(command)
    words = _normalized(words)
    policy = ""
    if command.takes_env:
        words, policy = _take_target(words, command, declared)
    fields = _config_fields(words)
    file = _config_file(words)
    overrides: dict[str, Any] = {}
    if command.configuration is Configuration.OVERRIDES:
        overrides = _overrides(words)
        words = [word for word in words if not word.startswith(PREFIX)]
    has_config = command.has_config and not policy
    if has_config:
        editable = _selected_config(fields, file)
        words = [word for word in words if not word.startswith(FILE)]
        words = _with_tuples(words, editable)
        with _flag_errors():
            argv = [name, *words]
            config_flags.DEFINE_config_dict("config", editable, flag_values=declared, sys_argv=argv)
    with _flag_errors():
        positional = declared([name, *words])[1:]
    values = declared.flag_values_dict()
    config = run_config.frozen_config(values.pop("config")) if has_config else None
    return Arguments(
        flags=SimpleNamespace(**values),
        positional=[policy] if policy else positional,
        config=config,
        overrides=overrides,
        explicit=frozenset(fields),
        command_line=command_line,
        config_file=file,
    )


def _take_target(
    words: Sequence[str], command: Command, declared: flags.FlagValues
) -> tuple[list[str], str]:
    """The words with a task as ``--config.env.name``, and a saved policy apart from them.

    Raises:
      UsageError: if a saved policy is given a configuration.
      ConfigError: if the word is neither a saved policy nor a task.
    """
    index = _first_positional(words, declared)
    if index is None:
        return list(words), ""
    target = words[index]
    rest = [*words[:index], *words[index + 1 :]]
    if command.configuration is Configuration.OF_ENV:
        return [f"{PREFIX}env.name={target}", *rest], ""
    if "/" in target or Path(target, "policy.json").exists():
        for word in rest:
            if word.startswith((PREFIX, FILE)):
                raise UsageError(f"{word}: {target} is a saved policy, which has its own task.")
        return rest, target
    try:
        envs.load(target)
    except ValueError as error:
        raise ConfigError(f"{target} is no saved policy, and {error}") from error
    return [f"{PREFIX}env.name={target}", *rest], ""


def _first_positional(words: Sequence[str], declared: flags.FlagValues) -> int | None:
    """The index of the first word that is neither a flag nor the value of one."""
    takes_value = False
    for index, word in enumerate(words):
        if _FLAG.match(word):
            name = word.removeprefix("--")
            takes_value = "=" not in word and name in declared and not declared[name].boolean
        elif takes_value:
            takes_value = False
        else:
            return index
    return None


def _normalized(words: Sequence[str]) -> list[str]:
    """One spelling of every flag, and of a field that is given several times the last.

    ``-flag`` becomes ``--flag``, dashes in the names of flags become underscores, and
    ``--config.FIELD VALUE`` becomes ``--config.FIELD=VALUE`` (``--config FILE`` as well).
    """
    joined = [*_join_values([_one_name(word) for word in words])]
    last = {word.partition("=")[0]: index for index, word in enumerate(joined)}
    return [
        word
        for index, word in enumerate(joined)
        if not word.startswith(PREFIX) or last[word.partition("=")[0]] == index
    ]


def _one_name(word: str) -> str:
    if not _FLAG.match(word):
        return word
    name, equals, value = word.partition("=")
    return f"--{name.lstrip('-').replace('-', '_')}{equals}{value}"


def _join_values(words: Sequence[str]) -> Iterator[str]:
    rest = [*words]
    while rest:
        word = rest.pop(0)
        takes_value = word == "--config" or (word.startswith(PREFIX) and "=" not in word)
        if takes_value and rest and not _FLAG.match(rest[0]):
            word = f"{word}={rest.pop(0)}"
        yield FILE if word == "--config" else word


def _with_tuples(words: Iterable[str], config: ml_collections.ConfigDict) -> list[str]:
    """The words, with the texts of fields that are tuples as Python literals."""
    words = list(words)
    fields = run_config.tuple_fields(config, _config_fields(words))
    return [_with_tuple(word, fields) for word in words]


def _with_tuple(word: str, fields: Collection[str]) -> str:
    field, equals, text = word.removeprefix(PREFIX).partition("=")
    if not word.startswith(PREFIX) or not equals or field not in fields:
        return word
    values = run_config.split_text(text)
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise UsageError(f"{word}: every number must be finite.")
    return f"{PREFIX}{field}={values!r}"


def _config_file(words: Iterable[str]) -> str:
    """What ``--config=FILE`` names; the last one counts.

    Raises:
      UsageError: if it names nothing.
    """
    files = [word.removeprefix(FILE) for word in words if word.startswith(FILE)]
    if "" in files:
        raise UsageError(f"{FILE} lacks its file, e.g. {FILE}{run_config.EXAMPLE}.")
    return files[-1] if files else ""


def _selected_config(fields: Mapping[str, str], file: str) -> ml_collections.ConfigDict:
    """The configuration that ``--config.FIELD`` flags override.

    It is the file's, or the defaults, with the task and the method that the flags name, so that
    their own fields can be overridden too.
    """
    if file:
        config = run_config.read_config_file(file, named=f"{FILE}{file}")
    else:
        config = run_config.defaults()
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

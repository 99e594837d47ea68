"""Building the configuration of a run: from plain mappings, or from a ``ConfigDict``.

A ``ConfigDict`` is what a configuration file returns and what command-line flags change. It is
turned into a ``RunConfig`` once, right after parsing, by ``frozen_config``; nothing else in the
project reads a ``ConfigDict``.
"""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, cast

import ml_collections
from ml_collections import config_dict

from gcp_jax import algorithms, config_fields, envs, user_code
from gcp_jax.config import (
    AlgorithmChoice,
    ConfigError,
    EnvChoice,
    RunConfig,
    build_algorithm_choice,
    build_population,
    to_dict,
)
from gcp_jax.config_fields import build_config, suggest
from gcp_jax.core import critic
from gcp_jax.envs.randomize import Randomize
from gcp_jax.experiments import user_files
from gcp_jax.json_files import read_json

EXAMPLE = "experiments/configs/peg_insert.py"


def resolve(values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from plain values; the inverse of ``to_dict``.

    Args:
      values: ``env`` and ``algorithm`` are {"name", "module", and settings}, the others sections or
        values of ``RunConfig``. Fields that are absent have their defaults.

    Raises:
      ConfigError: in one line, for an unknown field or a value that is not allowed.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"the configuration is {values!r}; a section with an env is expected.")
    algorithm = AlgorithmChoice()
    if "algorithm" in values:
        algorithm = build_algorithm_choice(values["algorithm"])
    built = {
        **values,
        "env": build_env_choice(values.get("env", {})),
        "algorithm": algorithm,
        "population": build_population(values.get("population", {}), algorithm),
    }
    config: RunConfig = build_config(RunConfig, built)
    for point in config.points:
        config.of(point)  # raises if a value is not allowed
    return config


def build_env_choice(section: Any) -> EnvChoice:
    """A task with its settings from {"name", "module", "randomize", and settings}.

    Raises:
      ConfigError: in one line, for an unknown task or field, or a value that is not allowed.
    """
    name, module, fields = user_code.split_name(section, "env")
    randomize = build_config(Randomize, fields.pop("randomize", {}), "env.randomize.")
    try:
        definition = envs.load(name, module)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    settings = build_config(cast(type, definition.config), fields, "env.")
    config_fields.check(settings, "env.")  # a task of the user may not do it
    return EnvChoice(name=name, module=module, settings=settings, randomize=randomize)


def config_of_run(folder: Path) -> RunConfig:
    """The configuration of a run's folder.

    Raises:
      ConfigError: if the folder holds no run, or its config.json is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"{folder} holds no run: there is no {path}.")
    content = read_json(path, {"config": dict}, error=ConfigError)
    try:
        return resolve(content["config"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def defaults(
    env: str = "peg_insert", algorithm: str = "ogpo", env_module: str = ""
) -> ml_collections.ConfigDict:
    """Every field of a run on ``env`` with the method ``algorithm``, at its default.

    Raises:
      ConfigError: for an unknown task.
    """
    choice = build_env_choice({"name": env, "module": env_module})
    config = editable(RunConfig(env=choice))
    set_algorithm(config, algorithm)
    return config


def editable(config: RunConfig) -> ml_collections.ConfigDict:
    """The configuration as a ``ConfigDict``, whose fields can be set by flags."""
    content = ml_collections.ConfigDict(to_dict(config))
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        if isinstance(value, (AlgorithmChoice, EnvChoice)):
            content[section.name] = _editable_choice(value)
        elif dataclasses.is_dataclass(value):
            _type_optional_fields(content[section.name], type(value))
    return content


def _editable_choice(choice: AlgorithmChoice | EnvChoice) -> ml_collections.ConfigDict:
    """A task or a method with its settings, whose fields can be set by flags."""
    section = ml_collections.ConfigDict(choice.to_dict())
    _type_optional_fields(section, type(choice.settings))
    return section


def _type_optional_fields(section: ml_collections.ConfigDict, cls: type) -> None:
    """Give fields of type ``X | None`` that are None their type, so that a flag can set them."""
    for name, hint in typing.get_type_hints(cls).items():
        kinds = typing.get_args(hint)
        if NoneType in kinds and name in section and section[name] is None:
            kind = next(kind for kind in kinds if kind is not NoneType)
            section[name] = config_dict.placeholder(typing.get_origin(kind) or kind)


def frozen_config(config: ml_collections.ConfigDict) -> RunConfig:
    """The configuration as frozen records.

    Raises:
      ConfigError: in one line, for a value that is not allowed.
    """
    return resolve(config.to_dict())


class Selection(NamedTuple):
    """The task and the method that a command line or a sweep names; "" if it names none."""

    env: str = ""
    env_module: str = ""
    algorithm: str = ""
    algorithm_module: str = ""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Selection:
        """The selection among dotted fields, which are those of ``SELECTORS``."""
        chosen = {SELECTORS[name]: x for name, x in fields.items() if name in SELECTORS}
        for name in ("env", "algorithm"):
            module = chosen.get(f"{name}_module", "")
            if isinstance(module, str):
                named = f"{name}.module={module!r}"
                chosen[f"{name}_module"] = user_code.module_name(module, named)
        return cls(**chosen)


SELECTORS = {
    "env.name": "env",
    "env.module": "env_module",
    "algorithm.name": "algorithm",
    "algorithm.module": "algorithm_module",
}


def read_config_file(file: str, *, named: str) -> ml_collections.ConfigDict:
    """What ``get_config()`` of a configuration file returns.

    Sections that it leaves out have their defaults.

    Args:
      file: the path; ``FILE:ARGUMENT`` gives get_config its argument.
      named: the file as the user gave it, for messages.

    Raises:
      ConfigError: in one line, if it cannot be read.
    """
    path, arguments = _split_argument(file)
    if not Path(path).is_file():
        raise ConfigError(f"cannot read {named}: {_absence(path)}.")
    config = user_files.call_user_file(
        path, "get_config", named=f"cannot read {named}", example=EXAMPLE, arguments=arguments
    )
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(
            f"cannot read {named}: its get_config() returns {type(config).__name__}, "
            f"no ConfigDict; see {EXAMPLE}."
        )
    if isinstance(config, ml_collections.FrozenConfigDict):
        config = ml_collections.ConfigDict(config)
    complete(config, f"cannot read {named}")
    return config.lock()


def _split_argument(file: str) -> tuple[str, tuple[str, ...]]:
    """The path and the argument of ``FILE`` or ``FILE:ARGUMENT``; both may contain colons."""
    parts = file.split(":")
    for count in range(len(parts), 0, -1):
        path = ":".join(parts[:count])
        if Path(path).is_file():
            return path, (":".join(parts[count:]),) if count < len(parts) else ()
    return file, ()


def _absence(path: str) -> str:
    """Why a configuration file cannot be read, and what to give."""
    if path and Path(path).is_dir():
        return f"it is a folder; give a file in it, or one such as {EXAMPLE}"
    if path == EXAMPLE or path.startswith("experiments/configs/"):
        return (
            f"there is no such file in {Path.cwd()}; run the command in the folder of the "
            f"repository, or give the file's whole path, e.g. {shipped_config(path)}"
        )
    return f"there is no such file; give one such as {EXAMPLE}"


def shipped_config(path: str) -> Path:
    """The whole path of a configuration file of this package."""
    folder = Path(__file__).parent / "configs"
    shipped = folder / Path(path).name
    return shipped if shipped.is_file() else folder / Path(EXAMPLE).name


def complete(config: ml_collections.ConfigDict, named: str) -> None:
    """Give a configuration the sections that it lacks, in place.

    Args:
      config: the configuration.
      named: the beginning of a message.

    Raises:
      ConfigError: it names no task, or a section is something else.
    """
    default = defaults("reach")
    for section, value in default.items():
        if section == "env" or (section == "algorithm" and section in config):
            _check_name(config, section, named)
        if section not in config:
            with config.unlocked():
                config[section] = value
        is_section = isinstance(value, ml_collections.ConfigDict)
        if is_section and not isinstance(config[section], ml_collections.ConfigDict):
            shown = f"{section} is {config[section]!r}"
            raise ConfigError(f"{named}: {shown}; a section of fields is expected.")


def _check_name(config: ml_collections.ConfigDict, section: str, named: str) -> None:
    value = config.get(section)
    if not isinstance(value, ml_collections.ConfigDict) or "name" not in value:
        raise ConfigError(
            f"{named}: the configuration has no {section}.name; begin with "
            f"gcp_jax.experiments.run_config.defaults(), as {EXAMPLE} does."
        )


def select(config: ml_collections.ConfigDict, selection: Selection) -> None:
    """Give the configuration the task and the method that are named, in place."""
    env = selection.env or selection.env_module
    if env:
        module = selection.env_module
        if env == config.env.name and not module:
            module = config.env.module
        set_env(config, env, module)
    algorithm = selection.algorithm or selection.algorithm_module
    if algorithm:
        module = selection.algorithm_module
        if algorithm == config.algorithm.name and not module:
            module = config.algorithm.module
        set_algorithm(config, algorithm, module)


def set_env(config: ml_collections.ConfigDict, name: str, module: str = "") -> None:
    """Give the configuration another task with that task's defaults, in place.

    Naming the task that it already has changes nothing.
    """
    if (config.env.name, config.env.module) == (name, module):
        return
    choice = build_env_choice({"name": name, "module": module})
    config.env = _editable_choice(choice)


def set_algorithm(config: ml_collections.ConfigDict, name: str, module: str = "") -> None:
    """Give the configuration another method, in place.

    The method's settings have their defaults, except that what was set of the fields that all
    methods with critics share keeps its value. The method's ``RUN_DEFAULTS``, dotted fields of the
    run, are applied. Naming the method that the configuration already has changes nothing.
    """
    old = config.algorithm
    if (old.name, old.module) == (name, module):
        return
    choice = build_algorithm_choice({"name": name, "module": module})
    old_defaults = build_algorithm_choice({"name": old.name, "module": old.module}).to_dict()
    fields = _editable_choice(choice)
    for shared in dataclasses.fields(critic.Config):
        field = shared.name
        if field in fields and field in old and old[field] != old_defaults[field]:
            fields[field] = old[field]
    config.algorithm = fields
    override(config, algorithms.run_defaults(algorithms.load(name, module)))


def override(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
    """Set fields by their dotted names, in place.

    Raises:
      ConfigError: for a field that does not exist or a value of another type.
    """
    for field, value in values.items():
        if not field.startswith("population."):  # its fields are the ones that a user adds
            check_known(config, field)
            if isinstance(value, str) and isinstance(_value_of(config, field), tuple):
                value = split_text(value)
        try:
            with config.unlocked():
                config.update_from_flattened_dict({field: value})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"cannot set {field} to {value!r}: {error}") from error


def split_text(text: str) -> tuple[Any, ...]:
    """A tuple from a text such as ``(8,8)``, ``8,8``, ``tensorboard,wandb`` or ``()``."""
    value = _literal(text)
    if isinstance(value, str):
        items = text.strip().removeprefix("(").removesuffix(")").split(",")
        return tuple(_literal(item.strip()) for item in items if item.strip())
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _literal(text: str) -> Any:
    """A Python literal, a number such as ``nan``, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return float(text)
    except ValueError:
        return text


def tuple_fields(config: ml_collections.ConfigDict, fields: Iterable[str]) -> set[str]:
    """Those of some dotted fields whose value is a tuple."""
    return {field for field in fields if isinstance(_value_of(config, field), tuple)}


def _value_of(config: ml_collections.ConfigDict, field: str) -> Any:
    value = config
    for name in field.split("."):
        value = value[name]
    return value


def check_known(config: ml_collections.ConfigDict, field: str) -> None:
    """Check that a dotted field exists.

    Raises:
      ConfigError: with the closest existing field if it does not.
    """
    section = config
    for name in field.split("."):
        allowed = list(section.keys()) if isinstance(section, ml_collections.ConfigDict) else []
        if name not in allowed:
            raise ConfigError(f"there is no field {field!r}; {suggest(name, allowed)}.")
        section = section[name]

"""Every field of every configuration, as sections: for help, tables and the documentation.

All of it comes from the declarations of the configuration classes (``config_fields.describe``).
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any, NamedTuple

from gcp_jax import algorithms, envs
from gcp_jax.config import RunConfig
from gcp_jax.config_fields import FieldDescription, describe
from gcp_jax.envs.randomize import Randomize


class Section(NamedTuple):
    """The fields of one configuration class."""

    title: str
    prefix: str  # before a field's name on the command line, after "--config."
    rows: list[FieldDescription]


def run_sections() -> list[Section]:
    """The fields of a run: its own, then those of its sections except ``env`` and ``algorithm``."""
    hints = typing.get_type_hints(RunConfig)
    nested = {name: cls for name, cls in hints.items() if dataclasses.is_dataclass(cls)}
    own = [row for row in describe(RunConfig) if row.name not in nested]
    sections = [Section("the run", "", own)]
    for name, cls in nested.items():
        if name not in ("env", "algorithm"):
            sections.append(Section(name, f"{name}.", describe(cls)))
    return sections


def algorithm_section(name: str, module: str = "") -> Section:
    """The fields of a method.

    Raises:
      ValueError: if there is no such method.
    """
    method = algorithms.load(name, module)
    summary = (inspect.getdoc(method) or "").partition("\n")[0]
    return Section(f"{name}: {summary}", "algorithm.", describe(method.Config))


def env_sections(name: str, module: str = "") -> list[Section]:
    """The fields of a task, and those of what can be randomized of it.

    Raises:
      ValueError: if there is no such task.
    """
    config: Any = envs.load(name, module).config
    return [
        Section(name, "env.", describe(config)),
        Section("randomize", "env.randomize.", describe(Randomize)),
    ]


def all_sections() -> list[Section]:
    """The fields of a run, of every method and of every task of the project."""
    sections = run_sections()
    sections += [algorithm_section(name) for name in algorithms.names()]
    for name in envs.names():
        sections.append(env_sections(name)[0])
    sections.append(Section("randomize", "env.randomize.", describe(Randomize)))
    return sections


def markdown(section: Section) -> str:
    """A table of a section for the documentation."""
    lines = ["| field | default | allowed | what it is |", "| --- | --- | --- | --- |"]
    for row in section.rows:
        cells = (f"`{section.prefix}{row.name}`", f"`{row.default!r}`", row.allowed, row.doc)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)

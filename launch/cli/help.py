"""The help of commands, made from the flags and the fields that they declare."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from gcp_jax.experiments.reference import Section, run_sections
from gcp_jax.launch.cli.parse import Command, Configuration, declared_flags

WIDTH = 100
COLUMN = 40  # where explanations begin

REPEAT_NOTE = ";\n    repeat this option"  # added by absl to flags that may be repeated

FULL_HELP = """\
  --config=FILE           a configuration file, e.g. experiments/configs/peg_insert.py;
                          its fields replace the defaults
  --config.FIELD=VALUE    any field of the configuration; tuples in quotes: "(256,256)"
  --config.env.name=ENV   the task; its fields are --config.env.FIELD (gcp-jax envs ENV)
  --config.algorithm.name=METHOD
                          the method; its fields are --config.algorithm.FIELD
                          (gcp-jax algorithms METHOD)
  --config.population.FIELD=1e-4,3e-4
                          values of a numeric field of the method, trained in one program"""

OVERRIDES_HELP = """\
  --config.FIELD=VALUE    a field of every run's configuration, e.g. --config.data_parallel=2;
                          gcp-jax train --help lists them"""


def command_help(name: str, summary: str, command: Command) -> str:
    """What ``gcp-jax NAME --help`` prints."""
    parts = [
        f"gcp-jax {name}: {summary}",
        f"usage: gcp-jax {name} {command.usage}".rstrip(),
        command.description,
        "\n".join(["options:", *_flag_lines(command)]),
    ]
    if command.configuration is Configuration.OVERRIDES:
        parts.append(f"configuration:\n{OVERRIDES_HELP}")
    if command.has_config:
        parts.append(f"configuration:\n{FULL_HELP}")
        parts += [section_help(section, width=WIDTH) for section in run_sections()]
    return "\n\n".join(parts)


def _flag_lines(command: Command) -> Iterator[str]:
    declared = declared_flags(command)
    for name in declared:
        flag = declared[name]
        label = f"--{name}" if flag.flag_type() == "bool" else f"--{name}={_metavar(flag)}"
        text = flag.help.partition(REPEAT_NOTE)[0]
        if flag.default not in (None, "", False, []):
            text = f"{text} (default: {flag.default})"
        yield from _two_columns(label, text, WIDTH)


def _metavar(flag: Any) -> str:
    kinds = {"int": "N", "float": "X", "string": "TEXT", "comma separated list of strings": "A,B,…"}
    return kinds.get(flag.flag_type(), "NAME=VALUE")


def section_help(section: Section, *, width: int) -> str:
    """A section's fields, each with its flag, what it is, its default and what is allowed.

    Args:
      section: the section.
      width: characters of a line.
    """
    lines = textwrap.wrap(f"{section.title.removesuffix('.')}:", width)
    for row in section.rows:
        notes = []
        if row.default not in ("", (), {}, None):
            notes.append(f"default: {row.default}")
        if row.allowed:
            notes.append(row.allowed)
        text = row.doc
        if notes:
            text += f" ({'; '.join(notes)})"
        lines += _two_columns(f"--config.{section.prefix}{row.name}", text.strip(), width)
    return "\n".join(lines)


def _two_columns(label: str, text: str, width: int) -> Iterable[str]:
    column = min(COLUMN, width // 2)
    wrapped = textwrap.wrap(text, width - column, break_on_hyphens=False) or [""]
    head = f"  {label}"
    if len(head) >= column:
        return [head, *(" " * column + line for line in wrapped)]
    return [head.ljust(column) + wrapped[0], *(" " * column + line for line in wrapped[1:])]

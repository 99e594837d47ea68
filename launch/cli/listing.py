"""Commands that list what there is: ``envs`` and ``algorithms``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gcp_jax import algorithms, envs
from gcp_jax.console import make_console
from gcp_jax.envs.protocol import EnvSpecs
from gcp_jax.experiments import reference
from gcp_jax.json_files import read_json
from gcp_jax.launch.cli.parse import Arguments, Command, Configuration
from gcp_jax.stats.intervals import MISSING

MEASURED = Path(envs.__file__).with_name("measured.json")


def list_envs(arguments: Arguments) -> dict[str, Any]:
    """Print the tasks with what was measured of them, or the fields of one task."""
    console = make_console(stderr=arguments.flags.json)
    arguments.no_positional()
    if arguments.names_task:
        env = arguments.run_config.env
        return _print_sections(console, reference.env_sections(env.name, env.module))
    return print_envs(console)


def print_envs(console: Console) -> dict[str, Any]:
    """Print the tasks, with what ``benchmarks/environments.py`` measured of them."""
    table = Table(
        "task",
        "observation",
        "action",
        "horizon",
        "success",
        "demonstrator: noise, success of 256",
        "steps/s (of mjx.step)",
    )
    content: dict[str, Any] = {}
    measured = read_json(MEASURED) if MEASURED.exists() else {}
    for name in dict.fromkeys((*envs.names(), *measured)):
        facts = measured.get(name, {})
        try:
            specs = _specs(name, facts)
            levels = envs.load(name).quality
        except ImportError as missing:
            table.add_row(name, *[MISSING] * 3, str(missing))
            content[name] = {"missing": str(missing)}
            continue
        table.add_row(name, *_env_cells(specs, levels, facts))
        content[name] = {**specs._asdict(), "quality": levels, "measured": facts}
    console.print(table)
    machines = sorted({facts["machine"] for facts in measured.values()})
    if machines:
        console.print(f"measured on {'; '.join(machines)} by python -m benchmarks.environments")
    console.print(
        "fields of a task: gcp-jax envs TASK; other suites: brax:NAME, playground:NAME; your own: "
        "--config.env.module=FILE (docs/guides/add_an_environment.md)"
    )
    return content


def _specs(name: str, measured: Mapping[str, Any]) -> EnvSpecs:
    """The specs of a task. Those of a suite's task are recorded: making it takes half a minute."""
    if name in envs.names():
        return envs.make(name).specs
    return EnvSpecs(**measured["specs"])


def _env_cells(
    specs: EnvSpecs, levels: Mapping[str, float], measured: Mapping[str, Any]
) -> tuple[str, ...]:
    scores = measured.get("demonstrator", {})
    speeds = measured.get("speed", {})
    success = specs.success
    if specs.tasks:
        success += f"\n({', '.join(specs.tasks)})"
    return (
        str(specs.obs_dim),
        str(specs.action_dim),
        f"{specs.horizon} × {1e3 * specs.control_dt:g} ms",
        success,
        "\n".join(_level_text(level, noise, scores) for level, noise in levels.items()),
        "\n".join(_speed_text(count, rates) for count, rates in speeds.items()),
    )


def _level_text(level: str, noise: float, scores: Mapping[str, Any]) -> str:
    """One quality of demonstrations: its noise, and success overall and by mode."""
    if level not in scores:
        return f"{level} {noise:g}"
    score = scores[level]
    if "return" in score:
        return f"{level} {noise:g}: return {score['return']:,.0f} ± {score['std']:,.0f}"
    counts = (score["success"], *score["by_mode"].values())
    overall, *by_mode = [f"{100 * successes / episodes:.0f}" for successes, episodes in counts]
    return f"{level} {noise:g}: {overall} % (by mode {', '.join(by_mode)})"


def _speed_text(count: str, rates: Mapping[str, float]) -> str:
    """Steps per second of so many environments, and their fraction of plain physics."""
    text = f"{rates['task_steps_per_s']:,} at {count}"
    if "of_physics" in rates:
        text += f" ({rates['of_physics']:.2f})"
    return text


def list_algorithms(arguments: Arguments) -> dict[str, Any]:
    """Print the methods with their fields, or one method."""
    console = make_console(stderr=arguments.flags.json)
    names = algorithms.names()
    if arguments.fields & {"algorithm.name", "algorithm.module"}:
        chosen = arguments.run_config.algorithm
        section = reference.algorithm_section(chosen.name, chosen.module)
        return {chosen.name: _print_sections(console, [section])}
    if arguments.positional:
        names = (arguments.one_positional("method", "gcp-jax algorithms ogpo"),)
    content = {}
    for name in names:
        content[name] = _print_sections(console, [reference.algorithm_section(name)])
    return content


def _print_sections(console: Console, sections: list[reference.Section]) -> dict[str, Any]:
    """Print tables of fields; {field: default}."""
    content: dict[str, Any] = {}
    for section in sections:
        table = Table(
            "field",
            "default",
            "allowed",
            "what it is",
            title=section.title,
            title_justify="left",
        )
        for row in section.rows:
            flag = f"--config.{section.prefix}{row.name}"
            table.add_row(flag, str(row.default), row.allowed, row.doc)
            content[row.name] = row.default
        console.print(table)
    return content


COMMANDS = {
    "envs": Command(
        run=list_envs,
        usage="[ENV] [--config.env.module=FILE] [--json]",
        description="A table of the tasks with what was measured of them, or the fields of one.",
        json="the tasks, or the fields of one",
        configuration=Configuration.OF_ENV,
    ),
    "algorithms": Command(
        run=list_algorithms,
        usage="[METHOD] [--config.algorithm.module=FILE] [--json]",
        description="Every method, or one, with its fields and their defaults.",
        json="the fields and defaults of each method",
        configuration=Configuration.FULL,
    ),
}

"""Commands that list what there is: ``envs``, ``algorithms`` and ``policies``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gcp_jax import algorithms, envs
from gcp_jax.config import ConfigError
from gcp_jax.config_fields import suggest
from gcp_jax.console import make_console
from gcp_jax.envs.protocol import EnvSpecs
from gcp_jax.experiments import reference
from gcp_jax.json_files import read_json
from gcp_jax.launch.cli.help import section_help
from gcp_jax.launch.cli.parse import Arguments, Command, Configuration
from gcp_jax.run import packaged_policies
from gcp_jax.stats.intervals import MISSING, Interval

WIDE = 120  # characters of a line that a table of fields needs
WIDE_ENVS = 160  # the same of the table of tasks
ENV_HEADS = (
    "task",
    "observation",
    "action",
    "horizon",
    "success",
    "demonstrator: noise, success of 256",
    "steps/s (of mjx.step)",
)
WIDE_POLICIES = 110  # the same of the table of policies
POLICY_HEADS = ("policy", "task", "method", "success [95 %]", "its clone", "episodes", "kB")
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
    rows: list[tuple[str, ...]] = []
    content: dict[str, Any] = {}
    measured = read_json(MEASURED) if MEASURED.exists() else {}
    for name in dict.fromkeys((*envs.names(), *measured)):
        facts = measured.get(name, {})
        try:
            specs = _specs(name, facts)
            levels = envs.load(name).quality
        except ImportError as missing:
            rows.append((name, *[MISSING] * 3, str(missing), MISSING, MISSING))
            content[name] = {"missing": str(missing)}
            continue
        rows.append((name, *_env_cells(specs, levels, facts)))
        content[name] = {**specs._asdict(), "quality": levels, "measured": facts}
    _print_records(console, ENV_HEADS, rows, wide=WIDE_ENVS)
    machines = sorted({facts["machine"] for facts in measured.values()})
    if machines:
        console.print(f"measured on {'; '.join(machines)} by python -m benchmarks.environments")
    console.print(
        "fields of a task: gcp-jax envs TASK; other suites: brax:NAME, playground:NAME; your own: "
        "--config.env.module=FILE (docs/guides/add_an_environment.md)"
    )
    return content


def _print_records(
    console: Console, heads: Sequence[str], rows: Sequence[Sequence[str]], *, wide: int
) -> None:
    """A table, or below ``wide`` characters a paragraph a row, whose first cell is its title."""
    if console.width >= wide:
        table = Table(*heads)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    for title, *cells in rows:
        console.print(title)
        for head, cell in zip(heads[1:], cells, strict=True):
            lines = cell.split("\n")
            for line in _indented(f"{head}: {', '.join(lines)}", console.width):
                console.print(line)


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")


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
    if arguments.explicit & {"algorithm.name", "algorithm.module"}:
        chosen = arguments.run_config.algorithm
        section = reference.algorithm_section(chosen.name, chosen.module)
        return {chosen.name: _print_sections(console, [section])}
    if arguments.positional:
        names = (arguments.one_positional("method", "gcp-jax algorithms ogpo"),)
    content = {}
    for name in names:
        content[name] = _print_sections(console, [reference.algorithm_section(name)])
    return content


def list_policies(arguments: Arguments) -> dict[str, Any]:
    """Print the packaged policies with what was measured of them, or the card of one."""
    console = make_console(stderr=arguments.flags.json)
    if arguments.positional:
        name = arguments.one_positional("packaged policy", "gcp-jax policies peg_insert/clone")
        return print_card(console, name)
    return print_policies(console)


def print_policies(console: Console) -> dict[str, Any]:
    """Print the packaged policies; their cards, by name."""
    cards = {name: packaged_policies.read_card(name) for name in packaged_policies.names()}
    _print_records(console, POLICY_HEADS, policy_rows(cards), wide=WIDE_POLICIES)
    console.print("how one was made: gcp-jax policies POLICY; try it: gcp-jax evaluate POLICY")
    return cards


def policy_rows(cards: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row of ``POLICY_HEADS`` for each packaged policy, given its card by its name."""
    return [_policy_cells(name, card) for name, card in cards.items()]


def print_card(console: Console, name: str) -> dict[str, Any]:
    """Print the card of a packaged policy, a line for each fact; the card.

    Raises:
      ConfigError: there is none of that name.
    """
    known = packaged_policies.names()
    if name not in known:
        raise ConfigError(f"no packaged policy is called {name!r}; {suggest(name, known)}.")
    card = packaged_policies.read_card(name)
    console.print(name)
    for line in _card_lines(card):
        console.print(line, soft_wrap=True)
    return card


def _policy_cells(name: str, card: Mapping[str, Any]) -> tuple[str, ...]:
    scores = card["scores"]
    own = scores[card["method"]]
    return (
        name,
        name.split("/")[0],
        card["method"],
        _score_text(own),
        _score_text(scores[packaged_policies.CLONE]),
        f"{own['episodes']:,}",
        f"{packaged_policies.size_of(packaged_policies.ROOT / name) / 1000:.0f}",
    )


def _score_text(score: Mapping[str, Any]) -> str:
    name = packaged_policies.score_name_of(score)
    return Interval(score[name], score["low"], score["high"]).format(name)


def _card_lines(facts: Mapping[str, Any], depth: int = 1) -> Iterator[str]:
    """The facts of a card, those of its sections further to the right."""
    for name, value in facts.items():
        label = f"{'  ' * depth}{name}:"
        if isinstance(value, Mapping):
            yield label
            yield from _card_lines(value, depth + 1)
        else:
            yield f"{label} {value}"


def _print_sections(console: Console, sections: list[reference.Section]) -> dict[str, Any]:
    """Print tables of fields; {field: default}."""
    content: dict[str, Any] = {}
    for section in sections:
        content |= {row.name: row.default for row in section.rows}
        if console.width >= WIDE:
            console.print(_fields_table(section))
        else:
            console.print(section_help(section, width=console.width), soft_wrap=True)
    return content


def _fields_table(section: reference.Section) -> Table:
    """A line for each field."""
    table = Table(title=section.title, title_justify="left", box=None, pad_edge=False)
    table.add_column("field", no_wrap=True)
    for head in ("default", "allowed", "what it is"):
        table.add_column(head, overflow="fold")
    for row in section.rows:
        flag = f"--config.{section.prefix}{row.name}"
        table.add_row(flag, str(row.default), row.allowed, row.doc)
    return table


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
    "policies": Command(
        run=list_policies,
        usage="[POLICY] [--json]",
        description="""\
A table of the saved policies that come with gcp-jax, or the card of one: how it was made, and its
success. Their names stand for saved policies in other commands, in --config.pretrain.saved_policy
and in gcp_jax.load_policy, if nothing lies at a path of that name.""",
        json="the cards, or the card of one",
    ),
}

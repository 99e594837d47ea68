"""MkDocs hook: fills placeholders with tables made from the code, so that no table can get stale.

A placeholder is an HTML comment on a line of its own:

    <!-- fields: config -->              the fields of ``RunConfig`` itself
    <!-- fields: config.finetune -->     the fields of one of its sections
    <!-- fields: algorithms.ogpo -->     the fields of a method
    <!-- fields: envs.peg_insert -->     the settings of a task
    <!-- fields: randomize -->           domain randomization
    <!-- measured: peg_insert -->        what was measured of a task (envs/measured.json)
    <!-- tasks -->                       one row for each task
    <!-- policies -->                    one row for each packaged policy
    <!-- command: train -->              the help of a command
    <!-- commands -->                    one row for each command

Notebooks in docs/notebooks become pages. Equations become MathML, which browsers draw without a
script, so the site needs no network.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PLACEHOLDER = re.compile(r"^<!-- (\w+)(?:: (\S+))? -->$", re.MULTILINE)
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
FIGURES = ROOT / "experiments" / "results"
FIGURE_LINK = re.compile(r"\.\./\.\./experiments/results/([\w/]+\.png)")


def on_startup(**_: Any) -> None:
    """Import the package of this checkout; MkDocs resets ``sys.path`` after loading a hook."""
    sys.path.insert(0, str(ROOT))


def on_config(config: Any) -> Any:
    """Put the notebooks after "Getting started"."""
    for path in reversed(notebooks(config)):
        title = path.stem.replace("_", " ").capitalize()
        config["nav"].insert(2, {f"{title} notebook": f"notebooks/{path.stem}.md"})
    return config


def notebooks(config: Any) -> list[Path]:
    """The notebooks of the documentation."""
    return sorted(Path(config["docs_dir"]).glob("notebooks/*.ipynb"))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every placeholder of a page, and its links to figures of ``experiments/results``."""
    filled = PLACEHOLDER.sub(lambda match: GENERATORS[match[1]](match[2] or ""), markdown)
    return FIGURE_LINK.sub(r"../results/figures/\1", filled)


def on_page_content(page_html: str, **_: Any) -> str:
    """Replace every equation of a page by MathML."""
    return EQUATION.sub(equation, page_html)


def equation(match: re.Match[str]) -> str:
    """The MathML of one equation in TeX."""
    _, bracket, tex = match.groups()
    display = "block" if bracket == "[" else "inline"
    return convert(html.unescape(tex).strip(), display=display)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the figures of ``experiments/results``, and a Markdown page for every notebook."""
    for path in sorted(FIGURES.glob("**/*.png")):
        name = f"results/figures/{path.relative_to(FIGURES).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for path in notebooks(config):
        name = f"notebooks/{path.stem}.md"
        files.append(File.generated(config, name, content=notebook_page(path)))
    return files


def notebook_page(path: Path) -> str:
    """The Markdown of a notebook: its text, its code and what it printed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text'])}\n```")
            if "image/png" in output.get("data", {}):
                parts.append(f"![](data:image/png;base64,{output['data']['image/png'].strip()})")
    return "\n\n".join(parts)


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def fields_table(what: str) -> str:
    """Every field of a configuration: name, default, allowed values, explanation."""
    from gcp_jax.experiments import reference

    kind, _, name = what.partition(".")
    if kind == "algorithms":
        section = reference.algorithm_section(name)
    elif kind == "envs":
        section = reference.env_sections(name)[0]
    elif kind == "randomize":
        section = reference.env_sections("reach")[-1]
    else:
        sections = {section.title: section for section in reference.run_sections()}
        section = sections[name or "the run"]
    text = reference.markdown(section).replace("[", "&#91;")  # no reference-style links
    return text + changed_defaults(what)


def changed_defaults(what: str) -> str:
    """A sentence on the defaults of a run that a method changes; "" if it changes none."""
    kind, _, name = what.partition(".")
    if kind != "algorithms":
        return ""
    module = importlib.import_module(f"gcp_jax.algorithms.{name}")
    changed = getattr(module, "RUN_DEFAULTS", {})
    if not changed:
        return ""
    fields = ", ".join(f"`{field}={value}`" for field, value in changed.items())
    return f"\n\nThe method also changes defaults of the run: {fields}."


def measured_data() -> dict[str, Any]:
    """The content of envs/measured.json."""
    data: dict[str, Any] = json.loads((ROOT / "envs/measured.json").read_text(encoding="utf-8"))
    return data


def measured_table(name: str) -> str:
    """What was measured of a task: its demonstrator's levels, and its speed."""
    about = measured_data()[name]
    levels = [(level, outcome(row)) for level, row in about["demonstrator"].items()]
    head = "success" if "success" in about["demonstrator"]["expert"] else "mean return"
    speeds = []
    for count, row in about["speed"].items():
        physics = row.get("physics_steps_per_s")
        bare = f"{physics:,}" if physics else "no physics engine"
        speeds.append((count, f"{row['task_steps_per_s']:,}", bare))
    versions = about["versions"]
    made = f"{about['machine']}, jax {versions['jax']}, mujoco-mjx {versions['mujoco-mjx']}"
    columns = ("environments", "task, steps/s", "physics alone, steps/s")
    return "\n\n".join(
        (
            table(("demonstrator", f"{head} of 256 episodes"), levels),
            table(columns, speeds),
            f"Measured by `python -m benchmarks.environments` on {made}.",
        )
    )


def outcome(row: dict[str, Any]) -> str:
    """How one level of the demonstrator did."""
    if "success" not in row:
        return f"{row['return']:,.0f} ± {row['std']:,.0f}"
    solved, episodes = row["success"]
    return f"{solved} of {episodes} ({100 * solved / episodes:.0f} %)"


def tasks_table(_: str) -> str:
    """One row for each task."""
    rows = []
    for name, about in measured_data().items():
        specs = about["specs"]
        page = "suites.md" if ":" in name else f"{name}.md"
        sizes = (specs["obs_dim"], specs["action_dim"], specs["horizon"])
        levels = [outcome(about["demonstrator"][level]) for level in ("expert", "poor")]
        rows.append((f"[`{name}`]({page})", *sizes, f"{specs['control_dt']:.3g} s", *levels))
    columns = ("task", "observation", "action", "horizon", "control step", "clean", "poor")
    return table(columns, rows)


def policies_table(_: str) -> str:
    """One row for each packaged policy."""
    listing = importlib.import_module("gcp_jax.launch.cli.listing")
    packaged = importlib.import_module("gcp_jax.run.packaged_policies")
    cards = {name: packaged.read_card(name) for name in packaged.names()}
    return table(listing.POLICY_HEADS, listing.policy_rows(cards))


def command_help(name: str) -> str:
    """What ``gcp-jax NAME --help`` prints."""
    main = importlib.import_module("gcp_jax.launch.cli.main")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main.main([name, "--help"])
    return f"```text\n{printed.getvalue().strip()}\n```"


def commands_table(_: str) -> str:
    """One row for each command."""
    commands = importlib.import_module("gcp_jax.launch.cli.main").COMMANDS
    rows = [(f"[`gcp-jax {name}`](#{name})", command.summary) for name, command in commands.items()]
    return table(("command", "what it is for"), rows)


GENERATORS: dict[str, Callable[[str], str]] = {
    "fields": fields_table,
    "measured": measured_table,
    "tasks": tasks_table,
    "policies": policies_table,
    "command": command_help,
    "commands": commands_table,
}

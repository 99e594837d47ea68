"""README and docs name commands, files, fields and functions that exist."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from gcp_jax.experiments import reference
from gcp_jax.launch.cli import main
from gcp_jax.launch.cli.parse import parse

ROOT = Path(__file__).parent.parent.parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
FORMER_NAMES = {"gcp_jax/flow.py", "gcp_jax/returns.py"}  # in development/mutation_testing.md
FOLDERS = "gcp_jax|envs|experiments|launch|tests|benchmarks"
USERS_FILES = ("module=my_", "TASK")


def commands() -> list[str]:
    """Every ``gcp-jax`` command in a block of shell code, without its comment."""
    found = set()
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                start = line.find("gcp-jax ")
                if start >= 0 and not any(part in line for part in USERS_FILES):
                    found.add(" ".join(line[start:].split("#")[0].split()))
    return sorted(found)


@pytest.mark.parametrize("command", commands())
def test_every_documented_command_can_be_parsed(command):
    _, name, *words = shlex.split(command)
    parse(name, main.load_command(name), words)


def test_every_documented_file_exists():
    for page in PAGES:
        for path in re.findall(rf"`((?:{FOLDERS})/[\w/.]*)`", page.read_text(encoding="utf-8")):
            exists = (ROOT / path).exists() or path in FORMER_NAMES or "PACKAGE" in path
            assert exists, f"{page.relative_to(ROOT)} names {path}"


def test_every_documented_field_exists():
    rows = [(section.prefix, row) for section in reference.all_sections() for row in section.rows]
    fields = {f"{prefix}{row.name}" for prefix, row in rows}
    choices = {"env.name", "env.module", "algorithm.name", "algorithm.module"}
    of_the_guide = {"algorithm.temperature"}
    sections = "pretrain|finetune|evaluation|checkpoint|demonstrations|algorithm"
    pattern = rf"--config\.([a-z_.]+)=|`(?:{sections})\.[a-z_]+`"
    for page in PAGES:
        if page.name in ("bad_input.md", "errors.md"):
            continue  # they name fields that do not exist, on purpose
        for match in re.finditer(pattern, page.read_text(encoding="utf-8")):
            field = match[1] or match[0].strip("`")
            if field.startswith("population."):
                field = field.replace("population.", "algorithm.")
            known = fields | choices | of_the_guide
            assert field in known, f"{page.relative_to(ROOT)} names {field}"


@pytest.mark.parametrize("page", sorted((DOCS / "algorithms").glob("*.md")), ids=lambda p: p.stem)
def test_the_pages_of_methods_name_functions_that_exist(page):
    for file, name in re.findall(r"`([\w/]+\.py)` \| `([\w.]+)`", page.read_text(encoding="utf-8")):
        body = ast.parse((ROOT / "gcp_jax" / file).read_text(encoding="utf-8")).body
        for part in name.split("."):
            matching = [node for node in body if name_of(node) == part]
            assert matching, f"gcp_jax/{file} has no {name}"
            body = getattr(matching[0], "body", [])


def name_of(node):
    """The name that a statement defines."""
    if isinstance(node, ast.AnnAssign):
        return getattr(node.target, "id", None)
    return getattr(node, "name", None)


def test_the_links_of_the_readme_lead_to_files():
    text = README.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)|src=\"([^\"]+)", text):
        path = link[0] or link[1]
        assert path.startswith("http") or (ROOT / path).exists(), path


def test_the_readme_is_short_and_narrow():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert max(map(len, lines)) <= 100

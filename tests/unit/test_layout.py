"""The layout of the project: imports run one way, without circles of files.

The layers themselves are the contracts of import-linter in pyproject.toml.
"""

from __future__ import annotations

import ast
from pathlib import Path

import grimp
import pytest

import gcp_jax

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("gcp_jax", "envs", "experiments", "launch")
BANNED = ("envs", "experiments", "launch")
ANCESTORS = {"tests", "benchmarks", *PACKAGES}


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("gcp_jax", exclude_type_checking_imports=True)


def test_no_circle_of_modules(graph):
    """Tarjan's algorithm: every strongly connected component is one module."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for imported in graph.find_modules_directly_imported_by(module):
            if imported not in index:
                visit(imported)
                low[module] = min(low[module], low[imported])
            elif imported in stack:
                low[module] = min(low[module], index[imported])
        if low[module] == index[module]:
            position = stack.index(module)
            component = stack[position:]
            del stack[position:]
            if len(component) > 1:
                circles.append(sorted(component))

    for module in sorted(graph.modules):
        if module not in index:
            visit(module)
    assert circles == []


def test_the_graph_reaches_every_package(graph):
    for name in ("core.policy", "envs.protocol", "experiments.assemble", "launch.cli.main"):
        assert f"gcp_jax.{name}" in graph.modules


def python_files():
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        if relative.parts[0] in ANCESTORS and "__pycache__" not in relative.parts:
            yield path


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_nothing_imports_the_folders_by_their_top_level_names():
    wrong = {str(path): imported_names(path) & set(BANNED) for path in python_files()}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_what_belongs_in_it(package):
    for init in (ROOT / package).rglob("__init__.py"):
        if "__pycache__" not in init.parts:
            assert ast.get_docstring(ast.parse(init.read_text())), f"{init} has no docstring"


def test_the_package_says_that_it_is_typed_and_which_version_it_is():
    assert (ROOT / "gcp_jax/py.typed").is_file()
    assert gcp_jax.__version__.count(".") == 2

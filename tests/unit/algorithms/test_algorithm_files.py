"""One file is one method: its losses and its Config, short enough to be read at once, and no loop copied from a sibling."""

import ast
import io
import itertools
import tokenize
from pathlib import Path

import pytest

from gcp_jax import algorithms

FILES = sorted(Path(algorithms.__file__).parent.glob("*.py"))
METHODS = [path for path in FILES if path.name != "__init__.py"]
SHORT = [path for path in METHODS if path.name not in ("ogpo.py", "bc.py")]
LEAST, MOST, RUN = 80, 180, 6


def _span(node):
    return range(node.lineno, node.end_lineno + 1)


def logic(source):
    """[(line number, stripped line)] of a module without imports, docstrings, comments and blank lines, and without what
    the contract of a method prescribes: the headers of its classes and functions, and fields that have no value."""
    left_out, tree = set(), ast.parse(source)
    for node in ast.sample_chain(tree):
        defined = isinstance(node, ast.ClassDef | ast.FunctionDef)
        if isinstance(node, ast.Import | ast.ImportFrom) or (
            isinstance(node, ast.AnnAssign) and node.value is None
        ):
            left_out |= set(_span(node))
        elif (defined or node is tree) and ast.get_docstring(node) is not None:
            left_out |= set(_span(node.body[0]))
        if defined and node in tree.body:
            left_out |= set(range(node.lineno, node.body[0].lineno))
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return [
        (n, line.strip()) for n, line in enumerate(lines, 1) if line.strip() and n not in left_out
    ]


def shared_runs(one, two):
    """Longest runs of RUN or more equal lines in two lists of ``logic``: [(first line in one, in two, length)]."""
    found = []
    for i, j in itertools.product(range(len(one)), range(len(two))):
        if i and j and one[i - 1][1] == two[j - 1][1]:
            continue
        pairs = zip(one[i:], two[j:], strict=False)
        length = sum(1 for _ in itertools.takewhile(lambda pair: pair[0][1] == pair[1][1], pairs))
        if length >= RUN:
            found.append((one[i][0], two[j][0], length))
    return found


def test_there_are_methods_to_look_at():
    assert {path.stem for path in SHORT} >= set(algorithms.names()) - {"ogpo"}


@pytest.mark.parametrize("path", SHORT, ids=lambda path: path.stem)
def test_a_method_is_short(path):
    count = len(path.read_text().splitlines())
    assert LEAST <= count <= MOST, f"{path.name} has {count} lines; {LEAST} to {MOST} are allowed"


@pytest.mark.parametrize(
    ("one", "two"), list(itertools.combinations(METHODS, 2)), ids=lambda path: path.stem
)
def test_no_two_methods_share_a_block_of_logic(one, two):
    runs = shared_runs(*(logic(path.read_text()) for path in (one, two)))
    said = [
        f"{one.name}:{i} and {two.name}:{j} share {length} lines of logic" for i, j, length in runs
    ]
    assert not said, "; ".join(said)


BLOCK = "\n".join(f"    x = {n} * x" for n in range(RUN))


@pytest.mark.parametrize(
    ("between", "lines"),
    [
        ("", RUN),
        ("\n\n    # a comment\n", RUN),
        ('    """text"""\n', None),
        ("    y = x  # own\n", None),
    ],
    ids=["copied", "copied with comments", "another statement", "another line"],
)
def test_a_copied_block_is_seen_whatever_stands_around_it(between, lines):
    """A string that is no docstring is a line like others."""
    one = f'"""One."""\nimport os\n\n\ndef f(x):\n    """Doc."""\n{BLOCK}\n    return x + 1\n'
    half = BLOCK.splitlines()
    two = (
        "\n".join(["def g(x):", *half[: RUN // 2]])
        + "\n"
        + between
        + "\n".join([*half[RUN // 2 :], "    return x\n"])
    )
    found = shared_runs(logic(one), logic(two))
    assert found == ([(7, 2, lines)] if lines else [])

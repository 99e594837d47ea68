"""The files of the methods can be read at once, and none copies a block from a sibling."""

import ast
import io
import itertools
import tokenize
from pathlib import Path

import pytest

from gcp_jax import algorithms

FILES = sorted(Path(algorithms.__file__).parent.glob("*.py"))
METHODS = [path for path in FILES if path.name != "__init__.py"]
FILE_LINES, FUNCTION_LINES, COLUMNS, COMPLEXITY = 400, 60, 100, 8
RUN = 6
BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.While,
    ast.comprehension,
    ast.ExceptHandler,
    ast.match_case,
)


def _span(node):
    return range(node.lineno, node.end_lineno + 1)


def logic(source):
    """The logic of a module: [(line number, stripped line)].

    Without imports, docstrings, comments and blank lines, and without what the contract of a method
    prescribes: the headers of its classes and functions, and fields that have no value.
    """
    left_out, tree = set(), ast.parse(source)
    for node in ast.walk(tree):
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
    """Longest runs of RUN or more equal lines: [(first line in one, first line in two, length)]."""
    found = []
    for i, j in itertools.product(range(len(one)), range(len(two))):
        if i and j and one[i - 1][1] == two[j - 1][1]:
            continue
        pairs = zip(one[i:], two[j:], strict=False)
        length = sum(1 for _ in itertools.takewhile(lambda pair: pair[0][1] == pair[1][1], pairs))
        if length >= RUN:
            found.append((one[i][0], two[j][0], length))
    return found


def functions(tree):
    """Every function and method of a module."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def complexity(function):
    """McCabe's number: 1 and the branches of a function, without those of the functions in it."""
    count, todo = 1, list(ast.iter_child_nodes(function))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef):
            continue
        count += isinstance(node, BRANCHES)
        if isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        todo += ast.iter_child_nodes(node)
    return count


def test_there_are_methods_to_look_at():
    assert {path.stem for path in METHODS} >= set(algorithms.names()) | {"bc"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_can_be_read_at_once(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= FILE_LINES
    assert max(map(len, lines)) <= COLUMNS
    for function in functions(ast.parse(path.read_text())):
        assert len(_span(function)) <= FUNCTION_LINES, function.name
        assert complexity(function) <= COMPLEXITY, function.name


def test_complexity_counts_branches_and_leaves_inner_functions_out():
    source = """
def f(x):
    def inner(y):
        return 1 if y else 2
    for i in x:
        if i and x or inner(i):
            return [a for a in x]
    return 0
"""
    outer, inner = functions(ast.parse(source))
    assert (complexity(outer), complexity(inner)) == (6, 2)


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

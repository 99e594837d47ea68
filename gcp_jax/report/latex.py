"""``table.tex`` of a benchmark: final success in percent, methods × tasks, for a paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gcp_jax.report.benchmark_numbers import Aggregate, tasks_text
from gcp_jax.report.benchmark_read import Benchmark, Entry
from gcp_jax.report.read import is_number
from gcp_jax.report.text import plural
from gcp_jax.stats.intervals import MISSING, Interval

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\n": " ",
}


def latex_table(benchmark: Benchmark, aggregate: Aggregate | None) -> str:
    """A booktabs table with a column a task, and one for the interquartile mean over the tasks."""
    columns = []
    for task in benchmark.tasks:
        columns.append(_column([_final(entry) for entry in benchmark.entries_of(task)]))
    iqm = aggregate.iqm if aggregate else {}
    columns.append(_column([iqm.get(i, MISSING) for i in range(len(benchmark.methods))]))
    bases = [benchmark.base_success(task) for task in benchmark.tasks]
    bases.append(aggregate.base if aggregate else None)
    over = tasks_text(benchmark, aggregate) if aggregate else "not known yet"
    lines = [
        f"% Final success (%), {plural(benchmark.seeds, 'seed')}, 95 % intervals"
        f"{' of its episodes' if benchmark.seeds == 1 else ''}; "
        r"needs \usepackage{booktabs}.",
        f"% IQM {over}.",
        rf"\begin{{tabular}}{{l{'c' * len(columns)}}}",
        r"\toprule",
        _line(["Method", *map(escape, benchmark.tasks), "IQM"]),
        r"\midrule",
        _line(["base policy", *map(_base_cell, bases)]),
        r"\midrule",
    ]
    for index, method in enumerate(benchmark.methods):
        lines.append(_line([escape(method.label), *(column[index] for column in columns)]))
    lines.extend((r"\bottomrule", r"\end{tabular}"))
    return "\n".join(lines).replace(MISSING, "--") + "\n"


def escape(text: str) -> str:
    """Escape what LaTeX would read as a command."""
    return "".join(_escape_letter(letter) for letter in text)


def _escape_letter(letter: str) -> str:
    if letter in "&%$#_{}":
        return f"\\{letter}"
    return _ESCAPES.get(letter, letter)


def _base_cell(base: float | None) -> str:
    return f"{100 * base:.1f}" if is_number(base) else MISSING


def _final(entry: Entry) -> Interval | str:
    """The pooled final success, or in a word why there is none."""
    if entry.scores:
        return entry.points[-1].success
    return entry.state.partition(":")[0]


def _column(values: Sequence[Interval | str]) -> list[str]:
    """A cell a method; the largest number as printed is bold, words are in italics."""
    shown = [f"{100 * value.estimate:.1f}" for value in values if isinstance(value, Interval)]
    best = max(shown, key=float, default="")
    return [_cell(value, best) for value in values]


def _cell(value: Interval | str, best: str) -> str:
    if isinstance(value, str):
        return rf"\emph{{{value}}}"
    number = f"{100 * value.estimate:.1f}"
    if number == best:
        number = rf"\textbf{{{number}}}"
    return rf"{number} {{\scriptsize [{100 * value.low:.1f}, {100 * value.high:.1f}]}}"


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"

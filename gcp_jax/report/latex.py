"""``table.tex`` of a benchmark: final success in percent, methods × tasks, for a paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gcp_jax.report.benchmark_numbers import Aggregate, base_spread, tasks_text
from gcp_jax.report.benchmark_read import Benchmark, Entry
from gcp_jax.report.read import is_number
from gcp_jax.report.text import plural
from gcp_jax.stats.intervals import MISSING, Interval
from gcp_jax.stats.spread import spread_of

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
        entries = benchmark.entries_of(task)
        spreads = [_spreads(entry) for entry in entries]
        columns.append(_column([_final(entry) for entry in entries], spreads))
    iqm = aggregate.iqm if aggregate else {}
    overall = [iqm.get(index, MISSING) for index in range(len(benchmark.methods))]
    columns.append(_column(overall, [""] * len(overall)))
    bases = [_base_cell(benchmark, task) for task in benchmark.tasks]
    bases.append(_percent(aggregate.base if aggregate else None))
    over = tasks_text(benchmark, aggregate) if aggregate else "not known yet"
    lines = [
        f"% Final success (%), {_trainings(benchmark)}, 95 % intervals"
        f"{' of its episodes' if benchmark.trainings == 1 else ''}; "
        r"needs \usepackage{booktabs}.",
        f"% IQM {over}.",
        *_notes(benchmark),
        rf"\begin{{tabular}}{{l{'c' * len(columns)}}}",
        r"\toprule",
        _line(["Method", *map(escape, benchmark.tasks), "IQM"]),
        r"\midrule",
        _line(["base policy", *bases]),
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


def _trainings(benchmark: Benchmark) -> str:
    seeds = plural(benchmark.seeds, "seed")
    return f"{benchmark.clones} clones × {seeds}" if benchmark.clones > 1 else seeds


def _notes(benchmark: Benchmark) -> list[str]:
    """What the intervals cover, and what stands behind them."""
    if benchmark.clones == 1:
        return ["% One clone of each task: the intervals hold for this clone only."]
    return [
        "% The intervals cover clones that were not made. In parentheses: standard deviation",
        "% between clones / between seeds of a clone, in points; of the base between clones.",
    ]


def _base_cell(benchmark: Benchmark, task: str) -> str:
    rate = _percent(benchmark.base_success(task))
    if benchmark.clones == 1:
        return rate
    return rf"{rate} {{\scriptsize ({_percent(base_spread(benchmark, task))})}}"


def _percent(rate: float | None) -> str:
    return f"{100 * rate:.1f}" if is_number(rate) else MISSING


def _spreads(entry: Entry) -> str:
    """``(5.6/1.2)``: between clones, between the seeds of one; "" of one clone."""
    if not entry.clones or not entry.scores:
        return ""
    clones, seeds = map(_percent, spread_of(entry.scores))
    return f" ({clones}/{seeds})"


def _final(entry: Entry) -> Interval | str:
    """The pooled final success, or in a word why there is none."""
    if entry.scores:
        return entry.points[-1].success
    return entry.state.partition(":")[0]


def _column(values: Sequence[Interval | str], notes: Sequence[str]) -> list[str]:
    """A cell a method; the largest number as printed is bold, words are in italics.

    Args:
        values: the interval of each method, or why there is none.
        notes: what follows the interval of each.
    """
    shown = [f"{100 * value.estimate:.1f}" for value in values if isinstance(value, Interval)]
    best = max(shown, key=float, default="")
    return [_cell(value, best, note) for value, note in zip(values, notes, strict=True)]


def _cell(value: Interval | str, best: str, note: str) -> str:
    if isinstance(value, str):
        return rf"\emph{{{value}}}"
    number = f"{100 * value.estimate:.1f}"
    if number == best:
        number = rf"\textbf{{{number}}}"
    return rf"{number} {{\scriptsize [{100 * value.low:.1f}, {100 * value.high:.1f}]{note}}}"


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"

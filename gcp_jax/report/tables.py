"""Tables of a page, each with a CSV to download."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gcp_jax.report.plots import LegendItem


class IntervalBar(NamedTuple):
    """Two intervals to draw in a cell, before above after; as fractions of its width."""

    before: tuple[float, float, float] | None  # estimate, low, high
    after: tuple[float, float, float] | None


class Cell(NamedTuple):
    """One cell: a text, and what stands before or instead of it."""

    text: str
    key: LegendItem | None = None  # the line or color of a run or method in the figures
    bar: IntervalBar | None = None
    style: str = ""  # a CSS class


class Table(NamedTuple):
    """A table, and the text of its CSV."""

    name: str  # file name of the CSV, without ".csv"
    heads: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    csv: str
    style: str = "results"  # a CSS class: "results" or "facts"
    emphasized: int | None = None  # index of a row in bold; negative from the end


def make_table(
    name: str,
    heads: Sequence[Cell | str],
    rows: Iterable[Sequence[Cell | str]],
    *,
    csv: str | None = None,
    style: str = "results",
    emphasized: int | None = None,
) -> Table:
    """A table of texts and cells.

    Args:
        name: file name of the CSV, without ".csv".
        heads: the heads of the columns.
        rows: the cells of each row.
        csv: the numbers at full precision; by default the texts of the cells.
        style: "results" or "facts".
        emphasized: index of a row in bold.
    """
    head_cells = _as_cells(heads)
    row_cells = tuple(_as_cells(row) for row in rows)
    if csv is None:
        texts = [[cell.text for cell in row] for row in row_cells]
        csv = csv_text([cell.text for cell in head_cells], texts)
    return Table(
        name=name, heads=head_cells, rows=row_cells, csv=csv, style=style, emphasized=emphasized
    )


def fact_table(
    name: str, facts: Mapping[str, Sequence[str]], columns: Sequence[Cell | str] = ()
) -> Table:
    """A table with one fact a row.

    Args:
        name: file name of the CSV, without ".csv".
        facts: the values of every fact, one a column.
        columns: heads of the value columns; without them the table shows no heads.
    """
    rows: list[list[Cell | str]] = []
    for fact, values in facts.items():
        rows.append([Cell(fact, style="fact"), *values])
    heads = ["", *columns] if columns else []
    csv_heads = [cell.text for cell in _as_cells(columns)] or ["value"]
    texts = [[fact, *values] for fact, values in facts.items()]
    return make_table(name, heads, rows, csv=csv_text(["fact", *csv_heads], texts), style="facts")


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Heads and rows as CSV; None is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return buffer.getvalue()


def csv_of_records(heads: Sequence[str], records: Iterable[Mapping[str, Any]]) -> str:
    """Records as CSV; a field that a record does not have is empty."""
    rows = [[record.get(head) for head in heads] for record in records]
    return csv_text(heads, rows)


def _as_cells(values: Iterable[Cell | str]) -> tuple[Cell, ...]:
    return tuple(Cell(value) if isinstance(value, str) else value for value in values)

"""Tables and the text of their CSV."""

import csv
import io

from gcp_jax.report.tables import Cell, csv_of_records, fact_table, make_table


def parsed(text):
    return list(csv.reader(io.StringIO(text)))


def test_the_csv_of_a_table_holds_its_cells():
    table = make_table("t", ["a", Cell("b")], [["1", Cell('x, "y"')], ["2", ""]])
    assert parsed(table.csv) == [["a", "b"], ["1", 'x, "y"'], ["2", ""]]


def test_a_table_may_come_with_numbers_at_full_precision():
    table = make_table("t", ["a"], [["0.3"]], csv="a\n0.333\n")
    assert table.csv == "a\n0.333\n" and table.rows[0][0].text == "0.3"


def test_facts_are_rows_with_a_column_a_run():
    table = fact_table("t", {"Seeds": ["1", "2"]}, ["first", "second"])
    assert [cell.text for cell in table.heads] == ["", "first", "second"]
    assert parsed(table.csv) == [["fact", "first", "second"], ["Seeds", "1", "2"]]
    alone = fact_table("t", {"Seeds": ["1"]})
    assert alone.heads == () and parsed(alone.csv) == [["fact", "value"], ["Seeds", "1"]]


def test_a_record_without_a_field_leaves_it_empty():
    assert csv_of_records(["a", "b"], [{"a": 1, "b": None}, {"b": 0.5}]) == "a,b\n1,\n,0.5\n"

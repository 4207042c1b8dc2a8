"""One table in four forms: no form loses a cell, and each can be read back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinykron.support.tables import Table

CELLS = st.text("abc 0123.|", max_size=6).map(str.strip)
HEADINGS = ("name", "first", "second")


def tables() -> st.SearchStrategy[Table]:
    rows = st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=4)
    return rows.map(lambda rows: Table(HEADINGS, rows, "a title", left=("name",)))


@given(table=tables())
def test_markdown_can_be_read_back(table):
    heading, rule, *body = table.markdown()
    assert heading == "| name | first | second |" and rule == "|---|---|---|"
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in body]
    assert [[cell.strip().replace(r"\|", "|") for cell in row] for row in cells] == [list(row) for row in table.rows]


@given(table=tables())
def test_plain_columns_are_aligned_words_to_the_left_and_numbers_to_the_right(table):
    lines = table.plain()
    widths = [max(len(row[n]) for row in [HEADINGS, *table.rows]) for n in range(3)]
    for line, row in zip(lines, [HEADINGS, *table.rows], strict=True):
        assert line == "  ".join((row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2]))).rstrip()


@given(table=tables())
def test_a_box_holds_every_cell_and_records_name_them(table):
    box = table.boxed()
    for row, record in zip(table.rows, table.records(), strict=True):
        assert all(cell in box for cell in row) and tuple(record[heading] for heading in HEADINGS) == tuple(row)
    assert "a title" in box and all(heading in box for heading in HEADINGS)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_narrow_box_cuts_or_goes_on(wrap):
    box = Table(("", "words"), [("a", "[one] two three four five")], left=("", "words")).boxed(20, wrap)
    assert max(map(len, box.splitlines())) <= 20 and ("five" in box) == wrap and "[one]" in box

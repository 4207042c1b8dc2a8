"""One table: as a box for a terminal, as plain columns, as Markdown, as records for JSON."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from io import StringIO


@dataclass(frozen=True)
class Table:
    """Rows of text under headings."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    left: Collection[str] = ("",)  # headings of columns that hold words: to the left; numbers go to the right

    def boxed(self, width: int = 200, wrap: bool = False) -> str:
        """Return a box drawn with lines, at most `width` columns wide.

        wrap  a cell that does not fit goes on in the next line, in place of being cut
        """
        from rich.console import Console
        from rich.table import Table as Box

        box = Box(title=self.title or None, title_justify="left")
        for heading in self.headings:
            box.add_column(heading, justify="left" if heading in self.left else "right", no_wrap=not wrap)
        for row in self.rows:
            box.add_row(*row)
        text = StringIO()
        Console(file=text, width=width, markup=False, highlight=False).print(box)
        return text.getvalue()

    def plain(self) -> list[str]:
        """Return a line for the headings and one for each row, in columns without a box."""
        lines = [self.headings, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return ["  ".join(self._padded(row, widths)).rstrip() for row in lines]

    def _padded(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            cell.ljust(width) if heading in self.left else cell.rjust(width)
            for cell, width, heading in zip(row, widths, self.headings, strict=True)
        ]

    def markdown(self, rule: str = "---") -> list[str]:
        """Return the lines of a Markdown table; `rule` stands under each heading: "---:" aligns to the right."""
        body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows]
        return ["| " + " | ".join(self.headings) + " |", "|" + f"{rule}|" * len(self.headings), *body]

    def records(self) -> list[dict[str, str]]:
        """Return each row as {heading: cell}, for JSON."""
        return [dict(zip(self.headings, row, strict=True)) for row in self.rows]

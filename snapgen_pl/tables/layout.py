"""Rows as Markdown, JSON or CSV."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from snapgen_pl import markdown

Format: TypeAlias = Literal["md", "json", "csv"]
Row: TypeAlias = Mapping[str, "bool | int | float | str | None"]


class Table:
    """A table that can be printed in every format.

    Args:
        rows: all of one set of keys.
        header: of the Markdown; the first column is text, the others numbers.
        cells: of the Markdown, one list a row.
        notes: what a reader must know, below the Markdown.
    """

    def __init__(self, rows: Sequence[Row], header: Sequence[str], cells: Sequence[Sequence[str]], notes: str) -> None:
        self.rows, self.header, self.cells, self.notes = rows, header, cells, notes

    def text(self, form: Format) -> str:
        """The table in a format."""
        if form == "json":
            return json.dumps([dict(row) for row in self.rows], indent=2)
        if form == "csv":
            return self._csv()
        return f"{markdown.table(self.header, self.cells, 'lr')}\n\n{self.notes}"

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]) if self.rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue().rstrip("\n")


def number(value: float | None, digits: int) -> str:
    """A number with so many digits after the point; nothing where there is none."""
    return "" if value is None else f"{value:.{digits}f}"

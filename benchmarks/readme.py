"""Puts the tables of ``python -m snapgen_pl table`` into the README: ``python -m benchmarks.readme``."""

import re
from pathlib import Path
from typing import get_args

from snapgen_pl.tables.table import Name, table

README = Path("README.md")


def filled(text: str) -> str:
    """The text with each table between its marks made anew.

    Raises:
        ValueError: naming a table that has no marks.
    """
    for name in get_args(Name):
        start, end = f"<!-- table {name} -->\n", "\n<!-- end -->"
        place = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if (found := len(place.findall(text))) != 1:
            raise ValueError(f"the README has {found} places for the table {name}; mark one: {start}{end}")
        text = place.sub((start + table(name, "md") + end).replace("\\", r"\\"), text)
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")

"""Puts the tables of ``python -m snapgen_pl table`` into README and docs: ``python -m benchmarks.pages``."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from snapgen_pl.tables.table import Name, table

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def pages() -> dict[Path, str]:
    """The text of each page of README and docs."""
    return {path: path.read_text(encoding="utf-8") for path in PAGES}


def filled(texts: Mapping[Path, str]) -> dict[Path, str]:
    """The texts with each table between its marks made anew.

    Raises:
        ValueError: naming a table that has no marks, or several.
    """
    made = dict(texts)
    for name in get_args(Name):
        start, end = f"<!-- table {name} -->\n", "\n<!-- end -->"
        place = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if (found := sum(len(place.findall(text)) for text in made.values())) != 1:
            raise ValueError(f"README and docs have {found} places for the table {name}; mark one: {start}{end}")
        shown = (start + table(name, "md") + end).replace("\\", r"\\")
        made = {path: place.sub(shown, text) for path, text in made.items()}
    return made


if __name__ == "__main__":
    for path, text in filled(pages()).items():
        path.write_text(text, encoding="utf-8")

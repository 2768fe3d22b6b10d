"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]], align: str = "l") -> str:
    """A table.

    Args:
        header: of the columns.
        rows: a cell a column each.
        align: a letter a column, ``l`` for text and ``r`` for numbers; the last goes for all columns that are left.
    """
    rule = ["---:" if letter == "r" else "---" for letter in align.ljust(len(header), align[-1])]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (header, rule, *rows))

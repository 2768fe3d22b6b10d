"""What a run's manifest says of its last start."""

from pathlib import Path
from typing import TypeVar

from snapgen_pl.runs import Run

T = TypeVar("T")


class LastStart:
    """What a run's manifest says of its last start.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        run = Run(folder)
        self._manifest, self._start = run.manifest, run.starts()[-1]

    def said(self, kind: type[T], *keys: str) -> T | None:
        """An entry; None where it is null or not there.

        Args:
            kind: its type.
            keys: those that lead to it.

        Raises:
            ValueError: where it is of another type.
        """
        found: object = self._start
        for depth, key in enumerate(keys):
            expected = kind if depth + 1 == len(keys) else dict
            found = found.get(key) if isinstance(found, dict) else None
            if found is not None and not isinstance(found, expected):
                raise ValueError(
                    f"{self._manifest} is damaged: {'.'.join(keys[: depth + 1])} is {found!r}, which is no "
                    f"{expected.__name__}; put it back"
                )
        assert found is None or isinstance(found, kind)
        return found

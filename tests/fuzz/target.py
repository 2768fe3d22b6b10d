"""A file that a reader opens, and what must hold whatever becomes of its bytes."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests import tiny_run

CASES = Path(__file__).with_name("cases")


class Target(NamedTuple):
    """A file, and its reader.

    Attributes:
        write: writes the file, whole, and all that lies beside it, into a folder.
        file: its name there.
        read: opens what is in a folder; raises ValueError, and nothing else, for what it refuses.
        sealed: whether checksums make sure that what is read is what was written.
    """

    write: Callable[[Path], object]
    file: str
    read: Callable[[Path], Any]
    sealed: bool = False


class Damaged:
    """A target's folder, whose file is replaced again and again.

    Args:
        target: the target.
        folder: empty.

    Attributes:
        whole: what the file is to hold.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        target.write(folder)
        self.target, self.folder, self.path = target, folder, folder / target.file
        self.whole = self.path.read_bytes()
        self._written = target.read(folder)

    def check(self, content: bytes) -> None:
        """Reads the file with another content: whatever is raised is a finding."""
        # Not in place: what has been mapped from a file must not change under its reader.
        self.path.unlink()
        self.path.write_bytes(content)
        with contextlib.suppress(ValueError):
            found = self.target.read(self.folder)
            assert not self.target.sealed or tiny_run.differing(found, self._written) == []


def answer(*questions: Callable[[], object]) -> None:
    """Asks each question, whether or not others are refused; False is no answer."""
    for question in questions:
        with contextlib.suppress(ValueError):
            assert question() is not False


def cases(name: str) -> list[Path]:
    """What was found of a target."""
    return sorted((CASES / name).glob("*"))

"""Files, and folders of them, that appear whole or not at all, whatever interrupts their writing; and JSON in them."""

import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path to write to, ``<name>.part`` beside ``path``, which becomes ``path`` when the ``with`` is left.

    Where it is left by an exception, ``path`` is what it was, and the part is removed.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder to fill, ``<name>.part`` beside ``path``, which becomes ``path`` when the ``with`` is left.

    Where it is left by an exception, ``path`` is what it was, and the part is removed. What was at ``path`` is removed
    once the new one stands there; a kill between the two renames leaves it as ``<name>.old``.

    All in it can be read by whom the umask lets, whatever kept it to itself before it came here, such as a temporary
    folder.
    """
    part, old = (path.with_name(path.name + ending) for ending in (".part", ".old"))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        _open_up(part)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _open_up(folder: Path) -> None:
    """Gives all in a folder that was made here, and so has the mode that the umask leaves, the like of its mode."""
    allowed = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        if path.is_symlink():  # what it points to may be another's
            continue
        mode = path.stat().st_mode
        runs = path.is_dir() or mode & stat.S_IXUSR
        path.chmod(stat.S_IMODE(mode) & ~0o777 | (allowed if runs else allowed & 0o666))


def is_file(path: Path) -> bool:
    """Whether a file is there, whatever a stranger's manifest calls it."""
    return os.path.isfile(path)  # noqa: PTH113  (pathlib raises for names that are too long)


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing, or is not there; a file is not empty."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def check_empty(out: Path) -> None:
    """Raises ValueError where a folder that is to be filled, given as ``--out``, holds something."""
    if not is_empty(out):
        raise ValueError(f"--out {out} is not an empty folder; choose another")


def write_text(text: str, path: Path) -> None:
    """Writes UTF-8 text."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(content: Mapping[str, object], path: Path) -> None:
    """Writes indented JSON."""
    write_text(json.dumps(content, indent=2) + "\n", path)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Reads an object, as :func:`write_json` writes it.

    Args:
        path: of the file.
        remedy: what to do where it is damaged.

    Raises:
        ValueError: where it is missing or is none, naming it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no object, but a {type(content).__name__}; {remedy}")
    return content

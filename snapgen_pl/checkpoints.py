"""Checkpoint files of a run folder: their names, and cheap questions about them that need no trainer."""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"


def is_whole(path: Path) -> bool:
    """Whether a file is a complete checkpoint, judged by the zip directory that torch.save writes at its very end.

    Finds what a killed or full disk leaves behind, without reading the tensors; :func:`read` finds flipped bits.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def read(path: Path, verify: bool = True, mmap: bool = True, map_location: Any = "cpu") -> dict[str, Any]:
    """What a checkpoint holds: tensors and plain values, for nothing else is read (``weights_only``).

    Args:
        path: the file.
        verify: whether to compare all of it with the checksums (CRC-32) that torch.save gave its parts; torch itself
            does not look at them.
        mmap: leaves tensors in the file until they are touched.
        map_location: where tensors go.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: where it is truncated or damaged, naming the checkpoint to use instead; where it holds what only
            running a stranger's code could bring back.
    """
    require_whole(path)
    if verify and (part := _damaged_part(path)):
        raise ValueError(f"{path} is damaged: {part} is not what was written; {_remedy(path)}")
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # torch's readers raise what they like on damaged files
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{path} holds {named[1]}, and a checkpoint holds tensors and plain values alone; nothing of it was "
                "run. Give a checkpoint written by `fit`"
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged ({reason}); {_remedy(path)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no training state; give a checkpoint written by `fit`")
    return content


def step_of(path: Path) -> int:
    """The optimizer steps (Lightning's ``global_step``) that a checkpoint was written after.

    Of a file of many gigabytes only the index is read.

    Raises:
        ValueError: naming the file where it is damaged or holds no training state.
    """
    return count_in(read(path, verify=False), "global_step", path)


def count_in(content: dict[str, Any], key: str, path: Path) -> int:
    """A count that a checkpoint holds.

    Args:
        content: of the checkpoint.
        key: of the count.
        path: where it was read from.

    Raises:
        ValueError: where there is none.
    """
    count = content.get(key)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f"{path} holds no training state ({key} is {count!r}); give a checkpoint written by `fit`")
    return count


def require_whole(path: Path) -> None:
    """Refuses a damaged checkpoint, and names the one to resume from instead.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: where it is not a complete checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if not is_whole(path):
        size = path.stat().st_size
        raise ValueError(f"{path} is truncated or no checkpoint ({size:,} bytes); {_remedy(path)}")


def newest(folder: Path) -> Path:
    """The checkpoint that a run continues from: the last one, or the one before it where only that exists.

    The latter is what a kill between the two renames of a save leaves. A damaged last one is never passed over in
    silence.

    Raises:
        FileNotFoundError: where the folder holds neither.
        ValueError: where the newest is damaged; names the other one.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    if not last.exists() and not previous.exists():
        raise FileNotFoundError(f"no checkpoint in {folder}; the run has saved none yet")
    path = last if last.exists() else previous
    require_whole(path)
    return path


def _remedy(path: Path) -> str:
    previous = path.with_name(PREVIOUS)
    other = path.name != PREVIOUS and is_whole(previous)
    return f"resume with --ckpt_path {previous}" if other else "no whole checkpoint lies beside it; start the run anew"


def _damaged_part(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except Exception as error:  # as zipfile finds damaged headers
        return f"a part ({error})"

"""Checkpoint files of a run folder: their names, and cheap questions about them that need no trainer."""

import zipfile
from pathlib import Path

import torch

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"


def is_whole(path: Path) -> bool:
    """Whether a file is a complete checkpoint, judged by the zip directory that torch.save writes at its very end.

    Finds what a killed or full disk leaves behind, without reading the tensors; it does not find flipped bits.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def step_of(path: Path) -> int:
    """The optimizer steps (Lightning's ``global_step``) that a checkpoint was written after.

    Raises:
        ValueError: naming the file where it is damaged or holds no training state.
    """
    require_whole(path)
    # mmap: of a file of many gigabytes only the index is read.
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    step = checkpoint.get("global_step") if isinstance(checkpoint, dict) else None
    if not isinstance(step, int):
        raise ValueError(f"{path} holds no training state; give a checkpoint written by `fit`")
    return step


def require_whole(path: Path) -> None:
    """Refuses a damaged checkpoint, and names the one to resume from instead.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: where it is not a complete checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if is_whole(path):
        return
    previous = path.with_name(PREVIOUS)
    other = path.name != PREVIOUS and is_whole(previous)
    remedy = (
        f"resume with --ckpt_path {previous}" if other else "no whole checkpoint lies beside it; start the run anew"
    )
    raise ValueError(f"{path} is truncated or no checkpoint ({path.stat().st_size:,} bytes); {remedy}")


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
        raise FileNotFoundError(f"no {LAST} in {folder}: nothing to continue; leave --ckpt_path out to start a run")
    path = last if last.exists() else previous
    require_whole(path)
    return path

"""Where the weights of a text encoder lie: in one file of safetensors, or in several and an index of them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from snapgen_pl.pretrained_folder import pretrained_folder
from snapgen_pl.weights_index import indexed_files

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(path: str, subfolder: str, revision: str | None = None) -> list[Path]:
    """The files that transformers will read, in the order of names; downloaded where ``path`` is a name on the hub.

    Args:
        path: a folder, or a name on the Hugging Face hub.
        subfolder: where under ``path`` they lie.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: if there are none, or not all that the index names.
    """
    folder = _folder(path, subfolder, [CONFIG, WEIGHTS, INDEX], revision)
    if (file := folder / WEIGHTS).is_file():
        return [file]
    if not (index := folder / INDEX).is_file():
        raise ValueError(f"no {WEIGHTS} in {folder}; download it there (pickled .bin weights are not read)")
    names = indexed_files(index)
    # What to download is known only now.
    folder = _folder(path, subfolder, [CONFIG, INDEX, *names], revision)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of the {len(names)} files that {INDEX} names, such as {missing[0]}; "
            "download them there"
        )
    return [folder / name for name in names]


def files_digest(files: Sequence[Path]) -> str:
    """The SHA-256 of each file's content, one after another."""
    digests = []
    for file in files:
        with file.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    return " ".join(digests)


def inside(subfolder: str, name: str) -> str:
    """The name with the subfolder before it, where there is one."""
    return f"{subfolder}/{name}" if subfolder else name


def _folder(path: str, subfolder: str, names: Sequence[str], revision: str | None) -> Path:
    return pretrained_folder(path, [inside(subfolder, name) for name in names], revision) / subfolder

"""The sizes of a source's images, read once."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from snapgen_pl.data.buckets import Size
from snapgen_pl.data.shards import SPLITS, Split
from snapgen_pl.data.source import OpenSource
from snapgen_pl.whole_files import whole_file

FILE = "image_sizes.safetensors"
_FINGERPRINT = "fingerprint"


@runtime_checkable
class Sized(Protocol):
    """An :class:`~snapgen_pl.data.source.ImageSet` that knows its images' sizes without decoding them."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def size(self, index: int) -> Size:
        """The size of what ``load`` gives."""
        ...


def image_sizes(source: OpenSource, folder: Path | None) -> dict[Split, Tensor]:
    """Height and width of each image, int32 (N, 2), by split.

    Args:
        source: of the images.
        folder: keeps the sizes for the next session, which takes them where the data are the same; None keeps nothing.

    Raises:
        ValueError: where images are damaged, or the source knows no sizes.
    """
    file = None if folder is None else folder / FILE
    kept = None if file is None else _kept(file, source.fingerprint)
    if kept is not None:
        return kept
    read = {
        split: _read(images, split) for split, images in zip(SPLITS, (source.train, source.validation), strict=True)
    }
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as part:
            save_file(dict(read.items()), part, {_FINGERPRINT: source.fingerprint})
    return read


def _kept(file: Path, fingerprint: str) -> dict[Split, Tensor] | None:
    """What a file holds of these data; what is damaged, or of other data, is read anew."""
    try:
        with safe_open(file, "pt") as opened:
            same = opened.metadata().get(_FINGERPRINT) == fingerprint
            return {split: opened.get_tensor(split) for split in SPLITS} if same else None
    except (FileNotFoundError, SafetensorError):
        return None


def _read(images: object, split: Split) -> Tensor:
    if not isinstance(images, Sized):
        raise ValueError(
            f"{type(images).__name__} knows no sizes of its images, which data.buckets needs; leave it out"
        )
    shown = track(range(len(images)), f"reading the sizes of {split} images", transient=True)
    return torch.tensor([images.size(index) for index in shown], dtype=torch.int32).reshape(-1, 2)

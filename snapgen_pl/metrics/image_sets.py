"""Sets of drawn images as others keep them: folders of picture files, and ADM's npz."""

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from snapgen_pl.png import read_picture, to_pil, write_png
from snapgen_pl.whole_files import whole_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
IMAGES = "arr_0"  # ADM's name


class StoredImages(ABC):
    """Images in a fixed order.

    Attributes:
        count: how many.
        path: where they lie.
        files: what they are read from, in order.
    """

    count: int
    path: Path
    files: list[Path]

    @abstractmethod
    def batches(self, size: int) -> Iterator[Tensor]:
        """All images, uint8 (B, 3, H, W), ``size`` at once but for the last; nothing else is held in memory."""


class PictureFolder(StoredImages):
    """The picture files below a folder, sorted by path; one size throughout.

    Args:
        path: the folder.

    Raises:
        ValueError: if it holds none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        self.count = len(self.files)
        if not self.files:
            raise ValueError(f"{path} holds no pictures; give a folder of {', '.join(SUFFIXES)} files, or ADM's npz")

    def batches(self, size: int) -> Iterator[Tensor]:
        """See the contract."""
        for start in range(0, self.count, size):
            images = [read_picture(file) for file in self.files[start : start + size]]
            if odd := next((i for i, image in enumerate(images) if image.shape != images[0].shape), None):
                raise ValueError(
                    f"{self.files[start + odd]} is of another size than {self.files[start]}; bring all to one size"
                )
            yield torch.stack(images)


class NpzImages(StoredImages):
    """The array ``arr_0`` of an npz: uint8 (N, H, W, 3), read in order without being loaded whole.

    Args:
        path: the file.

    Raises:
        ValueError: if it is no npz, or holds no such array.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, [path]
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as member:
                shape, fortran, kind = _header(member)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: no npz with an array {IMAGES} ({error})") from error
        if fortran or kind != np.uint8 or len(shape) != 4 or shape[-1] != 3:
            raise ValueError(f"{path}: {IMAGES} is {kind} {shape}; images are uint8 (N, H, W, 3)")
        self.shape = shape
        self.count = shape[0]

    def batches(self, size: int) -> Iterator[Tensor]:
        """See the contract."""
        height, width, channels = self.shape[1:]
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{IMAGES}.npy") as member:
            _header(member)
            for start in range(0, self.count, size):
                count = min(size, self.count - start)
                content = member.read(count * height * width * channels)
                if len(content) < count * height * width * channels:
                    raise ValueError(f"{self.path}: {IMAGES} ends after fewer than {self.count} images; fetch it again")
                image_BHWC = np.frombuffer(content, np.uint8).reshape(count, height, width, channels)
                yield torch.from_numpy(image_BHWC.copy()).permute(0, 3, 1, 2)


def open_images(path: Path) -> StoredImages:
    """A folder of pictures, or an npz.

    Raises:
        ValueError: if there is nothing of the kind.
    """
    if path.is_dir():
        return PictureFolder(path)
    if path.suffix == ".npz":
        return NpzImages(path)
    raise ValueError(f"{path}: neither a folder of pictures nor an npz")


def write_npz(path: Path, count: int, batches: Iterable[Tensor]) -> None:
    """Writes ADM's npz, whole or not at all, in the memory of a batch.

    Args:
        path: the file.
        count: how many images there will be.
        batches: uint8 (B, 3, H, W).

    Raises:
        ValueError: if there are more or fewer.
    """
    written = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as member:
            for image_BCHW in batches:
                image_BHWC: NDArray[np.uint8] = image_BCHW.permute(0, 2, 3, 1).contiguous().cpu().numpy()
                if not written:
                    shape = (count, *image_BHWC.shape[1:])
                    npy.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
                member.write(image_BHWC.tobytes())
                written += len(image_BHWC)
        if written != count:
            raise ValueError(f"{path}: {written} images instead of {count}")


def write_pictures(folder: Path, batches: Iterable[Tensor]) -> None:
    """Writes PNG files ``000000.png``, ``000001.png`` ... of uint8 (B, 3, H, W)."""
    folder.mkdir(parents=True, exist_ok=True)
    images = (image_CHW for image_BCHW in batches for image_CHW in image_BCHW)
    for index, image_CHW in enumerate(images):
        write_png(to_pil(image_CHW), folder / f"{index:06d}.png")


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = npy.read_magic(member)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, kind = read(member)
    return shape, fortran, kind

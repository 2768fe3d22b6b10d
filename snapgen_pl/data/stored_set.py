"""The images of one split as files encode them, wherever those lie."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
from PIL import ExifTags, Image, ImageOps
from rich.progress import track
from torch import Tensor

from snapgen_pl.data.buckets import Size

# Up to this many images, each is checked before training starts; beyond, a damaged one is found when it is loaded.
CHECKED_UP_FRONT = 20_000
# Orientations of EXIF in which rows are columns.
_ON_ITS_SIDE = (5, 6, 7, 8)


class StoredSet(ABC):
    """Encoded images; an :class:`~snapgen_pl.data.source.ImageSet`.

    A set may be used in forked workers: it keeps no file open between images.

    Args:
        where: what holds the images.
        labels: the class of each.
    """

    def __init__(self, where: Path, labels: Sequence[int]) -> None:
        self.where = where
        self.labels: Tensor = torch.tensor(labels, dtype=torch.int64)

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call an image, so that the user finds it."""

    @abstractmethod
    def encoded(self, index: int) -> Path | BytesIO:
        """The file of an image, or what one would hold."""

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """The image: RGB, upright, transparency on white.

        Raises:
            ValueError: naming the image, where it cannot be decoded.
        """
        try:
            with Image.open(self.encoded(index)) as image:
                return to_rgb(image)
        except Exception as error:  # Pillow's decoders raise what they like on damaged files
            raise self._damaged(index, error) from error

    def size(self, index: int) -> Size:
        """The size of what :meth:`load` gives, from the header alone.

        Raises:
            ValueError: naming the image, where it cannot be read.
        """
        try:
            with Image.open(self.encoded(index)) as image:
                return upright_size(image)
        except Exception as error:  # as in load
            raise self._damaged(index, error) from error

    def check(self) -> None:
        """Opens every image and checks what its format lets one check without decoding it.

        Raises:
            ValueError: naming the first image that is damaged.
        """
        for index in track(range(len(self)), f"checking the images in {self.where}", transient=True):
            try:
                with Image.open(self.encoded(index)) as image:
                    image.verify()
            except Exception as error:  # as in load
                raise self._damaged(index, error) from error

    def _damaged(self, index: int, error: Exception) -> ValueError:
        return ValueError(
            f"{self.name(index)} cannot be read as an image ({type(error).__name__}: {error}); "
            "expected an intact image in a format that Pillow decodes: replace or remove the file"
        )


def check_up_to(limit: int, *sets: StoredSet) -> None:
    """Checks every image, where there are at most ``limit`` in all.

    Raises:
        ValueError: naming the first image that is damaged.
    """
    if sum(len(images) for images in sets) <= limit:
        for images in sets:
            images.check()


def readable_extensions() -> frozenset[str]:
    """The extensions, in lower case, of the formats that Pillow can read."""
    return frozenset(
        extension for extension, format_name in Image.registered_extensions().items() if format_name in Image.OPEN
    )


def upright_size(image: Image.Image) -> Size:
    """The size of what :func:`to_rgb` makes of an image, without decoding it."""
    # PNG's own getexif() would decode the image, to look for what may stand behind it.
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    width, height = image.size
    return Size(width, height) if orientation in _ON_ITS_SIDE else Size(height, width)


def to_rgb(image: Image.Image) -> Image.Image:
    """Decodes an image to RGB, turned upright by its EXIF orientation, transparency composited on white."""
    image = ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")

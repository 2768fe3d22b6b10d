"""From an image as a stranger encoded it to pixels, or to what is wrong with it."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from torch import Tensor

from snapgen_pl.data.buckets import Buckets, Size
from snapgen_pl.data.faults import Fault
from snapgen_pl.data.stored_set import to_rgb, upright_size
from snapgen_pl.data.tar_samples import Packed
from snapgen_pl.data.transforms import crop_to, to_pixels

_FORMATS = ("JPEG", "PNG", "WEBP")  # others have decoders that fewer people attack


@dataclass(frozen=True)
class Unpacker:
    """Makes pixels of encoded images.

    Args:
        image_size: side of squares, in pixels.
        min_size: images with a shorter side are left out, in buckets those that theirs would enlarge by more than a
            square of this side; None leaves out none.
        buckets: that images are cut to; squares if None.
    """

    image_size: int
    min_size: int | None
    buckets: Buckets | None = None

    def pixels(self, packed: Packed) -> Tensor | Fault | None:
        """The central square, uint8 (3, image_size, image_size); or what is wrong, or None for an image too small."""
        size = self.size(packed)
        return self.cut(packed, Size(self.image_size, self.image_size)) if isinstance(size, Size) else size

    def size(self, packed: Packed) -> Size | Fault | None:
        """That of the whole image, from its header alone; or what is wrong, or None for an image too small."""
        try:
            with _opened(packed) as image:
                size = upright_size(image)
        except Exception as error:  # Pillow's decoders raise what they like on damaged files
            return _undecoded(packed, error)
        return None if self._is_too_small(size) else size

    def _is_too_small(self, size: Size) -> bool:
        if self.min_size is None:
            return False
        square = Size(self.image_size, self.image_size)
        cut = square if self.buckets is None else self.buckets.sizes[self.buckets.index(size)]
        # In whole numbers: a side over that of the cut is under min_size over image_size.
        return any(side * self.image_size < self.min_size * to for side, to in zip(size, cut, strict=True))

    def cut(self, packed: Packed, size: Size) -> Tensor | Fault:
        """The largest central part of a shape, resized: uint8 (3, H, W); or what is wrong."""
        try:
            with _opened(packed) as image:
                given = upright_size(image)
                # Of the image that just covers the size; see crop_to.
                scale = max(size.height / given.height, size.width / given.width)
                if scale**2 * given.height * given.width > (Image.MAX_IMAGE_PIXELS or math.inf):
                    raise ValueError(f"its sides, {given.width} x {given.height}, differ too much")
                return to_pixels(crop_to(to_rgb(image), size))
        except Exception as error:  # as in size
            return _undecoded(packed, error)


@contextmanager
def _opened(packed: Packed) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(BytesIO(packed.image), formats=_FORMATS) as image:
            yield image


def _undecoded(packed: Packed, error: Exception) -> Fault:
    return Fault(packed.shard, packed.key, f"cannot be decoded ({type(error).__name__}: {error})")

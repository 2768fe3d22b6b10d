"""From an image as a stranger encoded it to pixels, or to what is wrong with it."""

import math
import warnings
from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from torch import Tensor

from snapgen_pl.data.faults import Fault
from snapgen_pl.data.stored_set import to_rgb
from snapgen_pl.data.tar_samples import Packed
from snapgen_pl.data.transforms import centre_crop, to_pixels

_FORMATS = ("JPEG", "PNG", "WEBP")  # others have decoders that fewer people attack


@dataclass(frozen=True)
class Unpacker:
    """Makes pixels of encoded images.

    Args:
        image_size: side of the crops, in pixels.
        min_size: images with a shorter side are left out; None leaves out none.
    """

    image_size: int
    min_size: int | None

    def pixels(self, packed: Packed) -> Tensor | Fault | None:
        """uint8 (3, image_size, image_size), or what is wrong; None where the image is too small."""
        try:
            image = self._image(packed.image)
        except Exception as error:  # Pillow's decoders raise what they like on damaged files
            return Fault(packed.shard, packed.key, f"cannot be decoded ({type(error).__name__}: {error})")
        return None if image is None else to_pixels(centre_crop(image, self.image_size))

    def _image(self, encoded: bytes) -> Image.Image | None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(encoded), formats=_FORMATS) as image:
                shorter, longer = sorted(image.size)
                if self.min_size is not None and shorter < self.min_size:
                    return None
                # To crop it, its shorter side is made image_size.
                if longer * self.image_size**2 > (Image.MAX_IMAGE_PIXELS or math.inf) * shorter:
                    raise ValueError(f"its sides, {image.width} x {image.height}, differ too much")
                return to_rgb(image)

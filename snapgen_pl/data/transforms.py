"""From an image as stored to pixels: crop, flip, tensor."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from snapgen_pl import rng
from snapgen_pl.data.buckets import Size


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square, resized to ``size`` pixels as ADM does (Dhariwal and Nichol, 2021)."""
    return crop_to(image, Size(size, size))


def crop_to(image: Image.Image, size: Size) -> Image.Image:
    """The largest central part of a shape, resized to ``size``.

    Halves with a box filter while both sides have at least twice the pixels, resizes bicubically until the image just
    covers the size (up, where it is smaller), then cuts the side that is too long.
    """
    while image.height >= 2 * size.height and image.width >= 2 * size.width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(size.height / image.height, size.width / image.width)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size.width) // 2, (image.height - size.height) // 2
    return image.crop((left, top, left + size.width, top + size.height))


def crop_at(image: Image.Image, size: int, across: float, down: float) -> Image.Image:
    """A square of ``size`` pixels at the image's own resolution; where a side is shorter, the image is enlarged before.

    Args:
        image: of any size.
        size: side of the square, in pixels.
        across: from 0, at the left edge, to below 1, at the right one.
        down: likewise, from top to bottom.
    """
    scale = max(1.0, size / min(image.size))
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = int(across * (image.width - size + 1)), int(down * (image.height - size + 1))
    return image.crop((left, top, left + size, top + size))


def centre_cut(image: Image.Image, multiple: int, largest: int) -> Image.Image:
    """The largest central part, not resized, whose sides are multiples of a number of pixels.

    Args:
        image: of any size.
        multiple: pixels.
        largest: no side is longer.

    Raises:
        ValueError: for an image with a side below ``multiple``.
    """
    width, height = (min(side, largest) // multiple * multiple for side in image.size)
    if not width or not height:
        raise ValueError(f"an image has {image.width} x {image.height} pixels, less than {multiple} along a side; "
                         "remove or enlarge it")  # fmt: skip
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def mirrored(position_B: Tensor, seed: int) -> Tensor:
    """Which images are mirrored, left to right: half of them, by (seed, position) alone; bool (B,)."""
    return rng.uniform(seed, rng.Stream.FLIP, position_B) < 0.5


def random_flip(image_BCHW: Tensor, position_B: Tensor, seed: int) -> Tensor:
    """Mirrors the images that :func:`mirrored` says."""
    return torch.where(mirrored(position_B, seed)[:, None, None, None], image_BCHW.flip(-1), image_BCHW)

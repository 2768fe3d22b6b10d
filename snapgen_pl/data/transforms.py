"""From an image as stored to pixels: crop, flip, tensor."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from snapgen_pl import rng


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square, resized to ``size`` pixels as ADM does (Dhariwal and Nichol, 2021).

    Halves with a box filter while the shorter side has at least twice the pixels, resizes it bicubically (up, where
    the image is smaller), then cuts the longer side.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def mirrored(position_B: Tensor, seed: int) -> Tensor:
    """Which images are mirrored, left to right: half of them, by (seed, position) alone; bool (B,)."""
    return rng.uniform(seed, rng.Stream.FLIP, position_B) < 0.5


def random_flip(image_BCHW: Tensor, position_B: Tensor, seed: int) -> Tensor:
    """Mirrors the images that :func:`mirrored` says."""
    return torch.where(mirrored(position_B, seed)[:, None, None, None], image_BCHW.flip(-1), image_BCHW)

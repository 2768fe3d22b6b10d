"""Images as PNG files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from snapgen_pl.whole_files import whole_file


def to_pil(image_CHW: Tensor) -> Image.Image:
    """A uint8 tensor (3, H, W) as an RGB image."""
    return Image.fromarray(image_CHW.permute(1, 2, 0).cpu().contiguous().numpy())


def read_picture(path: Path) -> Tensor:
    """An image file as uint8 RGB (3, H, W).

    Raises:
        ValueError: where it is damaged.
    """
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except OSError as error:
        raise ValueError(f"{path}: no readable picture ({error}); delete it or draw it again") from error


def write_png(image: Image.Image, path: Path, about: Mapping[str, str] | None = None) -> None:
    """Writes a PNG, whole or not at all.

    Args:
        image: what to write.
        path: where to.
        about: texts that the file is to hold, by keyword.
    """
    info = PngInfo()
    for keyword, text in (about or {}).items():
        info.add_itxt(keyword, text)
    with whole_file(path) as part:
        image.save(part, format="PNG", pnginfo=info)

"""Images as PNG files."""

from pathlib import Path

from PIL import Image
from torch import Tensor

from snapgen_pl.whole_files import whole_file


def to_pil(image_CHW: Tensor) -> Image.Image:
    """A uint8 tensor (3, H, W) as an RGB image."""
    return Image.fromarray(image_CHW.permute(1, 2, 0).cpu().contiguous().numpy())


def write_png(image: Image.Image, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    with whole_file(path) as part:
        image.save(part, format="PNG")

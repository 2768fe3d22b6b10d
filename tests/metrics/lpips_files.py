"""Random trunks of LPIPS under the names and in the shapes of torchvision's files."""

import math
from pathlib import Path

import torch
from torch import Tensor

from snapgen_pl.metrics.lpips_weights import Backbone

# (place in torchvision's features, in, out, kernel)
CONVOLUTIONS: dict[Backbone, list[tuple[int, int, int, int]]] = {
    "alex": [(0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3)],
    "vgg": [
        (0, 3, 64, 3),
        (2, 64, 64, 3),
        (5, 64, 128, 3),
        (7, 128, 128, 3),
        (10, 128, 256, 3),
        (12, 256, 256, 3),
        (14, 256, 256, 3),
        (17, 256, 512, 3),
        (19, 512, 512, 3),
        (21, 512, 512, 3),
        (24, 512, 512, 3),
        (26, 512, 512, 3),
        (28, 512, 512, 3),
    ],
}


def random_trunk(backbone: Backbone) -> dict[str, Tensor]:
    """The convolutions, and a weight of the classifier after them."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"classifier.6.bias": torch.zeros(1000)}
    for index, width, out, kernel in CONVOLUTIONS[backbone]:
        scale = math.sqrt(2 / (width * kernel**2))
        tensors[f"features.{index}.weight"] = torch.randn(out, width, kernel, kernel, generator=generator) * scale
        tensors[f"features.{index}.bias"] = torch.randn(out, generator=generator) * 0.1
    return tensors


def random_trunk_file(folder: Path, backbone: Backbone) -> Path:
    """Writes one, as ``torch.save`` does."""
    file = folder / f"{backbone}-trunk.pth"
    torch.save(random_trunk(backbone), file)
    return file

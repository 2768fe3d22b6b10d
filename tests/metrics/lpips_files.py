"""Random weights of LPIPS under the names and in the shapes of torchvision's and lpips's files."""

import math
from pathlib import Path

import torch
from torch import Tensor

from snapgen_pl.metrics.lpips_weights import Backbone, LPIPSFiles

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
WIDTHS: dict[Backbone, list[int]] = {"alex": [64, 192, 384, 256, 256], "vgg": [64, 128, 256, 512, 512]}


def random_trunk(backbone: Backbone) -> dict[str, Tensor]:
    """The convolutions, and a weight of the classifier after them."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"classifier.6.bias": torch.zeros(1000)}
    for index, width, out, kernel in CONVOLUTIONS[backbone]:
        scale = math.sqrt(2 / (width * kernel**2))
        tensors[f"features.{index}.weight"] = torch.randn(out, width, kernel, kernel, generator=generator) * scale
        tensors[f"features.{index}.bias"] = torch.randn(out, generator=generator) * 0.1
    return tensors


def random_heads(backbone: Backbone) -> dict[str, Tensor]:
    """One weight a channel, none negative."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{head}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for head, width in enumerate(WIDTHS[backbone])
    }


def random_files(folder: Path, backbone: Backbone) -> LPIPSFiles:
    """Writes both, as ``torch.save`` does."""
    files = LPIPSFiles(folder / f"{backbone}-trunk.pth", folder / f"{backbone}-heads.pth")
    torch.save(random_trunk(backbone), files.trunk)
    torch.save(random_heads(backbone), files.heads)
    return files

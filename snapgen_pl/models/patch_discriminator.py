"""The patch discriminator (Isola et al., 2017) as latent diffusion trains decoders against it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_pl.models.layers import GROUPS

_KERNEL = 4
_LEAK = 0.2
_STD = 0.02  # of weights before training


class PatchDiscriminator(nn.Module):
    """4x4 convolutions, ``layers`` of them halving the grid; a logit of "real" for each patch of 70 pixels by default.

    GroupNorm stands where the original has BatchNorm: an image's logits depend on no other image, so that processes
    agree, and fakes need no pass of their own.

    Args:
        width: channels of the first layer, which double with each up to the third after it; a multiple of 32.
        layers: that halve the grid.

    Attributes:
        least: pixels along an image's side, at least.

    Raises:
        ValueError: for a width that groups do not divide, or no layer.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        if width < 1 or width % GROUPS or layers < 1:
            raise ValueError(
                f"width is {width}, layers {layers}; need a multiple of {GROUPS}, the groups of its norms, and a layer "
                "or more"
            )
        self.least = 3 * 2**layers  # each of the two last layers takes a row and a column
        widths = [width * 2 ** min(layer, 3) for layer in range(layers + 1)]
        self.image = nn.Conv2d(3, width, _KERNEL, stride=2, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[i], widths[i + 1], _KERNEL, stride=2 if i + 1 < layers else 1, padding=1, bias=False),
                nn.GroupNorm(GROUPS, widths[i + 1]),
            )
            for i in range(layers)
        )
        self.logit = nn.Conv2d(widths[-1], 1, _KERNEL, padding=1)
        self.apply(_initialise)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], sides of ``least`` pixels or more -> logits (B, N), one a patch."""
        x_BCHW = F.leaky_relu(self.image(image_BCHW), _LEAK)
        for layer in self.layers:
            x_BCHW = F.leaky_relu(layer(x_BCHW), _LEAK)
        logits_BN: Tensor = self.logit(x_BCHW).flatten(1)
        return logits_BN


def _initialise(module: nn.Module) -> None:
    """As pix2pix does."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, _STD)
    elif isinstance(module, nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, _STD)

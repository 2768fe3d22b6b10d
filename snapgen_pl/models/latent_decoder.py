"""The contract of networks that make images of raw latents."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class LatentDecoder(nn.Module, ABC):
    """Maps raw latents (B, in_channels, h, w) to images (B, 3, upsampling * h, upsampling * w), about [-1, 1].

    Attributes:
        in_channels: channels of the latent.
        upsampling: pixels along a side of a latent position.
    """

    in_channels: int
    upsampling: int

    @property
    @abstractmethod
    def last(self) -> nn.Conv2d:
        """The convolution that images come out of."""

    @abstractmethod
    def forward(self, raw_BCHW: Tensor) -> Tensor:
        """Decodes; not clamped."""

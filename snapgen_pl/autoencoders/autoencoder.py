"""The contract of autoencoders: image <-> raw latent <-> final latent."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn


class Autoencoder(nn.Module, ABC):
    """Maps images to the latents a denoiser works on. Frozen, in eval, outside every checkpoint.

    Raw latents are what the encoder gives and what caches hold; final latents are shifted and scaled to about unit
    variance. Shift and scale live here and nowhere else.

    Attributes:
        channels: latent channels.
        downsampling: pixels a latent position covers, along one side.
    """

    channels: int
    downsampling: int

    def ready(self, folder: Path, images: Iterable[Tensor]) -> str | None:
        """Makes the autoencoder usable for a run: by default, it already is.

        Args:
            folder: the run's folder, for what has to be kept with the run.
            images: batches (B, 3, H, W) of uint8 training images, iterated only where something has to be fitted.

        Returns:
            A line for the user where something was fitted or loaded.
        """
        return None

    @abstractmethod
    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> raw latents."""

    @abstractmethod
    def to_final(self, raw_BCHW: Tensor) -> Tensor:
        """Raw latents -> final latents."""

    @abstractmethod
    def to_raw(self, final_BCHW: Tensor) -> Tensor:
        """Final latents -> raw latents."""

    @abstractmethod
    def decode(self, raw_BCHW: Tensor) -> Tensor:
        """Raw latents -> images, about [-1, 1], not clamped."""

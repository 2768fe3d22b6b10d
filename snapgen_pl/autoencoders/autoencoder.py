"""The contract of autoencoders: image -> posterior over raw latents; raw latent <-> final latent; raw -> image."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from snapgen_pl import rng
from snapgen_pl.digest import tensors_digest

V = TypeVar("V")


def without_rounding(identity: Mapping[str, V]) -> dict[str, V]:
    """Of an autoencoder's identity all but what products are rounded to: that makes no other latents."""
    return {key: value for key, value in identity.items() if key not in ("dtype", "tf32")}


class Posterior(NamedTuple):
    """What an encoder says of an image's raw latent: an independent Gaussian a value.

    Attributes:
        mean_BCHW: its mean.
        std_BCHW: its standard deviation; None for encoders that are certain.
    """

    mean_BCHW: Tensor
    std_BCHW: Tensor | None = None

    def cpu(self) -> "Posterior":
        """The same in the host's memory."""
        return Posterior(self.mean_BCHW.cpu(), None if self.std_BCHW is None else self.std_BCHW.cpu())

    def draw(self, seed: int, position_B: Tensor) -> Tensor:
        """One raw latent a sample in fp32, from the noise at these positions of the stream of posteriors."""
        mean_BCHW = self.mean_BCHW.float()
        if self.std_BCHW is None:
            return mean_BCHW
        noise = rng.normal(seed, rng.Stream.POSTERIOR, position_B, tuple(mean_BCHW.shape[1:]))
        return mean_BCHW + self.std_BCHW * noise


def combined(parts: Sequence[Posterior], combine: Callable[[list[Tensor]], Tensor]) -> Posterior:
    """One posterior of several, all of one encoder, by ``torch.cat``, ``torch.stack`` or the like."""
    stds = [part.std_BCHW for part in parts if part.std_BCHW is not None]
    return Posterior(combine([part.mean_BCHW for part in parts]), combine(stds) if stds else None)


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

    def take_over(self, source: Path, folder: Path) -> None:
        """Makes a run's latents those of the run whose weights it begins with: by default, they already are.

        Args:
            source: that run's folder.
            folder: the run's own.

        Raises:
            ValueError: where the run has other latents already.
        """

    def identity(self) -> dict[str, str | int | float]:
        """What its latents depend on, for the records of caches; known once it is ready."""
        return {
            "class": type(self).__qualname__,
            "weights": self.weights_digest(),
            "channels": self.channels,
            "downsampling": self.downsampling,
        }

    def decoding(self) -> dict[str, str | int | float]:
        """What its images depend on besides latents, for the records of whatever is measured of them."""
        return self.identity()

    def weights_digest(self) -> str:
        """SHA-256 over the weights."""
        return tensors_digest(self.state_dict())

    @abstractmethod
    def encode(self, image_BCHW: Tensor) -> Posterior:
        """Images in [-1, 1] -> raw latents, as a distribution."""

    @abstractmethod
    def to_final(self, raw_BCHW: Tensor) -> Tensor:
        """Raw latents -> final latents."""

    @abstractmethod
    def to_raw(self, final_BCHW: Tensor) -> Tensor:
        """Final latents -> raw latents."""

    @abstractmethod
    def decode(self, raw_BCHW: Tensor) -> Tensor:
        """Raw latents -> images, about [-1, 1], not clamped."""

"""An autoencoder whose latents another decoder makes images of, wherever that comes from."""

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from snapgen_pl.autoencoders.autoencoder import Autoencoder, Posterior
from snapgen_pl.digest import tensors_digest
from snapgen_pl.models.latent_decoder import LatentDecoder
from snapgen_pl.models.pieces import decode_for_drawing
from snapgen_pl.tf32 import tf32


class Redecoded(Autoencoder):
    """Encodes, shifts and scales as an autoencoder does; decodes by a decoder that was trained here, in fp32.

    Its latents are the autoencoder's, and so is its identity: caches and teachers of one serve the other.

    Args:
        autoencoder: whose latents they are.
        decoder: makes the images; :meth:`ready` reads its weights.
        place: where the decoder comes from.

    Raises:
        ValueError: for a decoder of other latents.
    """

    def __init__(self, autoencoder: Autoencoder, decoder: LatentDecoder, place: str) -> None:
        super().__init__()
        self.channels, self.downsampling = autoencoder.channels, autoencoder.downsampling
        self.autoencoder, self.decoder = autoencoder, decoder
        if (decoder.in_channels, decoder.upsampling) != (self.channels, self.downsampling):
            raise ValueError(
                f"the decoder of {place} makes {decoder.upsampling} pixels of a latent position with "
                f"{decoder.in_channels} channels; the autoencoder covers {self.downsampling} with "
                f"{self.channels}. Give a decoder that was trained on its latents"
            )
        self._weights = ""

    def ready(self, folder: Path, images: Iterable[Tensor]) -> str:
        """Makes the autoencoder ready, and loads the decoder's weights, once.

        Raises:
            ValueError: where the decoder was trained on the latents of other weights, or has none.
        """
        line = self.autoencoder.ready(folder, images)
        if not self._weights:
            self.load_decoder()
            self._weights = tensors_digest(self.decoder.state_dict())
        return "\n".join(filter(None, [line, f"decoder: {self.decoder_origin}, averaged weights"]))

    @property
    @abstractmethod
    def decoder_origin(self) -> str:
        """The file, or the folder, that the decoder's weights are from."""

    @abstractmethod
    def load_decoder(self) -> None:
        """Puts the weights in the decoder, and leaves it in eval mode.

        Raises:
            ValueError: where they are missing or damaged, or of other latents.
        """

    def take_over(self, source: Path, folder: Path) -> None:
        """As the autoencoder does."""
        self.autoencoder.take_over(source, folder)

    def identity(self) -> dict[str, str | int | float]:
        """The autoencoder's."""
        return self.autoencoder.identity()

    def decoding(self) -> dict[str, str | int | float]:
        """With the decoder's class and weights, and the autoencoder's as those of its latents."""
        self._check_ready()
        own = {"class": type(self.decoder).__qualname__, "weights": self._weights}
        return self.identity() | own | {"latents": self.weights_digest()}

    def weights_digest(self) -> str:
        """The autoencoder's."""
        return self.autoencoder.weights_digest()

    def encode(self, image_BCHW: Tensor) -> Posterior:
        """As the autoencoder does."""
        return self.autoencoder.encode(image_BCHW)

    def to_final(self, raw_BCHW: Tensor) -> Tensor:
        """As the autoencoder does."""
        return self.autoencoder.to_final(raw_BCHW)

    def to_raw(self, final_BCHW: Tensor) -> Tensor:
        """As the autoencoder does."""
        return self.autoencoder.to_raw(final_BCHW)

    def decode(self, raw_BCHW: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, 3, downsampling * h, downsampling * w)."""
        self._check_ready()
        with tf32(False):
            return decode_for_drawing(self.decoder, raw_BCHW)

    def _check_ready(self) -> None:
        if not self._weights:
            raise ValueError(f"{type(self).__name__} has no weights yet; call ready() first")

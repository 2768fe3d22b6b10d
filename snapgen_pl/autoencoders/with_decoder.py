"""An autoencoder whose latents a trained decoder makes images of."""

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

from torch import Tensor, nn

from snapgen_pl.autoencoders.autoencoder import Autoencoder, Posterior
from snapgen_pl.config_files import class_value
from snapgen_pl.digest import tensors_digest
from snapgen_pl.models.latent_decoder import LatentDecoder
from snapgen_pl.models.pieces import decode_for_drawing
from snapgen_pl.tf32 import tf32
from snapgen_pl.trained_run import TrainedRun, arguments, open_run


class WithDecoder(Autoencoder):
    """Encodes, shifts and scales as an autoencoder does; decodes by the averaged weights of a run's decoder.

    Its latents are the autoencoder's, and so is its identity: caches and teachers of one serve the other. Constructing
    one reads configurations alone; :meth:`ready` loads the weights. The decoder computes in fp32.

    Args:
        autoencoder: whose latents they are.
        decoder: the folder of a run of :class:`~snapgen_pl.modules.decoder.TrainDecoder` on its latents.

    Raises:
        ValueError: for a folder that is no run of a decoder, a damaged checkpoint, or a decoder of other latents.
        FileNotFoundError: where the run has no checkpoint.
    """

    def __init__(self, autoencoder: Autoencoder, decoder: str) -> None:
        super().__init__()
        self.channels, self.downsampling = autoencoder.channels, autoencoder.downsampling
        self.autoencoder, self._run = autoencoder, open_run(decoder)
        self.decoder: LatentDecoder = self._run.build("a decoder", decoder=LatentDecoder).decoder
        if (self.decoder.in_channels, self.decoder.upsampling) != (self.channels, self.downsampling):
            raise ValueError(
                f"the decoder of {decoder} makes {self.decoder.upsampling} pixels of a latent position with "
                f"{self.decoder.in_channels} channels; the autoencoder covers {self.downsampling} with "
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
            self._check_latents()
            self._run.load(nn.ModuleDict({"decoder": self.decoder}))
            self._weights = tensors_digest(self.decoder.state_dict())
        return "\n".join(filter(None, [line, f"decoder: {self._run.checkpoint}, averaged weights"]))

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

    def _check_latents(self) -> None:
        """Shift, scale and whitening are no matter: decoders take raw latents."""
        trained_on: Autoencoder = self._run.build("a decoder", autoencoder=Autoencoder).autoencoder
        trained_on.ready(self._run.folder, ())
        if trained_on.weights_digest() != self.weights_digest():
            raise ValueError(
                f"the decoder of {self._run.folder} was trained on the latents of other weights "
                f"({trained_on.weights_digest()[:12]}) than the autoencoder's ({self.weights_digest()[:12]}); give one "
                "that was trained on these"
            )

    def _check_ready(self) -> None:
        if not self._weights:
            raise ValueError("WithDecoder has no weights yet; call ready() first")


def with_decoder(source: TrainedRun, decoder: str | None) -> TrainedRun:
    """A run that draws through another decoder than its autoencoder's.

    Args:
        source: the run.
        decoder: the folder of the decoder's; None leaves the run as it is.

    Raises:
        ValueError: where the run's module has no autoencoder.
    """
    if decoder is None:
        return source
    own = source.model.get("autoencoder")
    if own is None:
        raise ValueError(f"{source.folder} has no model.autoencoder, so no decoder can stand in for its")
    config = deepcopy(source.config)
    arguments(config["model"])["autoencoder"] = class_value(WithDecoder, autoencoder=own, decoder=decoder)
    return source._replace(config=config)

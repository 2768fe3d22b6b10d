"""The decoder in a pipeline's folder that stands in for its autoencoder's own."""

from pathlib import Path

from torch import nn

from snapgen_pl.autoencoders.autoencoder import Autoencoder
from snapgen_pl.autoencoders.redecoded import Redecoded
from snapgen_pl.diffusers_weights import read_tensors
from snapgen_pl.models.latent_decoder import LatentDecoder
from snapgen_pl.pipeline.building import build, check_fits
from snapgen_pl.pipeline.places import DECODER, network_of


class PlacedDecoder(Redecoded):
    """Decodes by the decoder that ``export diffusers --decoder`` put beside an autoencoder.

    Args:
        autoencoder: whose latents they are.
        path: the pipeline's folder.

    Raises:
        ValueError: where there is no such decoder in it, or one of other latents, or of more than its weights fill.
    """

    def __init__(self, autoencoder: Autoencoder, path: str) -> None:
        self._folder = Path(path) / DECODER
        network = network_of(self._folder)
        check_fits(network, self._folder)
        decoder = build(LatentDecoder, network)  # type: ignore[type-abstract]
        super().__init__(autoencoder, decoder, path)

    @property
    def decoder_origin(self) -> str:
        """Its folder."""
        return str(self._folder)

    def load_decoder(self) -> None:
        """From safetensors."""
        try:
            nn.ModuleDict({"decoder": self.decoder}).load_state_dict(read_tensors(self._folder))
        except RuntimeError as error:
            raise ValueError(f"the weights in {self._folder} are not those of its config.json: {error}") from error
        self.decoder.eval()

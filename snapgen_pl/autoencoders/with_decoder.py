"""An autoencoder whose latents a trained decoder makes images of."""

from copy import deepcopy
from dataclasses import replace
from typing import TypeVar

from torch import nn

from snapgen_pl.autoencoders.autoencoder import Autoencoder
from snapgen_pl.autoencoders.redecoded import Redecoded
from snapgen_pl.config_files import class_value
from snapgen_pl.models.latent_decoder import LatentDecoder
from snapgen_pl.trained_run import Trained, arguments, open_run

T = TypeVar("T", bound=Trained)


class WithDecoder(Redecoded):
    """Decodes by the averaged weights of a run's decoder.

    Constructing one reads configurations alone; :meth:`ready` loads the weights.

    Args:
        autoencoder: whose latents they are.
        decoder: the folder of a run of :class:`~snapgen_pl.modules.decoder.TrainDecoder` on its latents.

    Raises:
        ValueError: for a folder that is no run of a decoder, a damaged checkpoint, or a decoder of other latents.
        FileNotFoundError: where the run has no checkpoint.
    """

    def __init__(self, autoencoder: Autoencoder, decoder: str) -> None:
        run = open_run(decoder)
        super().__init__(autoencoder, run.build("a decoder", decoder=LatentDecoder).decoder, decoder)
        self._run = run

    @property
    def decoder_origin(self) -> str:
        """The run's checkpoint."""
        return self._run.origin

    def load_decoder(self) -> None:
        """From the run, on whose latents it was trained."""
        check_raw_latents(self._run, self)
        self._run.load(nn.ModuleDict({"decoder": self.decoder}))


def check_raw_latents(decoder: Trained, autoencoder: Autoencoder) -> None:
    """Refuses a decoder that was trained on other raw latents; their shift, scale and whitening are no matter.

    Args:
        decoder: what it was trained in.
        autoencoder: whose latents it is to decode; ready.

    Raises:
        ValueError: where the weights differ that the latents are of, or nothing tells the other's.
    """
    trained_on, own = str(decoder.latents().get("weights")), autoencoder.weights_digest()
    if trained_on != own:
        raise ValueError(
            f"the decoder of {decoder.folder} was trained on the latents of other weights ({trained_on[:12]}) than "
            f"the autoencoder's ({own[:12]}); give one that was trained on these"
        )


def with_decoder(source: T, decoder: str | None) -> T:
    """A run, or a pipeline, that draws through another decoder than its own.

    Args:
        source: the run or pipeline.
        decoder: the folder of the decoder's run; None leaves the source as it is.

    Raises:
        ValueError: where the source's module has no autoencoder.
    """
    if decoder is None:
        return source
    own = source.model.get("autoencoder")
    if own is None:
        raise ValueError(f"{source.folder} has no model.autoencoder, so no decoder can stand in for its")
    config = deepcopy(source.config)
    arguments(config["model"])["autoencoder"] = class_value(WithDecoder, autoencoder=own, decoder=decoder)
    return replace(source, config=config)

"""The vector-quantised autoencoder of LDM-4."""

from typing import Any

from torch import Tensor

from snapgen_pl.autoencoders.autoencoder import Posterior
from snapgen_pl.autoencoders.pretrained import Pretrained


class VQ(Pretrained):
    """A ``VQModel`` of diffusers. Latents are what the encoder says before quantisation, which decoding does.

    LDM-4 trains on them unscaled: shift 0 and scale 1 unless given, whatever diffusers' default for the class is.
    """

    @classmethod
    def network_class(cls) -> Any:
        """``VQModel``."""
        from diffusers.models.autoencoders.vq_model import VQModel

        return VQModel

    @classmethod
    def _default_scale(cls, config: dict[str, Any]) -> float:
        return 1.0

    def encode(self, image_BCHW: Tensor) -> Posterior:
        """Images in [-1, 1] -> (B, channels, H / downsampling, W / downsampling), with certainty."""
        return Posterior(self._encode(image_BCHW).latents.float())

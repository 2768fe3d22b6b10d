"""The variational autoencoders of SD, SDXL, SD3 and Flux."""

from typing import Any

from torch import Tensor

from snapgen_pl.autoencoders.autoencoder import Posterior
from snapgen_pl.autoencoders.pretrained import Pretrained


class KL(Pretrained):
    """An ``AutoencoderKL`` of diffusers; shift and scale are its configuration's.

    The ImageNet table's peers use sd-vae-ft-ema (4 channels, scale 0.18215); SDXL's has 4, SD3's and Flux's have 16.
    """

    @classmethod
    def network_class(cls) -> Any:
        """``AutoencoderKL``."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return AutoencoderKL

    def encode(self, image_BCHW: Tensor) -> Posterior:
        """Images in [-1, 1] -> the posterior over (B, channels, H / downsampling, W / downsampling)."""
        gaussian = self._encode(image_BCHW).latent_dist
        return Posterior(gaussian.mean.float(), gaussian.std.float())

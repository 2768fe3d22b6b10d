"""The decoder of diffusers' ``AutoencoderTiny`` (TAESD), which ours is held against."""

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn

from snapgen_pl.models.latent_decoder import LatentDecoder


class TAESDDecoder(LatentDecoder):
    """Convolutions of one width without norms, from random weights; the default has 1.23 M parameters.

    Args:
        in_channels: channels of the latent; they enter through 3 tanh(x / 3).
        width: of all convolutions.
    """

    def __init__(self, in_channels: int = 16, width: int = 64) -> None:
        super().__init__()
        self.in_channels, self.upsampling = in_channels, 8
        self.network = AutoencoderTiny(latent_channels=in_channels, decoder_block_out_channels=(width,) * 4).decoder
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs

    @property
    def last(self) -> nn.Conv2d:
        """See the contract."""
        layer = self.network.layers[-1]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, raw_BCHW: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> images (B, 3, 8 h, 8 w), about [-1, 1], not clamped."""
        image_BCHW: Tensor = self.network(raw_BCHW.contiguous(memory_format=torch.channels_last))
        return image_BCHW

"""A small AutoencoderKL with random weights: 4 latent channels unless asked otherwise, 4 pixels a latent position."""

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


def kl(channels: int = 4, **config: object) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        norm_num_groups=4,
        latent_channels=channels,
        **config,
    ).eval()

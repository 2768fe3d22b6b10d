"""The networks that exports are measured on, with random weights."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from snapgen_pl.export.graphs import DECODER, DENOISER, EXAMPLE_TIME, DenoiserGraph, Graph
from snapgen_pl.models.decoder import Decoder
from snapgen_pl.models.unet import Block, Stage, UNet

Size = Literal["full", "small"]
Precision = Literal["FLOAT32", "FLOAT16"]
TOKENS = 78  # CLIP's 77 after the learned one


def small() -> UNet:
    """4 M parameters, every kind of block."""
    stages = [
        Stage(64, down=[Block(residual=False, layers=1)] * 2),
        Stage(128, down=[Block(layers=1)] * 2, up=[Block(layers=1)] * 3, self_attention=True),
    ]
    return UNet(stages, middle_layers=1, in_channels=16, context_dim=96, head_dim=32)


def full() -> UNet:
    """Text-to-image at 1024 px: 379 M."""
    return UNet(in_channels=16, context_dim=2304)


NETWORKS: dict[Size, tuple[Callable[[], UNet], int]] = {"small": (small, 32), "full": (full, 128)}


def denoiser_graph(size: Size) -> Graph:
    """The same weights and example every time.

    Residual branches, which start at nothing, are drawn too: else most of the network would not be seen.
    """
    build, side = NETWORKS[size]
    torch.manual_seed(0)
    denoiser = build()
    _draw_what_starts_at_nothing(denoiser)
    mask = torch.ones(1, TOKENS)
    mask[:, 40:] = 0
    inputs: dict[str, Tensor] = {
        "sample": torch.randn(1, denoiser.in_channels, side, side),
        "timestep": torch.tensor([EXAMPLE_TIME]),
        "context": torch.randn(1, TOKENS, denoiser.context_dim),
        "mask": mask,
    }
    return Graph(DENOISER, DenoiserGraph(denoiser.eval(), masked=True), inputs, ("velocity",))


class FinalDecoder(nn.Module):
    """The reference decoder behind the scale and shift of SD3's latents."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()

    def forward(self, latent: Tensor) -> Tensor:
        """(1, 16, h, w) -> (1, 3, 8 h, 8 w)."""
        image: Tensor = self.decoder(latent / 1.5305 + 0.0609)
        return image


def decoder_graph() -> Graph:
    """The 1.38 M decoder at 1024 px, the same weights and example every time."""
    torch.manual_seed(0)
    decoder = FinalDecoder()
    _draw_what_starts_at_nothing(decoder)
    return Graph(DECODER, decoder.eval(), {"latent": torch.randn(1, 16, 128, 128)}, ("image",))


def _draw_what_starts_at_nothing(network: nn.Module) -> None:
    for name, weight in network.named_parameters():
        if (weight.ndim > 1 and not weight.any()) or (weight.ndim == 1 and name.endswith("bias")):
            nn.init.normal_(weight, std=0.02)

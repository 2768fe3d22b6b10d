"""What every denoiser owes besides its velocity."""

import pytest
import torch

from snapgen_pl.models.denoiser import Conditioning, Denoiser
from snapgen_pl.models.mmdit import MMDiT
from snapgen_pl.models.peers.dit import DiT
from snapgen_pl.models.peers.ldm import LDM
from snapgen_pl.models.peers.uvit import UViT
from snapgen_pl.models.preconditioned import Preconditioned
from tests.models.test_unet import small_unet

SIDE = 8


def denoisers() -> list[Denoiser]:
    return [
        small_unet(),
        small_unet(pooled_dim=6),
        Preconditioned(small_unet(pooled_dim=6), 0.5),
        DiT(hidden=32, depth=2, heads=4, context_dim=24, patch=4),
        UViT(latent_size=SIDE, hidden=32, depth=3, heads=4, context_dim=24, patch=4),
        LDM(widths=(32, 64), layers=1, heads=2, context_dim=24),
        MMDiT(4, layers=2, heads=2, head_dim=8, context_dim=24, pooled_dim=6, latent_size=SIDE, largest_grid=4),
    ]


@pytest.mark.parametrize("denoiser", denoisers(), ids=lambda denoiser: type(denoiser).__name__)
def test_features_are_of_the_declared_channels_and_grids(denoiser: Denoiser) -> None:
    pooled_BP = None if denoiser.pooled_dim is None else torch.randn(2, denoiser.pooled_dim)
    conditioning = Conditioning(torch.randn(2, 3, denoiser.context_dim), None, pooled_BP)
    x_BCHW = torch.randn(2, denoiser.in_channels, SIDE, SIDE)
    names = denoiser.feature_names
    assert tuple(denoiser.feature_channels) == tuple(denoiser.feature_strides) == names
    assert bool(names) == (not isinstance(denoiser, LDM))
    with torch.no_grad():
        features = denoiser(x_BCHW, torch.tensor([0.2, 0.8]), conditioning, names).features
    for name, feature in zip(names, features, strict=True):
        side = SIDE // denoiser.feature_strides[name]
        assert feature.shape == (2, denoiser.feature_channels[name], side, side), name

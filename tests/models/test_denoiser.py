"""What every denoiser owes besides its velocity."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from snapgen_pl.models.count import count
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


def named(denoiser: Denoiser) -> str:
    return type(denoiser).__name__


def inputs(denoiser: Denoiser) -> tuple[Tensor, Tensor, Conditioning]:
    pooled_BP = None if denoiser.pooled_dim is None else torch.randn(2, denoiser.pooled_dim)
    conditioning = Conditioning(torch.randn(2, 3, denoiser.context_dim), None, pooled_BP)
    return torch.randn(2, denoiser.in_channels, SIDE, SIDE), torch.tensor([0.2, 0.8]), conditioning


@pytest.mark.parametrize("denoiser", denoisers(), ids=named)
def test_features_are_of_the_declared_channels_and_grids(denoiser: Denoiser) -> None:
    names = denoiser.feature_names
    assert tuple(denoiser.feature_channels) == tuple(denoiser.feature_strides) == names
    assert bool(names) == (not isinstance(denoiser, LDM))
    with torch.no_grad():
        features = denoiser(*inputs(denoiser), names).features
    for name, feature in zip(names, features, strict=True):
        side = SIDE // denoiser.feature_strides[name]
        assert feature.shape == (2, denoiser.feature_channels[name], side, side), name


@pytest.mark.parametrize("denoiser", [each for each in denoisers() if each.feature_names], ids=named)
def test_features_alone_and_their_gradients_are_those_of_the_whole_forward(denoiser: Denoiser) -> None:
    torch.manual_seed(0)
    for weight in denoiser.requires_grad_(False).parameters():
        weight.normal_(std=0.2)  # zeros would hide what they multiply
    x_BCHW, t_B, conditioning = inputs(denoiser)
    x_BCHW.requires_grad_()
    *_, last, end = denoiser.feature_names
    for names in ((last, denoiser.feature_names[0], last), (end,)):
        whole = denoiser(x_BCHW, t_B, conditioning, names).features
        alone = denoiser.observe(x_BCHW, t_B, conditioning, names)
        assert len(alone) == len(names)
        gradients: list[Tensor] = []
        for features in (whole, alone):
            paid = sum(feature.square().mean() for feature in features)
            assert isinstance(paid, Tensor)
            gradients += torch.autograd.grad(paid, x_BCHW)
        assert all(torch.equal(one, other) for one, other in zip(whole, alone, strict=True))
        assert torch.equal(*gradients)
        assert gradients[0].any()
    with pytest.raises(ValueError, match=r"unknown features \['nowhere'\]"):
        denoiser.observe(x_BCHW, t_B, conditioning, (last, "nowhere"))


@pytest.mark.parametrize("denoiser", [each for each in denoisers() if each.feature_names], ids=named)
def test_nothing_is_computed_beyond_the_last_feature(denoiser: Denoiser) -> None:
    """Each feature costs what the one before it does, and more; the velocity costs the most."""
    costs = [count(denoiser, SIDE, tokens=3, observed=(name,)) for name in denoiser.feature_names]
    costs.append(count(denoiser, SIDE, tokens=3))
    assert all(less.macs < more.macs for less, more in pairwise(costs))
    assert {cost.params for cost in costs} == {sum(weight.numel() for weight in denoiser.parameters())}
    assert count(denoiser, SIDE, 3, denoiser.feature_names[1::-1]) == costs[1]

from collections.abc import Callable

import pytest
import torch

from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.models.peers.dit import DiT
from snapgen_pl.models.peers.sit import SiTVelocity
from snapgen_pl.models.preconditioned import Preconditioned
from snapgen_pl.models.wrapped import Wrapped
from tests.models.test_unet import inputs, small_unet


def test_the_network_says_the_residual_of_a_linear_guess() -> None:
    network = small_unet()
    x, _, conditioning = inputs()
    t = torch.tensor([0.0, 0.6])
    scale = torch.tensor([0.5, 0.4**0.5])[:, None, None, None]  # sqrt(0.5^2), sqrt(0.2^2 + 0.6^2)
    said = network(x / scale, t, conditioning).velocity_BCHW
    expected = torch.stack((-x[0] + said[0], 0.5 * x[1] / 0.4 + 0.5 * said[1] / 0.4**0.5))
    velocity, (tapped,) = Preconditioned(network, 0.5)(x, t, conditioning, features=("middle",))
    torch.testing.assert_close(velocity, expected)
    torch.testing.assert_close(tapped, network(x / scale, t, conditioning, features=("middle",)).features[0])


@pytest.mark.parametrize("network", [small_unet(), DiT(hidden=32, depth=2, heads=4, context_dim=24)])
@pytest.mark.parametrize("wrap", [lambda network: Preconditioned(network, 0.5), SiTVelocity])
def test_it_stands_wherever_the_network_does(network: Denoiser, wrap: Callable[[Denoiser], Wrapped]) -> None:
    x, t, conditioning = inputs()
    wrapped = wrap(network)
    assert list(wrapped.units()) == list(network.units())
    assert wrapped.feature_names == network.feature_names
    assert (wrapped.in_channels, wrapped.context_dim) == (network.in_channels, network.context_dim)
    raw, prepared = (wrapped(x, t, given).velocity_BCHW for given in (conditioning, wrapped.prepare(conditioning)))
    assert torch.equal(raw, prepared)
    wrapped.check_features(network.feature_names)
    with pytest.raises(ValueError, match=rf"unknown features \['nowhere'\]; {type(network).__name__} has"):
        wrapped.check_features(("nowhere",))


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_data_without_deviation_are_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma_data"):
        Preconditioned(small_unet(), sigma)

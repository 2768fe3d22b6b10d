import sys

import pytest
import torch
import torch.nn.functional as F

from snapgen_pl.data.emoji.vendored import Style, Vendored
from snapgen_pl.metrics.efficientnet import EfficientNetLite0


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return EfficientNetLite0(64)


def bytes_of(count: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def emoji(style: Style, count: int) -> torch.Tensor:
    return Vendored().images(style, count).permute(0, 3, 1, 2).contiguous()


def test_features_are_1280_wide_fp32_and_do_not_depend_on_the_batch(network: EfficientNetLite0) -> None:
    images = bytes_of(5, 64)
    together = network(images)
    assert together.shape == (5, 1280)
    assert together.dtype == torch.float32
    apart = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_the_network_is_frozen_and_stays_in_eval_mode(network: EfficientNetLite0) -> None:
    network.train()
    assert not any(part.training for part in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network(bytes_of(1, 64)).requires_grad


def test_other_sizes_are_resized_to_the_networks_own(network: EfficientNetLite0) -> None:
    images = emoji("noto", 200)[[0, -1]]
    larger = images.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    same = network(images)
    assert (network(larger) - same).norm() < 0.3 * (same[0] - same[1]).norm()


def test_features_are_fp32_under_autocast(network: EfficientNetLite0) -> None:
    images = bytes_of(2, 64)
    plain = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(images), plain)


def test_with_its_weights_it_knows_emoji_again_in_another_style(network: EfficientNetLite0) -> None:
    """Of 200 concepts; random weights find 2 %."""
    a, b = (F.normalize(network(emoji(style, 200)), dim=1) for style in ("noto", "twemoji"))
    found = (a @ b.T).argmax(dim=1)
    assert (found == torch.arange(200)).float().mean() > 0.3


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 64, 64, dtype=torch.uint8)])
def test_images_that_are_not_rgb_bytes_are_refused(network: EfficientNetLite0, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 images \(B, 3, H, W\)"):
        network(images)


def test_building_it_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    EfficientNetLite0(64)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(
        ValueError, match=r"efficientnet_lite_pytorch is not installed; run `pip install 'snapgen-pl\[demo\]'`"
    ):
        EfficientNetLite0(64)


def test_an_input_too_small_for_five_halvings_is_refused() -> None:
    with pytest.raises(ValueError, match="input_size is 16"):
        EfficientNetLite0(16)

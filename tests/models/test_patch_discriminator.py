import pytest
import torch

from snapgen_pl.models.patch_discriminator import PatchDiscriminator


def discriminator(width: int = 32, layers: int = 3) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(width, layers)


def test_it_has_the_size_of_latent_diffusions() -> None:
    """NLayerDiscriminator of 64 channels and 3 layers, whose BatchNorm has as many parameters: 2,765,633."""
    assert sum(weight.numel() for weight in PatchDiscriminator().parameters()) == 2_765_633
    assert PatchDiscriminator()(torch.zeros(2, 3, 256, 256)).shape == (2, 30 * 30)


def test_a_logit_sees_a_patch_of_70_pixels() -> None:
    network = discriminator()
    for layer in network.layers:
        layer[1] = torch.nn.Identity()  # type: ignore[index, operator]  # a norm sees the whole image
    image = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = network(image).view(14, 14)
    (gradient,) = torch.autograd.grad(logits[7, 7], image)
    seen = gradient[0].abs().sum(0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]


def test_an_images_logits_depend_on_no_other_image() -> None:
    network, images = discriminator(), torch.randn(3, 3, 40, 40)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_it_says_how_small_an_image_may_be(layers: int) -> None:
    network = discriminator(layers=layers)
    assert network(torch.zeros(1, 3, network.least, network.least)).shape == (1, 1)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, network.least - 1, network.least - 1))


@pytest.mark.parametrize(("width", "layers"), [(40, 3), (0, 3), (32, 0)])
def test_sizes_out_of_range_are_refused(width: int, layers: int) -> None:
    with pytest.raises(ValueError, match=f"width is {width}, layers {layers}"):
        PatchDiscriminator(width, layers)

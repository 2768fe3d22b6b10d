import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from snapgen_pl.data.transforms import centre_crop, random_flip, to_pixels


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some detail."""
    rows = np.random.default_rng(seed).integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), dtype=np.uint8)
    return Image.fromarray(rows).resize((width, height), Image.Resampling.BILINEAR)


def crop_by_boxes(image: Image.Image, size: int) -> torch.Tensor:
    """The same crop another way: box halves as means of blocks, resize and crop as one resampling of a region."""
    halvings = int(math.log2(min(image.size) / size)) if min(image.size) >= size else 0
    for _ in range(halvings):
        pixels = np.asarray(image, dtype=np.float64)
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        blocks = pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
        image = Image.fromarray(np.floor(blocks.mean((1, 3)) + 0.5).astype(np.uint8))
    short = min(image.size)
    full = [round(side * size / short) for side in image.size]
    scale = [side / resized for side, resized in zip(image.size, full, strict=True)]
    corner = [(resized - size) // 2 * factor for resized, factor in zip(full, scale, strict=True)]
    box = (corner[0], corner[1], corner[0] + size * scale[0], corner[1] + size * scale[1])
    return to_pixels(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


@pytest.mark.parametrize("sides", [(640, 480), (480, 640), (512, 512), (256, 300), (136, 200), (130, 64), (1024, 256)])
def test_the_crop_agrees_with_an_independent_formulation(sides: tuple[int, int]) -> None:
    image = photo(*sides)
    difference = to_pixels(centre_crop(image, 64)).int() - crop_by_boxes(image, 64).int()
    # The region's borders see other neighbours; within, only rounding differs: Pillow's is after every pass.
    assert difference[:, 2:-2, 2:-2].abs().max() <= 2


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.sampled_from([16, 64]))
def test_any_image_gives_a_square_of_the_size_asked_for(width: int, height: int, size: int) -> None:
    assert to_pixels(centre_crop(Image.new("RGB", (width, height), (10, 20, 30)), size)).shape == (3, size, size)
    # A colour survives resampling.
    assert centre_crop(Image.new("RGB", (width, height), (10, 20, 30)), size).getcolors() == [(size**2, (10, 20, 30))]


def test_an_image_of_the_right_size_is_untouched() -> None:
    image = photo(64, 64)
    assert torch.equal(to_pixels(centre_crop(image, 64)), to_pixels(image))


def test_an_exact_power_of_two_is_averaged_over_boxes() -> None:
    checkers = np.kron(np.indices((32, 32)).sum(0) % 2, np.ones((8, 8))) * 255
    image = Image.fromarray(np.repeat(checkers[:, :, None], 3, axis=2).astype(np.uint8))
    cropped = to_pixels(centre_crop(image, 32))
    assert torch.equal(cropped, to_pixels(image)[:, ::8, ::8])


def test_the_longer_side_is_cut_in_its_middle() -> None:
    image = Image.new("RGB", (192, 64), "red")
    image.paste("blue", (64, 0, 128, 64))
    assert centre_crop(image, 64).getcolors() == [(64 * 64, (0, 0, 255))]


def test_a_small_image_is_enlarged() -> None:
    ramp = Image.fromarray(np.linspace(0, 255, 8, dtype=np.uint8)[None, :, None].repeat(8, 0).repeat(3, 2))
    row = to_pixels(centre_crop(ramp, 32))[0, 16].int()
    assert (row.diff() >= 0).all()
    assert row[0] < 10
    assert row[-1] > 245


def test_flips_depend_on_seed_and_position_alone_and_hit_half() -> None:
    image_BCHW = torch.arange(2000 * 3 * 4, dtype=torch.int32).view(2000, 3, 1, 4)
    position_B = torch.arange(2000)
    flipped = random_flip(image_BCHW, position_B, seed=3)
    is_flipped_B = (flipped != image_BCHW).flatten(1).any(dim=1)
    assert torch.equal(flipped[is_flipped_B], image_BCHW[is_flipped_B].flip(-1))
    assert abs(is_flipped_B.float().mean() - 0.5) < 0.05
    shuffle = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(random_flip(image_BCHW[shuffle], position_B[shuffle], seed=3), flipped[shuffle])
    assert not torch.equal(random_flip(image_BCHW, position_B, seed=4), flipped)

import torch

from snapgen_pl.metrics.nearest import NearestImages


def images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_copy_is_found_at_distance_zero_also_mirrored() -> None:
    known = images(20)
    nearest = NearestImages(known.split(6))
    assert len(nearest) == 20
    for queries in (known[[3, 17]], known[[3, 17]].flip(-1)):
        found = nearest.search(queries)
        assert found.index_B.tolist() == [3, 17]
        assert found.distance_B.max() < 1e-3


def test_the_distance_is_the_root_mean_square_in_grey_levels() -> None:
    nearest = NearestImages([torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)])
    found = nearest.search(torch.full((1, 3, 32, 32), 130, dtype=torch.uint8))
    torch.testing.assert_close(found.distance_B, torch.tensor([30.0]))


def test_noise_on_a_copy_does_not_hide_it() -> None:
    known = images(20)
    noisy = (known[[5]].float() + 10 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))).clamp(
        0, 255
    )
    assert NearestImages([known]).search(noisy.to(torch.uint8)).index_B.tolist() == [5]

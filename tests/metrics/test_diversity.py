from itertools import combinations

import pytest
import torch
from torch import Tensor

from snapgen_pl.images import from_uint8
from snapgen_pl.metrics.diversity import diversity, mean_pairwise_lpips
from snapgen_pl.metrics.lpips import LPIPS
from tests.metrics.lpips_files import random_trunk_file


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> LPIPS:
    return LPIPS("alex", random_trunk_file(tmp_path_factory.mktemp("lpips"), "alex"))


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Of 3 prompts, 5 of each."""
    return torch.randint(0, 256, (3, 5, 3, 40, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def of_pairs(lpips: LPIPS, image_NCHW: Tensor) -> float:
    pairs = combinations(from_uint8(image_NCHW), 2)
    return torch.cat([lpips(a[None], b[None]) for a, b in pairs]).mean().item()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_it_is_the_mean_over_pairs_whatever_the_batches(lpips: LPIPS, images: Tensor, batch_size: int) -> None:
    expected = torch.tensor([of_pairs(lpips, image_NCHW) for image_NCHW in images])
    found = diversity(lpips, images, batch_size)
    assert found.value == pytest.approx(expected.mean().item(), rel=1e-5)
    assert found.spread == pytest.approx(expected.std(correction=0).item(), rel=1e-3)


def test_each_image_is_taken_features_of_once_and_a_batch_at_a_time(lpips: LPIPS, images: Tensor) -> None:
    seen: list[int] = []
    with lpips.trunk[0].register_forward_hook(lambda *call: seen.append(len(call[-1]))):
        mean_pairwise_lpips(lpips, images[0], batch_size=2)
    assert seen == [2, 2, 1]


def test_one_image_again_and_again_has_none_and_copies_count_as_pairs(lpips: LPIPS, images: Tensor) -> None:
    same = images[0, :1].expand(5, -1, -1, -1)
    assert mean_pairwise_lpips(lpips, same, batch_size=2) == pytest.approx(0, abs=1e-9)
    two = torch.cat([same[:2], images[0, 1:2].expand(2, -1, -1, -1)])
    of_the_two = of_pairs(lpips, images[0, :2])
    assert mean_pairwise_lpips(lpips, two) == pytest.approx(of_the_two * 4 / 6, rel=1e-5)


def test_too_few_images_and_other_shapes_are_refused(lpips: LPIPS, images: Tensor) -> None:
    with pytest.raises(ValueError, match="a prompt has 1 images; give 2 or more"):
        diversity(lpips, images[:, :1])
    with pytest.raises(ValueError, match=r"expected images \(P, N, 3, H, W\) of 1 prompt or more, got \(5, 3, 40, 36"):
        diversity(lpips, images[0])
    with pytest.raises(ValueError, match=r"of 1 prompt or more, got \(0, 5,"):
        diversity(lpips, images[:0])
    with pytest.raises(ValueError, match=r"expected uint8 images"):
        diversity(lpips, images.float())
    with pytest.raises(ValueError, match=r"batch_size must be at least 1, got 0"):
        diversity(lpips, images, 0)

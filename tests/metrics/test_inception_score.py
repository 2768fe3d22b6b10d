import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snapgen_pl.metrics.inception_score import inception_score


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_when_all_images_are_alike() -> None:
    assert inception_score(torch.zeros(40, 7)) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(normal(7).expand(40, 7)) == pytest.approx((1, 0), abs=1e-12)


def test_the_number_of_classes_when_every_split_holds_sure_images_of_each() -> None:
    """So sure that the others' probability is zero even in float64."""
    logits_NK = 1e4 * torch.eye(7).repeat(10, 1)
    assert inception_score(logits_NK) == pytest.approx((7, 0), abs=1e-12)


def test_splits_are_contiguous_so_the_order_matters() -> None:
    class_after_class = 1e4 * torch.eye(10).repeat_interleave(10, dim=0)
    assert inception_score(class_after_class, splits=10) == pytest.approx((1, 0), abs=1e-12)
    half_and_half = torch.cat([class_after_class[:10], 1e4 * torch.eye(10)])
    assert inception_score(half_and_half, splits=2) == pytest.approx((5.5, 4.5), abs=1e-12)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 100))
def test_it_is_the_formula_on_each_split(count: int, splits: int, seed: int) -> None:
    splits = min(splits, count)
    logits_NK = 3 * normal(count, 5, seed=seed)
    scores = []
    for i in range(splits):
        p = logits_NK[math.floor(i * count / splits) : math.floor((i + 1) * count / splits)].softmax(dim=1)
        scores.append((p * (p / p.mean(dim=0)).log()).sum(dim=1).mean().exp())
    found = inception_score(logits_NK, splits)
    assert found.mean == pytest.approx(float(sum(scores)) / splits, rel=1e-12)
    assert 1 - 1e-12 <= found.mean <= 5
    assert found.std == pytest.approx(float(torch.stack(scores).std(correction=0)), abs=1e-12)


def test_logits_in_fp32_are_computed_on_in_fp64() -> None:
    logits_NK = (3 * normal(50, 1008)).float()
    assert inception_score(logits_NK) == inception_score(logits_NK.double())


def test_what_cannot_be_split_or_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(9, 3\) cannot be cut into 10 splits"):
        inception_score(torch.zeros(9, 3))
    with pytest.raises(ValueError, match="into 0 splits"):
        inception_score(torch.zeros(9, 3), splits=0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        inception_score(torch.full((10, 3), math.nan))

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snapgen_pl.metrics.precision_recall import PrecisionRecall, precision_recall


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(reference: list[list[float]], samples: list[list[float]], k: int) -> PrecisionRecall:
    def squared(p: list[float], q: list[float]) -> float:
        return math.fsum((x - y) ** 2 for x, y in zip(p, q, strict=True))

    def share(points: list[list[float]], centres: list[list[float]]) -> float:
        radii = [
            sorted(squared(centre, other) for j, other in enumerate(centres) if j != i)[k - 1]
            for i, centre in enumerate(centres)
        ]
        inside = [any(squared(p, c) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
        return sum(inside) / len(inside)

    return PrecisionRecall(share(samples, reference), share(reference, samples))


def points(least: int) -> st.SearchStrategy[list[list[float]]]:
    """On a coarse grid, so that copies and equal distances abound."""
    return st.lists(st.tuples(*[st.integers(-3, 3).map(float)] * 2).map(list), min_size=least, max_size=12)


@given(points(4), points(4), st.integers(1, 3), st.integers(1, 13))
def test_it_is_the_definition_also_for_copies_and_ties(
    reference: list[list[float]], samples: list[list[float]], k: int, batch_size: int
) -> None:
    found = precision_recall(torch.tensor(reference), torch.tensor(samples), k, batch_size)
    assert found == by_definition(reference, samples, k)


@pytest.mark.parametrize(("spread", "shift"), [(1, 0.5), (0.7, 0), (1.4, 0), (1, 1)])
def test_it_is_the_definition_on_features_of_some_width(spread: float, shift: float) -> None:
    reference_ND, samples_MD = normal(40, 16), spread * normal(70, 16, seed=1) + shift
    found = precision_recall(reference_ND, samples_MD)
    assert found == by_definition(reference_ND.tolist(), samples_MD.tolist(), k=3)
    assert found != (0, 0)


def test_precision_is_the_samples_share_and_recall_the_references() -> None:
    """Samples on half of the line that the reference covers: the last at 49.5 reaches 1.5 on, to 51 of 0 ... 99."""
    reference_ND, samples_MD = torch.arange(100.0)[:, None], torch.arange(0.0, 50, 0.5)[:, None]
    assert precision_recall(reference_ND, samples_MD) == (1, 0.52)
    assert precision_recall(samples_MD, reference_ND) == (0.52, 1)


@pytest.mark.parametrize("offset", [0, 1e6])
def test_copies_are_inside_balls_of_no_size(offset: float) -> None:
    """Four copies of each point: the third neighbour is at distance zero, wherever the origin lies."""
    points_ND = normal(10, 64).repeat(4, 1) + offset
    assert precision_recall(points_ND, points_ND[:12].repeat(4, 1)) == (1, 1)
    assert precision_recall(points_ND, points_ND + 0.01) == (0, 0)


def test_what_has_no_kth_neighbour_or_is_not_finite_is_refused() -> None:
    five_ND, four_ND = torch.zeros(5, 2), torch.zeros(4, 2)
    assert precision_recall(five_ND, four_ND, k=3) == (1, 1)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k is {k} and the smaller set has 4 features"):
            precision_recall(five_ND, four_ND, k=k)
    with pytest.raises(ValueError, match=r"\(5, 2\) and \(4, 3\)"):
        precision_recall(five_ND, torch.zeros(4, 3))
    with pytest.raises(ValueError, match="NaN or infinity"):
        precision_recall(five_ND, four_ND * math.nan)

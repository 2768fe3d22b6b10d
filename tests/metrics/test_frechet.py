import math

import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snapgen_pl.metrics.frechet import Moments, MomentSums, frechet_distance, moments_of


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(features_ND: Tensor) -> Moments:
    return moments_of([features_ND])


def gaussian(mean_D: Tensor, covariance_DD: Tensor) -> Moments:
    return Moments(mean_D.double(), covariance_DD.double(), 1000)


def rotation(width: int) -> Tensor:
    q_DD: Tensor = torch.linalg.qr(normal(width, width)).Q
    return q_DD


@given(
    st.integers(0, 100),
    st.lists(st.integers(1, 20), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 1),
    st.sampled_from([0.0, 1.0, 1e4]),
    st.sampled_from([1.0, 1e4]),
)
def test_moments_do_not_depend_on_the_batches(seed: int, sizes: list[int], offset: float, first: float) -> None:
    """Neither a large mean nor a first feature far from the others costs digits."""
    features_ND = normal(sum(sizes), 5, seed=seed) + offset
    features_ND[0] *= first
    sums = MomentSums()
    for batch in features_ND.split(sizes):
        sums.add(batch)
    found = sums.moments()
    assert found.count == len(features_ND)
    torch.testing.assert_close(found.mean_D, features_ND.mean(dim=0), rtol=1e-10, atol=1e-10)
    expected_DD = torch.cov((features_ND - features_ND.mean(dim=0)).T)
    assert (found.covariance_DD - expected_DD).abs().max() <= 1e-10 * expected_DD.abs().max()


def test_sums_of_fp32_features_are_kept_in_fp64() -> None:
    features_ND = (normal(5000, 3) + 1000).float()
    sums = MomentSums()
    for batch in features_ND.split(7):
        sums.add(batch)
    expected_DD = torch.cov(features_ND.double().T - 1000)
    torch.testing.assert_close(sums.moments().covariance_DD, expected_DD, rtol=1e-10, atol=1e-12)


def test_an_empty_batch_changes_nothing() -> None:
    features_ND = normal(6, 3)
    sums = MomentSums()
    for batch in (features_ND[:0], features_ND, features_ND[:0]):
        sums.add(batch)
    assert torch.equal(sums.moments().covariance_DD, moments(features_ND).covariance_DD)


def test_features_that_are_no_features_are_refused() -> None:
    sums = MomentSums()
    sums.add(torch.ones(1, 3))
    with pytest.raises(ValueError, match="needs 2 features or more, there are 1"):
        sums.moments()
    with pytest.raises(ValueError, match="features 1 to 2 hold NaN or infinity"):
        sums.add(torch.tensor([[0, 0, 0], [0, math.inf, 0]]))
    with pytest.raises(ValueError, match=r"shape \(B, 3\), got \(2, 4\)"):
        sums.add(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"shape \(B, D\), got \(2, 4, 1\)"):
        MomentSums().add(torch.ones(2, 4, 1))


def test_in_one_dimension_it_is_the_distance_of_means_and_deviations() -> None:
    a, b = (gaussian(torch.tensor([m]), torch.tensor([[s**2]])) for m, s in ((1.0, 2.0), (4.0, 7.0)))
    assert frechet_distance(a, b) == (pytest.approx(3**2 + 5**2, rel=1e-14), 0)


@pytest.mark.parametrize("smallest", [-1, -12], ids=["condition 10", "condition 1e12"])
def test_of_covariances_that_commute_it_is_the_distance_of_their_roots(smallest: int) -> None:
    q_DD, values_D = rotation(40), torch.logspace(smallest, 0, 40, dtype=torch.float64)
    others_D = values_D[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    means_2D = normal(2, 40)
    a = gaussian(means_2D[0], q_DD * values_D @ q_DD.T)
    b = gaussian(means_2D[1], q_DD * others_D @ q_DD.T)
    expected = (means_2D[0] - means_2D[1]).square().sum() + (values_D.sqrt() - others_D.sqrt()).square().sum()
    assert frechet_distance(a, b) == (pytest.approx(float(expected), rel=1e-9), 0)


@given(st.integers(0, 1000))
def test_it_is_the_formula_with_scipys_matrix_root(seed: int) -> None:
    a, b = moments(normal(50, 8, seed=seed)), moments(1.5 * normal(60, 8, seed=seed + 1) @ normal(8, 8, seed=2))
    root_DD = torch.as_tensor(scipy.linalg.sqrtm((a.covariance_DD @ b.covariance_DD).numpy()).real)
    expected = (a.mean_D - b.mean_D).square().sum() + (a.covariance_DD + b.covariance_DD - 2 * root_DD).trace()
    assert frechet_distance(a, b).value == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(b, a).value == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("count", [20, 400], ids=["singular", "regular"])
def test_a_set_is_at_no_distance_from_itself(count: int) -> None:
    itself = moments(normal(count, 200))
    assert abs(frechet_distance(itself, itself).value) < 1e-9


def test_singular_covariances_cost_few_digits() -> None:
    """From the features: where S = A^T A and T = B^T B, tr (S T)^1/2 is the sum of A B^T's singular values."""
    a_ND, b_MD = normal(20, 200), 2 * normal(30, 200, seed=1)
    a, b = moments(a_ND), moments(b_MD)
    centred_ND, centred_MD = (a_ND - a.mean_D) / math.sqrt(19), (b_MD - b.mean_D) / math.sqrt(29)
    shared = torch.linalg.svdvals(centred_ND @ centred_MD.T).sum()
    expected = (a.mean_D - b.mean_D).square().sum() + centred_ND.square().sum() + centred_MD.square().sum() - 2 * shared
    assert frechet_distance(a, b).value == pytest.approx(float(expected), rel=1e-8)


def test_features_that_are_all_alike_are_as_far_as_their_means_and_the_others_spread() -> None:
    alike, others = moments(torch.ones(5, 3)), moments(normal(9, 3))
    expected = (1 - others.mean_D).square().sum() + others.covariance_DD.trace()
    assert frechet_distance(alike, others) == (pytest.approx(float(expected), rel=1e-14), 0)
    assert frechet_distance(alike, alike) == (0, 0)


def test_slightly_negative_eigenvalues_are_set_to_zero_and_counted() -> None:
    q_DD, mean_D = rotation(4), torch.zeros(4)
    rounded, exact = (
        gaussian(mean_D, q_DD * torch.tensor([1, 0.5, tiny, tiny], dtype=torch.float64) @ q_DD.T)
        for tiny in (-1e-8, 1e-12)
    )
    unit = gaussian(mean_D, torch.eye(4))
    assert frechet_distance(unit, rounded) == (pytest.approx(frechet_distance(unit, exact).value, abs=1e-5), 2)
    assert frechet_distance(rounded, rounded).clipped == 4


def test_what_is_no_covariance_is_refused_by_name() -> None:
    mean_D, unit_DD = torch.zeros(3), torch.eye(3)
    good = gaussian(mean_D, unit_DD)
    with pytest.raises(ValueError, match=r"second covariance has the eigenvalue -1e-05 beside a largest of 1"):
        frechet_distance(good, gaussian(mean_D, torch.diag(torch.tensor([1, 1, -1e-5]))))
    with pytest.raises(ValueError, match=r"first covariance has the eigenvalue -1 beside"):
        frechet_distance(gaussian(mean_D, -unit_DD), good)
    with pytest.raises(ValueError, match="second covariance is not symmetric"):
        frechet_distance(good, gaussian(mean_D, unit_DD + torch.ones(3, 3).triu(1)))
    with pytest.raises(ValueError, match="first moments hold NaN"):
        frechet_distance(gaussian(mean_D, unit_DD * math.nan), good)
    with pytest.raises(ValueError, match="second moments hold NaN"):
        frechet_distance(good, gaussian(mean_D * math.nan, unit_DD))
    with pytest.raises(ValueError, match=r"widths \(3,\) and \(4,\)"):
        frechet_distance(good, gaussian(torch.zeros(4), torch.eye(4)))
    with pytest.raises(ValueError, match=r"second covariance is \(4, 4\) beside a mean of \(3,\)"):
        frechet_distance(good, gaussian(mean_D, torch.eye(4)))

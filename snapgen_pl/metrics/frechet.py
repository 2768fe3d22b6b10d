"""The Frechet distance between Gaussians (Heusel et al., 2017), the features' moments accumulated in float64."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_TOLERANCE = 1e-6  # of a matrix's largest value: what rounding may take from symmetry and from positivity


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of features.

    Attributes:
        mean_D: float64.
        covariance_DD: float64, unbiased (divided by count - 1).
        count: how many features they are of.
    """

    mean_D: Tensor
    covariance_DD: Tensor
    count: int


class Frechet(NamedTuple):
    """A Frechet distance.

    Attributes:
        value: the squared distance, which is what FID names; rounding may leave a tiny negative one for 0.
        clipped: how many eigenvalues of the two covariances rounding had made negative, and were set to zero.
    """

    value: float
    clipped: int


class MomentSums:
    """Moments of features that come in batches, in the memory of one covariance.

    Batches are joined about their own means (Chan et al., 1983), so neither a large mean nor an odd first batch cancels
    digits. Sums stay on the features' device.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean_D = torch.zeros(())
        self._scatter_DD = torch.zeros(())

    def add(self, features_BD: Tensor) -> None:
        """Adds a batch of features, of one width throughout; an empty one is no batch.

        Raises:
            ValueError: if any is not finite, or the width is another than before.
        """
        if features_BD.ndim != 2 or (self._count and features_BD.shape[1:] != self._mean_D.shape):
            width = str(len(self._mean_D)) if self._count else "D"
            raise ValueError(
                f"expected features of shape (B, {width}), got {tuple(features_BD.shape)}; flatten them to one row an "
                "image, from one layer of one network"
            )
        if not features_BD.isfinite().all():
            raise ValueError(
                f"features {self._count} to {self._count + len(features_BD) - 1} hold NaN or infinity; look at the "
                "images of that batch, or extract in fp32"
            )
        if len(features_BD):
            self._join(features_BD.double())

    def moments(self) -> Moments:
        """Of all features so far, on the CPU.

        Raises:
            ValueError: if there are fewer than 2.
        """
        if self._count < 2:
            raise ValueError(f"a covariance needs 2 features or more, there are {self._count}; add more images")
        return Moments(self._mean_D.cpu(), (self._scatter_DD / (self._count - 1)).cpu(), self._count)

    def _join(self, features_BD: Tensor) -> None:
        """n = n1 + n2, m = m1 + n2/n d, S = S1 + S2 + n1 n2/n d d^T, where d = m2 - m1 and S is the scatter."""
        added = len(features_BD)
        mean_D = features_BD.mean(dim=0)
        centred_BD = features_BD - mean_D
        scatter_DD = centred_BD.T @ centred_BD
        if self._count:
            total = self._count + added
            step_D = mean_D - self._mean_D
            scatter_DD += self._scatter_DD + torch.outer(step_D, step_D) * (self._count * added / total)
            mean_D = self._mean_D + step_D * (added / total)
        self._count, self._mean_D, self._scatter_DD = self._count + added, mean_D, scatter_DD


def moments_of(features: Iterable[Tensor]) -> Moments:
    """The moments of features that come in batches; errors as :class:`MomentSums`."""
    sums = MomentSums()
    for features_BD in features:
        sums.add(features_BD)
    return sums.moments()


def frechet_distance(a: Moments, b: Moments) -> Frechet:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2).

    The last root's trace is taken as the sum of singular values of A^T B, where S1 = A A^T and S2 = B B^T, which is the
    same number. Eigenvalues of S1^1/2 S2 S1^1/2 are those values' squares, and the roots of their rounding errors add
    up where covariances are singular: to 7e-8 of the traces for 300 features of width 2048, against 3e-9 or less this
    way. A and B have a column for each eigenvalue that is told from rounding, no more than features: few are soon
    compared.

    Args:
        a: moments of one set; its covariance may be singular, as that of fewer features than dimensions is.
        b: moments of the other set.

    Raises:
        ValueError: if widths differ, a value is not finite, or a matrix is no covariance: not symmetric, or with an
            eigenvalue under -1e-6 of its largest.
    """
    if a.mean_D.shape != b.mean_D.shape:
        raise ValueError(
            f"moments are of widths {tuple(a.mean_D.shape)} and {tuple(b.mean_D.shape)}; take both from the same layer "
            "of the same network"
        )
    (a_DR, clipped_a), (b_DR, clipped_b) = _factor(a, "first"), _factor(b, "second")
    shared = torch.linalg.svdvals(a_DR.T @ b_DR).sum()
    squared = (a.mean_D.double() - b.mean_D.double()).square().sum()
    value = squared + a.covariance_DD.double().trace() + b.covariance_DD.double().trace() - 2 * shared
    return Frechet(float(value), clipped_a + clipped_b)


def _factor(moments: Moments, which: str) -> tuple[Tensor, int]:
    """A (D, rank) whose A A^T is the covariance, and how many eigenvalues rounding had made negative."""
    covariance_DD = moments.covariance_DD.double()
    if covariance_DD.shape != 2 * moments.mean_D.shape:
        raise ValueError(
            f"the {which} covariance is {tuple(covariance_DD.shape)} beside a mean of {tuple(moments.mean_D.shape)}; "
            "take both from one file of statistics"
        )
    if not (moments.mean_D.isfinite().all() and covariance_DD.isfinite().all()):
        raise ValueError(f"the {which} moments hold NaN or infinity; compute them again from finite features")
    asymmetry = (covariance_DD - covariance_DD.T).abs().max()
    if asymmetry > _TOLERANCE * covariance_DD.abs().max():
        raise ValueError(
            f"the {which} covariance is not symmetric: entries differ from their mirror by up to {asymmetry:.3g}; it "
            "is damaged or no covariance, compute it again"
        )
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    smallest, largest = float(values_D[0]), float(values_D[-1])
    if smallest < -_TOLERANCE * largest:
        raise ValueError(
            f"the {which} covariance has the eigenvalue {smallest:.3g} beside a largest of {largest:.3g}; it is "
            "damaged or no covariance, compute it again in float64"
        )
    told_D = values_D > len(values_D) * torch.finfo(values_D.dtype).eps * largest  # numpy's and MATLAB's rank
    return vectors_DD[:, told_D] * values_D[told_D].sqrt(), int((values_D < 0).sum())

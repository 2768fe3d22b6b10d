"""Improved precision and recall (Kynkaanniemi et al., 2019)."""

from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDING = 1e-12  # of squared norms; sums of 2,048 products in float64 are off by less


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]; higher is better.

    Attributes:
        precision: of the samples, those inside a ball of the reference.
        recall: of the reference, those inside a ball of the samples.
    """

    precision: float
    recall: float


def precision_recall(reference_ND: Tensor, samples_MD: Tensor, k: int = 3, batch_size: int = 256) -> PrecisionRecall:
    """How far two sets of features cover each other.

    A point's ball reaches to its k-th nearest neighbour in its own set, itself not counted, and includes its surface.
    Squared distances are products of matrices in float64, about the reference's mean: |a|^2 + |b|^2 - 2 a.b. What
    rounding leaves of equal distances is forgiven, so that copies and ties lie on the surface.

    Args:
        reference_ND: features of real images.
        samples_MD: features of drawn images; M may differ from N.
        k: which neighbour; the field's is 3.
        batch_size: rows of distances held at a time, 8 bytes x max(N, M) each; the value does not depend on it.

    Raises:
        ValueError: if widths differ, a feature is not finite, or a set has k points or fewer.
    """
    if reference_ND.ndim != 2 or samples_MD.ndim != 2 or reference_ND.shape[1] != samples_MD.shape[1]:
        raise ValueError(
            f"features are {tuple(reference_ND.shape)} and {tuple(samples_MD.shape)}; give (N, D) and (M, D) from the "
            "same layer of the same network"
        )
    fewest = min(len(reference_ND), len(samples_MD))
    if not 1 <= k < fewest:
        raise ValueError(f"k is {k} and the smaller set has {fewest} features; give 1 <= k < {fewest}, or more images")
    reference_ND, samples_MD = reference_ND.double(), samples_MD.double()
    if not (reference_ND.isfinite().all() and samples_MD.isfinite().all()):
        raise ValueError("features hold NaN or infinity; look at the images, or extract in fp32")
    centre_D = reference_ND.mean(dim=0)
    reference, samples = _Points(reference_ND - centre_D), _Points(samples_MD - centre_D)
    radius_N, radius_M = reference.radii(k, batch_size), samples.radii(k, batch_size)
    precise, recalled_N = 0, torch.zeros_like(radius_N, dtype=torch.bool)
    for start in range(0, len(samples_MD), batch_size):
        batch = slice(start, start + batch_size)
        squared_BN, forgiven_BN = samples.squared(reference, batch)
        precise += int((squared_BN <= radius_N + forgiven_BN).any(dim=1).sum())
        recalled_N |= (squared_BN <= radius_M[batch, None] + forgiven_BN).any(dim=0)
    return PrecisionRecall(precise / len(samples_MD), int(recalled_N.sum()) / len(reference_ND))


class _Points:
    """A set of points, with their squared norms at hand."""

    def __init__(self, point_ND: Tensor) -> None:
        self.point_ND, self.norm_N = point_ND, point_ND.square().sum(dim=1)

    def squared(self, other: "_Points", batch: slice) -> tuple[Tensor, Tensor]:
        """Squared distances of a batch of these points to all others, and how far rounding may be off."""
        norms_BN = self.norm_N[batch, None] + other.norm_N
        return norms_BN - 2 * self.point_ND[batch] @ other.point_ND.T, _ROUNDING * norms_BN

    def radii(self, k: int, batch_size: int) -> Tensor:
        """Each point's squared distance to its k-th neighbour: the (k + 1)-th smallest, as its own distance is 0."""
        starts = range(0, len(self.point_ND), batch_size)
        batches = (self.squared(self, slice(start, start + batch_size))[0] for start in starts)
        return torch.cat([squared_BN.kthvalue(k + 1, dim=1).values for squared_BN in batches])

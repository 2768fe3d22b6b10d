"""Improved precision and recall (Kynkaanniemi et al., 2019)."""

from typing import NamedTuple

import torch
from torch import Tensor


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
    Distances are taken in float64 from differences: by the expanded square, copies would be at a distance.

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
    radii_N, radii_M = _radii(reference_ND, k, batch_size), _radii(samples_MD, k, batch_size)
    precise, recalled_N = 0, torch.zeros_like(radii_N, dtype=torch.bool)
    for samples_BD, radii_B in zip(torch.split(samples_MD, batch_size), torch.split(radii_M, batch_size), strict=True):
        distance_BN = _distances(samples_BD, reference_ND)
        precise += int((distance_BN <= radii_N).any(dim=1).sum())
        recalled_N |= (distance_BN <= radii_B[:, None]).any(dim=0)
    return PrecisionRecall(precise / len(samples_MD), int(recalled_N.sum()) / len(reference_ND))


def _radii(points_ND: Tensor, k: int, batch_size: int) -> Tensor:
    """Each point's distance to its k-th neighbour: the (k + 1)-th smallest, as its own distance is 0."""
    batches = torch.split(points_ND, batch_size)
    return torch.cat([_distances(points_BD, points_ND).kthvalue(k + 1, dim=1).values for points_BD in batches])


def _distances(a_BD: Tensor, b_ND: Tensor) -> Tensor:
    return torch.cdist(a_BD, b_ND, compute_mode="donot_use_mm_for_euclid_dist")

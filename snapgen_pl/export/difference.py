"""How far one tensor is from another."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

EQUAL_DB = 300.0  # what equal tensors are said to have


class Difference(NamedTuple):
    """A result against what was expected.

    Attributes:
        relative_l2: ||found - expected|| / ||expected||.
        psnr_db: the largest expected value over the root of the mean squared error, in decibels; at most EQUAL_DB.
        max_abs: the largest difference.
    """

    relative_l2: float
    psnr_db: float
    max_abs: float


def difference(found: Tensor, expected: Tensor) -> Difference:
    """Measures in float64; what is not finite is as far off as can be.

    Raises:
        ValueError: where they differ in shape.
    """
    if found.shape != expected.shape:
        raise ValueError(f"found {tuple(found.shape)}, expected {tuple(expected.shape)}")
    expected = expected.double()
    error = found.double() - expected
    if not error.isfinite().all():
        return Difference(math.inf, -EQUAL_DB, math.inf)
    rms, peak = error.square().mean().sqrt().item(), expected.abs().max().item()
    psnr = EQUAL_DB if rms == 0 else 20 * math.log10(peak / rms) if peak > 0 else -EQUAL_DB
    norm = expected.norm().item()
    relative = error.norm().item() / norm if norm > 0 else float(rms > 0)
    return Difference(relative, min(psnr, EQUAL_DB), error.abs().max().item())


def worst(differences: Mapping[str, Difference]) -> Difference:
    """The worst of each measure, over several results."""
    return Difference(
        max(each.relative_l2 for each in differences.values()),
        min(each.psnr_db for each in differences.values()),
        max(each.max_abs for each in differences.values()),
    )

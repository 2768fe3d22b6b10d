"""The Inception Score (Salimans et al., 2016)."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class InceptionScore(NamedTuple):
    """An Inception Score; higher is better, from 1 to the number of classes.

    Attributes:
        mean: over the splits.
        std: their standard deviation, of the population as in the field.
    """

    mean: float
    std: float


def inception_score(logits_NK: Tensor, splits: int = 10) -> InceptionScore:
    """exp E KL(p(y|x) || p(y)) of each split, p(y) being the split's mean; in float64.

    Splits are contiguous, in the given order: the value depends on it, and images drawn class after class give another
    than shuffled ones. Split i ends at floor((i + 1) N / splits), as in torch-fidelity; for 10 splits of 50,000 these
    are the splits of ADM's evaluator.

    Args:
        logits_NK: of N images. ADM's and torch-fidelity's scores are of logits without the last layer's bias.
        splits: how many.

    Raises:
        ValueError: if there are fewer images than splits, or logits that are not finite.
    """
    if logits_NK.ndim != 2 or not 1 <= splits <= len(logits_NK):
        raise ValueError(
            f"logits of shape {tuple(logits_NK.shape)} cannot be cut into {splits} splits; give (N, K) with at least "
            "one image a split"
        )
    if not logits_NK.isfinite().all():
        raise ValueError("logits hold NaN or infinity; look at the images, or extract in fp32")
    bounds = [i * len(logits_NK) // splits for i in range(splits + 1)]
    scores = torch.stack([_score(logits_NK[start:end]) for start, end in pairwise(bounds)])
    return InceptionScore(float(scores.mean()), float(scores.std(correction=0)))


def _score(logits_NK: Tensor) -> Tensor:
    log_NK = logits_NK.double().log_softmax(dim=1)
    log_mean_K = log_NK.logsumexp(dim=0) - math.log(len(log_NK))  # not the mean's log: of no class is it -inf
    divergence_N = (log_NK.exp() * (log_NK - log_mean_K)).sum(dim=1)
    return divergence_N.mean().exp()

"""How unlike each other the images of one prompt are, which tells mode collapse."""

import torch
from torch import Tensor

from snapgen_pl.at_least import check_at_least
from snapgen_pl.images import check_uint8, from_uint8
from snapgen_pl.metrics.lpips import LPIPS
from snapgen_pl.metrics.sample_metric import Score


def diversity(lpips: LPIPS, image_PNCHW: Tensor, batch_size: int = 8) -> Score:
    """The mean of :func:`mean_pairwise_lpips` over prompts, and its standard deviation over them.

    Args:
        lpips: the distance.
        image_PNCHW: uint8 RGB (P, N, 3, H, W): N images of each of P prompts.
        batch_size: images that are taken features of at a time.

    Raises:
        ValueError: if the images are no such images, or there are fewer than 2 of a prompt.
    """
    if image_PNCHW.ndim != 5 or not len(image_PNCHW):
        raise ValueError(
            f"expected images (P, N, 3, H, W) of 1 prompt or more, got {tuple(image_PNCHW.shape)}; stack those of a "
            "prompt, then the prompts"
        )
    values = [mean_pairwise_lpips(lpips, image_NCHW, batch_size) for image_NCHW in image_PNCHW]
    value_P = torch.tensor(values, dtype=torch.float64)
    return Score(float(value_P.mean()), float(value_P.std(correction=0)))


@torch.no_grad()
def mean_pairwise_lpips(lpips: LPIPS, image_NCHW: Tensor, batch_size: int = 8) -> float:
    """The mean distance of the N (N - 1) / 2 pairs of N images, which are each taken features of once.

    LPIPS is a squared Euclidean distance between features, so the mean over pairs is 2 / (N - 1) times the sum of the
    distances from the mean features. Both are gathered batch by batch (Chan et al., 1983): the memory is that of a
    batch's features, whatever N.

    Args:
        lpips: the distance; images are moved to where it lies.
        image_NCHW: uint8 RGB (N, 3, H, W).
        batch_size: images that are taken features of at a time.

    Raises:
        ValueError: if the images are no such images, or fewer than 2.
    """
    check_uint8(image_NCHW)
    if len(image_NCHW) < 2:
        raise ValueError(f"a prompt has {len(image_NCHW)} images; give 2 or more, whose distances are to be taken")
    check_at_least(1, batch_size=batch_size)
    count, mean, scatter = 0, list[Tensor](), 0.0
    for batch_BCHW in torch.split(image_NCHW, batch_size):
        layers = lpips.features(from_uint8(batch_BCHW.to(lpips.mean.device)))
        added, own = len(batch_BCHW), [layer.mean(dim=0, keepdim=True) for layer in layers]
        total = count + added
        scatter += float(lpips.distance(layers, own).double().sum())
        if count:
            scatter += count * added / total * float(lpips.distance(own, mean))
            own = [old.lerp(new, added / total) for old, new in zip(mean, own, strict=True)]
        count, mean = total, own
    return 2 / (count - 1) * scatter

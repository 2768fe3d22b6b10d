"""The nearest training image: what a sample would be a copy of, if it were one."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 16


class Neighbours(NamedTuple):
    """The nearest of the known images.

    Attributes:
        index_B: int64, their places in the order in which they were given.
        distance_B: root mean square over pixels and channels at 16 x 16, in [0, 255].
    """

    index_B: Tensor
    distance_B: Tensor


class NearestImages:
    """Searches images by L2 distance at 16 x 16 pixels, mirrored or not.

    Pixels rather than features, on purpose: a copy is near in pixels, and this takes no network. At 16 pixels neither
    a decoder's blur nor a shift by a pixel hides a copy.

    Args:
        batches: uint8 images (B, 3, H, W) to search among, at least one; 3 kB each are kept.
    """

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._known_NK = torch.cat([_thumbnails(batch) for batch in batches])

    def __len__(self) -> int:
        """How many images are known."""
        return len(self._known_NK)

    def search(self, image_BCHW: Tensor) -> Neighbours:
        """The nearest known image of each of these uint8 images."""
        squared_BN = torch.minimum(
            _squared_distance(_thumbnails(image_BCHW), self._known_NK),
            _squared_distance(_thumbnails(image_BCHW.flip(-1)), self._known_NK),
        )
        squared_B, index_B = squared_BN.min(dim=1)
        return Neighbours(index_B, (squared_B / self._known_NK.shape[1]).sqrt())


def _thumbnails(image_BCHW: Tensor) -> Tensor:
    pixels = image_BCHW.float().cpu()
    return F.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", antialias=True).flatten(1)


def _squared_distance(a_BK: Tensor, b_NK: Tensor) -> Tensor:
    """|a - b|^2 by differences: expanding the square would lose a copy's zero to rounding."""
    return torch.stack([(b_NK - a).square().sum(dim=1) for a in a_BK])

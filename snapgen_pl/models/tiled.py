"""Decoding in overlapping tiles: images of any size in the memory of one tile, by any decoder.

What a decoder makes of a tile differs from the whole image near the tile's edges, as far as its convolutions see, and
everywhere if it normalises or attends over all positions: the reference's norms take the statistics of each tile alone,
so colours may drift from tile to tile, and no overlap makes the image equal. ``pieces.py`` bounds memory less, exactly.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor


class Axis(NamedTuple):
    """The tiles along one side of a latent.

    Attributes:
        size: positions of a tile.
        starts: their first positions.
        overlap: of neighbours, at least; over so many positions from its edge, a tile's share grows.
    """

    size: int
    starts: list[int]
    overlap: int

    @staticmethod
    def cover(length: int, tile: int, overlap: int) -> "Axis":
        """As few tiles as cover a side, as small as they then can be, evenly laid.

        Args:
            length: of the side.
            tile: positions of a tile, at most.
            overlap: of neighbours, at least.
        """
        count = max(1, -(-(length - overlap) // (tile - overlap)))
        size = -(-(length + (count - 1) * overlap) // count)
        return Axis(size, [i * (length - size) // max(1, count - 1) for i in range(count)], overlap)

    def weight(self, start: int, scale: int) -> Tensor:
        """The share of a tile in each of its pixels, (scale * size,); all tiles' add up to one.

        Args:
            start: which tile.
            scale: pixels a position.
        """
        centre = torch.arange(scale * start, scale * (start + self.size)) + 0.5

        def ramps(first: int) -> Tensor:
            inside = torch.minimum(centre - scale * first, scale * (first + self.size) - centre)
            return (inside / (scale * self.overlap)).clamp(0, 1)  # a step where nothing overlaps

        return ramps(start) / torch.stack([ramps(first) for first in self.starts]).sum(0)


def decode_tiled(decode: Callable[[Tensor], Tensor], raw_BCHW: Tensor, tile: int, overlap: int) -> Tensor:
    """The image of raw latents, decoded tile by tile and blended linearly; latents that fit a tile are decoded whole.

    A decoder of convolutions alone gives the whole image's values wherever a single tile lies, if the overlap is at
    least as far as it sees to one side.

    Args:
        decode: latents (B, C, h, w) -> images (B, 3, s * h, s * w), s a whole number.
        raw_BCHW: raw latents.
        tile: positions along a tile's side, at most.
        overlap: positions that neighbouring tiles share, at least; at most half a tile.

    Raises:
        ValueError: for an overlap that does not fit the tile.
    """
    if tile < 1 or not 0 <= overlap <= tile // 2:
        raise ValueError(f"tile is {tile}, overlap {overlap}; need tile >= 1 and 0 <= overlap <= tile / 2")
    height, width = raw_BCHW.shape[-2:]
    rows, columns = Axis.cover(height, tile, overlap), Axis.cover(width, tile, overlap)
    scale, image_BCHW = 0, None
    for top, left in product(rows.starts, columns.starts):
        part_BCHW = decode(raw_BCHW[..., top : top + rows.size, left : left + columns.size])
        if image_BCHW is None:
            scale = part_BCHW.shape[-1] // columns.size
            image_BCHW = part_BCHW.new_zeros(*part_BCHW.shape[:2], scale * height, scale * width)
        weight_HW = torch.outer(rows.weight(top, scale), columns.weight(left, scale)).to(part_BCHW)
        own = image_BCHW[..., scale * top :, scale * left :][..., : len(weight_HW), : weight_HW.shape[1]]
        own += weight_HW * part_BCHW
    assert image_BCHW is not None
    return image_BCHW

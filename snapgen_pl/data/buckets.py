"""Aspect-ratio buckets: sizes of one area, of which each image takes the one nearest to its shape."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Size(NamedTuple):
    """Of an image, in pixels.

    Attributes:
        height: from top to bottom.
        width: from left to right.
    """

    height: int
    width: int

    @property
    def log_ratio(self) -> float:
        """The logarithm of height over width: 0 is square, and as much above as an image turned by 90 degrees below."""
        return math.log(self.height / self.width)


@dataclass(frozen=True)
class Buckets:
    """Sizes with about the area of one square, from wide to tall.

    Sides are multiples of ``step``; each has for its partner the one that brings the area nearest to the square's. With
    1024 px, steps of 64 and ratios of up to 2 these are 13 sizes from 768 x 1408 to 1408 x 768, no area more than 4 %
    from the square's.

    Args:
        image_size: side of the square, in pixels: the data's image_size.
        step: pixels, which ``image_size`` is a multiple of; itself a multiple of what autoencoder and denoiser divide
            by: 32 for SD3's and the reference.
        ratio: of the longer side to the shorter, at most. Images of other shapes take the last size, and lose more.
        group: images of one size in a row, in training. What one process takes at once must divide it, now and on
            however many processes the run goes on later.

    Raises:
        ValueError: for values out of range.
    """

    image_size: int
    step: int = 64
    ratio: float = 2.0
    group: int = 16

    def __post_init__(self) -> None:
        if self.step < 1 or self.image_size < 1 or self.image_size % self.step:
            raise ValueError(
                f"buckets.image_size is {self.image_size}, buckets.step {self.step}; the step must divide the size"
            )
        if not (math.isfinite(self.ratio) and self.ratio >= 1):
            raise ValueError(f"buckets.ratio is {self.ratio}; it is the longer side over the shorter, at least 1")
        if self.group < 1:
            raise ValueError(f"buckets.group is {self.group}; at least 1 image must stand in a row")

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """All of them, from the widest to the tallest."""
        longest = min(self.image_size * self.ratio, self.image_size**2 / self.step)
        sides = range(self.step, math.floor(longest) + 1, self.step)
        pairs = [(side, self._partner(side)) for side in sides]
        kept = [pair for pair in pairs if max(pair) <= self.ratio * min(pair)]
        # Both ways round: a side need not be its partner's partner.
        found = {Size(*pair) for pair in kept} | {Size(*reversed(pair)) for pair in kept}
        return tuple(sorted(found, key=lambda size: size.log_ratio))

    def index(self, size: Size) -> int:
        """The place in ``sizes`` of what an image takes: the nearest log ratio, and of two as near the wider."""
        return min(range(len(self.sizes)), key=lambda index: abs(self.sizes[index].log_ratio - size.log_ratio))

    def neighbour(self, index: int, others: Iterable[int]) -> int:
        """Of other places in ``sizes``, that of the nearest shape; of two as near the first."""
        shape = self.sizes[index].log_ratio
        return min(others, key=lambda other: abs(self.sizes[other].log_ratio - shape))

    def _partner(self, side: int) -> int:
        exact = self.image_size**2 / side / self.step
        return self.step * min(math.floor(exact), math.ceil(exact), key=lambda steps: abs(math.log(steps / exact)))

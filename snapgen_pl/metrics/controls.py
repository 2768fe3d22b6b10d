"""Images whose quality is known: what a metric's value is to be read against."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Control(NamedTuple):
    """Training images after a known loss.

    Attributes:
        name: its name in logs, after the metric's.
        degrade: uint8 (B, 3, H, W) -> the same shape.
    """

    name: str
    degrade: Callable[[Tensor], Tensor]


def reduced(image_BCHW: Tensor, side: int) -> Tensor:
    """Images reduced to ``side`` pixels and back, bicubic with antialiasing; uint8 in and out."""
    size = image_BCHW.shape[-2:]
    small = F.interpolate(image_BCHW.float(), size=(side, side), mode="bicubic", antialias=True)
    restored = F.interpolate(small, size=size, mode="bicubic", antialias=True)
    return restored.round().clamp(0, 255).to(image_BCHW.dtype)


def unchanged(image_BCHW: Tensor) -> Tensor:
    """The images themselves."""
    return image_BCHW


REAL = Control("real", unchanged)
CONTROLS = (
    REAL,
    Control("16px", partial(reduced, side=16)),
    Control("8px", partial(reduced, side=8)),
)

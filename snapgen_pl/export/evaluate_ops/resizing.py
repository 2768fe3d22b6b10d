"""Resizing of the last two axes."""

import math

import torch
from torch import Tensor

from snapgen_pl.export.evaluate_ops.arguments import Arguments, Function


def upsample_nearest_neighbor(a: Arguments) -> Tensor:
    """Repeats rows and columns."""
    return _repeated(a.tensor("x"), a.number("scale_factor_height", 1), a.number("scale_factor_width", 1))


def resize_nearest_neighbor(a: Arguments) -> Tensor:
    """Repeats rows and columns, to a target size."""
    x = a.tensor("x")
    rows, columns = (a.integer(f"target_size_{axis}") for axis in ("height", "width"))
    return _repeated(x, rows / x.shape[-2], columns / x.shape[-1])


def _repeated(x: Tensor, rows: float, columns: float) -> Tensor:
    """Other than whole factors are refused: which neighbour is taken then, Core ML does not say."""
    if int(rows) != rows or int(columns) != columns or min(rows, columns) < 1:
        raise ValueError(f"it resizes by {rows:g} x {columns:g}; export with whole factors")
    return x.repeat_interleave(int(rows), dim=-2).repeat_interleave(int(columns), dim=-1)


def upsample_bilinear(a: Arguments) -> Tensor:
    """Linear interpolation along rows and columns."""
    x, align = a.tensor("x"), a.flag("align_corners", True)
    if a.flag("half_pixel_centers", not align):
        grid = _half_pixel_grid
        if align:
            raise ValueError("it aligns both corners and half pixels; export with one of them")
    else:
        grid = _corner_grid if align else _left_grid
    for axis, name in ((-2, "scale_factor_height"), (-1, "scale_factor_width")):
        size = x.shape[axis]
        x = _interpolated(x, axis, grid(size, math.floor(size * a.number(name, 1))).clamp(0, size - 1))
    return x


def _corner_grid(size: int, count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64) * ((size - 1) / max(count - 1, 1))


def _half_pixel_grid(size: int, count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) * (size / count) - 0.5


def _left_grid(size: int, count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64) * (size / count)


def _interpolated(x: Tensor, axis: int, grid: Tensor) -> Tensor:
    """Values between the neighbours at fractional positions of an axis."""
    low = grid.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    share = (grid - low).float().view(-1, *[1] * (-1 - axis))
    return x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share


RESIZING: dict[str, Function] = {
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "upsample_bilinear": upsample_bilinear,
}

"""Operations that arrange elements anew."""

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.export.evaluate_ops.arguments import IOS17, Arguments, Function


def reshape(a: Arguments) -> Tensor:
    """To a shape, in which 0 keeps the axis at the same distance from the last, and -1 is what is left."""
    x, shape = a.tensor("x"), a.ints("shape")
    if 0 in shape and len(shape) != x.ndim and a.spec_version < IOS17:
        raise ValueError(f"it reshapes rank {x.ndim} to {shape}, where 0 has no meaning before iOS 17; target iOS 17")
    sizes = [1] * len(shape) + list(x.shape)
    return x.reshape([size or sizes[axis - len(shape)] for axis, size in enumerate(shape)])


def transpose(a: Arguments) -> Tensor:
    """Axes in the order perm."""
    return a.tensor("x").permute(a.ints("perm"))


def expand_dims(a: Arguments) -> Tensor:
    """An axis of size 1 at each of axes, which count in the result."""
    x, axes = a.tensor("x"), a.ints("axes")
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(a: Arguments) -> Tensor:
    """Without those of axes, all by default, that have size 1."""
    x = a.tensor("x")
    return x.squeeze(a.ints("axes", range(x.ndim)))


def concat(a: Arguments) -> Tensor:
    """One after the other along an axis."""
    if a.flag("interleave", False):
        raise ValueError("it interleaves, which is not evaluated; stack and reshape instead")
    return torch.cat(a.tensors("values"), a.integer("axis"))


def split(a: Arguments) -> list[Tensor]:
    """Into split_sizes, or into num_splits equal parts."""
    x, axis = a.tensor("x"), a.integer("axis")
    if a.has("split_sizes"):
        sizes = a.ints("split_sizes")
        if a.integer("num_splits", len(sizes)) != len(sizes):
            raise ValueError(f"it splits into {a.integer('num_splits')} parts of sizes {sizes}; export it again")
        return list(torch.split(x, sizes, axis))
    count = a.integer("num_splits")
    if x.shape[axis] % count:
        raise ValueError(f"it splits {x.shape[axis]} into {count} equal parts; export the package again")
    return list(torch.split(x, x.shape[axis] // count, axis))


def tile(a: Arguments) -> Tensor:
    """Repeats the whole along each axis."""
    return a.tensor("x").repeat(a.ints("reps"))


def pad(a: Arguments) -> Tensor:
    """Pads the last axes: with a constant, with the edge, or with the mirrored inside."""
    x, sizes, mode, constant = a.tensor("x"), a.ints("pad"), a.text("mode", "constant"), a.number("constant_val", 0)
    pairs = list(zip(sizes[::2], sizes[1::2], strict=True))
    if mode == "constant":
        return F.pad(x, [size for pair in reversed(pairs) for size in pair], value=constant)
    for axis, (before, after) in zip(range(x.ndim - len(pairs), x.ndim), pairs, strict=True):
        last = x.shape[axis] - 1
        positions = torch.arange(-before, last + 1 + after)
        if mode == "replicate":
            positions = positions.clamp(0, last)
        elif mode == "reflect" and max(before, after) <= last:
            positions = last - (last - positions.abs()).abs()
        else:
            raise ValueError(f"it pads {x.shape[axis]} by {before}, {after} in mode '{mode}'; export the package again")
        x = x.index_select(axis, positions)
    return x


def pixel_shuffle(a: Arguments) -> Tensor:
    """(B, C f f, H, W) -> (B, C, H f, W f), the channel first."""
    return F.pixel_shuffle(a.tensor("x"), a.integer("upscale_factor"))


def depth_to_space(a: Arguments) -> Tensor:
    """(B, b b C, H, W) -> (B, C, H b, W b), the place in the block first, as TensorFlow's."""
    x, block = a.tensor("x"), a.integer("block_size")
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(batch, channels // block**2, height * block, width * block)


def upsample_nearest_neighbor(a: Arguments) -> Tensor:
    """Repeats rows and columns; other than whole factors are refused: which neighbour then, Core ML does not say."""
    rows, columns = (a.number(f"scale_factor_{axis}", 1) for axis in ("height", "width"))
    if int(rows) != rows or int(columns) != columns or min(rows, columns) < 1:
        raise ValueError(f"it resizes by {rows:g} x {columns:g}; export with whole factors")
    return a.tensor("x").repeat_interleave(int(rows), dim=-2).repeat_interleave(int(columns), dim=-1)


SHAPES: dict[str, Function] = {
    "reshape": reshape,
    "transpose": transpose,
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "concat": concat,
    "split": split,
    "tile": tile,
    "pad": pad,
    "pixel_shuffle": pixel_shuffle,
    "depth_to_space": depth_to_space,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
}

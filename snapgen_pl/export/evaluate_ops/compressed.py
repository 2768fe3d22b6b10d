"""Weights that a package holds compressed."""

import numpy as np
import torch
from torch import Tensor

from snapgen_pl.export.constant import unpack
from snapgen_pl.export.evaluate_ops.arguments import Arguments, Function


def affine_dequantize(a: Arguments) -> Tensor:
    """scale (quantized_data - zero_point), one of each for all, or one for each position on an axis."""
    data, axis = a.tensor("quantized_data").float(), a.integer("axis")
    scale, zero = (_along(a.tensor(name).float(), axis, data) for name in ("scale", "zero_point"))
    return scale * (data - zero)


def _along(vector: Tensor, axis: int, data: Tensor) -> Tensor:
    if vector.numel() == 1:
        return vector.reshape(())
    shape = [1] * data.ndim
    shape[axis] = data.shape[axis]
    return vector.reshape(shape)


def blockwise_shift_scale(a: Arguments) -> Tensor:
    """scale (data - offset), one of each for equal blocks of data."""
    data, scale, offset = a.tensor("data").float(), a.tensor("scale"), a.optional("offset")
    if offset is not None:
        if offset.shape != scale.shape:
            raise ValueError(f"its offset is {tuple(offset.shape)}, its scale {tuple(scale.shape)}; export it again")
        data = data - _spread(offset.float(), data.shape)
    return _spread(scale, data.shape) * data


def _spread(blocks: Tensor, shape: torch.Size) -> Tensor:
    """Repeats each block's number over the block."""
    for axis, (count, size) in enumerate(zip(blocks.shape, shape, strict=True)):
        if size % count:
            raise ValueError(f"{count} blocks do not divide {size} elements; export the package again")
        blocks = blocks.repeat_interleave(size // count, axis)
    return blocks


def lut_to_dense(a: Arguments) -> Tensor:
    """The table's entries that indices name: iOS 16's packed ones with a shape, or iOS 18's."""
    if a.has("shape"):
        return _from_one_table(a.tensor("indices"), a.tensor("lut"), a.ints("shape"))
    axis = a.integer("vector_axis") if a.has("vector_axis") else None
    return _from_tables(a.tensor("indices"), a.tensor("lut"), axis)


def _from_one_table(packed: Tensor, table: Tensor, shape: list[int]) -> Tensor:
    bits = len(table).bit_length() - 1
    if 2**bits != len(table):
        raise ValueError(f"its table has {len(table)} entries, no power of 2; export the package again")
    indices = unpack(packed.numpy(), bits, int(np.prod(shape, dtype=np.int64)))
    return table[torch.from_numpy(indices).long()].reshape(shape)


def _from_tables(indices: Tensor, tables: Tensor, axis: int | None) -> Tensor:
    """Tables (..., entries, vector), one for each of equal blocks of indices."""
    *groups, entries, width = tables.shape
    number = _spread(torch.arange(int(np.prod(groups, dtype=np.int64))).reshape(groups), indices.shape)
    vectors = tables.reshape(-1, width)[number * entries + _bounded(indices.long(), entries)]
    if axis is None:
        if width != 1:
            raise ValueError(f"its table has vectors of {width} but no vector_axis; export the package again")
        return vectors.squeeze(-1)
    axis %= indices.ndim
    return vectors.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _bounded(indices: Tensor, entries: int) -> Tensor:
    if int(indices.max()) >= entries:
        raise ValueError(f"it reads entry {int(indices.max())} of a table of {entries}; export the package again")
    return indices


def sparse_to_dense(a: Arguments) -> Tensor:
    """The next of nonzero_data where the mask is set, 0 elsewhere: iOS 16's packed mask with a shape, or iOS 18's."""
    data, mask = a.tensor("nonzero_data"), a.tensor("mask")
    if a.has("shape"):
        shape = a.ints("shape")
        mask = torch.from_numpy(unpack(mask.numpy(), 1, int(np.prod(shape, dtype=np.int64)))).reshape(shape)
    kept = mask.bool()
    if int(kept.sum()) != len(data):
        raise ValueError(f"its mask keeps {int(kept.sum())} elements, there are {len(data)}; export the package again")
    dense = torch.zeros(mask.shape, dtype=data.dtype)
    dense[kept] = data
    return dense


def cast(a: Arguments) -> Tensor:
    """fp16 held as fp32."""
    if a.text("output_dtype") != "fp32":
        raise ValueError(f"it casts to '{a.text('output_dtype')}', known is fp32; export the package again")
    return a.tensor("source_val")


COMPRESSED: dict[str, Function] = {
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_sparse_to_dense": sparse_to_dense,
    "constexpr_cast": cast,
}

"""Convolutions, matrix products and attention."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.export.evaluate_ops.arguments import Arguments, Function

Pads = list[tuple[int, int]]  # before and after each spatial axis
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


def conv(a: Arguments) -> Tensor:
    """A convolution over 1 to 3 spatial axes."""
    x, weight, axes = a.tensor("x"), a.tensor("weight"), a.tensor("x").ndim - 2
    strides, dilations = a.ints("strides", [1] * axes), a.ints("dilations", [1] * axes)
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True)]
    pads = _pads(a, x.shape[2:], extents, strides)
    x = F.pad(x, [size for pair in reversed(pads) for size in pair])  # which takes the last axis first
    return _CONVOLUTIONS[axes - 1](x, weight, a.optional("bias"), strides, 0, dilations, a.integer("groups", 1))


def _pads(a: Arguments, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> Pads:
    """What pad_type and pad ask for.

    ``same`` gives ceil(size / stride) results. Core ML's text has two rules for where its padding goes. Here it is as
    little as gives that size, and an odd row goes after the input (before it for ``same_lower``): that is TensorFlow's
    SAME, which coremltools converts to ``same``.

    Args:
        a: the operation's arguments.
        sizes: of the input's spatial axes.
        kernel: the extent of a dilated window.
        strides: steps of the window.
    """
    kind, pad = a.text("pad_type", "valid"), a.ints("pad", [0] * (2 * len(sizes)))
    if kind == "custom":
        return list(zip(pad[::2], pad[1::2], strict=True))
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind not in ("same", "same_lower"):
        raise ValueError(f"its pad_type '{kind}' is unknown; export the package again")
    totals = [
        max(0, stride * math.ceil(size / stride) - size + extent - stride)
        for size, extent, stride in zip(sizes, kernel, strides, strict=True)
    ]
    return [(t // 2, t - t // 2) if kind == "same" else (t - t // 2, t // 2) for t in totals]


def linear(a: Arguments) -> Tensor:
    """x weight^T + bias."""
    return F.linear(a.tensor("x"), a.tensor("weight"), a.optional("bias"))


def matmul(a: Arguments) -> Tensor:
    """x y over the last two axes, the others broadcast; a vector has nothing to transpose."""
    x, y = a.tensor("x"), a.tensor("y")
    if a.flag("transpose_x", False) and x.ndim > 1:
        x = x.mT
    if a.flag("transpose_y", False) and y.ndim > 1:
        y = y.mT
    return torch.matmul(x, y)


def einsum(a: Arguments) -> Tensor:
    """Products summed over the letters that the result lacks; axes of size 1 broadcast, except for summed ones."""
    values, equation = a.tensors("values"), a.text("equation").replace(" ", "")
    left, _, right = equation.partition("->")
    letters = left.split(",")
    for letter in sorted(set(left) - {","} - set(right)):
        sizes = {
            value.shape[axis]
            for axes, value in zip(letters, values, strict=True)
            for axis in range(len(axes))
            if axes[axis] == letter
        }
        if len(sizes) != 1:
            raise ValueError(
                f"'{equation}' sums over '{letter}' of the sizes {sorted(sizes)}; export the package again"
            )
    return torch.einsum(equation, *values)


def scaled_dot_product_attention(a: Arguments) -> Tensor:
    """softmax(query key^T / sqrt(E) + mask) value; a boolean mask says which keys take part."""
    query, mask = a.tensor("query"), a.optional("attn_mask")
    scores = query @ a.tensor("key").mT / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1) @ a.tensor("value")


PRODUCTS: dict[str, Function] = {
    "conv": conv,
    "linear": linear,
    "matmul": matmul,
    "einsum": einsum,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}

"""Convolutions and pooling."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.export.evaluate_ops.arguments import Arguments, Function

Pads = list[tuple[int, int]]  # before and after each spatial axis
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_AVERAGES: tuple[Callable[..., Tensor], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_MAXIMA: tuple[Callable[..., Tensor], ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def _pairs(pad: Sequence[int]) -> Pads:
    return list(zip(pad[::2], pad[1::2], strict=True))


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
        return _pairs(pad)
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind not in ("same", "same_lower"):
        raise ValueError(f"its pad_type '{kind}' is unknown; export the package again")
    totals = [
        max(0, stride * math.ceil(size / stride) - size + extent - stride)
        for size, extent, stride in zip(sizes, kernel, strides, strict=True)
    ]
    return [(t // 2, t - t // 2) if kind == "same" else (t - t // 2, t // 2) for t in totals]


def _padded(x: Tensor, pads: Pads, value: float = 0) -> Tensor:
    """F.pad takes the last axis first; negative sizes crop."""
    return F.pad(x, [size for pair in reversed(pads) for size in pair], value=value)


def _extents(weight: Tensor, dilations: Sequence[int]) -> list[int]:
    return [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True)]


def conv(a: Arguments) -> Tensor:
    """A convolution over 1 to 3 spatial axes."""
    x, weight, axes = a.tensor("x"), a.tensor("weight"), a.tensor("x").ndim - 2
    strides, dilations = a.ints("strides", [1] * axes), a.ints("dilations", [1] * axes)
    x = _padded(x, _pads(a, x.shape[2:], _extents(weight, dilations), strides))
    groups = a.integer("groups", 1)
    return _CONVOLUTIONS[axes - 1](x, weight, a.optional("bias"), strides, 0, dilations, groups)


def conv_transpose(a: Arguments) -> Tensor:
    """A transposed convolution, from whose full result the padding is cropped.

    Where the result is larger than what the windows reach (a stride beyond the kernel, or an output_shape that says
    so), the rest is the bias.
    """
    x, weight, axes = a.tensor("x"), a.tensor("weight"), a.tensor("x").ndim - 2
    strides, dilations = a.ints("strides", [1] * axes), a.ints("dilations", [1] * axes)
    groups, bias, shape = a.integer("groups", 1), a.optional("bias"), a.ints("output_shape", [])
    kind, pads = a.text("pad_type", "valid"), _pairs(a.ints("pad", [0] * (2 * axes)))
    full = _TRANSPOSED[axes - 1](x, weight, None, strides, 0, 0, groups, dilations)
    crops = []
    for axis, (size, stride) in enumerate(zip(full.shape[2:], strides, strict=True)):
        before, after = pads[axis] if kind == "custom" else (0, 0)
        if kind == "same":
            after = size - (shape[axis + 2] if shape else stride * x.shape[axis + 2])
            before = max(after, 0) // 2
            after -= before
        elif kind not in ("valid", "custom"):
            raise ValueError(f"its pad_type '{kind}' is unknown; export the package again")
        crops.append((-before, shape[axis + 2] - size + before if shape else -after))
    result = _padded(full, crops)
    return result if bias is None else result + bias.view(-1, *[1] * axes)


def avg_pool(a: Arguments) -> Tensor:
    """Means over windows; padding counts as zeros unless it is excluded, what ceil_mode adds never counts."""
    x, kernel, strides, pads, extra = _pooling(a)
    counted = torch.ones_like(x[:1, :1])
    if not a.flag("exclude_padding_from_average", False):
        counted = _padded(counted, pads, value=1)
    else:
        counted = _padded(counted, pads)
    pool = _AVERAGES[len(kernel) - 1]
    x, counted = _padded(_padded(x, pads), extra), _padded(counted, extra)
    return pool(x, kernel, strides) / pool(counted, kernel, strides)


def max_pool(a: Arguments) -> Tensor:
    """Maxima over windows; padding is below every number."""
    x, kernel, strides, pads, extra = _pooling(a)
    return _MAXIMA[len(kernel) - 1](_padded(_padded(x, pads, -math.inf), extra, -math.inf), kernel, strides)


def _pooling(a: Arguments) -> tuple[Tensor, list[int], list[int], Pads, Pads]:
    """Input, window, steps, padding, and what ceil_mode adds after the padding so that the last window fits."""
    x, kernel = a.tensor("x"), a.ints("kernel_sizes")
    strides = a.ints("strides", [1] * len(kernel))
    pads, ceil, extra = _pads(a, x.shape[2:], kernel, strides), a.flag("ceil_mode", False), []
    for size, window, stride, (before, after) in zip(x.shape[2:], kernel, strides, pads, strict=True):
        total = size + before + after
        count = (total - window + (stride - 1 if ceil else 0)) // stride + 1
        if ceil and before + after > 0 and (count - 1) * stride >= size + before:
            count -= 1  # the last window would begin in the padding after the input
        extra.append((0, max(0, (count - 1) * stride + window - total)))
    return x, kernel, strides, pads, extra


WINDOWS: dict[str, Function] = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "avg_pool": avg_pool,
    "max_pool": max_pool,
}

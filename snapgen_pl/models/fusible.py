"""Operations as plain arithmetic in channels_last, for torch.compile.

Of torch's own it makes gradients in another layout, which convolutions copy back, or adds them up one by one.

Axes in names: B batch, H and W height and width, G groups, C channels, or those of a group.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F


def compiled() -> bool:
    """Whether torch.compile traces a pass whose gradients are wanted. torch.export does not, but in its strict mode."""
    return torch.compiler.is_dynamo_compiling() and torch.is_grad_enabled()


def group_norm(x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float) -> Tensor:
    """torch's group_norm, computed in fp32, its result in the type of ``x_BCHW``."""
    x_BHWGC = torch.unflatten(x_BCHW.float().permute(0, 2, 3, 1), -1, (groups, -1))
    out: Tensor = _GroupNorm.apply(x_BHWGC, weight_C.view(groups, -1), bias_C.view(groups, -1), eps)  # type: ignore[no-untyped-call]
    return out.flatten(3).permute(0, 3, 1, 2).to(x_BCHW.dtype)


def depthwise(x_BCHW: Tensor, weight: Tensor) -> Tensor:
    """A depthwise convolution of 3x3 that keeps the map's size, in the type of ``x_BCHW``; weight is (C, 1, 3, 3)."""
    out: Tensor = _Depthwise.apply(x_BCHW, weight.to(x_BCHW.dtype))  # type: ignore[no-untyped-call]
    return out


def joined(x_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
    """Channels of both, one after the other; each gets a gradient of its own, no view into one of both."""
    out: Tensor = _Joined.apply(x_BCHW, skip_BCHW)  # type: ignore[no-untyped-call]
    return out


def doubled(x_BCHW: Tensor) -> Tensor:
    """Each position as a square of four: (B, C, H, W) -> (B, C, 2H, 2W)."""
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    squares = x_BHWC[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
    return squares.flatten(1, 2).flatten(2, 3).permute(0, 3, 1, 2)


def linear_halves(x_BSC: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of a linear layer's output, by two products.

    Halves of one product have gradients that must be joined: a kernel computes both for each number, and takes one.
    """
    first, second = (F.linear(x_BSC, *half) for half in zip(weight.chunk(2), bias.chunk(2), strict=True))
    return first, second


class _GroupNorm(Function):
    """The gradient reads its two maps twice, and writes one; derived by autograd it would read a third time."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_BHWGC: Tensor, weight_GC: Tensor, bias_GC: Tensor, eps: float) -> Tensor:
        variance, mean = torch.var_mean(x_BHWGC, dim=(1, 2, 4), correction=0, keepdim=True)
        deviation = (variance + eps).sqrt()
        scale = weight_GC / deviation
        ctx.save_for_backward(x_BHWGC, weight_GC, mean, deviation)
        return x_BHWGC * scale + (bias_GC - mean * scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """With z = (x - mean) / deviation: (w g - mean(w g) - z mean(w g z)) / deviation, means over a group."""
        x, weight_GC, mean, deviation = ctx.saved_tensors
        gradient = gradients[0]
        bias = gradient.sum((1, 2), keepdim=True)
        weight = ((gradient * x).sum((1, 2), keepdim=True) - mean * bias) / deviation  # sum of g z
        _, height, width, _, channels = x.shape
        count = height * width * channels
        mean_g = (weight_GC * bias).sum(-1, keepdim=True) / count
        slope = (weight_GC * weight).sum(-1, keepdim=True) / (count * deviation.square())
        own = gradient * (weight_GC / deviation) - x * slope + (mean * slope - mean_g / deviation)
        return own, weight.sum((0, 1, 2)), bias.sum((0, 1, 2)), None


class _Depthwise(Function):
    """The map's gradient by a convolution, whose kernel takes cuDNN half as long as that of the gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_BCHW: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight)
        return F.conv2d(x_BCHW, weight, padding=1, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x_BCHW, weight = ctx.saved_tensors
        of_map = F.conv2d(gradients[0], weight.flip(2, 3), padding=1, groups=len(weight))
        convolution = None, [1, 1], [1, 1], [1, 1], False, [0, 0], len(weight)
        wanted = [False, True, False]
        of_weight: Tensor = torch.ops.aten.convolution_backward(gradients[0], x_BCHW, weight, *convolution, wanted)[1]
        return of_map, of_weight


class _Joined(Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
        ctx.widths = x_BCHW.shape[1], skip_BCHW.shape[1]
        return torch.cat((x_BCHW, skip_BCHW), dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        parts = torch.split(gradients[0], ctx.widths, dim=1)
        return tuple(part.contiguous(memory_format=torch.channels_last) for part in parts)

"""Decoding stage by stage in square pieces: the same image in less time and memory, for drawing on a CPU.

Stages without norms see no farther than their convolutions, so each piece is computed from the square that it depends
on. Pieces' maps stay near the cache, in memory that is used again; whole ones are new memory each, which costs a CPU as
much as the arithmetic. The middle, on the latent's grid, runs whole.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from math import isqrt
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_pl.models.decoder import Decoder
from snapgen_pl.models.latent_decoder import LatentDecoder
from snapgen_pl.models.layers import Upsample

PIXELS = 2**14  # of a piece; with 256 channels in fp32 a map of it takes 16 MiB


def decode_for_drawing(decoder: LatentDecoder, raw_BCHW: Tensor) -> Tensor:
    """Decodes in pieces where that is faster: on a CPU in fp32, without gradients or a graph, by stages without norms.

    Args:
        decoder: any.
        raw_BCHW: as in :meth:`LatentDecoder.forward`.
    """
    eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    # In bf16 a CPU's transposed depthwise convolution is slow: pieces take twice as long as the whole.
    single = raw_BCHW.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    on_cpu = raw_BCHW.device.type == "cpu"
    if eager and single and on_cpu and isinstance(decoder, Decoder) and not _normalises(decoder):
        return decode_in_pieces(decoder, raw_BCHW)
    image_BCHW: Tensor = decoder(raw_BCHW)
    return image_BCHW


def decode_in_pieces(decoder: Decoder, raw_BCHW: Tensor, pixels: int = PIXELS) -> Tensor:
    """What ``decoder`` makes of raw latents, equal but for rounding, without gradients.

    The largest map that is held whole is the last stage's output: 128 channels in the reference configuration.

    Args:
        decoder: any whose stages have no norm.
        raw_BCHW: as in :meth:`Decoder.forward`.
        pixels: of each stage's output in a piece, about; those that neighbours recompute come on top.

    Raises:
        ValueError: for a decoder with a normalised stage, or pieces without pixels.
    """
    if _normalises(decoder):
        raise ValueError("a stage with norm: true needs whole maps; call the decoder itself")
    if pixels < 1:
        raise ValueError(f"pixels is {pixels}; a piece needs at least 1")
    side = isqrt(pixels)
    norm, _, last = cast(tuple[nn.GroupNorm, nn.SiLU, nn.Conv2d], tuple(decoder.output))
    with torch.no_grad():
        x_BCHW = decoder.coarse(raw_BCHW)
        for i, stage in enumerate(decoder.stages):
            layers = list(cast(nn.Sequential, stage))
            x_BCHW = _in_pieces(partial(_through, layers), x_BCHW, 1 if i == 0 else 2, _reach(stage), side)
        scale_BC11, shift_BC11 = _affine(norm, x_BCHW, side)

        def output(piece_BCHW: Tensor) -> Tensor:
            image_BCHW: Tensor = last(F.silu(torch.addcmul(shift_BC11, piece_BCHW, scale_BC11), inplace=True))
            return image_BCHW

        return _in_pieces(output, x_BCHW, 1, 1, side)


def _normalises(decoder: Decoder) -> bool:
    return any(isinstance(module, nn.GroupNorm) for module in decoder.stages.modules())


def _reach(stage: nn.Module) -> int:
    """Rows above and below that a row of a stage's output depends on, and columns: one a 3x3 convolution."""
    return sum(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in stage.modules())


def _through(layers: Sequence[nn.Module], x_BCHW: Tensor) -> Tensor:
    for layer in layers:
        x_BCHW = doubled(layer, x_BCHW) if isinstance(layer, Upsample) else layer(x_BCHW)
    return x_BCHW


def doubled(layer: Upsample, x_BCHW: Tensor) -> Tensor:
    """Nearest-neighbour doubling and a 3x3 convolution, as one transposed convolution: no doubled map is written.

    A position stands for 2x2 of the doubled map, so its kernel is 4x4: the 3x3 one, turned, over a box of 2x2.
    """
    spatial, *pointwise = layer.conv if isinstance(layer.conv, nn.Sequential) else [layer.conv]
    assert isinstance(spatial, nn.Conv2d)
    kernel = F.avg_pool2d(spatial.weight.flip(2, 3), 2, stride=1, padding=1, divisor_override=1)
    if spatial.groups == 1:
        kernel = kernel.transpose(0, 1)
    x_BCHW = F.conv_transpose2d(x_BCHW, kernel, spatial.bias, stride=2, padding=1, groups=spatial.groups)
    for conv in pointwise:
        x_BCHW = conv(x_BCHW)
    return x_BCHW


def _in_pieces(function: Callable[[Tensor], Tensor], x_BCHW: Tensor, scale: int, reach: int, side: int) -> Tensor:
    """A map through a function that makes it ``scale`` times as high and wide."""
    sizes = x_BCHW.shape[-2:]
    # As many pieces as come nearest to the side asked for, all but the last of one size.
    steps = [-(-size // max(1, round(scale * size / side))) for size in sizes]
    halo = -(-reach // scale)
    out_BCHW: Tensor | None = None
    for top, left in product(*(range(0, size, step) for size, step in zip(sizes, steps, strict=True))):
        first, second = max(0, top - halo), max(0, left - halo)
        piece_BCHW = function(x_BCHW[:, :, first : top + steps[0] + halo, second : left + steps[1] + halo])
        if out_BCHW is None:
            shape = *piece_BCHW.shape[:2], scale * sizes[0], scale * sizes[1]
            out_BCHW = torch.empty(
                shape, dtype=piece_BCHW.dtype, device=piece_BCHW.device, memory_format=torch.channels_last
            )
        own_BCHW = out_BCHW[:, :, scale * top :, scale * left :][:, :, : scale * steps[0], : scale * steps[1]]
        inner_BCHW = piece_BCHW[:, :, scale * (top - first) :, scale * (left - second) :]
        own_BCHW.copy_(inner_BCHW[:, :, : own_BCHW.shape[2], : own_BCHW.shape[3]])
    assert out_BCHW is not None
    return out_BCHW


def _affine(norm: nn.GroupNorm, x_BCHW: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """What a norm multiplies each channel of a map by, and adds: its statistics without the map that it would write."""
    batch, channels, height, width = x_BCHW.shape
    shares: list[float] = []
    means: list[Tensor] = []
    squares: list[Tensor] = []
    for rows_BCHW in torch.split(x_BCHW, -(-(side**2) // width), dim=2):
        positions = rows_BCHW.shape[2] * width
        precise = torch.promote_types(rows_BCHW.dtype, torch.float32)  # statistics come in their input's precision
        rows_BCHW = rows_BCHW.to(precise).contiguous(memory_format=torch.channels_last)
        _, mean_BG, rstd_BG = torch.native_group_norm(
            rows_BCHW, None, None, batch, channels, positions, norm.num_groups, norm.eps
        )
        shares.append(positions / (height * width))
        means.append(mean_BG.double())
        squares.append(rstd_BG.double() ** -2 + means[-1] ** 2)  # epsilon included

    def overall(each: list[Tensor]) -> Tensor:
        weighted_BG = torch.stack([share * own_BG for share, own_BG in zip(shares, each, strict=True)]).sum(0)
        return weighted_BG.repeat_interleave(channels // norm.num_groups, dim=1)

    mean_BC = overall(means)
    scale_BC = norm.weight * (overall(squares) - mean_BC**2).rsqrt()
    shift_BC = norm.bias - mean_BC * scale_BC
    return scale_BC.to(x_BCHW)[..., None, None], shift_BC.to(x_BCHW)[..., None, None]

"""Decoding stage by stage in strips of rows: the same image from less memory, in about the same time.

Stages without norms see no farther than their convolutions, so each strip is computed from the rows that it depends on.
What is normalised, the middle and the output, runs whole.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from snapgen_pl.models.decoder import Decoder

PIXELS = 2**14  # of a strip; with 256 channels in fp32 it takes 16 MiB


def decode_in_strips(decoder: Decoder, raw_BCHW: Tensor, pixels: int = PIXELS) -> Tensor:
    """What ``decoder`` makes of raw latents, equal but for rounding, without gradients.

    The largest map that is held whole is the last stage's output, twice while it is normalised: 128 channels each in
    the reference configuration.

    Args:
        decoder: any whose stages have no norm.
        raw_BCHW: as in :meth:`Decoder.forward`.
        pixels: of each stage's output in a strip, at least; those that neighbours recompute come on top.

    Raises:
        ValueError: for a decoder with a normalised stage, or strips without pixels.
    """
    if any(isinstance(module, nn.GroupNorm) for module in decoder.stages.modules()):
        raise ValueError("a stage with norm: true needs whole maps; call the decoder itself, or decode_tiled")
    if pixels < 1:
        raise ValueError(f"pixels is {pixels}; a strip needs at least 1")
    with torch.no_grad():
        x = decoder.coarse(raw_BCHW)
        for i, stage in enumerate(decoder.stages):
            x = _in_strips(stage, x, 1 if i == 0 else 2, _reach(stage), pixels)
        image_BCHW: Tensor = decoder.output(x)
    return image_BCHW


def _reach(stage: nn.Module) -> int:
    """Rows above and below that a row of a stage's output depends on: one a 3x3 convolution."""
    return sum(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in stage.modules())


def _in_strips(stage: Callable[[Tensor], Tensor], x_BCHW: Tensor, scale: int, reach: int, pixels: int) -> Tensor:
    """A map through a stage that makes it ``scale`` times as high and wide."""
    height, width = x_BCHW.shape[-2:]
    rows = -(-pixels // (scale**2 * width))
    halo = -(-reach // scale)
    out_BCHW: Tensor | None = None
    for top in range(0, height, rows):
        first = max(0, top - halo)
        strip_BCHW = stage(x_BCHW[:, :, first : top + rows + halo])
        if out_BCHW is None:
            shape = *strip_BCHW.shape[:2], scale * height, scale * width
            out_BCHW = torch.empty(
                shape, dtype=strip_BCHW.dtype, device=strip_BCHW.device, memory_format=torch.channels_last
            )
        own_BCHW = out_BCHW[:, :, scale * top :][:, :, : scale * rows]
        own_BCHW.copy_(strip_BCHW[:, :, scale * (top - first) :][:, :, : own_BCHW.shape[2]])
    assert out_BCHW is not None
    return out_BCHW

"""The tiny decoder (SnapGen, section on the tiny decoder), declared as a list of stages.

The decoder of SDXL and SD3 is the base; every step from it to SnapGen's is an argument, so each rung of the ladder is
one configuration of this class (``experiments/decoder/ladder``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_pl.models.attention import attend
from snapgen_pl.models.latent_decoder import LatentDecoder
from snapgen_pl.models.layers import GROUPS, Convolution, Upsample, conv3x3, zero

EPS = 1e-6  # of every norm, as in the decoders of SDXL and SD3


@dataclass(frozen=True)
class Stage:
    """One resolution of the decoder.

    Attributes:
        channels: its width; a multiple of 32 where a norm sees it.
        blocks: its blocks, at least one.
        norm: whether they normalise what they see.
    """

    channels: int
    blocks: int
    norm: bool = False


REFERENCE = (Stage(256, 3), Stage(256, 3), Stage(256, 1), Stage(128, 1))


class Decoder(LatentDecoder):
    """Raw latents to images over stages; the defaults are the reference configuration (1.383 M parameters).

    The middle and the output are always normalised, stages where they say so.

    Args:
        stages: resolutions from the coarsest up, each twice the grid of the one before; None is REFERENCE.
        middle_blocks: blocks before the stages, on the latent's grid.
        middle_attention: whether positions attend to each other after the first of them.
        in_channels: channels of the latent.
        convolution: kind of the convolutions in blocks and upsampling.
        shortcut: whether blocks that change the width have a 1x1 convolution beside them, or else nothing.

    Raises:
        ValueError: where the stages do not fit together.
    """

    def __init__(
        self,
        stages: list[Stage] | None = None,
        middle_blocks: int = 1,
        middle_attention: bool = False,
        in_channels: int = 16,
        convolution: Convolution = "separable",
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        stages = list(REFERENCE) if stages is None else stages
        _check(stages, middle_blocks)
        self.in_channels, self.upsampling = in_channels, 2 ** (len(stages) - 1)

        def blocks(count: int, channels_in: int, channels_out: int, norm: bool) -> list[nn.Module]:
            widths = [channels_in, *[channels_out] * count]
            return [DecoderBlock(*pair, convolution, shortcut, norm) for pair in pairwise(widths)]

        channels = stages[0].channels
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        middle = blocks(middle_blocks, channels, channels, norm=True)
        if middle_attention:
            middle.insert(1, Attention(channels))
        self.middle = nn.Sequential(*middle)

        self.stages = nn.ModuleList()
        for stage in stages:
            upsample = [Upsample(channels, convolution)] if len(self.stages) else []
            self.stages.append(nn.Sequential(*upsample, *blocks(stage.blocks, channels, stage.channels, stage.norm)))
            channels = stage.channels
        self.output = nn.Sequential(
            nn.GroupNorm(GROUPS, channels, EPS), nn.SiLU(inplace=True), nn.Conv2d(channels, 3, 3, padding=1)
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs

    def forward(self, raw_BCHW: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> images (B, 3, upsampling * h, upsampling * w), about [-1, 1], not clamped."""
        x = self.coarse(raw_BCHW)
        for stage in self.stages:
            x = stage(x)
        image_BCHW: Tensor = self.output(x)
        return image_BCHW

    @property
    def last(self) -> nn.Conv2d:
        """See the contract."""
        layer = self.output[-1]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def coarse(self, raw_BCHW: Tensor) -> Tensor:
        """What the stages start from, on the latent's grid: (B, channels of the first stage, h, w)."""
        x: Tensor = self.middle(self.conv_in(raw_BCHW.contiguous(memory_format=torch.channels_last)))
        return x


class DecoderBlock(nn.Module):
    """(GroupNorm-)SiLU-conv twice; beside it the input, through a 1x1 shortcut or not at all where the width changes.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kind: dense or separable convolutions.
        shortcut: whether there is a 1x1 convolution where the width changes.
        norm: whether there are norms.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: Convolution, shortcut: bool, norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, in_channels, EPS) if norm else nn.Identity()
        self.conv1 = conv3x3(kind, in_channels, out_channels)
        self.norm2 = nn.GroupNorm(GROUPS, out_channels, EPS) if norm else nn.Identity()
        self.conv2 = conv3x3(kind, out_channels, out_channels)
        self.shortcut: nn.Module | None = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if shortcut else None
        if self.shortcut is not None:
            zero(self.conv2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        h: Tensor = self.conv1(F.silu(self.norm1(x_BCHW)))
        # In place: at 1024 px a map has up to 1 GB, and new memory costs a CPU more than the activation does.
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return h if self.shortcut is None else h.add_(self.shortcut(x_BCHW))


class Attention(nn.Module):
    """Self-attention over all positions with one head, a residual branch: in the middle of SDXL's and SD3's decoders.

    Args:
        channels: channels in and out, a multiple of 32.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, EPS)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        zero(self.out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x_BSC: Tensor = self.norm(x_BCHW).permute(0, 2, 3, 1).flatten(1, 2)
        q, k, v = self.qkv(x_BSC)[:, None].chunk(3, dim=-1)
        out: Tensor = self.out(attend(q, k, v)).unflatten(1, x_BCHW.shape[-2:]).permute(0, 3, 1, 2)
        return x_BCHW + out


def _check(stages: Sequence[Stage], middle_blocks: int) -> None:
    if not stages:
        raise ValueError("stages is empty; a decoder needs at least one")
    if middle_blocks < 1:
        raise ValueError(f"middle_blocks is {middle_blocks}; a decoder needs at least one")
    for i, stage in enumerate(stages):
        if stage.channels < 1 or stage.blocks < 1:
            raise ValueError(f"stage {i}: {stage.channels} channels, {stage.blocks} blocks; need at least one of each")
    normalised = {stages[0].channels, stages[-1].channels}  # by the middle and the output
    for before, stage in pairwise([stages[0], *stages]):
        normalised |= {before.channels, stage.channels} if stage.norm else set()
    for channels in sorted(normalised):
        if channels % GROUPS:
            raise ValueError(f"a norm sees {channels} channels; need a multiple of {GROUPS}")

"""Building blocks of UNet and decoder: convolutions, residual blocks, transformer attachments, time embedding.

Everything runs in channels_last, where flattening (B, C, H, W) to (B, S, C) for the transformer is a view.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_pl.models.attention import RotaryTable, TransformerLayer, rotary_table
from snapgen_pl.models.fusible import compiled, depthwise, doubled, group_norm, joined

Convolution = Literal["dense", "separable"]
GROUPS = 32


def conv3x3(kind: Convolution, in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    """A dense 3x3 convolution, or its separable form: depthwise 3x3 then pointwise (paper, step c).

    That the separable form has no bias is decided here.
    """
    if kind == "dense":
        return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
    return nn.Sequential(Depthwise(in_channels, stride), nn.Conv2d(in_channels, out_channels, 1, bias=False))


class Depthwise(nn.Conv2d):
    """3x3, a channel at a time, without bias."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__(channels, channels, 3, stride, padding=1, groups=channels, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), or half of the height and width."""
        if compiled() and self.stride == (1, 1):
            return depthwise(x_BCHW, self.weight)
        return super().forward(x_BCHW)


def zero(module: nn.Module) -> None:
    """Starts a residual branch at nothing: sets the last layer's parameters to zero."""
    last = module[-1] if isinstance(module, nn.Sequential) else module
    for parameter in last.parameters():
        nn.init.zeros_(parameter)


class TimeEmbedding(nn.Module):
    """Sinusoid of 1000 t, cosines first, then Linear-SiLU-Linear (SDXL's).

    Args:
        sinusoid_dim: width of the sinusoid.
        embedding_dim: width of the embedding.
    """

    def __init__(self, sinusoid_dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.sinusoid_dim = sinusoid_dim
        self.mlp = embedding_mlp(sinusoid_dim, embedding_dim)

    def forward(self, t_B: Tensor) -> Tensor:
        """Times in [0, 1] -> (B, embedding width)."""
        weight = next(self.mlp.parameters())
        embedding: Tensor = self.mlp(sinusoid(1000 * t_B, self.sinusoid_dim).to(weight.dtype))
        return embedding


def sinusoid(position_B: Tensor, dim: int) -> Tensor:
    """cos and sin of position * 10000^(-i / (dim / 2)), in fp32: (B, dim)."""
    half = dim // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=position_B.device, dtype=torch.float32) / half)
    angle = position_B.float()[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def embedding_mlp(in_dim: int, out_dim: int) -> nn.Sequential:
    """Linear-SiLU-Linear to the embedding width."""
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim))


class GroupNorm(nn.GroupNorm):
    """In 32 groups."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(GROUPS, channels, eps)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if compiled():
            return group_norm(x_BCHW, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(x_BCHW)


class NormSiLU(GroupNorm):
    """GroupNorm, then SiLU."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return F.silu(super().forward(x_BCHW))


class ResidualBlock(nn.Module):
    """GroupNorm-SiLU-conv + time, GroupNorm-SiLU-conv, and a 1x1 shortcut where the width changes.

    Args:
        in_channels: channels in, those of a skip connection included; a multiple of 32.
        out_channels: channels out, a multiple of 32.
        embedding_dim: width of the time embedding.
        kind: dense or separable convolutions.
        expansion: inner over outer channels (paper, step c: 2).
    """

    def __init__(
        self, in_channels: int, out_channels: int, embedding_dim: int, kind: Convolution, expansion: int
    ) -> None:
        super().__init__()
        inner = expansion * out_channels
        self.norm1 = NormSiLU(in_channels)
        self.conv1 = conv3x3(kind, in_channels, inner)
        self.time = nn.Linear(embedding_dim, inner)
        self.norm2 = NormSiLU(inner)
        self.conv2 = conv3x3(kind, inner, out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        zero(self.conv2)

    def forward(self, x_BCHW: Tensor, time_BE: Tensor, skip_BCHW: Tensor | None = None) -> Tensor:
        """``time_BE`` is the time embedding after its SiLU, which all blocks share; a skip connection is joined here.

        Where activations are recomputed, what is joined is not kept.
        """
        x = x_BCHW
        if skip_BCHW is not None:
            x = joined(x_BCHW, skip_BCHW) if compiled() else torch.cat((x_BCHW, skip_BCHW), dim=1)
        h: Tensor = self.conv1(self.norm1(x)) + self.time(time_BE)[:, :, None, None]
        out: Tensor = self.shortcut(x) + self.conv2(self.norm2(h))
        return out


class Transformer(nn.Module):
    """A transformer attached to a feature map: GroupNorm, projection, layers, projection, residual.

    Args:
        channels: channels of the feature map.
        layers: number of transformer layers.
        self_attention: as in TransformerLayer, like the remaining arguments.
        kv_heads: see TransformerLayer.
        head_dim: see TransformerLayer.
        ffn_ratio: see TransformerLayer.
        qk_norm: see TransformerLayer.
        rope: turns self-attention's queries and keys by their positions.
        rope_side: of the square feature map whose positions lie 1 apart; on others they are scaled, and centred, so
            that maps of every size cover one area. None is 1 apart on all.
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        self_attention: bool,
        kv_heads: int | None,
        head_dim: int,
        ffn_ratio: int,
        qk_norm: bool,
        rope: bool,
        rope_side: float | None = None,
    ) -> None:
        super().__init__()
        self.rope_side = rope_side
        self.rope_dim = head_dim if rope and self_attention else None
        self.norm = GroupNorm(channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.layers = nn.ModuleList(
            TransformerLayer(channels, self_attention, kv_heads, head_dim, ffn_ratio, qk_norm) for _ in range(layers)
        )
        self.proj_out = nn.Linear(channels, channels)
        zero(self.proj_out)

    def forward(
        self,
        x_BCHW: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        mask_BS: Tensor | None,
        table: RotaryTable | None,
    ) -> Tensor:
        """``keys`` and ``values`` hold one prepared tensor a layer; ``table`` is that of :meth:`rotary_table`."""
        height, width = x_BCHW.shape[-2:]
        x_BSC: Tensor = self.proj_in(self.norm(x_BCHW).permute(0, 2, 3, 1).flatten(1, 2))
        for layer, key, value in zip(self.layers, keys, values, strict=True):
            x_BSC = layer(x_BSC, key, value, mask_BS, table)
        out: Tensor = self.proj_out(x_BSC).unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return x_BCHW + out

    def rotary_table(self, x_BCHW: Tensor) -> RotaryTable | None:
        """What turns queries and keys on a map of this size, computed once; None where nothing does.

        Given from outside, a compiled region reads it, where it would compute it anew at each position.
        """
        if self.rope_dim is None:
            return None
        height, width = x_BCHW.shape[-2:]
        # By the area, so that rows and columns of an oblong map keep one scale.
        step = None if self.rope_side is None else self.rope_side / math.sqrt(height * width)
        return rotary_table(height, width, self.rope_dim, x_BCHW.device, step)


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution: dense in the UNet, of either kind in the decoder."""

    def __init__(self, channels: int, kind: Convolution = "dense") -> None:
        super().__init__()
        self.conv = conv3x3(kind, channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        larger = doubled(x_BCHW) if compiled() else F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest")
        out: Tensor = self.conv(larger)
        return out

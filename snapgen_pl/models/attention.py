"""Attention of the UNet: multi-query, query/key-normalised, with rotary positions (paper, steps b, d, e, f).

That positions are rotary is stated; that they are axial, half a head for rows and half for columns, is decided here.

Axes in names: B batch, S positions or tokens, N heads, K key/value heads, D head width, C channels.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_pl.models.fusible import compiled, linear_halves

ROPE_BASE = 10_000.0


class RotaryTable(NamedTuple):
    """What :func:`rotate` multiplies a head and its swapped halves by.

    Attributes:
        cos_SD: each half of the width has the cosines of all pairs.
        sin_SD: likewise the sines, in the first half with a minus.
    """

    cos_SD: Tensor
    sin_SD: Tensor


def _positions(count: int, step: float | None, device: torch.device) -> Tensor:
    position = torch.arange(count, device=device, dtype=torch.float32)
    return position if step is None else (position - (count - 1) / 2) * step


def _rotary_table(
    height: int, width: int, head_dim: int, device: torch.device, step: float | None = None
) -> RotaryTable:
    quarter = head_dim // 4
    frequency = ROPE_BASE ** (-torch.arange(quarter, device=device, dtype=torch.float32) / quarter)
    rows = _positions(height, step, device)[:, None] * frequency
    columns = _positions(width, step, device)[:, None] * frequency
    angle = torch.cat(
        (rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)),
        dim=-1,
    ).flatten(0, 1)
    cos, sin = angle.cos(), angle.sin()
    return RotaryTable(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


_cached_rotary_table = lru_cache(maxsize=32)(_rotary_table)


def rotary_table(
    height: int, width: int, head_dim: int, device: torch.device, step: float | None = None
) -> RotaryTable:
    """Tables for a grid: half of each head turns with the row, half with the column.

    Args:
        height: of the grid.
        width: of the grid.
        head_dim: width of a head.
        device: where to.
        step: from one position to the next, the grid's centre being 0; None for the integers from 0 on.

    Eager calls are cached per size. A tracing compiler computes the table inside its graph: a cache filled while
    tracing would hold fake tensors.
    """
    if torch.compiler.is_compiling():
        return _rotary_table(height, width, head_dim, device, step)
    with torch.inference_mode(False):  # a table made while validating serves training too
        return _cached_rotary_table(height, width, head_dim, device, step)


def rotate(x_BSND: Tensor, table: RotaryTable) -> Tensor:
    """Turns each pair (x_i, x_{i + D/2}) by its position's angle."""
    cos, sin = (part.to(x_BSND.dtype)[:, None] for part in table)
    first, second = x_BSND.chunk(2, dim=-1)
    return x_BSND * cos + torch.cat((second, first), dim=-1) * sin


def attend(q_BNSD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask_BS: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention. Returns (B, S, N * D).

    Grouped heads are read in place, never repeated; with a mask besides, that takes cuDNN's kernel on a GPU, as from
    Hopper on. On others torch holds all scores, and training on texts wants more memory than ``table memory`` says.
    """
    mask = None if mask_BS is None else mask_BS[:, None, None]
    grouped = q_BNSD.shape[1] != k_BKSD.shape[1]
    out = F.scaled_dot_product_attention(q_BNSD, k_BKSD, v_BKSD, attn_mask=mask, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(2)


class RMSNorm(nn.RMSNorm):
    """torch's, with gains in the type of what it norms: under autocast they differ, and torch would not fuse it."""

    def forward(self, x: Tensor) -> Tensor:
        """x / rms(x) * gains over the last axis."""
        gains = self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, gains, self.eps)


class SelfAttention(nn.Module):
    """Self-attention with one fused query/key/value projection.

    Args:
        channels: width C.
        heads: query heads N.
        kv_heads: key/value heads K; 1 is multi-query.
        head_dim: width D of a head.
        qk_norm: RMS-normalises queries and keys, with learned gains.
    """

    def __init__(self, channels: int, heads: int, kv_heads: int, head_dim: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.qkv = nn.Linear(channels, (heads + 2 * kv_heads) * head_dim, bias=False)
        self.q_norm = RMSNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.out = nn.Linear(heads * head_dim, channels)

    def forward(self, x_BSC: Tensor, table: RotaryTable | None) -> Tensor:
        """Attends among positions; ``table`` turns queries and keys after their norm."""
        qkv_BSND = self.qkv(x_BSC).unflatten(-1, (-1, self.head_dim))
        q, k, v = qkv_BSND.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        q, k = self.q_norm(q), self.k_norm(k)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        out: Tensor = self.out(attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)))
        return out


class CrossAttention(nn.Module):
    """Cross-attention to keys and values that :class:`ContextProjection` prepared; arguments as in SelfAttention."""

    def __init__(self, channels: int, heads: int, head_dim: int, qk_norm: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q = nn.Linear(channels, heads * head_dim, bias=False)
        self.q_norm = RMSNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.out = nn.Linear(heads * head_dim, channels)

    def forward(self, x_BSC: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask_BS: Tensor | None) -> Tensor:
        """Attends from positions to context tokens."""
        q_BSND = self.q_norm(self.q(x_BSC).unflatten(-1, (-1, self.head_dim)))
        out: Tensor = self.out(attend(q_BSND.transpose(1, 2), k_BKSD, v_BKSD, mask_BS))
        return out


class ContextProjection(nn.Module):
    """The keys and values of every cross-attention layer by one matrix product, and the key norms.

    It depends on neither x nor t, so a sampler runs it once a prompt.

    Args:
        context_dim: width of the context tokens.
        kv_heads: key/value heads of each cross-attention layer, in the order of execution.
        head_dim: width of a head.
        qk_norm: RMS-normalises keys, with learned gains a layer.
    """

    def __init__(self, context_dim: int, kv_heads: Sequence[int], head_dim: int, qk_norm: bool) -> None:
        super().__init__()
        self.kv_heads, self.head_dim = list(kv_heads), head_dim
        self.kv = nn.Linear(context_dim, 2 * sum(kv_heads) * head_dim, bias=False)
        self.k_gains = nn.Parameter(torch.ones(len(self.kv_heads), head_dim)) if qk_norm else None

    def forward(self, tokens_BSD: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Context tokens -> keys and values, one (B, K, S, D) pair a layer."""
        k, v = self.kv(tokens_BSD).unflatten(-1, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4).contiguous()
        if self.k_gains is not None:
            heads = [gain.expand(count, -1) for gain, count in zip(self.k_gains, self.kv_heads, strict=True)]
            gains = torch.cat(heads)[:, None].to(k.dtype)
            k = F.rms_norm(k, (self.head_dim,), eps=1e-6) * gains
        return k.split(self.kv_heads, dim=1), v.split(self.kv_heads, dim=1)


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020, arXiv 2002.05202): out(value * GELU(gate)), the inner width ``ratio`` times the outer."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * ratio * channels)
        self.out = nn.Linear(ratio * channels, channels)

    def forward(self, x_BSC: Tensor) -> Tensor:
        """(B, S, C) -> (B, S, C)."""
        if compiled():
            value, gate = linear_halves(x_BSC, self.proj.weight, self.proj.bias)
        else:
            value, gate = self.proj(x_BSC).chunk(2, dim=-1)
        out: Tensor = self.out(value * F.gelu(gate))
        return out


class TransformerLayer(nn.Module):
    """Self-attention (optional), cross-attention and feed-forward, each a pre-normalised residual branch.

    Args:
        channels: width C, a multiple of ``head_dim``.
        self_attention: whether positions attend to each other (paper, step b: in the lowest resolution alone).
        kv_heads: key/value heads; None gives every query head its own.
        head_dim: width of a head.
        ffn_ratio: inner over outer width of the feed-forward.
        qk_norm: RMS-normalises queries and keys.
    """

    def __init__(
        self, channels: int, self_attention: bool, kv_heads: int | None, head_dim: int, ffn_ratio: int, qk_norm: bool
    ) -> None:
        super().__init__()
        heads = channels // head_dim
        self.self_norm = nn.LayerNorm(channels) if self_attention else None
        self.self_attention = (
            SelfAttention(channels, heads, kv_heads or heads, head_dim, qk_norm) if self_attention else None
        )
        self.cross_norm = nn.LayerNorm(channels)
        self.cross_attention = CrossAttention(channels, heads, head_dim, qk_norm)
        self.ffn_norm = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, ffn_ratio)

    def forward(
        self, x_BSC: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask_BS: Tensor | None, table: RotaryTable | None
    ) -> Tensor:
        """One layer on flattened positions, with this layer's prepared context keys and values."""
        x: Tensor = x_BSC
        if self.self_attention is not None and self.self_norm is not None:
            x = x + self.self_attention(self.self_norm(x), table)
        x = x + self.cross_attention(self.cross_norm(x), k_BKSD, v_BKSD, mask_BS)
        ffn: Tensor = self.ffn(self.ffn_norm(x))
        return x + ffn

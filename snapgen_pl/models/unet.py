"""The efficient UNet (SnapGen, section on the efficient architecture), declared as a list of stages.

SDXL's UNet is the base; every step from it to SnapGen is an argument, so each row of the ablation is one
configuration of this class (``experiments/imagenet256/ablation``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from snapgen_pl.models.attention import ContextProjection
from snapgen_pl.models.denoiser import VELOCITY, Conditioning, Denoiser, PreparedConditioning
from snapgen_pl.models.layers import (
    GROUPS,
    Convolution,
    NormSiLU,
    ResidualBlock,
    TimeEmbedding,
    Transformer,
    Upsample,
    conv3x3,
    embedding_mlp,
    zero,
)


@dataclass(frozen=True)
class Block:
    """A residual block with a transformer attached, or either alone.

    Attributes:
        residual: whether the block has its residual block.
        layers: layers of its transformer; 0 is none.
    """

    residual: bool = True
    layers: int = 0


@dataclass(frozen=True)
class Stage:
    """One resolution of the UNet.

    Attributes:
        channels: its width, a multiple of 32 and of the head width.
        down: blocks on the way down.
        up: blocks on the way up: one more than down, each with its residual block, which joins a skip connection.
        self_attention: whether its transformers have self-attention.
    """

    channels: int
    down: list[Block] = field(default_factory=lambda: [Block()] * 2)
    up: list[Block] = field(default_factory=lambda: [Block()] * 3)
    self_attention: bool = False


REFERENCE = (
    Stage(256, down=[Block(residual=False, layers=1)] * 2, up=[Block()] * 3),
    Stage(512, down=[Block(layers=2)] * 2, up=[Block(layers=2)] * 3),
    Stage(896, down=[Block(layers=4)] * 2, up=[Block(layers=4)] * 3, self_attention=True),
)


class UNetBlock(nn.Module):
    """A residual block, a transformer, or one after the other; knows which context layers are its own."""

    def __init__(self, residual: ResidualBlock | None, transformer: Transformer | None, first_layer: int) -> None:
        super().__init__()
        self.residual = residual
        self.transformer = transformer
        self.first_layer = first_layer

    def forward(
        self, x_BCHW: Tensor, time_BE: Tensor, context: PreparedConditioning, skip_BCHW: Tensor | None = None
    ) -> Tensor:
        """One block on a feature map; only residual blocks join a skip connection."""
        x = x_BCHW
        if self.residual is not None:
            x = self.residual(x, time_BE, skip_BCHW)
        if self.transformer is not None:
            own = slice(self.first_layer, self.first_layer + len(self.transformer.layers))
            table = self.transformer.rotary_table(x)
            x = self.transformer(x, context.keys[own], context.values[own], context.mask_BS, table)
        return x


Levels = Sequence[Sequence[UNetBlock]]  # nn.ModuleList has no element type


class UNet(Denoiser):
    """A UNet over stages; the defaults are the reference configuration (372.4 M parameters at 4 latent channels).

    Args:
        stages: resolutions from the finest down, each half the grid of the one before; None is REFERENCE.
        middle_layers: transformer layers between the middle's two residual blocks.
        in_channels: channels of the latent.
        context_dim: width of the context tokens: 768 for ImageNet's class texts, 2304 for text-to-image.
        pooled_dim: width of the pooled vector added to the time embedding; None for none. SDXL's is 2816.
        convolution: kind of the convolutions in residual blocks and downsampling (paper, step c).
        expansion: inner over outer channels of residual blocks (paper, step c).
        ffn_ratio: inner over outer width of feed-forwards (paper, step d).
        head_dim: width of an attention head.
        kv_heads: key/value heads; 1 is multi-query (paper, step f), None gives every query head its own.
        qk_norm: RMS-normalises queries and keys (paper, step f).
        rope: rotary positions in self-attention (paper, step f); axial ones, decided here.
        rope_size: side of the square latent on which rotary positions lie 1 apart; on others they are scaled, and
            centred, so that latents of every size cover one area. None, decided here, is 1 apart on all.
        activation_checkpointing: recomputes blocks in the backward pass, for less memory and about a third more time.

    Raises:
        ValueError: where the stages do not fit together.
    """

    def __init__(
        self,
        stages: list[Stage] | None = None,
        middle_layers: int = 4,
        in_channels: int = 4,
        context_dim: int = 768,
        pooled_dim: int | None = None,
        convolution: Convolution = "separable",
        expansion: int = 2,
        ffn_ratio: int = 3,
        head_dim: int = 64,
        kv_heads: int | None = 1,
        qk_norm: bool = True,
        rope: bool = True,
        rope_size: int | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        stages = list(REFERENCE) if stages is None else stages
        _check(stages, head_dim, kv_heads)
        if rope_size is not None and not (rope and rope_size >= 1):
            raise ValueError(f"rope_size is {rope_size}, rope {rope}; it is a side of at least 1, and needs rope: true")
        self.in_channels, self.context_dim, self.pooled_dim = in_channels, context_dim, pooled_dim
        self.activation_checkpointing = activation_checkpointing
        tapped = {f"down.{i}": i for i in range(len(stages))} | {"middle": len(stages) - 1}
        tapped |= {f"up.{i}": i for i in reversed(range(len(stages)))}
        self.feature_channels = {name: stages[i].channels for name, i in tapped.items()}
        self.feature_strides = {name: 2**i for name, i in tapped.items()}

        first, last = stages[0], stages[-1]
        embedding_dim = 4 * first.channels
        self.time = TimeEmbedding(first.channels, embedding_dim)
        self.pooled = None if pooled_dim is None else embedding_mlp(pooled_dim, embedding_dim)
        layer_heads: list[int] = []  # key/value heads of each cross-attention layer, in the order of execution

        def residual_block(channels_in: int, channels_out: int) -> ResidualBlock:
            return ResidualBlock(channels_in, channels_out, embedding_dim, convolution, expansion)

        def block(declared: Block, level: int, channels_in: int) -> UNetBlock:
            stage = stages[level]
            residual = residual_block(channels_in, stage.channels) if declared.residual else None
            transformer = None
            start = len(layer_heads)
            if declared.layers:
                rope_side = None if rope_size is None else rope_size / 2**level
                transformer = Transformer(
                    stage.channels,
                    declared.layers,
                    stage.self_attention,
                    kv_heads,
                    head_dim,
                    ffn_ratio,
                    qk_norm,
                    rope,
                    rope_side,
                )
                layer_heads.extend([kv_heads or stage.channels // head_dim] * declared.layers)
            return UNetBlock(residual, transformer, start)

        self.conv_in = nn.Conv2d(in_channels, first.channels, 3, padding=1)
        skips = [first.channels]
        channels = first.channels
        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        for level, stage in enumerate(stages):
            blocks = nn.ModuleList()
            for declared in stage.down:
                blocks.append(block(declared, level, channels))
                channels = stage.channels
                skips.append(channels)
            self.down.append(blocks)
            if stage is not last:
                self.downsample.append(conv3x3(convolution, channels, channels, stride=2))
                skips.append(channels)

        lowest = len(stages) - 1
        self.middle = nn.ModuleList(
            [block(Block(layers=middle_layers), lowest, channels), block(Block(), lowest, last.channels)]
        )

        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for level, stage in reversed(list(enumerate(stages))):
            blocks = nn.ModuleList()
            for declared in stage.up:
                blocks.append(block(declared, level, channels + skips.pop()))
                channels = stage.channels
            self.up.append(blocks)
            if stage is not first:
                self.upsample.append(Upsample(channels))

        self.context = ContextProjection(context_dim, layer_heads, head_dim, qk_norm)
        self.norm_out = NormSiLU(first.channels)
        self.conv_out = nn.Conv2d(first.channels, in_channels, 3, padding=1)
        zero(self.conv_out)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs

    def regions(self) -> Iterator[nn.Module]:
        """Parts with norms or pointwise work; unlike units, they do not know which context layers are theirs."""
        kinds = (ResidualBlock, Transformer, Upsample)
        yield from (part for part in self.modules() if isinstance(part, kinds))
        yield self.norm_out

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """All keys and values of cross-attention, and the pooled vector's embedding.

        Raises:
            ValueError: where the pooled vector is missing, or given to a network that takes none.
        """
        if (conditioning.pooled_BP is None) != (self.pooled is None):
            has, takes = conditioning.pooled_BP is not None, self.pooled is not None
            raise ValueError(f"pooled vector given: {has}, taken by this UNet: {takes}; set pooled_dim to match")
        keys, values = self.context(conditioning.tokens_BSD)
        embedding = self.pooled(conditioning.pooled_BP) if self.pooled is not None else None
        return PreparedConditioning(keys, values, conditioning.mask_BS, embedding)

    def outputs(self, x_BCHW: Tensor, t_B: Tensor, conditioning: PreparedConditioning) -> Iterator[tuple[str, Tensor]]:
        """The stages' outputs before they change resolution, and noise - data."""
        embedding = self.time(t_B)
        if conditioning.embedding_BE is not None:
            embedding = embedding + conditioning.embedding_BE
        time_BE = F.silu(embedding)
        run = _recomputed if self.activation_checkpointing and torch.is_grad_enabled() else _run

        x = self.conv_in(x_BCHW.contiguous(memory_format=torch.channels_last))
        skips = [x]
        for i, blocks in enumerate(cast(Levels, self.down)):
            for block in blocks:
                x = run(block, x, time_BE, conditioning)
                skips.append(x)
            yield f"down.{i}", x
            if i < len(self.downsample):
                x = self.downsample[i](x)
                skips.append(x)
        for block in cast(Sequence[UNetBlock], self.middle):
            x = run(block, x, time_BE, conditioning)
        yield "middle", x
        for i, blocks in enumerate(cast(Levels, self.up)):
            for block in blocks:
                x = run(block, x, time_BE, conditioning, skips.pop())
            yield f"up.{len(self.up) - 1 - i}", x
            if i < len(self.upsample):
                x = self.upsample[i](x)
        yield VELOCITY, self.conv_out(self.norm_out(x))


def _run(
    block: UNetBlock, x_BCHW: Tensor, time_BE: Tensor, context: PreparedConditioning, skip_BCHW: Tensor | None = None
) -> Tensor:
    out: Tensor = block(x_BCHW, time_BE, context, skip_BCHW)
    return out


def _recomputed(
    block: UNetBlock, x_BCHW: Tensor, time_BE: Tensor, context: PreparedConditioning, skip_BCHW: Tensor | None = None
) -> Tensor:
    out: Tensor = checkpoint(block, x_BCHW, time_BE, context, skip_BCHW, use_reentrant=False)
    return out


def _check(stages: Sequence[Stage], head_dim: int, kv_heads: int | None) -> None:
    if not stages:
        raise ValueError("stages is empty; a UNet needs at least one")
    channels = stages[0].channels
    for i, stage in enumerate(stages):
        if stage.channels % GROUPS or stage.channels % head_dim:
            raise ValueError(
                f"stage {i}: {stage.channels} channels; need a multiple of {GROUPS} and of head_dim {head_dim}"
            )
        if kv_heads and (stage.channels // head_dim) % kv_heads:
            raise ValueError(
                f"stage {i}: {stage.channels // head_dim} heads do not share {kv_heads} key/value heads evenly"
            )
        if len(stage.up) != len(stage.down) + 1 or not all(block.residual for block in stage.up):
            raise ValueError(
                f"stage {i}: up needs {len(stage.down) + 1} blocks, one more than down, all with residual: true"
            )
        if not stage.down:
            raise ValueError(f"stage {i}: down is empty; a stage needs at least one block")
        if stage.channels != channels and not stage.down[0].residual:
            raise ValueError(
                f"stage {i}: its first block changes {channels} to {stage.channels} channels; it needs residual: true"
            )
        if not all(block.residual or block.layers for block in stage.down):
            raise ValueError(f"stage {i}: a block with residual: false and layers: 0 does nothing; remove it")
        channels = stage.channels

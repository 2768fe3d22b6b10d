"""U-ViT (Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models", CVPR 2023, arXiv 2209.12152).

Two rows of the ImageNet table. Time, context and patches are tokens of one sequence, and long skip connections join
the first blocks to the last.

Axes in names: B batch, S tokens (context, time, patches, in this order) or context tokens, E hidden width, C channels,
H and W height and width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from snapgen_pl.models.attention import attend
from snapgen_pl.models.denoiser import VELOCITY, Conditioning, Denoiser, PreparedConditioning
from snapgen_pl.models.layers import sinusoid
from snapgen_pl.models.peers.patches import to_grid, unpatch

_INIT_STD = 0.02


class UViTBlock(nn.Module):
    """Self-attention and MLP, each a pre-normalised residual branch, after a long skip connection is joined.

    Args:
        hidden: width E, a multiple of ``heads``.
        heads: attention heads.
        mlp_ratio: inner over outer width of the MLP.
        skip: whether a long skip connection ends here.
    """

    def __init__(self, hidden: int, heads: int, mlp_ratio: int, skip: bool) -> None:
        super().__init__()
        self.heads = heads
        self.skip = nn.Linear(2 * hidden, hidden) if skip else nn.Identity()
        self.attention_norm = nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden)
        self.mlp_norm = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, mlp_ratio * hidden), nn.GELU(), nn.Linear(mlp_ratio * hidden, hidden)
        )

    def forward(self, x_BSE: Tensor, skip_BSE: Tensor | None, mask_BS: Tensor | None) -> Tensor:
        """``skip_BSE`` is the output of the block where the long skip connection begins, None where none ends here."""
        x = x_BSE if skip_BSE is None else self.skip(torch.cat((x_BSE, skip_BSE), dim=-1))
        x = x + self._attend(self.attention_norm(x), mask_BS)
        mlp: Tensor = self.mlp(self.mlp_norm(x))
        return x + mlp

    def _attend(self, x_BSE: Tensor, mask_BS: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x_BSE).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out(attend(q, k, v, mask_BS))
        return out


class UViT(Denoiser):
    """A transformer over one sequence of everything; the defaults are U-ViT-H/2 without its label table.

    The class arrives as context tokens: give it one learned token a class, of width ``hidden``, and the network is the
    paper's. U-ViT-L/2 has hidden 1024 and depth 21. Positions are learned, one a patch and one for the time, and one
    that all context tokens share, for the paper has one for its only one: so the order of context tokens says nothing,
    and a masked token is as good as none.

    Args:
        in_channels: channels of the latent.
        latent_size: height and width of the latent, a multiple of ``patch``; no other size is taken.
        hidden: width of the transformer, even and a multiple of ``heads``.
        depth: number of blocks, odd: as many before the middle block as after it.
        heads: attention heads.
        patch: height and width of a patch.
        mlp_ratio: inner over outer width of the MLPs.
        context_dim: width of the context tokens; where it is not ``hidden`` a linear layer joins them.

    Raises:
        ValueError: for sizes that do not divide as they must.
    """

    def __init__(
        self,
        in_channels: int = 4,
        latent_size: int = 32,
        hidden: int = 1152,
        depth: int = 29,
        heads: int = 16,
        patch: int = 2,
        mlp_ratio: int = 4,
        context_dim: int = 1152,
    ) -> None:
        super().__init__()
        if hidden % heads or hidden % 2:
            raise ValueError(f"hidden is {hidden}; it must be even and a multiple of heads, {heads}")
        if depth % 2 == 0:
            raise ValueError(f"depth is {depth}; it must be odd, for skips join the blocks before and after the middle")
        if latent_size < 1 or latent_size % patch:
            raise ValueError(f"latent_size is {latent_size}; it must be a positive multiple of patch, {patch}")
        self.in_channels, self.context_dim = in_channels, context_dim
        self.feature_channels = {f"block.{i}": hidden for i in range(depth)}
        self.feature_strides = dict.fromkeys(self.feature_channels, patch)
        self.latent_size, self.hidden, self.patch = latent_size, hidden, patch
        self.side = latent_size // patch

        self.embed = nn.Conv2d(in_channels, hidden, patch, stride=patch)
        self.context = nn.Linear(context_dim, hidden) if context_dim != hidden else nn.Identity()
        self.positions_SE = nn.Parameter(torch.empty(2 + self.side**2, hidden))  # context, time, patches
        self.blocks = nn.ModuleList(UViTBlock(hidden, heads, mlp_ratio, skip=i > depth // 2) for i in range(depth))
        self.norm_out = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, patch * patch * in_channels)
        self.conv_out = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self._initialise()

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """The context tokens at the hidden width, with their position.

        Raises:
            ValueError: for a pooled vector, which this network does not take.
        """
        self.refuse_pooled(conditioning)
        tokens_BSE = self.context(conditioning.tokens_BSD) + self.positions_SE[0]
        return PreparedConditioning(mask_BS=conditioning.mask_BS, tokens_BSE=tokens_BSE)

    def outputs(self, x_BCHW: Tensor, t_B: Tensor, conditioning: PreparedConditioning) -> Iterator[tuple[str, Tensor]]:
        """The blocks' outputs at the patches, as (B, hidden, H', W') grids, and noise - data.

        Raises:
            ValueError: for a latent of another size, or a foreign conditioning.
        """
        if conditioning.tokens_BSE is None:
            raise ValueError("the prepared conditioning has no tokens; make it with this UViT's prepare()")
        self._check_size(x_BCHW)
        x, mask_BS = self._sequence(x_BCHW, t_B, conditioning.tokens_BSE), self._mask(conditioning.mask_BS)
        patches = slice(x.shape[1] - self.side**2, None)

        skips: list[Tensor] = []
        middle = len(self.blocks) // 2
        for i, (name, block) in enumerate(zip(self.feature_names, self.blocks, strict=True)):
            x = block(x, skips.pop() if i > middle else None, mask_BS)
            if i < middle:
                skips.append(x)
            yield name, to_grid(x[:, patches], self.side, self.side)
        image_BCHW = unpatch(self.out(self.norm_out(x[:, patches])), self.side, self.side, self.patch)
        yield VELOCITY, self.conv_out(image_BCHW)

    def _sequence(self, x_BCHW: Tensor, t_B: Tensor, context_BSE: Tensor) -> Tensor:
        """Context tokens, the bare sinusoid of 1000 t, and patches, each with its position."""
        time, patches = self.positions_SE[1], self.positions_SE[2:]
        time_BE = sinusoid(1000 * t_B, self.hidden).to(time.dtype) + time
        patches_BSE = self.embed(x_BCHW).flatten(2).transpose(1, 2) + patches
        return torch.cat((context_BSE, time_BE[:, None], patches_BSE), dim=1)

    def _mask(self, context_mask_BS: Tensor | None) -> Tensor | None:
        """Time and patches are always attended to."""
        if context_mask_BS is None:
            return None
        others = context_mask_BS.new_ones(len(context_mask_BS), 1 + self.side**2)
        return torch.cat((context_mask_BS, others), dim=1)

    def _check_size(self, x_BCHW: Tensor) -> None:
        height, width = x_BCHW.shape[-2:]
        if (height, width) != (self.latent_size, self.latent_size):
            raise ValueError(
                f"latent of {height}x{width} given to a UViT with positions for {self.latent_size}x{self.latent_size}; "
                "set latent_size to the latent's"
            )

    def _initialise(self) -> None:
        """The paper's: truncated normals for positions and linear layers, biases at zero."""
        nn.init.trunc_normal_(self.positions_SE, std=_INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

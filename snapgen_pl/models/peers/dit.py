"""DiT (Peebles & Xie, "Scalable Diffusion Models with Transformers", ICCV 2023, arXiv 2212.09748).

A row of the ImageNet table, and SiT's network too (SiT changes the objective alone). Patches, fixed positions, and
blocks whose layer norms are modulated by time and class (adaLN-Zero).

Axes in names: B batch, S patches or tokens, E hidden width, C channels, H and W height and width.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_pl.models.attention import attend
from snapgen_pl.models.denoiser import VELOCITY, Conditioning, Denoiser, PreparedConditioning
from snapgen_pl.models.layers import TimeEmbedding, zero
from snapgen_pl.models.peers.patches import to_grid, unpatch

_POSITION_BASE = 10_000.0
_NORM_EPS = 1e-6
_EMBEDDING_STD = 0.02


def _position_table(height: int, width: int, hidden: int, device: torch.device) -> Tensor:
    """Sines then cosines of the column in the first half of the width, of the row in the second: (H * W, E)."""
    quarter = hidden // 4
    frequency = _POSITION_BASE ** (-torch.arange(quarter, device=device, dtype=torch.float32) / quarter)

    def axis(length: int) -> Tensor:
        angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
        return torch.cat((angle.sin(), angle.cos()), dim=-1)

    columns = axis(width).expand(height, -1, -1)
    rows = axis(height)[:, None].expand(-1, width, -1)
    return torch.cat((columns, rows), dim=-1).flatten(0, 1)


_cached_position_table = lru_cache(maxsize=32)(_position_table)


def position_table(height: int, width: int, hidden: int, device: torch.device) -> Tensor:
    """Fixed 2-D positions at integer coordinates, (H * W, E); cached per size where no compiler traces."""
    if torch.compiler.is_compiling():
        return _position_table(height, width, hidden, device)
    # A table made in inference mode could not be used in training.
    with torch.inference_mode(False):
        return _cached_position_table(height, width, hidden, device)


def modulate(x_BSE: Tensor, shift_BE: Tensor, scale_BE: Tensor) -> Tensor:
    """x (1 + scale) + shift."""
    return torch.addcmul(shift_BE[:, None], x_BSE, 1 + scale_BE[:, None])


class DiTBlock(nn.Module):
    """Self-attention and MLP, each normalised, modulated and gated by the condition; starts as the identity.

    Args:
        hidden: width E, a multiple of ``heads``.
        heads: attention heads.
        mlp_ratio: inner over outer width of the MLP.
    """

    def __init__(self, hidden: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(hidden, eps=_NORM_EPS, elementwise_affine=False)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.mlp_norm = nn.LayerNorm(hidden, eps=_NORM_EPS, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, mlp_ratio * hidden), nn.GELU(approximate="tanh"), nn.Linear(mlp_ratio * hidden, hidden)
        )
        self.modulation = nn.Linear(hidden, 6 * hidden)

    def forward(self, x_BSE: Tensor, condition_BE: Tensor) -> Tensor:
        """``condition_BE`` comes after its SiLU, which all blocks share."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition_BE).chunk(6, dim=-1)
        attended = self._attend(modulate(self.attention_norm(x_BSE), shift_a, scale_a))
        x = torch.addcmul(x_BSE, gate_a[:, None], attended)
        return torch.addcmul(x, gate_m[:, None], self.mlp(modulate(self.mlp_norm(x), shift_m, scale_m)))

    def _attend(self, x_BSE: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BSE).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out(attend(q, k, v))
        return out


class DiT(Denoiser):
    """A transformer over latent patches; the defaults are DiT-XL/2 without its label table.

    The class arrives as context tokens, whose mean takes the place of the label embedding: give it one learned token
    a class, of width ``hidden``, and the network is the paper's.

    Args:
        in_channels: channels of the latent.
        hidden: width of the transformer, a multiple of 4 and of ``heads``.
        depth: number of blocks.
        heads: attention heads.
        patch: height and width of a patch.
        mlp_ratio: inner over outer width of the MLPs.
        context_dim: width of the context tokens; where it is not ``hidden`` a linear layer joins them.
        learn_sigma: predicts a second set of channels, as the published network does for its variance. They are
            dropped from the velocity: set it for the published parameters and checkpoints, not to train a velocity.

    Raises:
        ValueError: for a width that the heads or positions do not divide.
    """

    def __init__(
        self,
        in_channels: int = 4,
        hidden: int = 1152,
        depth: int = 28,
        heads: int = 16,
        patch: int = 2,
        mlp_ratio: int = 4,
        context_dim: int = 1152,
        learn_sigma: bool = False,
    ) -> None:
        super().__init__()
        if hidden % heads or hidden % 4:
            raise ValueError(f"hidden is {hidden}; it must be a multiple of 4 and of heads, {heads}")
        self.in_channels, self.context_dim = in_channels, context_dim
        self.feature_channels = {f"block.{i}": hidden for i in range(depth)}
        self.feature_strides = dict.fromkeys(self.feature_channels, patch)
        self.hidden, self.patch = hidden, patch
        out_channels = 2 * in_channels if learn_sigma else in_channels

        self.embed = nn.Conv2d(in_channels, hidden, patch, stride=patch)
        self.time = TimeEmbedding(256, hidden)
        self.context = nn.Linear(context_dim, hidden) if context_dim != hidden else nn.Identity()
        self.blocks = nn.ModuleList(DiTBlock(hidden, heads, mlp_ratio) for _ in range(depth))
        self.norm_out = nn.LayerNorm(hidden, eps=_NORM_EPS, elementwise_affine=False)
        self.modulation_out = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, patch * patch * out_channels)
        self._initialise()

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """The mean of the unmasked tokens, brought to the hidden width.

        Raises:
            ValueError: for a pooled vector, which this network does not take.
        """
        self.refuse_pooled(conditioning)
        return PreparedConditioning(embedding_BE=self.context(conditioning.summary()))

    def outputs(self, x_BCHW: Tensor, t_B: Tensor, conditioning: PreparedConditioning) -> Iterator[tuple[str, Tensor]]:
        """The blocks' outputs as (B, hidden, H / patch, W / patch) grids, and noise - data.

        Raises:
            ValueError: for a latent that patches do not tile, or a foreign conditioning.
        """
        if conditioning.embedding_BE is None:
            raise ValueError("the prepared conditioning has no embedding; make it with this DiT's prepare()")
        height, width = self._grid(x_BCHW)
        condition_BE = F.silu(self.time(t_B) + conditioning.embedding_BE)

        x = self.embed(x_BCHW).flatten(2).transpose(1, 2)
        x = x + position_table(height, width, self.hidden, x.device).to(x.dtype)
        for name, block in zip(self.feature_names, self.blocks, strict=True):
            x = block(x, condition_BE)
            yield name, to_grid(x, height, width)
        shift, scale = self.modulation_out(condition_BE).chunk(2, dim=-1)
        patches = self.out(modulate(self.norm_out(x), shift, scale))
        image_BCHW = unpatch(patches, height, width, self.patch)
        yield VELOCITY, image_BCHW[:, : self.in_channels]

    def _grid(self, x_BCHW: Tensor) -> tuple[int, int]:
        height, width = x_BCHW.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"latent of {height}x{width} is not tiled by patches of {self.patch}; pad or crop it")
        return height // self.patch, width // self.patch

    def _initialise(self) -> None:
        """The paper's: Xavier everywhere, small embeddings, and zeros that make every block the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.time.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_EMBEDDING_STD)
        for block in self.blocks:
            zero(block.get_submodule("modulation"))
        zero(self.modulation_out)
        zero(self.out)

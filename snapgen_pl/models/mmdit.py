"""MMDiT (Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", ICML 2024,
arXiv 2403.03206): the network of Stable Diffusion 3 and 3.5, and so of SnapGen's teachers.

Text and image are two streams of tokens with weights of their own, which attend to one another. diffusers has the
blocks. SD3's conventions are ours: t = 1 is noise, the velocity is noise - data, and the network sees 1000 t.

Axes in names: B batch, S patches or tokens, D context width, P pooled width, E hidden width.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from snapgen_pl.models.denoiser import VELOCITY, Conditioning, Denoiser, PreparedConditioning
from snapgen_pl.models.layers import zero
from snapgen_pl.models.peers.patches import to_grid, unpatch

CLASS_NAME = "SD3Transformer2DModel"

# Our names of what a config.json of diffusers says.
_ARGUMENTS = {
    "in_channels": "in_channels",
    "num_layers": "layers",
    "num_attention_heads": "heads",
    "attention_head_dim": "head_dim",
    "patch_size": "patch",
    "joint_attention_dim": "context_dim",
    "pooled_projection_dim": "pooled_dim",
    "sample_size": "latent_size",
    "pos_embed_max_size": "largest_grid",
}
_MODULATIONS = ("norm1.linear", "norm1_context.linear", "norm_out.linear")


class MMDiT(Denoiser):
    """diffusers' ``SD3Transformer2DModel`` behind the contract; the defaults are Stable Diffusion 3.5 Large's.

    It takes tokens and a pooled vector, but no mask: a masked token reads as zeros, as SD3's absent encoders do.

    Args:
        in_channels: channels of the latent.
        layers: number of blocks.
        heads: attention heads.
        head_dim: width of an attention head; ``heads * head_dim``, the hidden width, must be a multiple of 4.
        patch: height and width of a patch.
        context_dim: width of the context tokens.
        pooled_dim: width of the pooled vector.
        qk_norm: RMS-normalises queries and keys: SD3.5's do, SD3's do not.
        dual_attention_layers: blocks with a second attention among patches alone: the first 13 of SD3.5 Medium.
        latent_size: height and width of the latent whose patches lie one position apart.
        largest_grid: patches along a side that there are positions for; smaller latents take the middle.

    Raises:
        ValueError: for sizes that do not fit together.
    """

    network: Any  # diffusers has no types

    def __init__(
        self,
        in_channels: int = 16,
        layers: int = 38,
        heads: int = 38,
        head_dim: int = 64,
        patch: int = 2,
        context_dim: int = 4096,
        pooled_dim: int = 2048,
        qk_norm: bool = True,
        dual_attention_layers: tuple[int, ...] = (),
        latent_size: int = 128,
        largest_grid: int = 192,
    ) -> None:
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        super().__init__()
        hidden = heads * head_dim
        if hidden % 4 or min(layers, hidden) < 1:
            raise ValueError(f"layers {layers}, heads {heads} of {head_dim}: need a block, and a width divisible by 4")
        if latent_size % patch or not 1 <= latent_size // patch <= largest_grid:
            raise ValueError(
                f"latent_size is {latent_size}; it must be a multiple of patch, {patch}, of at most {largest_grid} "
                "patches, the largest_grid"
            )
        self.in_channels, self.context_dim, self.pooled_dim = in_channels, context_dim, pooled_dim
        self.feature_channels = {f"block.{i}": hidden for i in range(layers)}
        self.feature_strides = dict.fromkeys(self.feature_channels, patch)
        self.patch, self.largest_grid = patch, largest_grid
        self.network = SD3Transformer2DModel(
            sample_size=latent_size,
            patch_size=patch,
            in_channels=in_channels,
            num_layers=layers,
            attention_head_dim=head_dim,
            num_attention_heads=heads,
            joint_attention_dim=context_dim,
            caption_projection_dim=hidden,
            pooled_projection_dim=pooled_dim,
            out_channels=in_channels,
            pos_embed_max_size=largest_grid,
            dual_attention_layers=tuple(dual_attention_layers),
            qk_norm="rms_norm" if qk_norm else None,
        )
        self._initialise()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "MMDiT":
        """The network that a config.json of diffusers declares.

        Raises:
            ValueError: naming what this class cannot be.
        """
        if (name := config.get("_class_name")) != CLASS_NAME:
            raise ValueError(f"the configuration is of a {name}, not of a {CLASS_NAME}")
        if missing := sorted(_ARGUMENTS.keys() - config.keys()):
            raise ValueError(f"the configuration does not say {', '.join(missing)}")
        # Younger than SD3: its files do not say these, and have none.
        qk_norm, dual = config.get("qk_norm"), tuple(config.get("dual_attention_layers") or ())
        hidden = config["num_attention_heads"] * config["attention_head_dim"]
        for key, value, wanted in (
            ("qk_norm", qk_norm, (None, "rms_norm")),
            ("out_channels", config.get("out_channels"), (None, config["in_channels"])),
            ("caption_projection_dim", config.get("caption_projection_dim"), (hidden,)),
        ):
            if value not in wanted:
                raise ValueError(f"the configuration's {key} is {value}; {cls.__name__} takes {wanted[-1]}")
        arguments = {ours: config[theirs] for theirs, ours in _ARGUMENTS.items()}
        return cls(**arguments, qk_norm=qk_norm is not None, dual_attention_layers=dual)

    def units(self) -> Iterator[nn.Module]:
        """The blocks."""
        blocks: nn.ModuleList = self.network.transformer_blocks
        yield from blocks

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """Tokens and pooled vector at the hidden width.

        Raises:
            ValueError: where there is no pooled vector.
        """
        if conditioning.pooled_BP is None:
            raise ValueError(
                f"{type(self).__name__} needs a pooled vector of width {self.pooled_dim} beside the tokens; give it a "
                "conditioner whose text encoders give one"
            )
        tokens_BSD, mask_BS = conditioning.tokens_BSD, conditioning.mask_BS
        if mask_BS is not None:
            tokens_BSD = tokens_BSD * mask_BS[..., None].to(tokens_BSD.dtype)
        return PreparedConditioning(
            embedding_BE=self.network.time_text_embed.text_embedder(conditioning.pooled_BP),
            tokens_BSE=self.network.context_embedder(tokens_BSD),
        )

    def outputs(self, x_BCHW: Tensor, t_B: Tensor, conditioning: PreparedConditioning) -> Iterator[tuple[str, Tensor]]:
        """The blocks' image tokens as (B, hidden, H / patch, W / patch) grids, and noise - data.

        Raises:
            ValueError: for a latent that patches do not tile or that there are no positions for, or a foreign
                conditioning.
        """
        if conditioning.tokens_BSE is None or conditioning.embedding_BE is None:
            raise ValueError(
                "the prepared conditioning has no tokens or embedding; make it with this MMDiT's prepare()"
            )
        height, width = self._grid(x_BCHW)
        network = self.network
        # The network's own forward, in parts: hooks for features would be ignored once its blocks are compiled.
        time_BE = self._time(t_B, conditioning.embedding_BE)
        x, context = network.pos_embed(x_BCHW).contiguous(), conditioning.tokens_BSE
        for name, block in zip(self.feature_channels, network.transformer_blocks, strict=True):
            context, x = block(hidden_states=x, encoder_hidden_states=context, temb=time_BE)
            yield name, to_grid(x, height, width)
        yield VELOCITY, unpatch(network.proj_out(network.norm_out(x, time_BE)), height, width, self.patch)

    def _time(self, t_B: Tensor, pooled_BE: Tensor) -> Tensor:
        embed = self.network.time_text_embed
        time_BE: Tensor = embed.timestep_embedder(embed.time_proj(1000 * t_B).to(pooled_BE.dtype))
        return time_BE + pooled_BE

    def _grid(self, x_BCHW: Tensor) -> tuple[int, int]:
        height, width = x_BCHW.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"latent of {height}x{width} is not tiled by patches of {self.patch}; pad or crop it")
        if max(height, width) > self.patch * self.largest_grid:
            raise ValueError(
                f"latent of {height}x{width} is larger than {self.largest_grid} patches of {self.patch} along a side, "
                "which is as far as positions go; crop it"
            )
        return height // self.patch, width // self.patch

    def _initialise(self) -> None:
        """DiT's zeros, decided here for SD3's are not published: each block starts as the identity, v at zero.

        The last block's text queries are computed and thrown away, so nothing trains them; DDP is told so.
        """
        for name, module in self.network.named_modules():
            if name.endswith(_MODULATIONS):
                zero(module)
        zero(self.network.proj_out)
        last = self.network.transformer_blocks[-1].attn
        for unused in (last.add_q_proj, last.norm_added_q):
            if unused is not None:
                unused.requires_grad_(False)

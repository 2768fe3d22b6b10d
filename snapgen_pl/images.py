"""Images as tensors: between bytes and [-1, 1]."""

import torch
from torch import Tensor


def from_uint8(image_BCHW: Tensor) -> Tensor:
    """uint8 -> fp32 in [-1, 1]: 0 is -1, 255 is 1."""
    return image_BCHW.float().div(127.5).sub(1)


def to_uint8(image_BCHW: Tensor) -> Tensor:
    """About [-1, 1] -> uint8 by clamp(127.5 x + 128, 0, 255) with truncation, the field's form."""
    return image_BCHW.float().mul(127.5).add(128).clamp(0, 255).to(torch.uint8)


def check_uint8(image_BCHW: Tensor) -> None:
    """Raises ValueError unless it holds uint8 RGB images (B, 3, H, W)."""
    if image_BCHW.dtype != torch.uint8 or image_BCHW.ndim != 4 or image_BCHW.shape[1] != 3:
        raise ValueError(
            f"expected uint8 images (B, 3, H, W), got {image_BCHW.dtype} {tuple(image_BCHW.shape)}; "
            "snapgen_pl.images.to_uint8 converts"
        )

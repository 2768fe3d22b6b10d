"""Affine maps of features."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class LinearMap(NamedTuple):
    """x -> weight x + bias.

    Attributes:
        weight: (out, in), of any floating type.
        bias: (out,).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features_ND: Tensor) -> Tensor:
        """(N, in) -> fp32 (N, out).

        Raises:
            ValueError: if the features have another width.
        """
        width = self.weight.shape[1]
        if features_ND.ndim != 2 or features_ND.shape[1] != width:
            raise ValueError(
                f"expected features (N, {width}), got {tuple(features_ND.shape)}; EfficientNetLite0 gives them"
            )
        return F.linear(features_ND.float(), self.weight.float(), self.bias.float())

    def half(self) -> "LinearMap":
        """The map in fp16."""
        return LinearMap(self.weight.half(), self.bias.half())


class Standardisation(NamedTuple):
    """What gives each feature mean 0 and deviation 1.

    Attributes:
        mean_D: over the images.
        std_D: over the images; never 0.
    """

    mean_D: Tensor
    std_D: Tensor

    @staticmethod
    def of(features_ND: Tensor) -> "Standardisation":
        """That of a set of images."""
        return Standardisation(features_ND.mean(dim=0), features_ND.std(dim=0).clamp_min(1e-3))

    def __call__(self, features: Tensor) -> Tensor:
        """(..., D) -> the same shape."""
        return (features - self.mean_D) / self.std_D

    def before(self, after: LinearMap) -> LinearMap:
        """This and then a linear map, as one."""
        weight = after.weight / self.std_D
        return LinearMap(weight, after.bias - weight @ self.mean_D)

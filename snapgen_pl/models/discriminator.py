"""Heads that tell real latents from generated ones by what a frozen network sees in them.

As in latent adversarial diffusion distillation (LADD, Sauer et al., 2024): the network is a few-step teacher, and only
the heads are trained. Axes in names: B batch, C a feature's channels, H height, W width, E embedding width, N tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_pl.models.layers import TimeEmbedding, embedding_mlp

_SINUSOID = 256
_GROUPS = 8
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class HeadInput:
    """A feature of the frozen network that a head reads.

    Args:
        feature: its name.
        channels: its width.
    """

    feature: str
    channels: int


class Discriminator(nn.Module):
    """A small convolutional head a feature, told the time and the condition; a logit of "real" for each place.

    Args:
        inputs: what the heads read, at least one.
        summary_dim: width of a condition as one vector, the teacher's ``summary_dim``.
        width: of the heads, a multiple of 8.

    Attributes:
        features: the names that are read, in the heads' order.

    Raises:
        ValueError: for no inputs, or a width that groups do not divide.
    """

    def __init__(self, inputs: Sequence[HeadInput], summary_dim: int, width: int = 256) -> None:
        super().__init__()
        if not inputs:
            raise ValueError("inputs are empty; name at least one feature of the teacher for a head to read")
        if width < 1 or width % _GROUPS:
            raise ValueError(f"width is {width}; it must be a multiple of {_GROUPS}, the groups of its norm")
        self.inputs, self.summary_dim = tuple(inputs), summary_dim
        self.features = tuple(read.feature for read in self.inputs)
        self.time = TimeEmbedding(_SINUSOID, width)
        self.condition = embedding_mlp(summary_dim, width)
        self.heads = nn.ModuleList(Head(read.channels, width) for read in self.inputs)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs

    def forward(self, features: Sequence[Tensor], t_B: Tensor, summary_BD: Tensor) -> list[Tensor]:
        """Logits (B, N) of each head.

        Args:
            features: (B, C, H, W) of each head, of latents at the times t.
            t_B: times in [0, 1]; 1 is noise.
            summary_BD: conditions, (B, summary_dim).
        """
        embedding_BE = F.silu(self.time(t_B) + self.condition(summary_BD))
        return [head(feature, embedding_BE) for head, feature in zip(self.heads, features, strict=True)]


class Head(nn.Module):
    """1x1 and 3x3 convolutions with SiLU, modulated by the embedding, and projected on it (Miyato and Koyama, 2018).

    Args:
        channels: of the feature.
        width: of the convolutions and of the embedding.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1)
        self.norm = nn.GroupNorm(_GROUPS, width, affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.logit = nn.Conv2d(width, 1, 1)
        self.projection = nn.Linear(width, width)

    def forward(self, feature_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """Logits (B, H W)."""
        # As in FeatureLoss: a few channels of large transformers are hundreds of times larger than the others.
        normed_BHWC = F.layer_norm(feature_BCHW.movedim(1, -1), feature_BCHW.shape[1:2], eps=_NORM_EPS)
        scale_BE11, shift_BE11 = self.modulation(embedding_BE)[..., None, None].chunk(2, dim=1)
        x_BEHW = F.silu(self.norm(self.reduce(normed_BHWC.movedim(-1, 1))) * (1 + scale_BE11) + shift_BE11)
        x_BEHW = F.silu(self.mix(x_BEHW))
        matched_BHW = (x_BEHW * self.projection(embedding_BE)[..., None, None]).sum(dim=1) / x_BEHW.shape[1] ** 0.5
        logits_BN: Tensor = (self.logit(x_BEHW).squeeze(1) + matched_BHW).flatten(1)
        return logits_BN

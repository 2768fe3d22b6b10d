"""Class labels as learned context tokens."""

import torch
from torch import nn

from snapgen_pl.conditioning.class_conditioner import ClassConditioner
from snapgen_pl.conditioning.condition import Condition, labels
from snapgen_pl.flow.timesteps import check_positive
from snapgen_pl.models.denoiser import Conditioning


class ClassTokens(ClassConditioner):
    """A table of learned tokens: each class reads as a short sentence of its own.

    One more entry stands for "no class": it is learned through label dropout, and guidance starts from it.

    Args:
        num_classes: room for labels 0 to num_classes - 1; the data may have fewer.
        tokens: context tokens a class.
        context_dim: width of a token; the denoiser's context_dim.
        dropout: probability that a training sample loses its label, in [0, 1).
        std: deviation of the table at its start; DiT's and SiT's is 0.02.

    Raises:
        ValueError: for sizes below 1, a dropout outside [0, 1), or a deviation not above 0.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        tokens: int = 1,
        context_dim: int = 768,
        dropout: float = 0.1,
        std: float = 1.0,
    ) -> None:
        super().__init__(num_classes, tokens, context_dim, dropout)
        check_positive("std", std)
        self.table = nn.Embedding(num_classes + 1, tokens * context_dim)
        with torch.no_grad():
            self.table.weight.mul_(std)

    def forward(self, condition: Condition) -> Conditioning:
        """See Conditioner.forward."""
        return Conditioning(self.table(labels(condition)).view(-1, self.tokens, self.context_dim))

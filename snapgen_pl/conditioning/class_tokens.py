"""Class labels as learned context tokens."""

import torch
from torch import Tensor, nn

from snapgen_pl.models.denoiser import Conditioning


class ClassTokens(nn.Module):
    """A table of learned tokens: each class reads as a short sentence of its own.

    One more entry stands for "no class": it is learned through label dropout, and guidance starts from it.

    Args:
        num_classes: room for labels 0 to num_classes - 1; the data may have fewer.
        tokens: context tokens a class.
        context_dim: width of a token; the denoiser's context_dim.
        dropout: probability that a training sample loses its label, in [0, 1).

    Raises:
        ValueError: for sizes below 1 or a dropout outside [0, 1).
    """

    def __init__(self, num_classes: int = 1000, tokens: int = 1, context_dim: int = 768, dropout: float = 0.1) -> None:
        super().__init__()
        if min(num_classes, tokens, context_dim) < 1:
            raise ValueError(f"num_classes {num_classes}, tokens {tokens}, context_dim {context_dim}: all must be >= 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")
        self.num_classes, self.tokens, self.context_dim, self.dropout = num_classes, tokens, context_dim, dropout
        self.table = nn.Embedding(num_classes + 1, tokens * context_dim)

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"."""
        return self.num_classes

    def forward(self, label_B: Tensor) -> Conditioning:
        """Labels -> (B, tokens, context_dim).

        Args:
            label_B: int64 in [0, num_classes]; num_classes is the null label.
        """
        return Conditioning(self.table(label_B).view(-1, self.tokens, self.context_dim))

    def unconditional(self, like: Tensor) -> Conditioning:
        """The null tokens for as many samples as the labels ``like``."""
        return self.forward(torch.full_like(like, self.null_label))

    def drop(self, label_B: Tensor, uniform_B: Tensor) -> Tensor:
        """Replaces labels by the null label where a uniform number in (0, 1) falls under the dropout."""
        return torch.where(uniform_B < self.dropout, self.null_label, label_B)

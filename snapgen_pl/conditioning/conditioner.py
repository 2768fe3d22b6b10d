"""The contract of conditioners: class label -> what a denoiser is told."""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn

from snapgen_pl.models.denoiser import Conditioning


class Conditioner(nn.Module, ABC):
    """Maps labels to context tokens. One label more than there are classes stands for "no class".

    Args:
        num_classes: room for labels 0 to num_classes - 1; the data may have fewer.
        tokens: context tokens a class.
        context_dim: width of a token; the denoiser's context_dim.
        dropout: probability that a training sample loses its label, in [0, 1).

    Raises:
        ValueError: for sizes below 1 or a dropout outside [0, 1).
    """

    def __init__(self, num_classes: int, tokens: int, context_dim: int, dropout: float) -> None:
        super().__init__()
        if min(num_classes, tokens, context_dim) < 1:
            raise ValueError(f"num_classes {num_classes}, tokens {tokens}, context_dim {context_dim}: all must be >= 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")
        self.num_classes, self.tokens, self.context_dim, self.dropout = num_classes, tokens, context_dim, dropout

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"."""
        return self.num_classes

    def ready(self, folder: Path, classes: tuple[str, ...]) -> str | None:
        """Makes the conditioner usable for a run: by default, it already is.

        Args:
            folder: the run's folder, for what has to be kept with the run.
            classes: the data's class names, at most num_classes; labels index them.

        Returns:
            A line for the user where something was computed or loaded.
        """
        return None

    @abstractmethod
    def forward(self, label_B: Tensor) -> Conditioning:
        """Labels -> (B, tokens, context_dim).

        Args:
            label_B: int64 in [0, num_classes]; num_classes is the null label.
        """

    def unconditional(self, like: Tensor) -> Conditioning:
        """The null tokens for as many samples as the labels ``like``."""
        # Called as a module, for shards are gathered then.
        conditioning: Conditioning = self(torch.full_like(like, self.null_label))
        return conditioning

    def drop(self, label_B: Tensor, uniform_B: Tensor) -> Tensor:
        """Replaces labels by the null label where a uniform number in (0, 1) falls under the dropout."""
        return torch.where(uniform_B < self.dropout, self.null_label, label_B)

"""What conditioners on classes share."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from snapgen_pl import rng
from snapgen_pl.conditioning.condition import Condition, labels
from snapgen_pl.conditioning.conditioner import Conditioner


class ClassConditioner(Conditioner):
    """Maps labels of classes. One label more than there are classes stands for "no class".

    Args:
        num_classes: room for labels 0 to num_classes - 1; the data may have fewer.
        tokens: context tokens a class.
        context_dim: width of a token; the denoiser's context_dim.
        dropout: probability that a training sample loses its label, in [0, 1).

    Raises:
        ValueError: for sizes below 1 or a dropout outside [0, 1).
    """

    takes: ClassVar[Literal["label", "caption"]] = "label"

    def __init__(self, num_classes: int, tokens: int, context_dim: int, dropout: float) -> None:
        super().__init__(tokens, context_dim)
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; it must be >= 1")
        check_dropout(dropout)
        self.num_classes, self.dropout = num_classes, dropout

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"."""
        return self.num_classes

    def ready(self, folder: Path, classes: tuple[str, ...]) -> str | None:
        """Checks that there is room for the classes; see Conditioner.ready."""
        if len(classes) > self.num_classes:
            raise ValueError(
                f"the data has {len(classes)} classes, the conditioner room for {self.num_classes}; "
                f"set --model.conditioner.num_classes {len(classes)} or more"
            )
        return None

    def dropping(self) -> Mapping[str, float | int]:
        """See Conditioner.dropping."""
        return {"dropout": self.dropout}

    def drop(self, condition: Condition, seed: int, position_B: Tensor) -> Tensor:
        """Replaces labels by the null label, with probability ``dropout``."""
        lost_B = rng.uniform(seed, rng.Stream.CONDITION_DROPOUT, position_B) < self.dropout
        return torch.where(lost_B, self.null_label, labels(condition))

    def nothing(self, like: Condition) -> Tensor:
        """Null labels."""
        return torch.full_like(labels(like), self.null_label)

    def asks_nothing(self, condition: Condition) -> Tensor:
        """True for null labels."""
        return labels(condition) == self.null_label


def check_dropout(dropout: float) -> None:
    """Raises ValueError unless the probability lies in [0, 1)."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")

"""Networks that a stage uses but does not train: autoencoders, teachers, text encoders."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Frozen(Generic[M]):
    """Keeps a network out of its owner's module tree, and so out of checkpoints, optimizers and averages.

    Args:
        module: set to eval mode and to need no gradients.
    """

    def __init__(self, module: M) -> None:
        self.module: M = module.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen[M]":
        """Copies of the owner share the network: an 8 B teacher is not to be held twice."""
        return self


def make_ready(trainer: L.Trainer, ready: Callable[[Path], Sequence[str | None]]) -> None:
    """Makes what a run uses usable on all processes; what has to be fitted or fetched is so by the first alone.

    Args:
        trainer: of the run.
        ready: is given the run's folder, and returns lines for the user, or None where there is nothing to say.
    """
    folder = Path(trainer.default_root_dir)
    if trainer.is_global_zero:
        for line in filter(None, ready(folder)):
            rank_zero_info(line)
    trainer.strategy.barrier("ready")
    if not trainer.is_global_zero:
        ready(folder)

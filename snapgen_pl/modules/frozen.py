"""Networks that a stage uses but does not train: autoencoders, teachers, text encoders."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from snapgen_pl.autoencoders.autoencoder import Autoencoder

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


def make_ready(autoencoder: Autoencoder, trainer: L.Trainer, images: Iterable[Tensor]) -> None:
    """Makes an autoencoder usable on all processes; what has to be fitted or fetched is so by the first alone.

    Args:
        autoencoder: which.
        trainer: of the run.
        images: batches of uint8 training images, iterated only where something has to be fitted.
    """
    folder = Path(trainer.default_root_dir)
    if trainer.is_global_zero and (message := autoencoder.ready(folder, images)):
        rank_zero_info(message)
    trainer.strategy.barrier("autoencoder")
    if not trainer.is_global_zero:
        autoencoder.ready(folder, ())

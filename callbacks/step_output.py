"""What a training step must return for callbacks to look at its losses."""

from collections.abc import Mapping

import lightning as L
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from snapgen_pl.distill.loss_terms import LossTerms


def step_terms(outputs: STEP_OUTPUT, callback: L.Callback, pl_module: L.LightningModule) -> tuple[LossTerms, Tensor]:
    """The terms of a step's loss, detached, and the samples' positions in the stream of images.

    Args:
        outputs: as Lightning hands them to ``on_train_batch_end``.
        callback: who asks.
        pl_module: whose step it was.

    Raises:
        ValueError: where the step returned something else.
    """
    if not (isinstance(outputs, Mapping) and {"terms", "position_B"} <= outputs.keys()):
        raise ValueError(
            f"{type(callback).__module__}.{type(callback).__qualname__} needs training_step of "
            f"{type(pl_module).__name__} to return {{'loss', 'terms', 'position_B'}}"
        )
    return outputs["terms"], outputs["position_B"]

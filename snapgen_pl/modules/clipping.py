"""Clipping gradients by their norm."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.optim import Optimizer

from snapgen_pl.fsdp import whole


def clip_gradients(optimizer: Optimizer, max_norm: float) -> Tensor:
    """Scales all gradients of an optimizer's weights, so that together they have at most this norm.

    Returns:
        The norm before, over all processes where weights are sharded; a scalar on the device.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return whole(torch.nn.utils.clip_grad_norm_(weights, max_norm))


class ClipsGradients(L.LightningModule):
    """A module that clips gradients by ``trainer.gradient_clip_val``, those of fused optimizers too.

    Lightning refuses these in every mixed precision, since they undo the scaling of losses themselves; but float16's
    losses alone are scaled. The norm is logged as ``train/gradient_norm``. Under float16, and by value, Lightning
    clips, and logs none.
    """

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Before each step of the optimizer."""
        precision = self.trainer.precision_plugin
        scaled = isinstance(precision, MixedPrecision) and precision.scaler is not None
        if not gradient_clip_val or gradient_clip_algorithm == "value" or scaled:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        self.log("train/gradient_norm", clip_gradients(optimizer, gradient_clip_val))

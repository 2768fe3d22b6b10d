"""What all trainings have in common: a schedule in images, terms that are combined and logged, clipped gradients."""

from collections.abc import Iterable
from typing import Any, TypedDict

import lightning as L
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from snapgen_pl.distill.loss_terms import LossCombiner, LossTerms, WeightedSum
from snapgen_pl.fsdp import match_layouts, shard, whole
from snapgen_pl.modules.step_means import StepMeans


class TrainingStep(TypedDict):
    """What a training step hands to callbacks: its loss, the terms it was made of, and the samples' positions."""

    loss: Tensor
    terms: LossTerms
    position_B: Tensor


class Training(L.LightningModule):
    """A module that learns from images, which it counts.

    It clips gradients by ``trainer.gradient_clip_val``, those of fused optimizers too. Lightning refuses these in every
    mixed precision, since they undo the scaling of losses themselves; but float16's losses alone are scaled. The norm
    is logged as ``train/gradient_norm``. Under float16, and by value, Lightning clips, and logs none.

    Losses are logged as means over all batches of a step, accumulated ones and those of other processes too.

    Args:
        warmup_images: learning rates rise linearly over so many images.
        decay_images: they fall linearly to zero from there until so many images were seen; None keeps them.

    Attributes:
        combine: makes one loss of the terms of a batch.
        images_seen: over all processes.
        step_means: of what the step's batches say, to be logged with it.

    Raises:
        ValueError: for a schedule that would fall before it rose.
    """

    def __init__(self, warmup_images: int, decay_images: int | None) -> None:
        super().__init__()
        if decay_images is not None and decay_images <= warmup_images:
            raise ValueError(f"decay_images is {decay_images}; it must come after warmup_images, {warmup_images}")
        self.warmup_images, self.decay_images = warmup_images, decay_images
        self.combine: LossCombiner = WeightedSum()
        self.images_seen = 0
        self.step_means = StepMeans()

    def configure_model(self) -> None:
        """Shards all that is trained, where the strategy has a mesh to shard over; once."""
        if self.device_mesh is not None:
            for part in self.sharded():
                shard(part, self.device_mesh["data_parallel"])

    def sharded(self) -> Iterable[nn.Module]:
        """The networks that are sharded, each on its own: those that are called as modules."""
        return self.children()

    def on_validation_model_zero_grad(self) -> None:
        """Nothing: a validation may come between batches that are accumulated, whose gradients Lightning would drop."""

    def on_train_start(self) -> None:
        """After a checkpoint was loaded."""
        for optimizer in self.trainer.optimizers:
            match_layouts(optimizer)
        if self.automatic_optimization:
            recount_batches(self.trainer)

    def schedule(self, optimizer: Optimizer) -> LambdaLR:
        """The learning rate by the images seen, to be stepped after each step of the optimizer."""
        return LambdaLR(optimizer, lambda _: rate(self.images_seen, self.warmup_images, self.decay_images))

    def learn(self, terms: LossTerms, position_B: Tensor) -> TrainingStep:
        """Combines, notes and counts a batch.

        Args:
            terms: of the batch.
            position_B: the samples' places in the stream of images.
        """
        combined = self.combine(terms)
        self.step_means.add({"loss": combined.loss, **combined.logs})
        self.images_seen += len(position_B) * self.trainer.world_size
        return {"loss": combined.loss, "terms": terms.detached(), "position_B": position_B}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Logs what the step is taken on."""
        self.log_dict({f"train/{name}": mean for name, mean in self.step_means.take().items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the count of images as a plain integer."""
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the count of images."""
        self.images_seen = checkpoint["images_seen"]

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


def recount_batches(trainer: L.Trainer) -> None:
    """Counts the batches before a checkpoint as if they had been accumulated as they are now.

    Lightning takes a step where their count divides by ``accumulate_grad_batches``: of batches that were counted with
    another, the first step would have too few.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    missing = trainer.global_step * trainer.accumulate_grad_batches - progress.total.ready
    for counts in (progress.current, progress.total):
        for name, batches in vars(counts).items():
            setattr(counts, name, batches + missing)


def clip_gradients(optimizer: Optimizer, max_norm: float) -> Tensor:
    """Scales all gradients of an optimizer's weights, so that together they have at most this norm.

    Returns:
        The norm before, over all processes where weights are sharded; a scalar on the device.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return whole(torch.nn.utils.clip_grad_norm_(weights, max_norm))


def rate(images_seen: int, warmup_images: int, decay_images: int | None) -> float:
    """The share of the learning rate to use: up to 1 over the warm-up, and down to 0 at decay_images, linearly."""
    if images_seen < warmup_images:
        return images_seen / warmup_images
    if decay_images is None:
        return 1.0
    return max(0.0, (decay_images - images_seen) / (decay_images - warmup_images))

"""An exponential moving average of the generator's weights, with a half-life in images."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.distributed.tensor import DTensor

from callbacks.step_watch import StepWatch
from snapgen_pl.fsdp import cut_like, local, reshard, whole


class EMA(L.Callback):
    """Averages the named child modules' parameters in fp32 and puts the average in place wherever the run is looked at.

    After a step that took the count of images from n - b to n, with h = min(half_life_images, ramp_up * n):
    average = lerp(weights, average, 0.5 ** (b / h)), as in EDM2 (Karras et al. 2024), so that a young run's average
    forgets the initial weights. The module must count in ``images_seen`` the images, over all ranks, that the generator
    was trained on: a batch that trains a second network alone leaves the count, and so the average, as it was. Nothing
    is averaged within an accumulation.

    Validation, test and predict see the average; checkpoints written meanwhile still hold the raw weights in
    ``state_dict`` and the average in ``checkpoint["ema"]["weights"]``. Loading a checkpoint for validate, test or
    predict takes the average from there. Buffers are not averaged.

    Args:
        half_life_images: images after which a weight's share in the average has halved, once ``half_life_images /
            ramp_up`` images were seen; TensorBoard has what is in force as ``train/ema_half_life``.
        ramp_up: the half-life's bound until then, as a fraction of the images seen so far.
        modules: the children whose parameters are averaged.
    """

    def __init__(
        self,
        half_life_images: float = 500_000.0,
        ramp_up: float = 0.05,
        modules: tuple[str, ...] = ("denoiser", "conditioner"),
    ) -> None:
        if half_life_images <= 0:
            raise ValueError(f"half_life_images must be positive, got {half_life_images}")
        if not 0 < ramp_up <= 1:
            raise ValueError(f"ramp_up must be in (0, 1], got {ramp_up}")
        self.half_life_images = half_life_images
        self.ramp_up = ramp_up
        self.modules = tuple(modules)
        self._averaged = self.modules
        self._swapped: list[torch.nn.Module] = []
        self._parameters: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._images = 0
        self._raw: dict[str, Tensor] = {}
        self._depth = 0
        self._watch = StepWatch()

    def decay(self, images: int, total: int) -> float:
        """The share of the old average that remains after a step of ``images`` that brought the count to ``total``."""
        return float(0.5 ** (images / self.half_life(total)))

    def half_life(self, total: int) -> float:
        """The half-life in images that is in force once so many were seen."""
        return min(self.half_life_images, self.ramp_up * total)

    @property
    def averaged(self) -> bool:
        """Whether there is an average to draw from."""
        return bool(self._weights)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The average is in the module inside the ``with``, in the parameters' own storage; may be nested.

        Where there is no average yet (a module validated without a checkpoint), the module keeps its weights.
        """
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Checks that the module has what is averaged and what tells when; one without parameters need have neither.

        Raises:
            ValueError: naming the missing attribute.
        """
        if next(pl_module.parameters(), None) is None:
            self._averaged = ()  # such as Encode
            return
        missing = [name for name in self.modules if not isinstance(getattr(pl_module, name, None), torch.nn.Module)]
        if missing:
            raise ValueError(f"{type(pl_module).__name__} has no child modules {missing}; set EMA's `modules`")
        if not hasattr(pl_module, "images_seen"):
            raise ValueError(f"{type(pl_module).__name__} has no `images_seen`, which EMA counts by")

    @torch.no_grad()
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the average from the weights, unless a checkpoint brought one."""
        self._attach(pl_module)
        if not self._weights:
            self._weights = {name: _fp32_copy(weight) for name, weight in self._parameters.items()}
            self._images = _images_seen(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins to watch the optimizer's steps."""
        self._watch.start(trainer)

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Averages, if the generator stepped."""
        total = _images_seen(pl_module)
        if not self._watch.new_steps(trainer) or total == self._images:
            return
        weights = [weight.float() for weight in _local(self._parameters)]
        torch._foreach_lerp_(_local(self._weights), weights, 1 - self.decay(total - self._images, total))
        self._images = total
        pl_module.log("train/ema_half_life", self.half_life(total))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the average in place."""
        self._attach(pl_module)
        self._enter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the raw weights back."""
        self._leave()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Puts the raw weights back, however deep the run was in looking at the average."""
        if self._depth:
            self._depth = 1
            self._leave()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the average, and raw weights where the module holds the average at the moment."""
        checkpoint["ema"] = {
            "weights": {name: whole(weight) for name, weight in self._weights.items()},
            "images": self._images,
        }
        checkpoint["state_dict"].update({name: whole(weight) for name, weight in self._raw.items()})

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the average over.

        Raises:
            ValueError: where the checkpoint has none, or one of other parameters.
        """
        if "ema" not in checkpoint:
            raise ValueError(
                "the checkpoint holds no average: it was written without callbacks.EMA. "
                "Take EMA out of the callbacks to go on without one, or load the weights into a new run"
            )
        saved = checkpoint["ema"]["weights"]
        here = {name: weight.shape for name, weight in self._named(pl_module).items()}
        there = {name: weight.shape for name, weight in saved.items()}
        differing = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if differing:
            raise ValueError(
                f"the checkpoint's average is of other parameters: {len(differing)} differ, {differing[:3]}"
            )
        self._weights = {name: saved[name] for name in here}
        self._images = checkpoint["ema"]["images"]
        self._attach(pl_module)

    def _named(self, pl_module: L.LightningModule) -> dict[str, Tensor]:
        return {
            f"{module}.{name}": parameter
            for module in self._averaged
            for name, parameter in pl_module.get_submodule(module).named_parameters()
        }

    def _attach(self, pl_module: L.LightningModule) -> None:
        """Looks the parameters up where they are now, and puts the average, if there is one, beside them."""
        self._swapped = [pl_module.get_submodule(name) for name in self._averaged]
        reshard(*self._swapped)
        self._parameters = self._named(pl_module)
        self._weights = {name: _beside(weight, self._parameters[name]) for name, weight in self._weights.items()}

    @torch.no_grad()
    def _enter(self) -> None:
        self._depth += 1
        if self._depth > 1 or not self._weights:
            return
        self._raw = {name: weight.clone() for name, weight in self._parameters.items()}
        self._put(self._weights)

    @torch.no_grad()
    def _leave(self) -> None:
        self._depth -= 1
        if self._depth > 0 or not self._raw:
            return
        self._put(self._raw)
        self._raw = {}

    def _put(self, weights: dict[str, Tensor]) -> None:
        """Copies weights into the module, which must gather them anew where it is sharded."""
        reshard(*self._swapped)
        torch._foreach_copy_(_local(self._parameters), _local(weights))


def ema_weights(trainer: L.Trainer) -> AbstractContextManager[None]:
    """The average in the module inside the ``with``; nothing happens where the trainer has no EMA callback."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EMA):
            return callback.applied()
    return nullcontext()


def _images_seen(pl_module: L.LightningModule) -> int:
    images = pl_module.images_seen
    assert isinstance(images, int), "images_seen is a plain int"
    return images


def _fp32_copy(weight: Tensor) -> Tensor:
    return weight.to(torch.float32, copy=True)


def _local(weights: dict[str, Tensor]) -> list[Tensor]:
    """This process's part of each weight: averaging and copying need no other."""
    return [local(weight) for weight in weights.values()]


def _beside(weight: Tensor, parameter: Tensor) -> Tensor:
    """A weight on the parameter's device, cut as the parameter is."""
    return weight.to(parameter.device) if isinstance(weight, DTensor) else cut_like(weight, parameter)

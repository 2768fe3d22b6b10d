"""What callbacks that draw images share: the weights, modes and random state to draw with, and which images exist."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from callbacks.ema import EMA, ema_weights
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.loader import Sample
from snapgen_pl.data.prompt_data import PromptData
from snapgen_pl.data.requests import Request
from snapgen_pl.data.source import Batch, NamesClasses
from snapgen_pl.eval_mode import eval_mode
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.samplers import NamedSampler, Sampler
from snapgen_pl.metrics.sample_metric import Facts


@runtime_checkable
class DrawsImages(Protocol):
    """A module that draws images, as :class:`~snapgen_pl.modules.pretrain.Pretrain` does.

    Attributes:
        images_seen: images trained on, over all processes.
        seed: what noise is drawn from, besides a sample's position.
        image_size: side of the images, in pixels.
        origin: of its own weights, for records.
    """

    images_seen: int
    seed: int
    image_size: int
    origin: str

    @property
    def sampler(self) -> NamedSampler:
        """What draws, unless told otherwise; its ``repr`` goes into records."""
        ...

    @property
    def guidance(self) -> Guidance:
        """What guides the sampler, unless told otherwise; likewise."""
        ...

    def sample(self, request: Request, sampler: Sampler | None = None, guidance: Guidance | None = None) -> Tensor:
        """uint8 (B, 3, H, W), from the weights as they are."""
        ...

    def weights_digest(self) -> str:
        """SHA-256 over the weights as they are; every process asks for it."""
        ...

    def decoder(self) -> Facts:
        """What makes pixels of latents, for records."""
        ...


@runtime_checkable
class ShowsImages(Protocol):
    """A module that knows the images that its data mean."""

    def images_of(self, batch: Batch) -> Tensor:
        """The training images of a batch, decoded where it holds latents: uint8 (B, 3, H, W)."""
        ...


def drawing_module(module: L.LightningModule) -> DrawsImages:
    """The module, checked.

    Raises:
        ValueError: if it draws no images.
    """
    if not isinstance(module, DrawsImages):
        raise ValueError(
            f"{type(module).__name__} draws no images: it lacks one of sample, images_seen, seed, sampler, guidance, "
            "image_size, origin, weights_digest, decoder; remove the callbacks that need samples, or give it these"
        )
    return module


def image_data(trainer: L.Trainer) -> ImageData:
    """The run's data.

    Raises:
        ValueError: if they are not images with labels.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, ImageData):
        raise ValueError(f"samples are compared with the images of an ImageData, not of {type(data).__name__}")
    return data


def prompt_data(trainer: L.Trainer) -> PromptData:
    """The run's prompts.

    Raises:
        ValueError: if its data are none.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, PromptData):
        raise ValueError(f"prompts are asked for, and {type(data).__name__} has none; give a PromptData as the data")
    return data


def class_names(trainer: L.Trainer) -> tuple[str, ...]:
    """What the labels of the run's data mean.

    Raises:
        ValueError: if the data know no classes.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, NamesClasses):
        raise ValueError(f"{type(data).__name__} names no classes to draw; give an ImageData or a LabelData")
    return data.classes


def training_images(
    data: ImageData, module: L.LightningModule, indices: Sequence[int], batch_size: int = 32
) -> Iterator[Tensor]:
    """The training images at these indices as the model sees them, uint8, not mirrored; latents are decoded.

    Raises:
        ValueError: if the module knows none.
    """
    if not isinstance(module, ShowsImages):
        raise ValueError(f"{type(module).__name__} has no images_of(batch): its training images cannot be looked at")
    items = data.samples_of("train")
    for start in range(0, len(indices), batch_size):
        yield module.images_of(items.__getitems__([Sample(i, i) for i in indices[start : start + batch_size]]))


@contextmanager
def drawing(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """Inside the ``with``, the module samples as in ``predict``; afterwards nothing about the run has changed.

    EMA weights, eval mode, the run's precision, no gradients; global random state, which training owns, is put back.
    """
    devices = [module.device] if module.device.type == "cuda" else []
    with (
        eval_mode(module),
        torch.no_grad(),
        torch.random.fork_rng(devices=devices),
        ema_weights(trainer),
        trainer.precision_plugin.forward_context(),
    ):
        yield


def weights_name(trainer: L.Trainer) -> str:
    """Which weights samples are drawn from, for records."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EMA) and callback.averaged:
            return f"EMA, half-life {callback.half_life_images:.0f} images, ramp-up {callback.ramp_up}"
    return drawing_module(trainer.lightning_module).origin


def logged_step(trainer: L.Trainer) -> int:
    """The x-axis that ``self.log`` writes at: batches that stepped, which under two optimizers is not global_step."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def between_steps(trainer: L.Trainer) -> bool:
    """Whether a validation is one within training, rather than the verb ``validate`` or the check before training."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def samples_folder(trainer: L.Trainer) -> Path:
    """Where a run's pictures lie."""
    return Path(trainer.default_root_dir) / "samples"


class NowAndThen(L.Callback, ABC):
    """Draws at validations, once enough images were trained on; when it last did is in the run's checkpoints.

    Args:
        every_n_images: trained on since the last time; 0 draws at every validation, None at none.
    """

    def __init__(self, every_n_images: int | None) -> None:
        if every_n_images is not None and every_n_images < 0:
            raise ValueError(f"every_n_images is {every_n_images}; give a count of images, or 0 for every validation")
        self.every_n_images = every_n_images
        self._last = 0

    def state_dict(self) -> dict[str, int]:
        """When it last drew."""
        return {"images_seen": self._last}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on counting from there."""
        self._last = state_dict["images_seen"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws, if it is time."""
        if self.every_n_images is None or not between_steps(trainer):
            return
        if drawing_module(pl_module).images_seen - self._last >= max(1, self.every_n_images):
            self._now(trainer, pl_module)

    @abstractmethod
    def _now(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws, and keeps in ``_last`` when that was."""


def ended_early(trainer: L.Trainer) -> bool:
    """Whether the run was told to stop before its last step, as by :class:`~callbacks.termination.Termination`."""
    return trainer.should_stop and trainer.global_step < trainer.max_steps

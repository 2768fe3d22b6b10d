"""What modules share that draw images and train nothing: wiring only."""

from abc import ABC, abstractmethod
from typing import Protocol

import lightning as L
from torch import Tensor

from snapgen_pl.data.requests import Request
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.samplers import NamedSampler, Sampler


class _Draws(Protocol):
    """What draws: a :class:`~snapgen_pl.modules.pretrain.Pretrain`, a :class:`~snapgen_pl.released.drawer.Drawer`."""

    image_size: int
    guidance: Guidance

    @property
    def sampler(self) -> NamedSampler: ...


class DrawsOnly(L.LightningModule, ABC):
    """Predicts images of what is asked for, by what it holds; callbacks measure them."""

    @property
    @abstractmethod
    def drawing(self) -> _Draws:
        """What draws."""

    @abstractmethod
    def sample(self, request: Request, sampler: Sampler | None = None, guidance: Guidance | None = None) -> Tensor:
        """Draws images: uint8 (B, 3, image_size, image_size).

        Args:
            request: the same one gives the same images.
            sampler: in place of the own one.
            guidance: in place of the own one.
        """

    @abstractmethod
    def read_weights(self) -> None:
        """Reads the weights that draw, on every process."""

    @property
    def sampler(self) -> NamedSampler:
        """Of what draws."""
        return self.drawing.sampler

    @property
    def guidance(self) -> Guidance:
        """Of what draws."""
        return self.drawing.guidance

    @property
    def image_size(self) -> int:
        """Of what draws."""
        return self.drawing.image_size

    def setup(self, stage: str) -> None:
        """Reads the weights.

        Raises:
            ValueError: for a verb other than ``predict`` and ``test``.
        """
        if stage not in ("predict", "test"):
            raise ValueError(f"{type(self).__name__} draws images and trains nothing: use test, not {stage}")
        self.read_weights()

    def test_step(self, batch: Request, batch_idx: int) -> None:
        """Nothing: callbacks draw what they measure."""

    def predict_step(self, batch: Request, batch_idx: int) -> Tensor:
        """Images of what is asked for."""
        return self.sample(batch)

"""The contract of metrics that compare drawn images with training images."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor


class Score(NamedTuple):
    """One value of a metric.

    Attributes:
        value: lower is better.
        spread: the standard deviation over the subsets that ``value`` is the mean of; None where there are none.
    """

    value: float
    spread: float | None = None


class SampleMetric(ABC):
    """A distance between two sets of images, interchangeable by ``class_path``.

    The reference set is given once and kept; sets to compare with it come and go. Under several processes each gives
    its own images, in the order of ranks, and :meth:`compute` gathers them.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in logs; another protocol whose values do not compare has another name."""

    @property
    @abstractmethod
    def least_images(self) -> int:
        """How many images, over all processes, each of the two sets must hold."""

    @abstractmethod
    def protocol(self) -> dict[str, int | float | str]:
        """What a value depends on besides the images, for the record."""

    @abstractmethod
    def prepare(self, device: torch.device) -> None:
        """Loads what the metric needs; called before training, so that what is missing shows at once.

        Raises:
            ValueError: with the command that installs what is missing.
        """

    @abstractmethod
    def add_reference(self, image_BCHW: Tensor) -> None:
        """Adds uint8 images to the reference set."""

    @abstractmethod
    def add(self, image_BCHW: Tensor) -> None:
        """Adds uint8 images to the set that is compared with the reference."""

    @abstractmethod
    def compute(self) -> Score:
        """The distance, the same on every process; global random state is left as it was.

        Raises:
            ValueError: if either set is smaller than ``least_images``.
        """

    @abstractmethod
    def clear(self) -> None:
        """Forgets the compared set and keeps the reference."""

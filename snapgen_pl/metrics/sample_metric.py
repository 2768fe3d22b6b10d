"""The contract of metrics that compare drawn images with reference images."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

Facts: TypeAlias = Mapping[str, "bool | int | float | str | Facts | None"]
T = TypeVar("T")


class Score(NamedTuple):
    """One value of a metric.

    Attributes:
        value: of the set of images.
        spread: the standard deviation over the parts that ``value`` is the mean of; None where there are none.
    """

    value: float
    spread: float | None = None


class FeatureSet(Protocol):
    """The features of a set of images, in the images' order."""

    @property
    def count(self) -> int:
        """How many images."""
        ...

    def read(self, name: str) -> Iterator[Tensor]:
        """One kind of features, chunk by chunk: fp32 (B, D) on the CPU."""
        ...


class SampleMetric(ABC):
    """The values that are made of one network's features, interchangeable by ``class_path``.

    Features are taken of images in any order and on any number of processes; one process compares them. The reference
    set is given once and kept.

    Attributes:
        needs_requests: whether images are held against what they were drawn for: no others are measured.
    """

    needs_requests: ClassVar[bool] = False

    @property
    @abstractmethod
    def network(self) -> str:
        """A name of the features, in files and logs; other features have another name."""

    @property
    @abstractmethod
    def least_images(self) -> int:
        """How many images each of the two sets must hold."""

    @property
    def brings_reference(self) -> bool:
        """Whether the reference comes with the metric; otherwise it is made of training images."""
        return False

    @abstractmethod
    def protocol(self) -> Facts:
        """What the values depend on besides the images, for the record; what it loads is known once prepared."""

    def controls(self) -> "Mapping[str, Mapping[str, Score]]":
        """The values of images of known quality, by their name, where the metric brings those too."""
        return {}

    @abstractmethod
    def prepare(self, device: torch.device) -> None:
        """Loads what the metric needs; called before training, so that what is missing shows at once.

        Raises:
            ValueError: with the command that installs what is missing.
        """

    def open_reference(self) -> None:  # noqa: B027 (most bring none)
        """Reads the reference that the metric brings, on the process that compares; once prepared."""

    def check_requests(self, asked: Sequence[str]) -> None:  # noqa: B027 (most do not look at them)
        """Says before long work whether images of such requests can be judged; once prepared.

        Raises:
            ValueError: naming a request that cannot.
        """

    @abstractmethod
    def features(self, image_BCHW: Tensor, asked: Sequence[str] = ()) -> dict[str, Tensor]:
        """What the network says of images, by kind: fp32 (B, D).

        Args:
            image_BCHW: uint8 (B, 3, H, W).
            asked: what each was asked for with, a class's name or a caption; nothing for images that were not drawn.
        """

    @abstractmethod
    def set_reference(self, features: FeatureSet) -> None:
        """Takes the reference set, where the metric does not bring one."""

    @abstractmethod
    def measure(self, features: FeatureSet) -> dict[str, Score]:
        """The values of a set, by name; another protocol whose values do not compare has other names.

        Global random state is left as it was.

        Raises:
            ValueError: if either set is smaller than ``least_images``.
        """


class RequestMetric(SampleMetric):
    """The values of images of any number, each held against what it was drawn for and nothing else."""

    needs_requests = True

    @property
    def least_images(self) -> int:
        """Any set will do."""
        return 1

    @property
    def brings_reference(self) -> bool:
        """What was asked for."""
        return True

    def set_reference(self, features: FeatureSet) -> None:
        """Has its own."""


def prepared(loaded: T | None, name: str) -> T:
    """What a metric has loaded.

    Raises:
        ValueError: where it has not, naming the metric.
    """
    if loaded is None:
        raise ValueError(f"{name} is not prepared; call prepare(device) first")
    return loaded


def mean_and_truncated(features: FeatureSet, name: str) -> tuple[Score, Score]:
    """The mean of each image's value, and the share of images whose text was cut.

    Args:
        features: of the set.
        name: of features (B, 2), a value and whether the text was cut.
    """
    value_N, truncated_N = torch.cat(list(features.read(name))).double().unbind(dim=-1)
    return Score(float(value_N.mean()), float(value_N.std(correction=0))), Score(float(truncated_N.mean()))


def numbered(name: str, count: int) -> str:
    """The name of a value that depends on how many images were drawn, such as ``fid@5000``."""
    return f"{name}@{count}"


def all_numbered(scores: Mapping[str, Score], count: int) -> dict[str, Score]:
    """Values under their names as :func:`numbered`."""
    return {numbered(name, count): score for name, score in scores.items()}

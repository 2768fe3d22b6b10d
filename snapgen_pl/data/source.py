"""Where images, or their latents, come from: labelled sets split into training and validation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from PIL import Image
from torch import Tensor

from snapgen_pl.autoencoders.autoencoder import Posterior
from snapgen_pl.conditioning.condition import Condition


class Taught(NamedTuple):
    """What a teacher says of a batch.

    Attributes:
        velocity_BCHW: guided.
        features: (B, C', H', W'), by the teacher's names.
    """

    velocity_BCHW: Tensor
    features: Mapping[str, Tensor]


class ImageBatch(NamedTuple):
    """One batch of images.

    Attributes:
        image_BCHW: uint8 RGB.
        condition: what it is trained to be asked for with: int64 labels (B,), or texts.
        position_B: int64, what each sample's timestep, noise and augmentation are drawn from: its place in the endless
            training stream, a pinned place of its image, or its index in the validation set.
        taught: what a teacher said of it before, at the time and noise of this position; None where it did not.
    """

    image_BCHW: Tensor
    condition: Condition
    position_B: Tensor
    taught: Taught | None = None


class LatentBatch(NamedTuple):
    """One batch of images as an autoencoder encoded them.

    Attributes:
        posterior: over their raw latents.
        condition: as in :class:`ImageBatch`.
        position_B: as in :class:`ImageBatch`.
        taught: as in :class:`ImageBatch`.
    """

    posterior: Posterior
    condition: Condition
    position_B: Tensor
    taught: Taught | None = None


Batch: TypeAlias = ImageBatch | LatentBatch


class ImageSet(Protocol):
    """Indexed images of one split."""

    @property
    def labels(self) -> Tensor:
        """The class of each image: int64 (N,)."""
        ...

    def __len__(self) -> int:
        """The number of images."""
        ...

    def load(self, index: int) -> Image.Image:
        """The image as stored, RGB, any size."""
        ...


@runtime_checkable
class LatentSet(Protocol):
    """Indexed latents of one split.

    Attributes:
        image_size: side of the images that were encoded, in pixels.
        flips: 2 where their mirror images were encoded too, else 1.
        autoencoder: the identity of what encoded them.
    """

    image_size: int
    flips: int
    autoencoder: Mapping[str, str | int | float]

    @property
    def labels(self) -> Tensor:
        """The class of each image: int64 (N,)."""
        ...

    def __len__(self) -> int:
        """The number of images."""
        ...

    def load(self, indices: Sequence[int], mirrored: Sequence[bool]) -> Posterior:
        """The posteriors of these images, or of their mirror images."""
        ...


class ImageSource(ABC):
    """A collection of labelled images or latents; constructing one is cheap, :meth:`open` reads and checks."""

    @abstractmethod
    def open(self) -> "OpenSource":
        """Reads the index and checks it.

        Raises:
            ValueError: naming what is missing or damaged, where, and what was expected.
        """

    def check(self) -> None:  # noqa: B027  (a choice, not a duty)
        """Reads everything through, before a training begins; by default nothing.

        Raises:
            ValueError: naming what is damaged.
        """


class OpenSource(NamedTuple):
    """An opened source.

    Attributes:
        classes: class names; labels index them.
        train: images to train on.
        validation: held-out images.
        fingerprint: SHA-256 over what identifies the data, for the run's manifest.
        encoded_from: the fingerprint of the source that latents were encoded from; None for images.
        streamed: whether training images come as a stream of which ``train`` holds some, to be looked at.
    """

    classes: tuple[str, ...]
    train: ImageSet | LatentSet
    validation: ImageSet | LatentSet
    fingerprint: str
    encoded_from: str | None = None
    streamed: bool = False


@runtime_checkable
class NamesClasses(Protocol):
    """A datamodule that knows what labels mean, such as :class:`~snapgen_pl.data.datamodule.ImageData`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; labels index them."""
        ...

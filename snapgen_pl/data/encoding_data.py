"""The LightningDataModule of images to encode, shard by shard."""

from collections.abc import Iterator, Sequence
from typing import Literal

import lightning as L
import torch
from PIL import Image
from torch import Tensor

from snapgen_pl.at_least import check_at_least
from snapgen_pl.data.conditions import Captioned, Captions, Labels
from snapgen_pl.data.in_shards import InShards
from snapgen_pl.data.loader import BatchLoader, ImageSamples, Sample
from snapgen_pl.data.requests import RequestBatches, Requests
from snapgen_pl.data.shards import Shard
from snapgen_pl.data.source import Batch, ImageSet, ImageSource, LatentSet, OpenSource


class BothSplits:
    """The training images and behind them the validation images; an :class:`~snapgen_pl.data.source.ImageSet`.

    Args:
        train: the former.
        validation: the latter.
    """

    def __init__(self, train: ImageSet, validation: ImageSet) -> None:
        self.train, self.validation = train, validation
        self.labels: Tensor = torch.cat((train.labels, validation.labels))

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """The image as stored."""
        images, place = self._place(index)
        return images.load(place)

    @property
    def captioned(self) -> bool:
        """Whether the images have captions."""
        return isinstance(self.train, Captioned) and isinstance(self.validation, Captioned)

    def caption(self, index: int) -> str:
        """A sentence that says what the image shows.

        Raises:
            ValueError: where images have none.
        """
        images, place = self._place(index)
        if not isinstance(images, Captioned):
            raise ValueError("the source has no captions; give one that has")
        return images.caption(place)

    def captions(self, indices: Sequence[int]) -> list[str] | None:
        """Those of these images; None where images have none."""
        return [self.caption(index) for index in indices] if self.captioned else None

    def _place(self, index: int) -> tuple[ImageSet, int]:
        behind = index - len(self.train)
        return (self.train, index) if behind < 0 else (self.validation, behind)


class ShardBatches:
    """Batches that never reach over a shard's end. No DataLoader, for Lightning rebuilds those when it predicts.

    Args:
        samples: loads a batch.
        batches: the positions of each.
        workers: processes that load.
    """

    def __init__(self, samples: ImageSamples, batches: list[list[int]], workers: int) -> None:
        self.samples, self.batches, self.workers = samples, batches, workers

    def __len__(self) -> int:
        """The number of batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """The batches, in order."""
        samples = [[Sample(position, position) for position in batch] for batch in self.batches]
        return iter(BatchLoader(self.samples, samples, self.workers))


class EncodingData(InShards):
    """Every image or caption once, those to train on first, for ``predict`` to encode into shards.

    A position is an image's place in that order. See :class:`~snapgen_pl.data.in_shards.InShards`.

    Args:
        source: where the images come from.
        image_size: side of the images after cropping, in pixels.
        batch_size: images that a process encodes at once.
        shard_size: images a shard.
        workers: processes that load images, for each encoding process; 0 loads them in the process itself.
        read: what to give: images, or the captions alone.

    Attributes:
        images: all of them by position; known after setup.
    """

    images: BothSplits

    def __init__(
        self,
        source: ImageSource,
        image_size: int = 256,
        batch_size: int = 64,
        shard_size: int = 4096,
        workers: int = 0,
        read: Literal["image", "caption"] = "image",
    ) -> None:
        super().__init__()
        check_at_least(1, image_size=image_size, batch_size=batch_size, shard_size=shard_size)
        check_at_least(0, workers=workers)
        self.image_source = source
        self.image_size, self.batch_size, self.shard_size, self.workers = image_size, batch_size, shard_size, workers
        self.read: Literal["image", "caption"] = read
        self.unit = read
        self._opened: OpenSource | None = None

    def setup(self, stage: str) -> None:
        """Opens the source.

        Raises:
            ValueError: where it is damaged, holds latents, or lacks the captions that are to be read.
        """
        if self._opened is None:
            self._opened = self.image_source.open()
            self.images = self._both(self._opened)
        if self.read == "caption" and not self.images.captioned:
            raise ValueError(f"{type(self.image_source).__name__} has no captions to read; give a source that has")

    @property
    def source(self) -> OpenSource:
        """The opened source; known after setup."""
        if self._opened is None:
            raise AttributeError("the source is opened by setup(), which has not been called yet")
        return self._opened

    @property
    def counts(self) -> tuple[int, int]:
        """Images of both splits."""
        return len(self.source.train), len(self.source.validation)

    def positions(self, shard: Shard) -> range:
        """The positions of a shard's images."""
        first = shard.first + (len(self.source.train) if shard.split == "validation" else 0)
        return range(first, first + shard.count)

    def training_images(self, batch_size: int) -> Iterator[Tensor]:
        """Every training image once, in order: uint8 (B, 3, H, W)."""
        samples = ImageSamples(self.images, Labels(self.images.labels), self.image_size)
        count = len(self.source.train)
        for first in range(0, count, batch_size):
            indices = range(first, min(first + batch_size, count))
            yield samples.__getitems__([Sample(index, index) for index in indices]).image_BCHW

    def predict_dataloader(self) -> ShardBatches | RequestBatches:
        """This process's part of ``shards``, which the writer sets.

        Raises:
            ValueError: where there is no writer.
        """
        batches = [list(positions) for _, positions in self.own_batches()]
        if self.read == "caption":
            return RequestBatches(Requests(Captions(self.images), range(len(self.images))), batches)
        return ShardBatches(
            ImageSamples(self.images, Labels(self.images.labels), self.image_size), batches, self.workers
        )

    @staticmethod
    def _both(source: OpenSource) -> BothSplits:
        if isinstance(source.train, LatentSet) or isinstance(source.validation, LatentSet):
            raise ValueError("data.source holds latents already; give the source of the images")
        return BothSplits(source.train, source.validation)


def encoding_data(trainer: L.Trainer, read: Literal["image", "caption"]) -> EncodingData:
    """The run's data.

    Raises:
        ValueError: where they are no EncodingData, or read something else.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, EncodingData):
        raise ValueError(f"an EncodingData is needed as data here, not {type(data).__name__}")
    if data.read != read:
        raise ValueError(f"data.read is {data.read}, but {read}s are needed here; set --data.read {read}")
    return data

"""The LightningDataModule of images to ask a teacher about, shard by shard."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from snapgen_pl.at_least import check_at_least
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.in_shards import InShards
from snapgen_pl.data.loader import BatchLoader, Sample, Samples, image_at
from snapgen_pl.data.shards import SPLITS, Shard, Split
from snapgen_pl.data.source import Batch


class SplitBatch(NamedTuple):
    """A batch, and what it is of.

    Attributes:
        split: which.
        batch: as in training, or in validation.
    """

    split: Split
    batch: Batch

    @property
    def position_B(self) -> Tensor:
        """The batch's."""
        return self.batch.position_B


class SplitBatches:
    """Batches of the training images and then of the others. No DataLoader, for Lightning rebuilds those.

    Args:
        samples: loads a batch, by split.
        batches: the samples of each, by split.
        workers: processes that load.
    """

    def __init__(
        self, samples: Mapping[Split, Samples], batches: Mapping[Split, list[list[Sample]]], workers: int
    ) -> None:
        self.samples, self.batches, self.workers = samples, batches, workers

    def __len__(self) -> int:
        """The number of batches."""
        return sum(map(len, self.batches.values()))

    def __iter__(self) -> Iterator[SplitBatch]:
        """The batches, in order."""
        for split, batches in self.batches.items():
            for batch in BatchLoader(self.samples[split], batches, self.workers) if batches else ():
                yield SplitBatch(split, batch)


class TeachingData(ImageData, InShards):
    """Every training image at each of its pinned draws, then every validation image, for ``predict`` to ask a teacher.

    Configured as the :class:`~snapgen_pl.data.datamodule.ImageData` that will train on the answers, but for
    ``batch_size``: that is what each process asks about at once. A position is a draw's, or in validation an image's
    index. See :class:`~snapgen_pl.data.in_shards.InShards`.

    Args:
        shard_size: draws a shard.
        **data: as in ImageData; ``draws`` is needed.
    """

    unit = "draw"

    def __init__(self, shard_size: int = 1024, **data: Any) -> None:
        super().__init__(**data)
        if self.draws is None or self.teacher_outputs is not None:
            raise ValueError("a teacher is asked about pinned draws: set data.draws, leave data.teacher_outputs out")
        check_at_least(1, shard_size=shard_size)
        self.shard_size = shard_size
        self._each = self.draws

    @property
    def micro_batch(self) -> int:
        """Images that one process takes at once."""
        return self.batch_size

    @property
    def counts(self) -> tuple[int, int]:
        """Draws of the training images, and the validation images."""
        return len(self.source.train) * self._each, len(self.source.validation)

    def positions(self, shard: Shard) -> range:
        """The positions of a shard's draws, within its split."""
        return range(shard.first, shard.first + shard.count)

    def predict_dataloader(self) -> SplitBatches:  # type: ignore[override]  # these are no requests
        """This process's part of ``shards``, which the writer sets.

        Raises:
            ValueError: where there is no writer.
        """
        batches: dict[Split, list[list[Sample]]] = {split: [] for split in SPLITS}
        for shard, positions in self.own_batches():
            batches[shard.split].append([self._sample(shard.split, position) for position in positions])
        samples = {split: self.samples_of(split, self.flip_seed if split == "train" else None) for split in SPLITS}
        return SplitBatches(samples, batches, self.workers)

    def _sample(self, split: Split, position: int) -> Sample:
        return Sample(position, image_at(position, self._each) if split == "train" else position)

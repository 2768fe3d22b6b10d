"""The LightningDataModule of images to ask a teacher about, shard by shard."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from snapgen_pl.config_files import Value
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.loader import BatchLoader, Sample, Samples
from snapgen_pl.data.shards import SPLITS, Plan, Shard, Split
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
        for split in SPLITS:
            for batch in (
                BatchLoader(self.samples[split], self.batches[split], self.workers) if self.batches[split] else ()
            ):
                yield SplitBatch(split, batch)


class TeachingData(ImageData):
    """Every training image at each of its pinned draws, then every validation image, for ``predict`` to ask a teacher.

    Configured as the :class:`~snapgen_pl.data.datamodule.ImageData` that will train on the answers, ``draws`` included.
    Each process takes every world_size-th of the shards that are still to be written.

    Args:
        shard_size: draws a shard.
        **data: as in ImageData.

    Attributes:
        shards: those to write; None until the writer has said which.
        read: what is written of each.
    """

    read = "draw"

    def __init__(self, shard_size: int = 1024, **data: Any) -> None:
        super().__init__(**data)
        if self.draws is None or self.teacher_outputs is not None:
            raise ValueError(
                "a teacher is asked about pinned draws: set data.draws, and leave data.teacher_outputs out"
            )
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}")
        self.shard_size = shard_size
        self.shards: Sequence[Shard] | None = None
        # Where fewer shards are left than there are processes, Lightning would refuse.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def plan(self, format_name: str, facts: Mapping[str, Value]) -> Plan:
        """A plan of shards over all draws; see EncodingData.plan."""
        assert self.draws is not None
        counts = len(self.source.train) * self.draws, len(self.source.validation)
        return Plan(format_name, facts, self.source.fingerprint, counts, self.shard_size)

    def positions(self, shard: Shard) -> range:
        """The positions of a shard's draws, of its split."""
        return range(shard.first, shard.first + shard.count)

    def predict_dataloader(self) -> SplitBatches:  # type: ignore[override]  # these are no requests
        """This process's part of ``shards``, which the writer sets.

        Raises:
            ValueError: where there is no writer.
        """
        if self.shards is None:
            raise ValueError("nothing would be written: add callbacks.shard_writer.ShardWriter to trainer.callbacks")
        batches: dict[Split, list[list[Sample]]] = {split: [] for split in SPLITS}
        for shard in self.shards[self._rank :: self._world_size]:
            positions = self.positions(shard)
            starts = range(0, len(positions), self.batch_size)
            parts = [positions[first : first + self.batch_size] for first in starts]
            batches[shard.split] += [[self._sample(shard.split, position) for position in part] for part in parts]
        samples = {split: self.samples_of(split, self.flip_seed if split == "train" else None) for split in SPLITS}
        return SplitBatches(samples, batches, self.workers)

    def _sample(self, split: Split, position: int) -> Sample:
        assert self.draws is not None
        return Sample(position, position // self.draws if split == "train" else position)

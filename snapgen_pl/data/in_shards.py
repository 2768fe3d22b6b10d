"""What datamodules share whose samples ``predict`` makes shards of."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import lightning as L

from snapgen_pl.config_files import Value
from snapgen_pl.data.shards import Plan, Shard
from snapgen_pl.data.source import OpenSource


class InShards(L.LightningDataModule, ABC):
    """Gives samples shard by shard; each process takes every world_size-th of the shards that are still to be written.

    Attributes:
        shards: those to write; None until the writer has said which.
        shard_size: samples a shard.
        batch_size: samples that a process takes at once.
        unit: what a sample is called.
    """

    shards: Sequence[Shard] | None = None
    shard_size: int
    batch_size: int
    unit: str

    def __init__(self) -> None:
        super().__init__()
        # Where fewer shards are left than there are processes, Lightning would refuse. It sets its own default as here.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @property
    @abstractmethod
    def source(self) -> OpenSource:
        """The opened source; known after setup."""

    @property
    @abstractmethod
    def counts(self) -> tuple[int, int]:
        """Samples to train and to validate on. Known after setup."""

    @abstractmethod
    def positions(self, shard: Shard) -> range:
        """The positions of a shard's samples, as its batches have them."""

    def plan(self, format_name: str, facts: Mapping[str, Value]) -> Plan:
        """A plan of shards over all samples.

        Args:
            format_name: what the shards are of, and its version.
            facts: what their values depend on besides the images.
        """
        return Plan(format_name, facts, self.source.fingerprint, self.counts, self.shard_size)

    def own_batches(self) -> list[tuple[Shard, range]]:
        """This process's part of ``shards``, in order: positions of batches that never reach over a shard's end.

        Raises:
            ValueError: where there is no writer.
        """
        if self.shards is None:
            raise ValueError("nothing would be written: add callbacks.shard_writer.ShardWriter to trainer.callbacks")
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return [
            (shard, positions[first : first + self.batch_size])
            for shard in self.shards[rank::ranks]
            for positions in [self.positions(shard)]
            for first in range(0, len(positions), self.batch_size)
        ]

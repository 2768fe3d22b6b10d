"""The endless stream of captioned images in tars: read in order, shuffled in blocks, resumed from counts.

A stream has a fixed number of readers, whatever processes and workers do their work. The shards come in one endless
order, that of an epoch drawn from (seed, epoch); reader r takes those at places r, r + readers, ... of it. It cuts what
it reads into blocks, none of which reaches into another epoch, and gives each block in an order drawn from (seed, place
of the sample), what is at fault or too small left out. Position p of the stream is the (p // readers)-th sample of
reader p % readers: the same one on any number of processes and workers, each of which has readers of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby, islice
from typing import NamedTuple

import torch

from snapgen_pl import rng
from snapgen_pl.data.loader import EndlessOrder
from snapgen_pl.data.tar_samples import PackedOrFault, read_shard


class Cursor(NamedTuple):
    """How far a reader is.

    Attributes:
        shard: place, in the endless order, of the shard that its block begins in.
        sample: the block's first in that shard.
        taken: how many of the block were taken.
    """

    shard: int
    sample: int
    taken: int


class _Placed(NamedTuple):
    shard: int
    number: int
    sample: PackedOrFault


@dataclass(frozen=True)
class TarStream:
    """What is read, and in which order.

    Args:
        shards: their names.
        caption_key: see :func:`~snapgen_pl.data.tar_samples.read_shard`.
        readers: how many shards are read side by side, over all processes.
        shuffle: samples of a block; a reader holds up to two.
        seed: of both orders, that of shards and that in blocks.
    """

    shards: tuple[str, ...]
    caption_key: str | None
    readers: int
    shuffle: int
    seed: int

    def begin(self) -> list[Cursor]:
        """Where the readers begin."""
        return [Cursor(reader, 0, 0) for reader in range(self.readers)]

    def read(self, cursor: Cursor) -> Iterator[tuple[Cursor, PackedOrFault]]:
        """A reader's samples from a cursor on, each with the cursor behind it; endless."""
        taken = cursor.taken
        for _, epoch in groupby(self._in_order(cursor), lambda placed: placed.shard // len(self.shards)):
            block = list(islice(epoch, self.shuffle))
            while block:
                ahead: list[_Placed] = []
                for given, placed in enumerate(self._shuffled(block), 1):
                    # The next block, bit by bit: no batch has to wait for all of it.
                    ahead += islice(epoch, 1)  # noqa: B031  (the one iterator, read on)
                    if given > taken:
                        yield Cursor(block[0].shard, block[0].number, given), placed.sample
                block, taken = ahead, 0

    def _in_order(self, cursor: Cursor) -> Iterator[_Placed]:
        order, first = EndlessOrder(len(self.shards), self.seed), cursor.sample
        for shard in count(cursor.shard, self.readers):
            samples = read_shard(self.shards[order[shard]], self.caption_key, first)
            for number, sample in enumerate(samples, first):
                yield _Placed(shard, number, sample)
            first = 0

    def _shuffled(self, block: Sequence[_Placed]) -> list[_Placed]:
        place_B = torch.tensor([(placed.shard << 32) + placed.number for placed in block])
        lots_B = rng.uniform(self.seed, rng.Stream.SHUFFLE, place_B)
        return [block[i] for i in lots_B.argsort(stable=True).tolist()]

"""The endless stream of captioned images in tars: read in order, shuffled in blocks, resumed from counts.

A stream has a fixed number of readers, whatever processes and workers do their work. The shards come in one endless
order, that of an epoch drawn from (seed, epoch); reader r takes those at places r, r + readers, ... of it. It cuts what
it reads into blocks, none of which reaches into another epoch, and gives each block in an order drawn from (seed, place
of the sample), what is at fault or too small left out. Position p of the stream is the (p // readers)-th sample of
reader p % readers: the same one on any number of processes and workers, each of which has readers of its own.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby, islice, zip_longest
from operator import itemgetter
from typing import NamedTuple

import torch

from snapgen_pl import rng
from snapgen_pl.data.faults import Fault
from snapgen_pl.data.loader import EndlessOrder
from snapgen_pl.data.tar_samples import PackedOrFault, read_packed


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


class Placed(NamedTuple):
    """A sample and where it lies.

    Attributes:
        shard: place, in the endless order, of its shard.
        number: its own in that shard, from 0.
        sample: whole, or at fault.
    """

    shard: int
    number: int
    sample: PackedOrFault


@dataclass(frozen=True)
class TarStream:
    """What is read, and in which order.

    Args:
        shards: their names.
        caption_key: see :func:`~snapgen_pl.data.tar_samples.read_packed`.
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

    def passes(self, cursor: Cursor) -> int:
        """How often a reader there has been through its share of all shards, the pass that is under way included."""
        return 1 + cursor.shard // len(self.shards)

    def read(self, cursor: Cursor) -> Iterator[tuple[Cursor, Placed]]:
        """A reader's samples from a cursor on, each with the cursor behind it; endless."""
        taken = cursor.taken
        for _, epoch in groupby(self._in_order(cursor), lambda placed: placed.shard // len(self.shards)):
            block = list(islice(epoch, self.shuffle))
            while block:
                ahead: list[Placed] = []
                for given, placed in enumerate(self._shuffled(block), 1):
                    # The next block, bit by bit: no batch has to wait for all of it.
                    ahead += islice(epoch, 1)  # noqa: B031  (the one iterator, read on)
                    if given > taken:
                        yield Cursor(block[0].shard, block[0].number, given), placed
                block, taken = ahead, 0

    def again(self, places: Iterable[tuple[int, int]]) -> Iterator[Placed]:
        """Samples that were read before, by shard and number; what is no longer there is at fault.

        Args:
            places: (shard, number) of each, as in :class:`Placed`.
        """
        order = EndlessOrder(len(self.shards), self.seed)
        for shard, some in groupby(sorted(places), itemgetter(0)):
            name, numbers = self.shards[order[shard]], [number for _, number in some]
            found = islice(read_packed(name, self.caption_key, frozenset(numbers)), len(numbers))
            for number, sample in zip_longest(numbers, found):
                yield Placed(shard, number, sample or Fault(name, "", f"no longer holds its sample {number}"))

    def _in_order(self, cursor: Cursor) -> Iterator[Placed]:
        order, first = EndlessOrder(len(self.shards), self.seed), cursor.sample
        for shard in count(cursor.shard, self.readers):
            samples = read_packed(self.shards[order[shard]], self.caption_key, range(first, sys.maxsize))
            for number, sample in enumerate(samples, first):
                yield Placed(shard, number, sample)
            first = 0

    def _shuffled(self, block: Sequence[Placed]) -> list[Placed]:
        place_B = torch.tensor([(placed.shard << 32) + placed.number for placed in block])
        lots_B = rng.uniform(self.seed, rng.Stream.SHUFFLE, place_B)
        return [block[i] for i in lots_B.argsort(stable=True).tolist()]

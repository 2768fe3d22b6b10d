"""The endless training loader over a stream of tars, resumed from counts on any number of processes and workers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import count
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from snapgen_pl.conditioning.condition import Texts, texts
from snapgen_pl.data.faults import Fault, Skipped, Tally
from snapgen_pl.data.loader import ENDLESS, image_batch, worker_options
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.data.tar_samples import Packed, PackedOrFault
from snapgen_pl.data.tar_stream import Cursor, TarStream
from snapgen_pl.data.unpacker import Unpacker
from snapgen_pl.processes import gather

_BARREN = 100  # shards without an image of use, one after the other, after which a reader gives up


class Part(NamedTuple):
    """What one worker has of one batch.

    Attributes:
        batch: its samples; None where it has none.
        cursors: how far its readers are.
        faults: what it left out on the way.
        filtered: how many images were too small.
        barren: why it gave up; empty if it did not.
    """

    batch: ImageBatch | None
    cursors: dict[int, Cursor]
    faults: list[Fault]
    filtered: int
    barren: str = ""


@dataclass(frozen=True)
class Share:
    """The share of one process.

    Args:
        micro_batch: images that one process takes at once.
        rank: which process.
        world_size: number of processes.
    """

    micro_batch: int
    rank: int = 0
    world_size: int = 1


class TarParts(IterableDataset[Part]):
    """A process's part of a stream, of each batch what one of its workers has to load.

    Args:
        stream: what is read.
        unpacker: makes pixels.
        flip_seed: the seed of random flips; None for none.
        share: the process's.
        position: samples that all processes together have had.
        cursors: how far readers are, the process's own at least.
        limit: after so many faults in a part, the rest of it does not matter.
    """

    def __init__(
        self,
        stream: TarStream,
        unpacker: Unpacker,
        flip_seed: int | None,
        share: Share,
        position: int,
        cursors: Mapping[int, Cursor],
        limit: int,
    ) -> None:
        self.stream, self.unpacker, self.flip_seed, self.share = stream, unpacker, flip_seed, share
        self.position, self.cursors, self.limit = position, dict(cursors), limit

    def __iter__(self) -> Iterator[Part]:
        """The parts of this worker, endless."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        readers = range(self.share.rank, self.stream.readers, self.share.world_size)
        cursors = {reader: self.cursors[reader] for reader in readers[worker::workers]}
        streams = {reader: self.stream.read(cursor) for reader, cursor in cursors.items()}
        for first in count(self.position // self.share.world_size, self.share.micro_batch):
            # The process's i-th sample is of its reader i, and so of its worker i, both counted round and round.
            places = [place for place in range(first, first + self.share.micro_batch) if place % workers == worker]
            yield self._part(streams, cursors, [(place, readers[place % len(readers)]) for place in places])

    def _part(
        self,
        streams: Mapping[int, Iterator[tuple[Cursor, PackedOrFault]]],
        cursors: dict[int, Cursor],
        places: Sequence[tuple[int, int]],
    ) -> Part:
        pixels: list[Tensor] = []
        captions: list[str] = []
        faults: list[Fault] = []
        filtered = 0
        for _, reader in places:
            begun = cursors[reader].shard
            for cursor, sample in streams[reader]:
                cursors[reader] = cursor
                loaded = sample if isinstance(sample, Fault) else self.unpacker.pixels(sample)
                if isinstance(sample, Packed) and isinstance(loaded, Tensor):
                    pixels.append(loaded)
                    captions.append(sample.caption)
                    break
                if isinstance(loaded, Fault):
                    faults.append(loaded)
                else:
                    filtered += 1
                barren = cursor.shard - begun > _BARREN * self.stream.readers
                if barren or len(faults) > self.limit:
                    why = f"{_BARREN} shards in a row hold no image of use" if barren else ""
                    return Part(None, dict(cursors), faults, filtered, why)
        positions = [place * self.share.world_size + self.share.rank for place, _ in places]
        batch = image_batch(pixels, Texts(tuple(captions), {}), positions, self.flip_seed) if places else None
        return Part(batch, dict(cursors), faults, filtered)


def join(parts: Sequence[ImageBatch]) -> ImageBatch:
    """The parts of a batch of captioned images as one, by position."""
    if len(parts) == 1:
        return parts[0]
    position_B = torch.cat([part.position_B for part in parts])
    order = position_B.argsort()
    captions = [caption for part in parts for caption in texts(part.condition).captions]
    image_BCHW = torch.cat([part.image_BCHW for part in parts])[order]
    return ImageBatch(image_BCHW, Texts(tuple(captions[i] for i in order.tolist()), {}), position_B[order])


class OwnState(NamedTuple):
    """What one process knows of a loader's state.

    Attributes:
        cursors: how far its readers are.
        skipped: what it left out in this session.
    """

    cursors: dict[int, Cursor]
    skipped: Tally


class StreamState(TypedDict):
    """A loader's state, in types that a checkpoint takes.

    Attributes:
        position: samples that all processes together have been given.
        shards: how many there are.
        shuffle: samples of a block.
        cursors: how far each reader is.
        skipped: faults, and filtered images, over all processes and sessions.
    """

    position: int
    shards: int
    shuffle: int
    cursors: list[tuple[int, ...]]
    skipped: tuple[int, ...]


class TarLoader:
    """The endless training loader over a stream of tars. Its state is a handful of counts.

    Args:
        stream: what is read.
        unpacker: makes pixels.
        flip_seed: the seed of random flips; None for none.
        share: the process's; there must be a reader for each worker of each process, and equally many.
        workers: processes that load, for each training process; 0 loads in the process itself.
        skipped: names and counts what is left out.
    """

    def __init__(
        self, stream: TarStream, unpacker: Unpacker, flip_seed: int | None, share: Share, workers: int, skipped: Skipped
    ) -> None:
        self.stream, self.unpacker, self.flip_seed, self.share = stream, unpacker, flip_seed, share
        self.workers, self.skipped = workers, skipped
        self._position = 0
        self._cursors = self._own(stream.begin())

    def __len__(self) -> int:
        """Longer than any run."""
        return ENDLESS

    def __iter__(self) -> Iterator[ImageBatch]:
        """Batches from the current position on.

        Raises:
            ValueError: where more is at fault than is borne, or nothing is of use.
        """
        self.skipped.check()
        dataset = TarParts(
            self.stream, self.unpacker, self.flip_seed, self.share, self._position, self._cursors, self.skipped.limit
        )
        parts = iter(DataLoader(dataset, batch_size=None, **worker_options(self.workers)))
        while True:
            # Workers take turns, one item each.
            turn = [next(parts) for _ in range(max(1, self.workers))]
            for part in turn:
                self.skipped.add(part.faults, part.filtered)
                if part.barren:
                    raise ValueError(
                        f"{part.barren}: {self.skipped.own.filtered} images were smaller than data.min_size, "
                        f"{self.skipped.own.faults} samples at fault"
                    )
            # Counted when it is handed out, not when a worker loads it ahead of time.
            for part in turn:
                self._cursors.update(part.cursors)
            self._position += self.share.micro_batch * self.share.world_size
            yield join([part.batch for part in turn if part.batch is not None])

    def state_dict(self) -> StreamState:
        """The state of all processes, each of which must ask."""
        return self.joined_state(gather(self.own_state(), self.share.world_size))

    def own_state(self) -> OwnState:
        """What this process knows."""
        return OwnState(dict(self._cursors), self.skipped.own)

    def joined_state(self, told: Sequence[OwnState]) -> StreamState:
        """The state, of what all processes know, by rank."""
        cursors = {reader: cursor for own in told for reader, cursor in own.cursors.items()}
        others = [own.skipped for rank, own in enumerate(told) if rank != self.share.rank]
        self.skipped.others = reduce(Tally.plus, others, Tally())
        return {
            "position": self._position,
            "shards": len(self.stream.shards),
            "shuffle": self.stream.shuffle,
            "cursors": [tuple(cursors[reader]) for reader in range(self.stream.readers)],
            "skipped": tuple(self.skipped.total),
        }

    def load_state_dict(self, state: StreamState) -> None:
        """Continues where :meth:`state_dict` was taken, on however many processes and workers there are now.

        Raises:
            ValueError: for a state of another stream.
        """
        now = (len(self.stream.shards), self.stream.readers, self.stream.shuffle)
        then = (state["shards"], len(state["cursors"]), state["shuffle"])
        for name, old, new in zip(("shards", "data.readers", "data.shuffle"), then, now, strict=True):
            if old != new:
                raise ValueError(
                    f"the run was saved with {name} {old}, and there are {new} now: its place in the stream would be "
                    "another. Put the old ones back, or start a new run from its weights"
                )
        if state["position"] < 0 or state["position"] % self.share.world_size:
            raise ValueError(
                f"a loader's position is a count of images that divides among {self.share.world_size} processes, got "
                f"{state['position']}"
            )
        self._position = state["position"]
        self._cursors = self._own([Cursor(*cursor) for cursor in state["cursors"]])
        self.skipped.before = Tally(*state["skipped"])

    def _own(self, cursors: Sequence[Cursor]) -> dict[int, Cursor]:
        own = range(self.share.rank, self.stream.readers, self.share.world_size)
        return {reader: cursors[reader] for reader in own}

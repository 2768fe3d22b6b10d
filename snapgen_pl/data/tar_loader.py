"""The endless training loader over a stream of tars, resumed from counts on any number of processes and workers."""

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import NamedTuple, TypedDict

import torch
from torch.utils.data import DataLoader

from snapgen_pl.conditioning.condition import Texts, texts
from snapgen_pl.data.assembler import Assembly, Seat
from snapgen_pl.data.faults import Skipped, Tally
from snapgen_pl.data.loader import ENDLESS, worker_options
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.data.tar_groups import GroupParts
from snapgen_pl.data.tar_parts import LeftOut, Part, ReaderState, Share, SquareParts, Task
from snapgen_pl.data.tar_stream import Cursor, TarStream
from snapgen_pl.data.unpacker import Unpacker
from snapgen_pl.processes import gather


def join(parts: Sequence[ImageBatch]) -> ImageBatch:
    """The parts of a batch of captioned images as one, by position."""
    if len(parts) == 1:
        return parts[0]
    position_B = torch.cat([part.position_B for part in parts])
    order = position_B.argsort()
    captions = [caption for part in parts for caption in texts(part.condition).captions]
    image_BCHW = torch.cat([part.image_BCHW for part in parts])[order]
    return ImageBatch(image_BCHW, Texts(tuple(captions[i] for i in order.tolist()), {}), position_B[order])


def split(batch: ImageBatch, size: int) -> Iterator[ImageBatch]:
    """A batch of captioned images in batches of so many, in order."""
    captions = texts(batch.condition).captions
    for first in range(0, len(captions), size):
        some = slice(first, first + size)
        yield ImageBatch(batch.image_BCHW[some], Texts(captions[some], {}), batch.position_B[some])


class OwnState(NamedTuple):
    """What one process knows of a loader's state.

    Attributes:
        readers: how far its readers are.
        skipped: what it left out in this session.
    """

    readers: dict[int, ReaderState]
    skipped: Tally


class StreamState(TypedDict):
    """A loader's state, in types that a checkpoint takes.

    Attributes:
        position: samples that all processes together have been given.
        shards: how many there are.
        shuffle: samples of a block.
        assembly: how groups of one size are made, in numbers; None for squares.
        cursors: how far each reader is.
        came: how many images of use each has read, where they wait for others of their shape.
        waiting: where those lie that wait in each.
        skipped: faults, and filtered images, over all processes and sessions.
    """

    position: int
    shards: int
    shuffle: int
    assembly: tuple[float, ...] | None
    cursors: list[tuple[int, ...]]
    came: list[int]
    waiting: list[list[tuple[int, ...]]]
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
        assembly: how groups of images of one size are made, which micro-batches must divide; None for squares.
    """

    def __init__(
        self,
        stream: TarStream,
        unpacker: Unpacker,
        flip_seed: int | None,
        share: Share,
        workers: int,
        skipped: Skipped,
        assembly: Assembly | None = None,
    ) -> None:
        self.stream, self.unpacker, self.flip_seed, self.share = stream, unpacker, flip_seed, share
        self.workers, self.skipped, self.assembly = workers, skipped, assembly
        self._position = 0
        self._states = self._own([ReaderState(cursor) for cursor in stream.begin()])

    def __len__(self) -> int:
        """Longer than any run."""
        return ENDLESS

    def __iter__(self) -> Iterator[ImageBatch]:
        """Batches from the current position on.

        Raises:
            ValueError: where more is at fault than is borne, or nothing is of use.
        """
        self.skipped.check()
        for turn in self._turns():
            for part in turn:
                self._count_passes(part.readers.values())
                self._tell(part.left_out)
            # Counted when it is handed out, not when a worker loads it ahead of time.
            for part in turn:
                self._states.update(part.readers)
            for batch in split(join([part.batch for part in turn if part.batch is not None]), self.share.micro_batch):
                self._position += self.share.micro_batch * self.share.world_size
                yield batch

    def _turns(self) -> Iterator[list[Part]]:
        """The parts of a micro-batch of squares, one of each worker, or the one part of a group."""
        task = Task(
            self.stream,
            self.unpacker,
            self.flip_seed,
            self.share,
            self._position,
            dict(self._states),
            self.skipped.limit,
        )
        dataset = SquareParts(task) if self.assembly is None else GroupParts(task, self.assembly)
        parts = iter(DataLoader(dataset, batch_size=None, **worker_options(self.workers)))
        length = max(1, self.workers) if self.assembly is None else 1
        # Workers take turns, one item each.
        while True:
            yield [next(parts) for _ in range(length)]

    def _count_passes(self, readers: Iterable[ReaderState]) -> None:
        self.skipped.passes = max([self.skipped.passes, *(self.stream.passes(state.cursor) for state in readers)])

    def _tell(self, left_out: LeftOut) -> None:
        self.skipped.add(left_out.faults, left_out.filtered, left_out.gave_up)
        if left_out.barren:
            raise ValueError(
                f"{left_out.barren}: {self.skipped.own.filtered} images were smaller than data.min_size, "
                f"{self.skipped.own.faults} samples at fault"
            )

    def state_dict(self) -> StreamState:
        """The state of all processes, each of which must ask, after an optimizer step: no group is half given then."""
        return self.joined_state(gather(self.own_state(), self.share.world_size))

    def own_state(self) -> OwnState:
        """What this process knows."""
        return OwnState(dict(self._states), self.skipped.own)

    def joined_state(self, told: Sequence[OwnState]) -> StreamState:
        """The state, of what all processes know, by rank."""
        states = {reader: state for own in told for reader, state in own.readers.items()}
        in_order = [states[reader] for reader in range(self.stream.readers)]
        others = [own.skipped for rank, own in enumerate(told) if rank != self.share.rank]
        self.skipped.others = reduce(Tally.plus, others, Tally())
        self._count_passes(in_order)  # whose faults are counted, his passes are too
        return {
            "position": self._position,
            "shards": len(self.stream.shards),
            "shuffle": self.stream.shuffle,
            "assembly": None if self.assembly is None else self.assembly.numbers,
            "cursors": [tuple(state.cursor) for state in in_order],
            "came": [state.came for state in in_order],
            "waiting": [[tuple(seat) for seat in state.waiting] for state in in_order],
            "skipped": tuple(self.skipped.total),
        }

    def load_state_dict(self, state: StreamState) -> None:
        """Continues where :meth:`state_dict` was taken, on however many processes and workers there are now.

        Raises:
            ValueError: for a state of another stream.
        """
        assembly = None if self.assembly is None else self.assembly.numbers
        now = (len(self.stream.shards), self.stream.readers, self.stream.shuffle, assembly)
        then = (state["shards"], len(state["cursors"]), state["shuffle"], state["assembly"])
        names = ("shards", "data.readers", "data.shuffle", "data.buckets and data.patience")
        for name, old, new in zip(names, then, now, strict=True):
            if old != new:
                raise ValueError(
                    f"the run was saved with {name} {old}, and there are {new} now: its place in the stream would be "
                    "another. Put the old ones back, or start a new run from its weights"
                )
        once = self.share.world_size * (1 if self.assembly is None else self.assembly.buckets.group)
        if state["position"] < 0 or state["position"] % once:
            raise ValueError(
                f"a loader's position is a count of images that divides among {self.share.world_size} processes"
                f"{'' if self.assembly is None else ' in whole groups'}, got {state['position']}"
            )
        self._position = state["position"]
        states = _states_of(state)
        self._states = self._own(states)
        self._count_passes(states)
        self.skipped.before = Tally(*state["skipped"])

    def _own(self, states: Sequence[ReaderState]) -> dict[int, ReaderState]:
        return {reader: states[reader] for reader in self.share.of(self.stream.readers)}


def _states_of(state: StreamState) -> list[ReaderState]:
    """How far all readers are."""
    return [
        ReaderState(Cursor(*cursor), came, tuple(Seat(*seat) for seat in seats))
        for cursor, came, seats in zip(state["cursors"], state["came"], state["waiting"], strict=True)
    ]

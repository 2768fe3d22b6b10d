"""What workers have of the batches of a stream of tars: square images, in the stream's own order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from snapgen_pl.conditioning.condition import Texts
from snapgen_pl.data.assembler import Seat
from snapgen_pl.data.faults import Fault
from snapgen_pl.data.loader import image_batch
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.data.tar_samples import Packed
from snapgen_pl.data.tar_stream import Cursor, TarStream
from snapgen_pl.data.unpacker import Unpacker

T = TypeVar("T")

_BARREN = 100  # shards without an image of use, one after the other, after which a reader gives up


class ReaderState(NamedTuple):
    """How far a reader is, and what it has read but not given.

    Attributes:
        cursor: how far it is.
        came: how many images of use it has read, where they wait for others of their shape.
        waiting: those that wait, in order.
    """

    cursor: Cursor
    came: int = 0
    waiting: tuple[Seat, ...] = ()


@dataclass
class LeftOut:
    """What is left out on the way to a part.

    Args:
        faults: what is wrong with it.
        filtered: how many images were too small.
        barren: why a reader gave up for want of images of use; empty if none did.
        gave_up: whether one did for all that is at fault.
    """

    faults: list[Fault] = field(default_factory=list)
    filtered: int = 0
    barren: str = ""
    gave_up: bool = False


class Part(NamedTuple):
    """What one worker has of one batch.

    Attributes:
        batch: its samples; None where it has none.
        readers: how far its readers are, those that went on at least.
        left_out: on the way.
    """

    batch: ImageBatch | None
    readers: dict[int, ReaderState]
    left_out: LeftOut


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

    def of(self, total: int) -> range:
        """Every ``world_size``-th of so many."""
        return range(self.rank, total, self.world_size)


@dataclass(frozen=True)
class Task:
    """What the workers of a process have to do.

    Args:
        stream: what is read.
        unpacker: makes pixels.
        flip_seed: the seed of random flips; None for none.
        share: the process's.
        position: samples that all processes together have had.
        states: how far readers are, the process's own at least.
        limit: faults that are borne a pass.
    """

    stream: TarStream
    unpacker: Unpacker
    flip_seed: int | None
    share: Share
    position: int
    states: Mapping[int, ReaderState]
    limit: int

    @property
    def readers(self) -> range:
        """The process's own."""
        return self.share.of(self.stream.readers)

    def gives_up(self, cursor: Cursor, left_out: LeftOut) -> bool:
        """Whether a reader there need not go on: on the way to one part lie more faults than may in all passes."""
        left_out.gave_up |= len(left_out.faults) > self.limit * self.stream.passes(cursor)
        return left_out.gave_up


class Found(NamedTuple, Generic[T]):
    """A sample of use.

    Attributes:
        shard: place of its shard; see :class:`~snapgen_pl.data.tar_stream.Placed`.
        number: its own in that shard.
        packed: itself.
        loaded: what was made of it.
    """

    shard: int
    number: int
    packed: Packed
    loaded: T


class Reader(Generic[T]):
    """One reader at its work.

    Args:
        task: what is read.
        cursor: where it begins.
        load: makes something of a sample, a fault, or None where the image is too small.

    Attributes:
        cursor: how far it is.
    """

    def __init__(self, task: Task, cursor: Cursor, load: Callable[[Packed], T | Fault | None]) -> None:
        self.cursor, self._load, self._task = cursor, load, task
        self._samples, self._barren = task.stream.read(cursor), _BARREN * task.stream.readers

    def find(self, left_out: LeftOut) -> Found[T] | None:
        """The next sample of use; None where too much is left out on the way, which is told."""
        begun = self.cursor.shard
        for cursor, (shard, number, sample) in self._samples:
            self.cursor = cursor
            loaded = sample if isinstance(sample, Fault) else self._load(sample)
            if isinstance(loaded, Fault):
                left_out.faults.append(loaded)
            elif loaded is None:
                left_out.filtered += 1
            else:
                assert isinstance(sample, Packed)
                return Found(shard, number, sample, loaded)
            if cursor.shard - begun > self._barren:
                left_out.barren = f"{_BARREN} shards in a row hold no image of use"
            if left_out.barren or self._task.gives_up(cursor, left_out):
                return None
        raise AssertionError("a reader goes on for ever")


class SquareParts(IterableDataset[Part]):
    """Of each of a process's batches what one of its workers has to load: images cropped to squares.

    Args:
        task: what is to be done.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    def __iter__(self) -> Iterator[Part]:
        """The parts of this worker, endless."""
        worker, workers = worker_of()
        task, own = self.task, self.task.readers
        readers = {
            number: Reader(task, task.states[number].cursor, task.unpacker.pixels) for number in own[worker::workers]
        }
        for first in count(task.position // task.share.world_size, task.share.micro_batch):
            # The process's i-th sample is of its reader i, and so of its worker i, both counted round and round.
            places = [place for place in range(first, first + task.share.micro_batch) if place % workers == worker]
            left_out = LeftOut()
            batch = self._batch(places, [readers[own[place % len(own)]] for place in places], left_out)
            yield Part(batch, {number: ReaderState(reader.cursor) for number, reader in readers.items()}, left_out)

    def _batch(self, places: Sequence[int], readers: Sequence[Reader[Tensor]], left_out: LeftOut) -> ImageBatch | None:
        found: list[Found[Tensor]] = []
        for reader in readers:
            if (one := reader.find(left_out)) is None:
                return None
            found.append(one)
        if not found:
            return None
        captions = tuple(one.packed.caption for one in found)
        positions = [place * self.task.share.world_size + self.task.share.rank for place in places]
        return image_batch([one.loaded for one in found], Texts(captions, {}), positions, self.task.flip_seed)


def worker_of() -> tuple[int, int]:
    """Which worker of a loader this process is, and how many there are."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)

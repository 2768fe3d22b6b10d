"""What workers have of the batches of a stream of tars: groups of images, each of one aspect-ratio bucket.

Each reader makes groups of its own images, so they are the same on any number of processes and workers. Group g of the
stream is the (g // readers)-th of reader g % readers; its images have positions g * group and the following.
"""

from collections.abc import Iterator
from itertools import count

from torch import Tensor
from torch.utils.data import IterableDataset

from snapgen_pl.conditioning.condition import Texts
from snapgen_pl.data.assembler import Assembler, Assembly, Seat, Waiting
from snapgen_pl.data.faults import Fault
from snapgen_pl.data.loader import image_batch
from snapgen_pl.data.tar_parts import LeftOut, Part, Reader, ReaderState, Task, worker_of
from snapgen_pl.data.tar_samples import Packed


class GroupParts(IterableDataset[Part]):
    """The groups of a process that one of its workers has to load.

    Args:
        task: what is to be done.
        assembly: how groups are made.
    """

    def __init__(self, task: Task, assembly: Assembly) -> None:
        self.task, self.assembly = task, assembly

    def __iter__(self) -> Iterator[Part]:
        """The groups of this worker, endless; each a batch."""
        worker, workers = worker_of()
        task, own, size = self.task, self.task.readers, self.assembly.buckets.group
        readers: dict[int, GroupReader] = {}
        # The process's i-th group is of its reader i, counted round and round; workers take turns from the first on.
        for place in count(task.position // size // task.share.world_size + worker, workers):
            number, left_out = own[place % len(own)], LeftOut()
            if number not in readers:
                readers[number] = GroupReader(task, self.assembly, task.states[number], left_out)
            batch, group = None, readers[number].next(left_out)
            if group is not None:
                images, pixels = group
                captions = tuple(image.packed.caption for image in images)
                first = (place * task.share.world_size + task.share.rank) * size
                batch = image_batch(pixels, Texts(captions, {}), range(first, first + size), task.flip_seed)
            yield Part(batch, {number: readers[number].state}, left_out)


class GroupReader:
    """One reader and the images that it has read, but not given.

    Args:
        task: what is read.
        assembly: how groups are made.
        state: how far the reader is; what waited then is read again.
        left_out: is told what of that is no longer there.
    """

    def __init__(self, task: Task, assembly: Assembly, state: ReaderState, left_out: LeftOut) -> None:
        self._task, self._sizes = task, assembly.buckets.sizes
        self._reader = Reader(task, state.cursor, task.unpacker.size)
        waited: dict[tuple[int, int], Packed] = {}
        for shard, number, sample in task.stream.again(seat[:2] for seat in state.waiting):
            if isinstance(sample, Fault):
                left_out.faults.append(sample)
            else:
                waited[shard, number] = sample
        waiting = (Waiting(seat, waited[seat[:2]]) for seat in state.waiting if seat[:2] in waited)
        self._assembler = Assembler(assembly, state.came, waiting)

    @property
    def state(self) -> ReaderState:
        """How far it is."""
        seats = tuple(image.seat for image in self._assembler.waiting)
        return ReaderState(self._reader.cursor, self._assembler.came, seats)

    def next(self, left_out: LeftOut) -> tuple[list[Waiting], list[Tensor]] | None:
        """The images of the next group and their pixels; None where too much is left out on the way, which is told."""
        cut: dict[Seat, Tensor | Fault] = {}  # what stands beside an image at fault need not be cut again
        while (group := self._gather(left_out)) is not None:
            for seat, packed in group:
                if seat not in cut:
                    cut[seat] = self._task.unpacker.cut(packed, self._sizes[seat.bucket])
            pixels = [made for image in group if isinstance(made := cut[image.seat], Tensor)]
            if len(pixels) == len(group):
                self._assembler.remove(image.seat for image in group)
                return group, pixels
            damaged = {image.seat: made for image in group if isinstance(made := cut[image.seat], Fault)}
            self._assembler.remove(damaged)
            left_out.faults += damaged.values()
            if self._task.gives_up(self._reader.cursor, left_out):
                return None
        return None

    def _gather(self, left_out: LeftOut) -> list[Waiting] | None:
        """Images that may leave together, for which others are read; they still wait."""
        while (group := self._assembler.group()) is None:
            found = self._reader.find(left_out)
            if found is None:
                return None
            self._assembler.add(found.shard, found.number, found.packed, found.loaded)
        return group

"""Images of a stream that wait, each in the bucket of its shape, until they leave in groups of one bucket."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from snapgen_pl.data.buckets import Buckets, Size
from snapgen_pl.data.tar_samples import Packed


@dataclass(frozen=True)
class Assembly:
    """How groups are made.

    Args:
        buckets: the sizes, and how many images make a group.
        patience: how many images may come while one waits in a bucket.

    Raises:
        ValueError: where fewer than a group may come.
    """

    buckets: Buckets
    patience: int

    def __post_init__(self) -> None:
        if self.patience < self.buckets.group:
            raise ValueError(
                f"data.patience is {self.patience}, but {self.buckets.group} images make a group; set it to a multiple "
                "of data.buckets.group, 50 times that or more if shapes are many"
            )

    @property
    def numbers(self) -> tuple[float, ...]:
        """All of it, for comparisons."""
        buckets = self.buckets
        return buckets.image_size, buckets.step, buckets.ratio, buckets.group, self.patience


class Seat(NamedTuple):
    """Where an image waits.

    Attributes:
        shard: place of its shard; see :class:`~snapgen_pl.data.tar_stream.Placed`.
        number: its own in that shard.
        bucket: place in ``Buckets.sizes`` of the bucket that it waits in.
        since: how many images had come when it came there.
    """

    shard: int
    number: int
    bucket: int
    since: int


class Waiting(NamedTuple):
    """An image that waits.

    Attributes:
        seat: where.
        packed: itself.
    """

    seat: Seat
    packed: Packed


class Assembler:
    """The images that wait, and what becomes of them: a matter of their order alone.

    An image goes to the bucket nearest to its shape. A bucket in which the first has seen more than ``patience`` images
    come empties into the one nearest in shape that holds any, where all of its images begin to wait anew: so rare
    shapes are seen in time, cut a little more, and nothing is left out. Where a bucket holds a group, that is to be
    taken before more is added: then no more wait than the buckets hold with one image less than a group in each.

    Args:
        assembly: how groups are made.
        came: how many images came before.
        waiting: those of them that wait, in the order of :attr:`waiting`.
    """

    def __init__(self, assembly: Assembly, came: int = 0, waiting: Iterable[Waiting] = ()) -> None:
        self.buckets, self.patience, self.came = assembly.buckets, assembly.patience, came
        self._held: dict[int, list[Waiting]] = {index: [] for index in range(len(self.buckets.sizes))}
        for image in waiting:
            self._held[image.seat.bucket].append(image)

    @property
    def waiting(self) -> list[Waiting]:
        """The images that wait, bucket by bucket, each as they came to it."""
        return [image for held in self._held.values() for image in held]

    def add(self, shard: int, number: int, packed: Packed, size: Size) -> None:
        """Takes an image in, of which ``size`` is that of the whole; other arguments as in :class:`Seat`."""
        self.came += 1
        bucket = self.buckets.index(size)
        self._held[bucket].append(Waiting(Seat(shard, number, bucket, self.came), packed))
        while (late := self._late()) is not None:
            self._empty(late)

    def group(self) -> list[Waiting] | None:
        """The images that may leave together, in order, if there are any; they wait until they are removed."""
        full = (held[: self.buckets.group] for held in self._held.values() if len(held) >= self.buckets.group)
        return next(full, None)

    def remove(self, seats: Iterable[Seat]) -> None:
        """Lets the images there go."""
        gone = frozenset(seats)
        for held in self._held.values():
            held[:] = [image for image in held if image.seat not in gone]

    def _late(self) -> int | None:
        """A bucket that has to be emptied into another."""
        holding = [bucket for bucket, held in self._held.items() if held]
        for bucket in holding if len(holding) > 1 else ():
            held = self._held[bucket]
            if len(held) < self.buckets.group and self.came - held[0].seat.since > self.patience:
                return bucket
        return None

    def _empty(self, late: int) -> None:
        others = [bucket for bucket, held in self._held.items() if held and bucket != late]
        into = self.buckets.neighbour(late, others)
        self._held[into] += [
            image._replace(seat=image.seat._replace(bucket=into, since=self.came)) for image in self._held[late]
        ]
        self._held[late] = []

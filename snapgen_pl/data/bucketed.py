"""Images in aspect-ratio buckets: which bucket each is in, in what order they come, and what they are cut to."""

import torch
from torch import Tensor

from snapgen_pl.data.buckets import Buckets, Size
from snapgen_pl.data.conditions import Conditions
from snapgen_pl.data.loader import ImageSamples, Sample, even_batches, shuffled
from snapgen_pl.data.source import ImageSet
from snapgen_pl.data.transforms import crop_to, to_pixels
from snapgen_pl.rng import Stream


def bucket_of(size_N2: Tensor, buckets: Buckets) -> Tensor:
    """The place in ``buckets.sizes`` of the one that each image takes: int64 (N,).

    Args:
        size_N2: heights and widths in pixels.
        buckets: the sizes to choose from.
    """
    distinct_M2, which_N = torch.unique(size_N2, dim=0, return_inverse=True)
    index_M = torch.tensor([buckets.index(Size(*size)) for size in distinct_M2.tolist()])
    return index_M[which_N]


def joined(bucket_N: Tensor, least: int, buckets: Buckets) -> Tensor:
    """The same with so few buckets that each which has images has at least ``least``, if there are as many in all.

    The smallest that has too few gives them to its neighbour in shape, again and again. Processes that validate
    together need this, since each takes its part of every bucket.
    """
    bucket_N = bucket_N.clone()
    while True:
        present, count = torch.unique(bucket_N, return_counts=True)
        if count.min() >= least or len(present) == 1:
            return bucket_N
        smallest = int(present[count.argmin()])
        others = [index for index in present.tolist() if index != smallest]
        bucket_N[bucket_N == smallest] = buckets.neighbour(smallest, others)


def members(bucket_N: Tensor) -> list[Tensor]:
    """The images of each bucket that has any, in order."""
    return [(bucket_N == bucket).nonzero()[:, 0] for bucket in torch.unique(bucket_N)]


def even_bucket_batches(bucket_N: Tensor, micro_batch: int, rank: int, world_size: int) -> list[list[int]]:
    """One process's part of all images, bucket by bucket, each as :func:`~snapgen_pl.data.loader.even_batches` has it.

    Every bucket that has images must have at least ``world_size``.
    """
    return [
        [int(images[place]) for place in batch]
        for images in members(bucket_N)
        for batch in even_batches(len(images), micro_batch, rank, world_size)
    ]


class BucketOrder:
    """Maps positions to images, each ``group`` of positions to one bucket; depends on (seed, epoch) alone.

    A bucket of n images is an endless stream of turns, each image once a turn, shuffled anew. The stream is cut into
    groups, and epoch e has those that end within turn e: what is left of a turn, too little for a group, begins the
    next turn's first group. So nothing is dropped, and over e epochs each image comes e times but for what its bucket
    carries over, less than a group. The groups of an epoch are shuffled over all buckets.

    Args:
        bucket_N: of each image.
        group: consecutive positions.
        seed: the run's seed.
    """

    def __init__(self, bucket_N: Tensor, group: int, seed: int) -> None:
        if not len(bucket_N):
            raise ValueError("an order needs at least one image, got none")
        self.length, self.group, self.seed = len(bucket_N), group, seed
        self._members = members(bucket_N)
        self._first = 0
        self._groups_GI = torch.empty(0, group, dtype=torch.int64)

    def __getitem__(self, position: int) -> int:
        """The image at ``position``."""
        number, place = divmod(position, self.group)
        if not self._first <= number < self._first + len(self._groups_GI):
            epoch = self._epoch_of(number)
            self._first, self._groups_GI = self.groups_before(epoch), self.groups(epoch)
        return int(self._groups_GI[number - self._first, place])

    def groups_before(self, epoch: int) -> int:
        """How many groups all epochs before this one have."""
        return sum(epoch * len(images) // self.group for images in self._members)

    def groups(self, epoch: int) -> Tensor:
        """The images of an epoch's groups, in order: int64 (groups, group)."""
        groups_GI = torch.cat([self._groups_of(images, epoch) for images in self._members])
        number_G = self.groups_before(epoch) + torch.arange(len(groups_GI))
        return groups_GI[shuffled(self.seed, Stream.GROUP_ORDER, number_G)]

    def _groups_of(self, images: Tensor, epoch: int) -> Tensor:
        """Those of one bucket, in the order of its stream."""
        count = len(images)
        begin, end = (turns * count // self.group * self.group for turns in (epoch, epoch + 1))
        turns = range(begin // count, -(-end // count))
        stream = torch.cat([images[:0], *(self._turn(images, turn) for turn in turns)])
        skipped = begin - turns.start * count
        return stream[skipped : skipped + end - begin].view((end - begin) // self.group, self.group)

    def _turn(self, images: Tensor, turn: int) -> Tensor:
        return images[shuffled(self.seed, Stream.ORDER, turn * self.length + images)]

    def _epoch_of(self, number: int) -> int:
        epoch = number * self.group // self.length  # or later: epochs before it have at most ``number`` groups
        while self.groups_before(epoch + 1) <= number:
            epoch += 1
        return epoch


class BucketSamples(ImageSamples):
    """Loads whole batches of images of one bucket, each resized to cover the bucket's size and cut around its centre.

    Args:
        images: the image set.
        conditions: of the images.
        buckets: the sizes.
        bucket_N: which of them each image takes.
        flip_seed: the seed of random flips; None for none.
    """

    def __init__(
        self,
        images: ImageSet,
        conditions: Conditions,
        buckets: Buckets,
        bucket_N: Tensor,
        flip_seed: int | None = None,
    ) -> None:
        super().__init__(images, conditions, buckets.image_size, flip_seed)
        self.buckets, self.bucket_N = buckets, bucket_N

    def pixels(self, sample: Sample) -> Tensor:
        """One image: uint8 (3, H, W) of its bucket's size."""
        size = self.buckets.sizes[int(self.bucket_N[sample.image])]
        return to_pixels(crop_to(self.images.load(sample.image), size))

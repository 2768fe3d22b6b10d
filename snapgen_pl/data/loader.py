"""The endless training loader: position-seeded, so it resumes exactly, on any number of processes and workers.

Every image of the endless stream has a global position. Position p belongs to epoch p // N and there to one index of a
permutation drawn from (seed, epoch). A loader's whole state is the next position; what a sample looks like, and what is
drawn for it, follows from its position.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeAlias, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from snapgen_pl import rng
from snapgen_pl.conditioning.condition import Condition
from snapgen_pl.data.conditions import Conditions
from snapgen_pl.data.source import Batch, ImageBatch, ImageSet, LatentBatch, LatentSet, Taught
from snapgen_pl.data.teacher_outputs import StoredOutputs
from snapgen_pl.data.transforms import centre_crop, mirrored, random_flip, to_pixels

# Lightning fetches exactly what it trains on only from a loader with a length. This one is longer than any run.
ENDLESS = 1 << 40


class Sample(NamedTuple):
    """One entry of the stream.

    Attributes:
        position: what is drawn for it is drawn from: its place in the stream, or a pinned one (in validation, its
            index).
        image: its place in the image set.
    """

    position: int
    image: int


class Order(Protocol):
    """Which image an endless stream shows at each of its positions.

    Attributes:
        length: images an epoch.
    """

    length: int

    def __getitem__(self, position: int) -> int:
        """The image at ``position``."""
        ...


class EndlessOrder:
    """Maps positions to indices: each index once an epoch, in an order that depends on (seed, stream, epoch) alone.

    Args:
        length: the number N of items.
        seed: the run's seed.
        stream: what the order is for.
    """

    def __init__(self, length: int, seed: int, stream: rng.Stream = rng.Stream.ORDER) -> None:
        if length < 1:
            raise ValueError(f"an order needs at least one item, got {length}")
        self.length = length
        self.seed = seed
        self.stream = stream
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def __getitem__(self, position: int) -> int:
        """The index at ``position``."""
        epoch, offset = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, self.permutation(epoch)
        return int(self._permutation[offset])

    def permutation(self, epoch: int) -> Tensor:
        """The order of one epoch: int64 (N,)."""
        return shuffled(self.seed, self.stream, epoch * self.length + torch.arange(self.length))


def shuffled(seed: int, stream: rng.Stream, position_N: Tensor) -> Tensor:
    """A permutation, int64 (N,), by what is drawn at each of N positions."""
    # Sorting 46 random bits an item: 1 epoch of ImageNet's 1.3 M in 80 has a tie, which is broken stably.
    bits = rng.uniform(seed, stream, position_N, (2,)).double()
    return torch.argsort(bits[:, 0] + bits[:, 1] * 2.0**-24, stable=True)


class PositionSampler(Sampler[list[Sample]]):
    """Endless batches of one process: its slice of each global micro-batch.

    Args:
        order: which image a position has.
        micro_batch: images that one process takes at once.
        rank: this process.
        world_size: number of processes.
        draws: how many positions an image has, taken in turn, epoch by epoch: those of image i are i * draws and the
            following. None gives each sample a position of its own.
    """

    def __init__(
        self, order: Order, micro_batch: int, rank: int = 0, world_size: int = 1, draws: int | None = None
    ) -> None:
        self.order = order
        self.draws = draws
        self.micro_batch = micro_batch
        self.rank = rank
        self.world_size = world_size
        self.start = 0

    @property
    def stride(self) -> int:
        """Images that all processes together take at once."""
        return self.micro_batch * self.world_size

    def __len__(self) -> int:
        """Longer than any run."""
        return ENDLESS

    def __iter__(self) -> Iterator[list[Sample]]:
        """Batches from ``start`` on."""
        first = self.start + self.rank * self.micro_batch
        while True:
            yield [self._sample(place) for place in range(first, first + self.micro_batch)]
            first += self.stride

    def _sample(self, place: int) -> Sample:
        image = self.order[place]
        if self.draws is None:
            return Sample(place, image)
        return Sample(pinned(image, place // self.order.length, self.draws), image)


def pinned(image: int, epoch: int, draws: int) -> int:
    """The position of an image in an epoch, of its ``draws`` that take turns."""
    return image * draws + epoch % draws


def image_at(position: int, draws: int) -> int:
    """The image that a pinned position is of."""
    return position // draws


def even_batches(count: int, micro_batch: int, rank: int, world_size: int) -> list[list[int]]:
    """One process's part of the indices below ``count``: every ``world_size``-th, in order, in batches.

    All processes get the same number of batches, none of them empty (sharded models wait for each other in each), so a
    last one may hold one index more than ``micro_batch``. ``count`` must be at least ``world_size``.
    """
    own = range(count)[rank::world_size]
    batches = -(-(count // world_size) // micro_batch)
    cuts = [*range(0, batches * micro_batch, micro_batch), len(own)]
    return [list(own[first:last]) for first, last in pairwise(cuts)]


def image_batch(
    pixels: Sequence[Tensor],
    condition: Condition,
    positions: Sequence[int],
    flip_seed: int | None,
    taught: Taught | None = None,
) -> ImageBatch:
    """Samples as a batch, flipped where wanted.

    Args:
        pixels: of each sample, uint8 (3, H, W), all of one size.
        condition: what they are asked for with.
        positions: what is drawn for each is drawn from.
        flip_seed: the seed of random flips; None for none.
        taught: what a teacher said of them.
    """
    image_BCHW, position_B = torch.stack(list(pixels)), torch.tensor(positions)
    if flip_seed is not None:
        image_BCHW = random_flip(image_BCHW, position_B, flip_seed)
    return ImageBatch(image_BCHW, condition, position_B, taught)


class ImageSamples(Dataset[ImageBatch]):
    """Loads whole batches of samples, cropped and, where wanted, flipped.

    Args:
        images: the image set.
        conditions: of the images.
        image_size: side of the crops, in pixels.
        flip_seed: the seed of random flips; None for none.
        taught: what a teacher said, by position; None where it is to be asked.
    """

    def __init__(
        self,
        images: ImageSet,
        conditions: Conditions,
        image_size: int,
        flip_seed: int | None = None,
        taught: StoredOutputs | None = None,
    ) -> None:
        self.images, self.conditions, self.taught = images, conditions, taught
        self.image_size = image_size
        self.flip_seed = flip_seed

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def __getitems__(self, samples: list[Sample]) -> ImageBatch:
        """The batch of ``samples``; PyTorch's loaders call this instead of asking for one at a time."""
        pixels, positions = [self.pixels(sample) for sample in samples], [sample.position for sample in samples]
        conditions = self.conditions.batch([sample.image for sample in samples])
        return image_batch(pixels, conditions, positions, self.flip_seed, _taught(self.taught, samples))

    def pixels(self, sample: Sample) -> Tensor:
        """One image, cropped: uint8 (3, H, W)."""
        return to_pixels(centre_crop(self.images.load(sample.image), self.image_size))


class LatentSamples(Dataset[LatentBatch]):
    """Loads whole batches of latents, mirrored where wanted and drawn.

    Args:
        latents: the latents.
        conditions: of the images.
        flip_seed: the seed of random flips; None for none.
        taught: what a teacher said, by position; None where it is to be asked.
    """

    def __init__(
        self,
        latents: LatentSet,
        conditions: Conditions,
        flip_seed: int | None = None,
        taught: StoredOutputs | None = None,
    ) -> None:
        self.latents, self.conditions, self.taught = latents, conditions, taught
        self.flip_seed = flip_seed

    def __len__(self) -> int:
        """The number of images."""
        return len(self.latents)

    def __getitems__(self, samples: list[Sample]) -> LatentBatch:
        """The batch of ``samples``, as :meth:`ImageSamples.__getitems__`."""
        position_B = torch.tensor([sample.position for sample in samples])
        flips = [False] * len(samples) if self.flip_seed is None else mirrored(position_B, self.flip_seed).tolist()
        indices = [sample.image for sample in samples]
        posterior, conditions = self.latents.load(indices, flips), self.conditions.batch(indices)
        return LatentBatch(posterior, conditions, position_B, _taught(self.taught, samples))


Samples: TypeAlias = ImageSamples | LatentSamples


def _taught(stored: StoredOutputs | None, samples: list[Sample]) -> Taught | None:
    return None if stored is None else stored.load([sample.position for sample in samples])


def _as_is(batch: Any) -> Any:
    """The dataset has collated already, though PyTorch's types say that a list comes here."""
    return batch


def _answer_to_parent_alone(worker: int) -> None:
    """Keeps a worker alive when its whole process group is told to stop, so that the run can finish its step and save.

    Clusters and Ctrl-C signal every process of a job. The parent's own SIGTERM still ends a worker: an interpreter that
    exits with a loader in use sends one, and then waits for the worker's end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Without it (macOS) a SIGTERM to the whole group ends workers.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parents_signal, daemon=True).start()


def _end_with_parents_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class WorkerOptions(TypedDict):
    """What loaders give a DataLoader; see :func:`worker_options`."""

    num_workers: int
    collate_fn: Callable[[Any], Any]
    pin_memory: bool
    generator: torch.Generator
    worker_init_fn: Callable[[int], None]


def worker_options(workers: int) -> WorkerOptions:
    """Options of a DataLoader that gives what its dataset collated, and draws nothing from the global random numbers.

    Args:
        workers: number of worker processes; 0 loads in this one.
    """
    return {
        "num_workers": workers,
        "collate_fn": _as_is,
        "pin_memory": torch.cuda.is_available(),
        # Every loader draws a base seed for its workers: without its own generator, from the global one.
        "generator": torch.Generator(),
        "worker_init_fn": _answer_to_parent_alone,
    }


class BatchLoader(DataLoader[Batch]):
    """A loader of whole batches that draws nothing from the global random numbers.

    Args:
        dataset: loads a batch of samples.
        batches: which samples make which batch.
        workers: number of worker processes; 0 loads in this one.
    """

    def __init__(self, dataset: Samples, batches: Sampler[list[Sample]] | list[list[Sample]], workers: int) -> None:
        super().__init__(dataset, batch_sampler=batches, **worker_options(workers))


class ResumableLoader(BatchLoader):
    """The endless training loader; its state is the position of the next global micro-batch.

    Args:
        dataset: loads a batch of samples.
        sampler: this process's part of the stream.
        workers: number of worker processes; 0 loads in this one.
    """

    def __init__(self, dataset: Samples, sampler: PositionSampler, workers: int) -> None:
        super().__init__(dataset, sampler, workers)
        self._sampler = sampler
        self._position = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # the base class promises its own iterator
        """Batches from the current position on."""
        self._sampler.start = self._position
        for batch in super().__iter__():
            # Counted when it is handed out, not when a worker loads it ahead of time.
            self._position += self._sampler.stride
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The state: images that all processes together have been given."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues where :meth:`state_dict` was taken, on however many processes and workers there are now."""
        if state["position"] < 0:
            raise ValueError(f"a loader's position is a count of images, got {state['position']}")
        self._position = state["position"]

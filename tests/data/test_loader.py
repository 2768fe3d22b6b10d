import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from snapgen_pl.data.conditions import Labels
from snapgen_pl.data.loader import (
    BatchLoader,
    EndlessOrder,
    ImageSamples,
    PositionSampler,
    ResumableLoader,
    Sample,
    even_batches,
    image_at,
    pinned,
)
from snapgen_pl.data.source import ImageBatch

REPOSITORY = Path(__file__).parent.parent.parent


class Ramps:
    """Images whose pixels tell their index, and which side is left."""

    def __init__(self, count: int) -> None:
        self.labels = torch.arange(count) % 3

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        image = Image.new("RGB", (4, 4), (index, 0, 0))
        image.paste((index, 255, 0), (0, 0, 1, 4))
        return image


def loader(
    count: int = 11, micro_batch: int = 2, rank: int = 0, world_size: int = 1, workers: int = 0, seed: int = 5
) -> ResumableLoader:
    sampler = PositionSampler(EndlessOrder(count, seed), micro_batch, rank, world_size)
    return ResumableLoader(ImageSamples(Ramps(count), Labels(Ramps(count).labels), 4, seed), sampler, workers)


def joined(batches: Iterator[ImageBatch]) -> ImageBatch:
    """All samples of some batches, by position."""
    batch = ImageBatch(*(torch.cat(tensors) for tensors in zip(*(_drawn(batch) for batch in batches), strict=True)))
    return ImageBatch(*(tensor[batch.position_B.argsort()] for tensor in _drawn(batch)))


def same(one: ImageBatch, other: ImageBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(_drawn(one), _drawn(other), strict=True))


def _drawn(batch: ImageBatch) -> tuple[Tensor, Tensor, Tensor]:
    assert isinstance(batch.condition, Tensor)
    assert batch.taught is None
    return batch.image_BCHW, batch.condition, batch.position_B


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 100), seed=st.integers(0, 2**48 - 1), epoch=st.integers(0, 10**6))
def test_every_index_comes_exactly_once_an_epoch(length: int, seed: int, epoch: int) -> None:
    order = EndlessOrder(length, seed)
    first = epoch * length
    assert sorted(order[position] for position in range(first, first + length)) == list(range(length))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [EndlessOrder(50, 0).permutation(epoch) for epoch in range(3)] + [EndlessOrder(50, 1).permutation(0)]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_an_order_is_uniform() -> None:
    firsts = torch.tensor([int(EndlessOrder(4, seed).permutation(0)[0]) for seed in range(800)])
    assert (firsts.bincount(minlength=4) / 800 - 0.25).abs().max() < 0.06


def test_the_order_of_a_run_does_not_change_between_releases() -> None:
    """A golden value: a run must resume under another release of torch, too."""
    assert EndlessOrder(8, 0).permutation(0).tolist() == [7, 2, 6, 4, 1, 3, 0, 5]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 3, 11])  # in the middle of an epoch, across its end, at the end of the second
def test_a_resumed_loader_continues_exactly(workers: int, taken: int) -> None:
    straight = joined(islice(iter(loader()), taken + 12))
    interrupted = loader(workers=workers)
    before = list(islice(iter(interrupted), taken))
    resumed = loader(workers=workers)
    resumed.load_state_dict(interrupted.state_dict())
    assert interrupted.state_dict() == {"position": 2 * taken}
    assert same(joined(iter([*before, *islice(iter(resumed), 12)])), straight)


@settings(max_examples=25, deadline=None)
@given(
    before=st.sampled_from([(12, 1), (6, 2), (3, 4), (2, 2), (1, 1)]),
    after=st.sampled_from([(12, 1), (6, 2), (3, 4), (2, 2), (1, 1)]),
    steps=st.integers(1, 3),
)
def test_a_run_continues_on_another_number_of_processes_at_the_same_image(
    before: tuple[int, int], after: tuple[int, int], steps: int
) -> None:
    """12 images a step, split as (micro-batch, processes) and accumulated to make up the rest."""

    def run(split: tuple[int, int], position: int, steps: int) -> tuple[list[ImageBatch], int]:
        micro_batch, world_size = split
        batches = []
        for rank in range(world_size):
            part = loader(micro_batch=micro_batch, rank=rank, world_size=world_size)
            part.load_state_dict({"position": position})
            batches += list(islice(iter(part), steps * 12 // (micro_batch * world_size)))
        return batches, part.state_dict()["position"]

    first, position = run(before, 0, steps)
    second, _ = run(after, position, 2)
    straight, _ = run((12, 1), 0, steps + 2)
    assert same(joined(iter(first + second)), joined(iter(straight)))


def test_ranks_partition_each_global_batch_and_flips_do_not_know_them() -> None:
    alone = next(iter(loader(micro_batch=8)))
    parts = [next(iter(loader(micro_batch=2, rank=rank, world_size=4))) for rank in range(4)]
    assert same(joined(iter(parts)), alone)
    assert alone.position_B.tolist() == list(range(8))
    flipped: Tensor = alone.image_BCHW[:, 1, 0, -1] == 255
    assert flipped.any()
    assert not flipped.all()


def test_batches_carry_each_image_with_its_own_label() -> None:
    batch = next(iter(loader(micro_batch=6)))
    assert torch.equal(batch.condition, batch.image_BCHW[:, 0, 0, 0].long() % 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_random_numbers_alone(workers: int) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(loader(workers=workers)))
    next(iter(BatchLoader(ImageSamples(Ramps(4), Labels(Ramps(4).labels), 4), [[Sample(0, 0)]], workers)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_process_that_exits_in_the_middle_of_loading_ends_its_workers() -> None:
    script = "from tests.data.test_loader import loader; batches = iter(loader(workers=1)); next(batches)"
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, timeout=60, check=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_outlives_a_signal_that_is_not_its_parents(number: signal.Signals) -> None:
    others = set(multiprocessing.active_children())
    batches = iter(loader(workers=1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    subprocess.run([sys.executable, "-c", f"import os; os.kill({worker.pid}, {number.value})"], check=True)
    worker.join(timeout=1)
    assert worker.is_alive()
    next(batches)
    worker.terminate()
    worker.join(timeout=30)
    assert not worker.is_alive()


def test_a_negative_position_is_refused() -> None:
    with pytest.raises(ValueError, match="position is a count of images, got -1"):
        loader().load_state_dict({"position": -1})


@given(count=st.integers(1, 60), micro_batch=st.integers(1, 9), world_size=st.integers(1, 8))
def test_validation_batches_cover_every_index_once_in_equal_numbers_of_batches(
    count: int, micro_batch: int, world_size: int
) -> None:
    world_size = min(world_size, count)
    parts = [even_batches(count, micro_batch, rank, world_size) for rank in range(world_size)]
    assert sorted(index for part in parts for batch in part for index in batch) == list(range(count))
    assert len({len(part) for part in parts}) == 1
    assert all(1 <= len(batch) <= micro_batch + 1 for part in parts for batch in part)
    for rank, part in enumerate(parts):
        assert [index for batch in part for index in batch] == list(range(count))[rank::world_size]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 9), draws=st.integers(1, 4), micro_batch=st.integers(1, 5), world_size=st.integers(1, 3))
def test_pinned_draws_take_turns_epoch_by_epoch_on_any_number_of_processes(
    count: int, draws: int, micro_batch: int, world_size: int
) -> None:
    order = EndlessOrder(count, seed=3)
    samplers = [PositionSampler(order, micro_batch, rank, world_size, draws) for rank in range(world_size)]
    length = 2 * count * draws
    rounds = zip(*(islice(iter(sampler), length) for sampler in samplers), strict=True)
    stream = [sample for batches in rounds for batch in batches for sample in batch][:length]
    for place, sample in enumerate(stream):
        assert sample.image == order[place] == image_at(sample.position, draws)
        assert sample.position == pinned(sample.image, place // count, draws)
    # In as many epochs as there are draws, every position comes once; then they come again.
    assert sorted(sample.position for sample in stream[: count * draws]) == list(range(count * draws))
    assert {sample.position for sample in stream[count * draws :]} == set(range(count * draws))

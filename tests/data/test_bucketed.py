from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from PIL import Image

from snapgen_pl.data.bucketed import BucketOrder, bucket_of, even_bucket_batches, joined
from snapgen_pl.data.buckets import Buckets, Size
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.emoji import Emoji
from snapgen_pl.data.image_folder import ImageFolder
from snapgen_pl.data.image_sizes import FILE, image_sizes
from snapgen_pl.data.loader import PositionSampler, ResumableLoader
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.data.transforms import centre_crop, crop_to, to_pixels
from tests import bucket_run, tiny_run
from tests.data.test_datamodule import SquareSource
from tests.data.test_loader import joined as together
from tests.data.test_loader import same

WIDE, SQUARE, TALL = bucket_run.BUCKETS.sizes
# A bucket of each image: some empty, some with fewer images than a group has.
buckets_of = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(torch.tensor)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bucket_run.draw_images(tmp_path_factory.mktemp("images"))


@settings(max_examples=40, deadline=None)
@given(bucket_N=buckets_of, group=st.integers(1, 9), seed=st.integers(0, 2**48 - 1), epochs=st.integers(1, 5))
def test_groups_are_of_one_bucket_and_nothing_is_left_out(
    bucket_N: torch.Tensor, group: int, seed: int, epochs: int
) -> None:
    order = BucketOrder(bucket_N, group, seed)
    groups = order.groups_before(epochs)
    stream = [order[position] for position in range(groups * group)]
    for first in range(0, len(stream), group):
        assert len({int(bucket_N[image]) for image in stream[first : first + group]}) == 1
    for bucket in bucket_N.unique():
        own = (bucket_N == bucket).nonzero()[:, 0].tolist()
        shown = [image for image in stream if image in own]
        # What is carried over is less than a group, and no image comes twice more often than another.
        assert len(own) * epochs - group < len(shown) <= len(own) * epochs
        counts = [shown.count(image) for image in own]
        assert max(counts) - min(counts) <= 1 or group > len(own)
        assert max(counts) <= epochs


@settings(max_examples=30, deadline=None)
@given(bucket_N=buckets_of, group=st.integers(1, 9), data=st.data())
def test_a_position_has_its_image_whatever_was_asked_before(
    bucket_N: torch.Tensor, group: int, data: st.DataObject
) -> None:
    order = BucketOrder(bucket_N, group, seed=3)
    asked = data.draw(st.lists(st.integers(0, 5 * len(bucket_N) + 5 * group), min_size=1, max_size=8))
    assert [order[position] for position in asked] == [BucketOrder(bucket_N, group, 3)[position] for position in asked]


def test_each_turn_of_a_bucket_is_a_permutation_of_its_own() -> None:
    """With one bucket the groups of an epoch are shuffled, but its stream is in turns."""
    order = BucketOrder(torch.zeros(10, dtype=torch.int64), group=5, seed=0)
    turns = [order.groups(epoch).flatten().tolist() for epoch in range(3)]
    assert all(sorted(turn) == list(range(10)) for turn in turns)
    assert len({tuple(turn) for turn in turns}) == 3


def test_buckets_are_mixed_within_an_epoch_and_seeds_have_orders_of_their_own() -> None:
    bucket_N = torch.arange(200) % 2
    groups = [BucketOrder(bucket_N, 10, seed).groups(0) for seed in (0, 1)]
    shown = bucket_N[groups[0][:, 0]].tolist()
    assert sorted(shown) == [0] * 10 + [1] * 10
    assert shown != sorted(shown)
    assert not torch.equal(*groups)


def test_the_order_of_a_run_does_not_change_between_releases() -> None:
    order = BucketOrder(torch.tensor([0, 0, 0, 1, 1]), group=2, seed=0)
    assert [order[position] for position in range(10)] == [4, 3, 2, 1, 3, 4, 1, 0, 0, 2]


@settings(max_examples=20, deadline=None)
@given(bucket_N=buckets_of, split=st.sampled_from([(12, 1), (6, 2), (3, 4), (2, 3), (1, 12)]))
def test_processes_share_each_step_whatever_their_number(bucket_N: torch.Tensor, split: tuple[int, int]) -> None:
    """A group of 12 images: any micro-batch that divides it is of one bucket, and all ranks together see the stream."""
    micro_batch, world_size = split
    samplers = [PositionSampler(BucketOrder(bucket_N, 12, 5), micro_batch, r, world_size) for r in range(world_size)]
    stream = BucketOrder(bucket_N, 12, 5)
    for batches in islice(zip(*samplers, strict=True), 4):
        for batch in batches:
            assert len(batch) == micro_batch
            assert len({int(bucket_N[sample.image]) for sample in batch}) == 1
            assert [sample.image for sample in batch] == [stream[sample.position] for sample in batch]
    taken = [sample.position for sampler in samplers for batch in islice(iter(sampler), 2) for sample in batch]
    assert sorted(taken) == list(range(2 * micro_batch * world_size))


@settings(max_examples=40, deadline=None)
@given(bucket_N=buckets_of, micro_batch=st.integers(1, 5), world_size=st.integers(1, 6))
def test_validation_covers_every_image_once_in_equal_numbers_of_batches(
    bucket_N: torch.Tensor, micro_batch: int, world_size: int
) -> None:
    world_size = min(world_size, len(bucket_N))
    taken = joined(bucket_N, world_size, Buckets(1024))
    parts = [even_bucket_batches(taken, micro_batch, rank, world_size) for rank in range(world_size)]
    assert sorted(image for part in parts for batch in part for image in batch) == list(range(len(bucket_N)))
    assert len({len(part) for part in parts}) == 1
    assert all(batch and len({int(taken[image]) for image in batch}) == 1 for part in parts for batch in part)
    if world_size == 1:
        assert torch.equal(taken, bucket_N)


def test_a_bucket_with_too_few_images_joins_its_neighbour_in_shape() -> None:
    assert joined(torch.tensor([0, 0, 1, 6, 6, 12]), 2, Buckets(1024)).tolist() == [0, 0, 0, 6, 6, 6]


def test_images_take_the_bucket_nearest_to_their_shape() -> None:
    size_N2 = torch.tensor([[50, 16], [10, 30], [10, 30], [7, 7]])
    taken = bucket_of(size_N2, bucket_run.BUCKETS)
    assert [bucket_run.BUCKETS.sizes[index] for index in taken] == [TALL, WIDE, WIDE, SQUARE]


@given(height=st.integers(1, 90), width=st.integers(1, 90), to=st.sampled_from([WIDE, SQUARE, TALL]))
def test_a_crop_covers_its_size_and_shows_all_of_one_side(height: int, width: int, to: Size) -> None:
    image = Image.new("RGB", (width, height), (10, 20, 30))
    assert crop_to(image, to).getcolors() == [(to.height * to.width, (10, 20, 30))]
    assert crop_to(image, Size(16, 16)).tobytes() == centre_crop(image, 16).tobytes()


def test_what_a_bucket_cuts_off_is_equal_on_both_sides() -> None:
    ramp = Image.new("RGB", (300, 80))
    for x in range(300):
        ramp.paste((min(255, x), 0, 0), (x, 0, x + 1, 80))
    row = to_pixels(crop_to(ramp, WIDE))[0, 4].int()  # 240 of the 300 columns, 10 to a pixel
    assert (row - torch.arange(34, 34 + 240, 10).clamp_max(255)).abs().max() <= 4


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_a_size_is_that_of_the_upright_image(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (30, 20)).save(tmp_path / split / "cat" / "0.jpg", exif=exif)
    opened = ImageFolder(tmp_path).open()
    loaded = opened.train.load(0)  # type: ignore[call-arg,arg-type]
    assert isinstance(loaded, Image.Image)
    expected = [loaded.height, loaded.width]
    assert expected == ([20, 30] if orientation == 1 else [30, 20])
    assert image_sizes(opened, None)["train"].tolist() == [expected]


def ready(images: Path, **options: Any) -> ImageData:
    data = bucket_run.image_data(images, **options)
    data.setup("fit")
    return data


def batches(loader: ResumableLoader, count: int) -> list[ImageBatch]:
    return [batch for batch in islice(iter(loader), count) if isinstance(batch, ImageBatch)]


def test_batches_hold_whole_images_of_one_size_with_their_labels(images: Path) -> None:
    shown = batches(ready(images, batch_size=4).train_dataloader(), 24)
    size_of = {0: SQUARE, 1: TALL, 2: WIDE}  # classes, in the order of their names
    for batch in shown:
        assert {size_of[int(label)] for label in torch.as_tensor(batch.condition)} == {batch.image_BCHW.shape[2:]}
    labels = torch.cat([torch.as_tensor(batch.condition) for batch in shown])
    # The 12 groups of 8 that 4 epochs of 26 images have: each bucket carries less than a group over.
    expected = torch.tensor([count for _, count in (bucket_run.SHAPES[name] for name in sorted(bucket_run.SHAPES))])
    assert (labels.bincount() - 4 * expected).abs().max() < 8


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 7])
def test_a_resumed_loader_continues_exactly(images: Path, workers: int, taken: int) -> None:
    straight = batches(ready(images, batch_size=4).train_dataloader(), taken + 6)
    interrupted = ready(images, batch_size=4, workers=workers).train_dataloader()
    before = batches(interrupted, taken)
    resumed = ready(images, batch_size=2, workers=workers).train_dataloader()  # on more processes, of which this is one
    resumed.load_state_dict(interrupted.state_dict())
    after = batches(resumed, 12)
    for one, other in zip(straight, before, strict=False):
        assert same(one, other)
    for index, one in enumerate(straight[taken:]):
        assert same(one, together(iter(after[2 * index : 2 * index + 2])))


def test_validation_goes_through_the_buckets_in_order(images: Path) -> None:
    loaded = list(ready(images).val_dataloader())
    assert [tuple(batch.image_BCHW.shape[2:]) for batch in loaded if isinstance(batch, ImageBatch)] == [
        WIDE,
        SQUARE,
        TALL,
    ]
    assert sorted(torch.cat([batch.position_B for batch in loaded]).tolist()) == list(range(6))


def test_what_samples_are_compared_with_are_squares(images: Path) -> None:
    data = ready(images)
    assert {batch.image_BCHW.shape[2:] for batch in data.training_images(5)} == {SQUARE}


def test_sizes_are_read_once_for_the_same_data(images: Path, tmp_path: Path) -> None:
    opened = ImageFolder(images).open()
    first = image_sizes(opened, tmp_path)
    unread = opened._replace(train=None, validation=None)  # type: ignore[arg-type]
    assert all(torch.equal(sizes, first[split]) for split, sizes in image_sizes(unread, tmp_path).items())
    with pytest.raises(ValueError, match="NoneType knows no sizes"):
        image_sizes(unread._replace(fingerprint="other"), tmp_path)
    (tmp_path / FILE).write_bytes(b"damaged")
    assert torch.equal(image_sizes(opened, tmp_path)["train"], first["train"])


def test_a_run_keeps_the_sizes_in_its_folder(images: Path, tmp_path: Path) -> None:
    data = bucket_run.image_data(images)
    data.trainer = tiny_run.trainer_for(tmp_path, 1)
    data.trainer.strategy.connect(None)  # type: ignore[arg-type]
    data.setup("fit")
    assert (tmp_path / FILE).exists()


def test_every_vendored_image_says_its_size() -> None:
    sizes = image_sizes(Emoji(styles=("noto",)).open(), None)
    assert sizes["validation"].unique(dim=0).tolist() == [[64, 64]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": Buckets(32, 8)}, r"image_size is 16, data\.buckets\.image_size 32; set them to the same"),
        ({"draws": 2}, r"leave data\.buckets or data\.draws out"),
        ({"batch_size": 6}, r"group is 8, but a process takes 6 images at once.* a multiple of 6"),
    ],
)
def test_what_does_not_go_together_is_refused(images: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(images, **options)


def test_a_source_without_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Squares knows no sizes of its images, which data\.buckets needs"):
        ImageData(SquareSource(), image_size=4, batch_size=2, buckets=Buckets(4, 2)).setup("fit")


def test_buckets_are_made_from_the_command_line(tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageData, "data")
    words = ["--data=snapgen_pl.data.datamodule.ImageData", "--data.source=snapgen_pl.data.image_folder.ImageFolder"]
    words += [f"--data.source.root={tmp_path}", "--data.image_size=256", "--data.buckets.image_size=256"]
    data = parser.instantiate(parser.parse_args([*words, "--data.buckets.step=32"])).data
    assert data.buckets == Buckets(256, step=32)
